"""Buggy and fixed functions with abstracted names, after the BFP data of Tufano et al. (2019), made from Python.

A single realistic bug is put into a function; then both versions are written as words with one space between them, and
identifiers and literals become VAR_1, METHOD_1, TYPE_1, STRING_1, INT_1, FLOAT_1 in order of appearance, the same in
both ("An Empirical Study on Learning Bug-Fixing Patches in the Wild via Neural Machine Translation", section 2.2).
Line ends and indentation are the words NEWLINE, INDENT and DEDENT.
"""

import ast
import copy
import dataclasses
import io
import keyword
import re
import tokenize
from collections.abc import Iterator, Sequence

from codegen2_jax.data.python_functions import FunctionNode, parse
from codegen2_jax.data.sources import stable_hash

# Words that stay: Python's own vocabulary and, as in BFP, the most frequent names ("idioms").
_BUILTINS = (
    "ArithmeticError AssertionError AttributeError BaseException EOFError Exception FileNotFoundError ImportError "
    "IndexError IOError KeyError KeyboardInterrupt LookupError NameError NotImplemented NotImplementedError OSError "
    "OverflowError RuntimeError StopIteration SyntaxError SystemExit TypeError UnicodeError ValueError "
    "ZeroDivisionError abs all any bool bytearray bytes callable chr dict divmod enumerate filter float format "
    "frozenset getattr hasattr hash hex id int isinstance issubclass iter len list locals map max min next object open "
    "ord pow print property range repr reversed round set setattr slice sorted staticmethod str sum super tuple type "
    "vars zip"
)
_IDIOMS = "append close extend format get items join keys pop read replace split startswith endswith strip values write"
_KEPT = frozenset([*keyword.kwlist, *_BUILTINS.split(), *_IDIOMS.split(), "self", "cls", "_"])
_KEPT_LITERALS = frozenset({"0", "1", "2", "''", '""', "b''"})

MAX_WORDS = 60
MIN_WORDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
    """A buggy and a fixed function as abstracted words, and the kind of bug."""

    kind: str
    buggy: str
    fixed: str


def words(text: str) -> list[tuple[str, str]]:
    """(kind, word) for each token of Python source; kind is "name", "number", "string" or "other".

    An f-string is one word on every Python version. Line structure at the very end is left out.
    """
    found: list[tuple[str, str]] = []
    depth, start = 0, (0, 0)
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text + "\n").readline):
        name = tokenize.tok_name[token.type]
        if name.startswith("FSTRING"):  # Python 3.12 and later
            if name == "FSTRING_START":
                start = start if depth else token.start
                depth += 1
            elif name == "FSTRING_END":
                depth -= 1
                if not depth:
                    found.append(("string", _between(lines, start, token.end)))
        elif depth or name in ("COMMENT", "NL", "ENCODING", "ENDMARKER"):
            continue
        elif name in ("NEWLINE", "INDENT", "DEDENT"):
            found.append(("other", name))
        else:
            found.append(({"NAME": "name", "NUMBER": "number", "STRING": "string"}.get(name, "other"), token.string))
    while found and found[-1][1] in ("NEWLINE", "DEDENT"):
        found.pop()
    return found


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    block = lines[start[0] - 1 : end[0]]
    block[-1] = block[-1][: end[1]]
    block[0] = block[0][start[1] :]
    return "".join(block)


class Abstraction:
    """Gives identifiers and literals their numbers, in order of appearance over all texts it is called with."""

    def __init__(self):
        self._known: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        """The abstracted words of a Python function, joined by single spaces."""
        tokens = words(text)
        called = {
            word
            for (kind, word), (_, following) in zip(tokens, tokens[1:], strict=False)
            if kind == "name" and following == "("
        }
        return " ".join(self._word(kind, word, called) for kind, word in tokens)

    def __len__(self) -> int:
        return len(self._known)

    def _word(self, kind: str, word: str, called: set[str]) -> str:
        if kind == "other" or word in _KEPT or word in _KEPT_LITERALS or re.fullmatch(r"__\w+__", word):
            return word
        if (kind, word) not in self._known:
            label = _label(kind, word, called)
            self._counts[label] = self._counts.get(label, 0) + 1
            self._known[kind, word] = f"{label}_{self._counts[label]}"
        return self._known[kind, word]


def _label(kind: str, word: str, called: set[str]) -> str:
    if kind == "string":
        return "STRING"
    if kind == "number":
        return "INT" if word.replace("_", "").isalnum() and "." not in word and "e" not in word else "FLOAT"
    if word.lstrip("_")[:1].isupper() and not word.isupper():
        return "TYPE"
    return "METHOD" if word in called else "VAR"


def abstracted(text: str) -> str:
    """One function's abstracted words."""
    return Abstraction()(text)


def refinement(node: FunctionNode, *, max_words: int = MAX_WORDS, min_words: int = MIN_WORDS) -> Refinement | None:
    """The function with one bug and without, or None where no bug fits.

    The bug is chosen by a hash of the function's text. Pairs whose fixed side needs a name or literal that the buggy
    side does not show are passed over, as in BFP: nobody could write it.
    """
    fixed_text = ast.unparse(node)
    if not min_words <= len(words(fixed_text)) <= max_words:
        return None
    for kind, site in _in_hashed_order(fixed_text, list(_sites(node))):
        buggy_text = _mutated(node, site)
        if buggy_text is None or buggy_text == fixed_text or len(words(buggy_text)) > max_words:
            continue
        abstraction = Abstraction()
        buggy = abstraction(buggy_text)
        known = len(abstraction)
        fixed = abstraction(fixed_text)
        if len(abstraction) == known and buggy != fixed:
            return Refinement(kind=kind, buggy=buggy, fixed=fixed)
    return None


# Nearly every function has a return; at weight 1 that kind would be two fifths of the data.
_WEIGHTS = {"missing_return": 0.15, "missing_statement": 0.5}


def _in_hashed_order(text: str, sites: list) -> list:
    """By kind first, so that a kind with many sites (variables) is not chosen more often than one with few.

    Kinds in weighted random order: each draws u^(1/weight), the largest comes first (Efraimidis and Spirakis, 2006).
    """

    def order(site):
        uniform = (stable_hash(f"{site[0]}/{text}") + 1) / 2**64
        return -(uniform ** (1 / _WEIGHTS.get(site[0], 1.0))), stable_hash(f"{site}/{text}")

    return sorted(sites, key=order)


_SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Add, ast.Div),
    ast.Div: (ast.Mult, ast.FloorDiv), ast.FloorDiv: (ast.Div,), ast.Mod: (ast.FloorDiv,), ast.And: (ast.Or,),
    ast.Or: (ast.And,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}  # fmt: skip

# A site: (index in ast.walk, name of the change, parameter).
Site = tuple[int, str, object]


def _sites(node: FunctionNode) -> Iterator[tuple[str, Site]]:
    """Every (kind of bug, place) in the function."""
    variables = sorted(_variables(node))
    for index, inner in enumerate(ast.walk(node)):
        if isinstance(inner, ast.Compare):
            yield from _operator_sites("comparison_operator", index, inner.ops[0])
        elif isinstance(inner, ast.BinOp | ast.AugAssign) and not _has_text(inner):
            yield from _operator_sites("arithmetic_operator", index, inner.op)
            for change in (1, -1) if isinstance(inner, ast.BinOp) else ():
                yield "off_by_one", (index, "shift", change)
        elif isinstance(inner, ast.BoolOp):
            yield from _operator_sites("and_or", index, inner.op)
        elif isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not | ast.USub):
            yield ("dropped_not" if isinstance(inner.op, ast.Not) else "wrong_sign"), (index, "operand", None)
        elif isinstance(inner, ast.Call) and len(inner.args) > 1:
            for position in range(len(inner.args) - 1):
                yield "swapped_arguments", (index, "swap", position)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, bool | int):
            yield "wrong_constant", (index, "constant", None)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load) and inner.id in variables:
            for other in variables:
                if other != inner.id:
                    yield "wrong_variable", (index, "name", other)
        elif isinstance(inner, ast.Return) and inner.value is not None and len(node.body) > 1:
            yield "missing_return", (index, "return", None)
        if isinstance(inner, ast.If | ast.While) and not isinstance(inner.test, ast.UnaryOp):
            yield "negated_condition", (index, "negate", None)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(inner, field, None)
            for position in range(len(block) if isinstance(block, list) and len(block) > 1 else 0):
                if isinstance(block[position], ast.Expr | ast.Assign | ast.AugAssign | ast.If | ast.Raise | ast.Return):
                    yield "missing_statement", (index, "remove", (field, position))


def _has_text(node: ast.expr | ast.stmt) -> bool:
    """Whether an operand, of a nested operation too, is a string: text is joined and formatted, not calculated with."""
    if isinstance(node, ast.BinOp):
        return _has_text(node.left) or _has_text(node.right)
    if isinstance(node, ast.AugAssign):
        return _has_text(node.value)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _operator_sites(kind: str, index: int, operator: ast.AST) -> Iterator[tuple[str, Site]]:
    for number in range(len(_SWAPS.get(type(operator), ()))):
        yield kind, (index, "operator", number)


def _variables(node: FunctionNode) -> set[str]:
    """Parameters and names assigned in the function, less self and cls."""
    names = {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
    names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    return names - {"self", "cls", "_"}


def _mutated(node: FunctionNode, site: Site) -> str | None:
    """The function's text with the change made; None where it is no Python."""
    index, change, parameter = site
    tree = copy.deepcopy(node)
    target = next(inner for number, inner in enumerate(ast.walk(tree)) if number == index)
    replacement = _CHANGES[change](target, parameter)
    if replacement is not None:
        tree = _Replace(target, replacement).visit(tree)
    text = ast.unparse(ast.fix_missing_locations(tree))
    return text if parse(text) is not None else None


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else super().generic_visit(node)


def _change_operator(target, number) -> None:
    if isinstance(target, ast.Compare):
        target.ops[0] = _SWAPS[type(target.ops[0])][number]()
    else:
        target.op = _SWAPS[type(target.op)][number]()


def _change_shift(target, change) -> ast.expr:
    """x + y becomes x + y - 1 or x + y + 1."""
    operator = ast.Add() if change > 0 else ast.Sub()
    return ast.BinOp(left=target, op=operator, right=ast.Constant(value=1))


def _change_swap(target, position) -> None:
    target.args[position : position + 2] = reversed(target.args[position : position + 2])


def _change_constant(target, _) -> None:
    value = target.value
    target.value = (not value) if isinstance(value, bool) else {0: 1, 1: 0, 2: 1}.get(value, value)


def _change_name(target, other) -> None:
    target.id = other


def _change_negate(target, _) -> None:
    target.test = ast.UnaryOp(op=ast.Not(), operand=target.test)


def _change_remove(target, place) -> None:
    field, position = place
    del getattr(target, field)[position]


_CHANGES: dict = {
    "operator": _change_operator,
    "shift": _change_shift,
    "operand": lambda target, _: target.operand,
    "swap": _change_swap,
    "constant": _change_constant,
    "name": _change_name,
    "return": lambda target, _: ast.Expr(value=target.value),
    "negate": _change_negate,
    "remove": _change_remove,
}


def kinds(refinements: Sequence[Refinement]) -> dict[str, int]:
    """How many of each kind of bug."""
    return {kind: sum(one.kind == kind for one in refinements) for kind in sorted({one.kind for one in refinements})}

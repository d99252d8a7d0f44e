"""Functions of Python files as short texts: signature, body, docstring sentences.

All code text is written by ast.unparse, so quotes, spaces and line breaks are uniform and comments are gone; a small
model then spends its capacity on the code and exact match means equal syntax trees.
"""

import ast
import copy
import dataclasses
import functools
import hashlib
import re
import textwrap
import warnings
from collections.abc import Iterator

from codegen2_jax.data.sources import SourceFile, normalise_white_space

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
_DOCTEST = re.compile(r">>>|^\s*[-=~]{3,}|\bS\.\w+\(|->|::|\bXXX\b|\bTODO\b")
_FIELD = re.compile(
    r"^\s*(:|@|\.\. |Args?:|Arguments:|Returns?:|Raises:|Parameters?\b:?\s*$|Note:|Example)", re.MULTILINE
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a function may be. Characters and lines, so that the choice does not depend on a vocabulary."""

    body_lines: int = 12
    body_characters: int = 350
    signature_characters: int = 100
    sentence_characters: int = 160


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PythonFunction:
    """One function or method of a file; node has no docstring, no decorators and no annotations.

    name is "path::Class.function@line", unique in a corpus.
    """

    path: str
    name: str
    node: FunctionNode
    docstring: str
    in_class: bool

    @functools.cached_property
    def text(self) -> str:
        """The whole function: signature and body."""
        return ast.unparse(self.node)

    @functools.cached_property
    def signature(self) -> str:
        """The first line, with its colon: "def name(self, value=None):"."""
        stub = copy.copy(self.node)
        stub.body = [ast.Pass()]
        return ast.unparse(stub).removesuffix("\n    pass")

    @functools.cached_property
    def body(self) -> str:
        """The statements without the function's indentation."""
        return textwrap.dedent(self.text.removeprefix(self.signature).lstrip("\n"))

    @functools.cached_property
    def sentence(self) -> str:
        """The first sentence of the docstring, white space normalised; "" where there is no usable one."""
        return first_sentences(self.docstring, 1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the syntax tree without name, docstring, decorators, annotations and positions."""
        anonymous = copy.copy(self.node)
        anonymous.name = "function"
        return hashlib.sha256(ast.dump(anonymous).encode("utf-8")).hexdigest()

    @functools.cached_property
    def num_statements(self) -> int:
        """Statements in the body, those inside other statements included."""
        return sum(isinstance(node, ast.stmt) for node in ast.walk(self.node)) - 1


def first_sentences(docstring: str, count: int, limit: int = 240) -> str:
    """The first `count` sentences of a docstring's first paragraph, in one line; "" where there is none in prose.

    At most `limit` characters: whole sentences are dropped from the end, and a first sentence that is longer gives "".
    """
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    field = _FIELD.search(paragraph)
    if field:
        paragraph = paragraph[: field.start()]
    sentences = _SENTENCE_END.split(normalise_white_space(paragraph))[:count]
    while sentences and len(" ".join(sentences)) > limit:
        sentences.pop()
    text = " ".join(sentences)
    return text if _is_prose(text) else ""


def _is_prose(text: str) -> bool:
    words = re.findall(r"[A-Za-z]{2,}", text)
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(words) >= 3 and text.isascii() and letters >= 0.8 * len(text) and not _DOCTEST.search(text)


class _Plain(ast.NodeTransformer):
    """Drops docstrings, annotations and decorators, of nested functions too; `x: int = 1` becomes `x = 1`."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        node.type_comment = None
        return node

    def _visit_function(self, node: FunctionNode) -> FunctionNode:
        node.decorator_list = []
        node.returns = None
        node.type_comment = None
        self.generic_visit(node)
        node.body = _without_docstring(node.body) or [ast.Pass()]
        return node

    visit_FunctionDef = _visit_function
    visit_AsyncFunctionDef = _visit_function

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    is_docstring = bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return body[1:] if is_docstring and isinstance(body[0].value.value, str) else body


def parse(text: str) -> ast.Module | None:
    """The syntax tree, or None for text that this interpreter does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def functions_of(file: SourceFile, tree: ast.Module | None = None) -> tuple[PythonFunction, ...]:
    """The functions of a module and the methods of its classes, in order; functions inside functions are not taken.

    tree is the file's syntax tree where the caller has it already; its functions are changed in place.
    """
    tree = parse(file.text) if tree is None else tree
    if tree is None:
        return ()
    return tuple(_functions(tree, file.path, (), False))


def _functions(parent: ast.AST, path: str, scope: tuple[str, ...], in_class: bool) -> Iterator[PythonFunction]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _plain_function(node, path, scope, in_class)
            if function is not None:
                yield function
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, path, (*scope, node.name), True)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _functions(node, path, scope, in_class)


def _plain_function(node: FunctionNode, path: str, scope: tuple[str, ...], in_class: bool) -> PythonFunction | None:
    docstring = ast.get_docstring(node) or ""
    node.body = _without_docstring(node.body)
    if not node.body:
        return None
    plain = _Plain().visit(node)
    name = f"{path}::{'.'.join((*scope, node.name))}@{node.lineno}"
    return PythonFunction(path=path, name=name, node=plain, docstring=docstring, in_class=in_class)


def is_trivial(function: PythonFunction) -> bool:
    """Whether the body says nothing: only pass, ..., return, a constant, or raise NotImplementedError."""
    if len(function.node.body) > 1:
        return False
    statement = function.node.body[0]
    if isinstance(statement, ast.Pass | ast.Global | ast.Nonlocal):
        return True
    if isinstance(statement, ast.Expr | ast.Return):
        return statement.value is None or isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Raise) and "NotImplementedError" in ast.unparse(statement)


def is_short(function: PythonFunction, limits: Limits) -> bool:
    """Whether signature and body are within the limits, ASCII, and without lines too long for one to read."""
    return (
        # Each statement takes a line: spares writing out what is far too long.
        function.num_statements <= limits.body_lines
        and len(function.signature) <= limits.signature_characters
        and len(function.body) <= limits.body_characters
        and function.body.count("\n") < limits.body_lines
        and function.text.isascii()
    )


def generation_prompt(function: PythonFunction) -> str:
    """What a body is generated from: up to two docstring sentences, then the signature on its own line."""
    return f"{first_sentences(function.docstring, 2)}\n{function.signature}"

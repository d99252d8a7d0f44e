"""Python expressions written as JavaScript (ECMAScript 2022).

The translation is syntactic, as a programmer's first draft would be: it knows no types, so truth of empty containers,
integer division of negatives and the like keep JavaScript's meaning. What has no direct counterpart raises Unsupported.
"""

import ast

from codegen2_jax.data.javascript.calls import builtin_call, method_call
from codegen2_jax.data.javascript.scopes import Comprehension
from codegen2_jax.data.javascript.strings import joined, percent, string
from codegen2_jax.data.javascript.syntax import (
    ADD,
    AND,
    ASSIGN,
    BIT_AND,
    BIT_OR,
    BIT_XOR,
    BUILTINS,
    CONDITIONAL,
    EQUAL,
    MULTIPLY,
    NO_COUNTERPART,
    NUMBER,
    OR,
    POSTFIX,
    POWER,
    PRIMARY,
    RELATION,
    RESERVED,
    SHIFT,
    UNARY,
    Unsupported,
)

_BINARY = {
    ast.Add: ("+", ADD), ast.Sub: ("-", ADD), ast.Mult: ("*", MULTIPLY), ast.Div: ("/", MULTIPLY),
    ast.Mod: ("%", MULTIPLY), ast.LShift: ("<<", SHIFT), ast.RShift: (">>", SHIFT), ast.BitOr: ("|", BIT_OR),
    ast.BitXor: ("^", BIT_XOR), ast.BitAnd: ("&", BIT_AND),
}
_COMPARE = {
    ast.Eq: ("===", EQUAL), ast.NotEq: ("!==", EQUAL), ast.Is: ("===", EQUAL), ast.IsNot: ("!==", EQUAL),
    ast.Lt: ("<", RELATION), ast.LtE: ("<=", RELATION), ast.Gt: (">", RELATION), ast.GtE: (">=", RELATION),
}


class Expressions:
    """Writes the expressions of one function.

    this: the parameter that JavaScript calls `this`; variables: the function's own names, which hide builtins;
    dictionaries, sets: the Python text of expressions that the function uses as such.
    """

    def __init__(
        self,
        *,
        this: str | None = None,
        variables: frozenset[str] = frozenset(),
        dictionaries: frozenset[str] = frozenset(),
        sets: frozenset[str] = frozenset(),
    ):
        self.this = this
        self.variables = variables
        self.dictionaries = dictionaries
        self.sets = sets

    def text(self, node: ast.expr, least: float = ASSIGN) -> str:
        """The expression, in parentheses when it binds looser than `least`."""
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is None:
            raise Unsupported(type(node).__name__)
        written = method(node)
        text, level = written if isinstance(written, tuple) else (written, PRIMARY)
        return f"({text})" if level < least else text

    def name(self, identifier: str) -> str:
        """A variable's name; one that JavaScript reserves gets an underscore."""
        if identifier == self.this:
            return "this"
        if not identifier.isascii():
            raise Unsupported("name outside ASCII")
        return f"{identifier}_" if identifier in RESERVED else identifier

    def arguments(self, call: ast.Call) -> str:
        """Positional arguments, then one object with the keyword arguments."""
        parts = [self.text(argument) for argument in call.args]
        if call.keywords:
            fields = [
                f"{key.arg}: {self.text(key.value)}" if key.arg else f"...{self.text(key.value)}"
                for key in call.keywords
            ]
            parts.append("{ " + ", ".join(fields) + " }")
        return ", ".join(parts)

    def _Name(self, node):
        if node.id in self.variables:
            return self.name(node.id)
        if node.id in NO_COUNTERPART:
            raise Unsupported(f"name {node.id}")
        return BUILTINS.get(node.id) or self.name(node.id)

    def _Constant(self, node):
        value = node.value
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, str):
            return string(value)
        if isinstance(value, int) and abs(value) < 2**53:
            return str(value), NUMBER
        if isinstance(value, float) and abs(value) < float("inf"):
            return repr(value), NUMBER
        raise Unsupported(f"constant {type(value).__name__}")

    def _Attribute(self, node):
        name = {"__class__": "constructor"}.get(node.attr, node.attr)
        return f"{self.text(node.value, POSTFIX)}.{name}"

    def _Subscript(self, node):
        value, index = self.text(node.value, POSTFIX), node.slice
        if isinstance(index, ast.Slice):
            return self._slice(value, index, node.ctx)
        if isinstance(index, ast.Tuple):
            raise Unsupported("tuple index")
        if is_negative(index):
            if not isinstance(node.ctx, ast.Load):
                raise Unsupported("store to a negative index")
            return f"{value}.at({self.text(index)})"
        if isinstance(index, ast.Constant) and isinstance(index.value, str) and index.value.isidentifier():
            return f"{value}.{index.value}" if index.value.isascii() else f"{value}[{self.text(index)}]"
        return f"{value}[{self.text(index)}]"

    def _slice(self, value, index, context):
        if not isinstance(context, ast.Load):
            raise Unsupported("store to a slice")
        bounds = [index.lower, index.upper]
        if index.step is not None:
            if bounds == [None, None] and ast.unparse(index.step) == "-1":
                return f"[...{value}].reverse()"
            raise Unsupported("slice with a step")
        if bounds == [None, None]:
            return f"{value}.slice()"
        lower = self.text(index.lower) if index.lower is not None else "0"
        return f"{value}.slice({lower}{', ' + self.text(index.upper) if index.upper is not None else ''})"

    def _List(self, node):
        if isinstance(node.ctx, ast.Store):
            names = [item.id for item in node.elts if isinstance(item, ast.Name)]
            if len(names) != len(set(names)):
                raise Unsupported("a target that names a variable twice")
        return "[" + ", ".join(self.text(item) for item in node.elts) + "]"

    _Tuple = _List

    def _Set(self, node):
        return "new Set([" + ", ".join(self.text(item) for item in node.elts) + "])"

    def _Dict(self, node):
        if not node.keys:
            return "{}"
        return "{ " + ", ".join(map(self._field, node.keys, node.values)) + " }"

    def _field(self, key, value):
        if key is None:
            return f"...{self.text(value)}"
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            name = key.value if key.value.isidentifier() and key.value.isascii() else string(key.value)
            return f"{name}: {self.text(value)}"
        return f"[{self.text(key)}]: {self.text(value)}"

    def _Starred(self, node):
        return f"...{self.text(node.value)}"

    def _JoinedStr(self, node):
        return joined(self, node)

    def _BinOp(self, node):
        left, right = node.left, node.right
        if isinstance(node.op, ast.Mod) and isinstance(left, ast.Constant) and isinstance(left.value, str):
            return percent(self, left.value, right)
        if isinstance(node.op, ast.FloorDiv):
            return f"Math.floor({self.text(left, MULTIPLY)} / {self.text(right, POWER)})"
        if isinstance(node.op, ast.Pow):
            return f"{self.text(left, NUMBER)} ** {self.text(right, POWER)}", POWER
        if isinstance(node.op, ast.Mult):
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, ast.Constant) and isinstance(sequence.value, str):
                    return f"{self.text(sequence)}.repeat({self.text(times)})"
                if isinstance(sequence, ast.List) and len(sequence.elts) == 1:
                    return f"new Array({self.text(times)}).fill({self.text(sequence.elts[0])})"
        if isinstance(node.op, ast.Add) and (_is_array(left) or _is_array(right)):
            return "[" + ", ".join(self._spread(side) for side in (left, right) if not _is_empty(side)) + "]"
        if type(node.op) not in _BINARY or any(isinstance(side, ast.List | ast.Tuple) for side in (left, right)):
            raise Unsupported(f"operator {type(node.op).__name__}")
        sign, level = _BINARY[type(node.op)]
        return f"{self.text(left, level)} {sign} {self.text(right, level + 0.5)}", level

    def _spread(self, side):
        return ", ".join(self.text(item) for item in side.elts) if _is_array(side) else f"...{self.text(side)}"

    def _UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            return f"!{self.text(node.operand, UNARY)}", UNARY
        sign = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}[type(node.op)]
        operand = self.text(node.operand, UNARY)
        return f"{sign}({operand})" if operand[0] in "+-" else f"{sign}{operand}", UNARY

    def _BoolOp(self, node):
        sign, level = ("&&", AND) if isinstance(node.op, ast.And) else ("||", OR)
        return f" {sign} ".join(self.text(value, level) for value in node.values), level

    def _Compare(self, node):
        terms = [node.left, *node.comparators]
        middle = terms[1:-1]
        if not all(isinstance(term, ast.Name | ast.Constant | ast.Attribute) for term in middle):
            raise Unsupported("chained comparison of a call")
        parts = [self._compared(*pair) for pair in zip(terms, node.ops, terms[1:], strict=False)]
        return parts[0] if len(parts) == 1 else (" && ".join(text for text, _ in parts), AND)

    def _compared(self, left, operator, right):
        if isinstance(operator, ast.In):
            return self._contains(left, right)
        if isinstance(operator, ast.NotIn):
            text, level = self._contains(left, right)
            return (f"!({text})" if level < UNARY else f"!{text}"), UNARY
        sign, level = _COMPARE[type(operator)]
        return f"{self.text(left, level)} {sign} {self.text(right, level + 0.5)}", level

    def _contains(self, item, container):
        if isinstance(container, ast.Dict) or ast.unparse(container) in self.dictionaries:
            return f"{self.text(item, RELATION)} in {self.text(container, SHIFT)}", RELATION
        if isinstance(container, ast.Set):
            container = ast.List(elts=container.elts, ctx=ast.Load())
        test = "has" if ast.unparse(container) in self.sets else "includes"
        return f"{self.text(container, POSTFIX)}.{test}({self.text(item)})", PRIMARY

    def _IfExp(self, node):
        test, body, other = self.text(node.test, OR), self.text(node.body), self.text(node.orelse)
        return f"{test} ? {body} : {other}", CONDITIONAL

    def _NamedExpr(self, node):
        return f"({self.text(node.target)} = {self.text(node.value)})"

    def _Lambda(self, node):
        return f"({self.parameters(node.args)}) => {self.arrow_body(node.body)}", ASSIGN

    def arrow_body(self, node: ast.expr) -> str:
        """What stands after `=>`; an object literal in parentheses, or it would be a block."""
        text = self.text(node)
        return f"({text})" if text.startswith("{") else text

    def _Await(self, node):
        return f"await {self.text(node.value, UNARY)}", UNARY

    def _Yield(self, node):
        return (f"yield {self.text(node.value)}" if node.value is not None else "yield"), ASSIGN

    def _YieldFrom(self, node):
        return f"yield* {self.text(node.value)}", ASSIGN

    def _ListComp(self, node):
        return self._mapped(node, node.elt)

    _GeneratorExp = _ListComp

    def _SetComp(self, node):
        return f"new Set({self._mapped(node, node.elt)})"

    def _DictComp(self, node):
        return f"Object.fromEntries({self._mapped(node, ast.List(elts=[node.key, node.value], ctx=ast.Load()))})"

    def _mapped(self, node, element):
        source, parameter, same = self.filtered(node, element)
        return source if same else f"{source}.map({parameter} => {self.arrow_body(element)})"

    def filtered(self, node: Comprehension, element: ast.expr) -> tuple[str, str, bool]:
        """(array after the conditions, arrow parameters, whether the element is the loop variable itself)."""
        if len(node.generators) != 1 or node.generators[0].is_async:
            raise Unsupported("nested or asynchronous comprehension")
        generator = node.generators[0]
        target = self.text(generator.target)
        source = self.array(generator.iter)
        for condition in generator.ifs:
            source = f"{source}.filter(({target}) => {self.text(condition)})"
        return source, f"({target})", ast.dump(element) == ast.dump(generator.target).replace("Store()", "Load()")

    def array(self, node: ast.expr) -> str:
        """Something that has map, filter and the like."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id == "range":
                return self.range(node.args)
            if node.func.id == "enumerate" and len(node.args) == 1:
                return f"[...{self.text(node.args[0], POSTFIX)}.entries()]"
        return self.text(node, POSTFIX)

    def range(self, arguments: list[ast.expr]) -> str:
        """range(...) as an array."""
        if len(arguments) == 1:
            return f"[...Array({self.text(arguments[0])}).keys()]"
        if len(arguments) == 2:
            low, high = arguments
            length = f"{self.text(high, ADD)} - {self.text(low, MULTIPLY)}"
            return f"Array.from({{ length: {length} }}, (_, i) => i + {self.text(low, MULTIPLY)})"
        raise Unsupported("range with a step")

    def parameters(self, arguments: ast.arguments) -> str:
        """A parameter list; keyword-only ones become one destructured object."""
        plain = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
        parts = [self._parameter(*pair) for pair in zip(plain, defaults, strict=True) if pair[0].arg != self.this]
        keywords = [self._parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        if arguments.kwarg is not None:
            keywords.append(f"...{self.name(arguments.kwarg.arg)}")
        if arguments.vararg is not None:
            if keywords:
                raise Unsupported("keyword parameters after a rest parameter")
            parts.append(f"...{self.name(arguments.vararg.arg)}")
        if keywords:
            parts.append("{ " + ", ".join(keywords) + " } = {}")
        return ", ".join(parts)

    def _parameter(self, argument, default):
        name = self.name(argument.arg)
        return name if default is None else f"{name} = {self.text(default)}"

    def _Call(self, node):
        function = node.func
        written = None
        if isinstance(function, ast.Name) and function.id not in self.variables:
            written = builtin_call(self, function.id, node)
        elif isinstance(function, ast.Attribute):
            written = method_call(self, function, node)
        if written is not None:
            return written
        callee = self.text(function, POSTFIX)
        is_class = _is_class(function) or (callee.endswith(".constructor") and "(" not in callee)
        return f"{'new ' if is_class else ''}{callee}({self.arguments(node)})"


def _is_class(function: ast.expr) -> bool:
    """Whether a callee is a class by its name: CapitalisedWords, or a built-in exception."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    capitalised = name.lstrip("_")[:1].isupper() and not name.isupper()
    return capitalised and not any(isinstance(node, ast.Call | ast.Subscript) for node in ast.walk(function))


def _is_array(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Tuple)


def _is_empty(node: ast.expr) -> bool:
    return _is_array(node) and not node.elts


def is_negative(node: ast.expr) -> bool:
    """Whether an index is a literal negative number."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)

"""A Python function written as JavaScript (ECMAScript 2022) from its syntax tree.

The result parses (a test runs node over all of PyTask-CL's), has block-scoped declarations, and reads like JavaScript;
names are kept, since they name an API. It is a translation of the syntax: see expressions.py for what that
leaves to the reader. Functions with constructs that have no counterpart (with, yield in lambdas, slices that are
assigned to, ...) raise Unsupported.
"""

import ast

from codegen2_jax.data.javascript.expressions import Expressions, is_negative
from codegen2_jax.data.javascript.scopes import Declarations, declarations, parameter_names
from codegen2_jax.data.javascript.syntax import BUILTINS, POSTFIX, SHIFT, UNARY, Unsupported

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_INDENT = "  "
_DICTIONARY_METHODS = frozenset({"get", "items", "keys", "setdefault", "values"})


def to_javascript(node: FunctionNode, *, in_class: bool = False) -> str:
    """The function as JavaScript source. in_class: its first parameter self or cls becomes `this`.

    Raises Unsupported, whose message names the construct.
    """
    first = (node.args.posonlyargs + node.args.args)[:1]
    this = first[0].arg if in_class and first and first[0].arg in ("self", "cls", "mcls", "metacls") else None
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id == this and not isinstance(inner.ctx, ast.Load):
            raise Unsupported("assignment to self")
    bound = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    for inner in ast.walk(node):
        if isinstance(inner, FunctionNode | ast.Lambda):
            if inner is not node and this in parameter_names(inner.args):
                raise Unsupported("self of a nested function")
            bound |= parameter_names(inner.args)
        if isinstance(inner, FunctionNode) and inner is not node:
            bound.add(inner.name)
        if isinstance(inner, ast.ExceptHandler) and inner.name:
            bound.add(inner.name)
    dictionaries, sets = _containers(node)
    expressions = Expressions(this=this, variables=frozenset(bound), dictionaries=dictionaries, sets=sets)
    return "\n".join(_Function(expressions, node).lines())


def _containers(node: FunctionNode) -> tuple[frozenset[str], frozenset[str]]:
    """Texts of the expressions that the function uses as dictionaries, and as sets."""
    dictionaries, sets, indexed = set(), set(), set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and inner.attr in _DICTIONARY_METHODS:
            dictionaries.add(ast.unparse(inner.value))
        elif isinstance(inner, ast.Attribute) and inner.attr in ("add", "discard"):
            sets.add(ast.unparse(inner.value))
        elif isinstance(inner, ast.Subscript):
            indexed.add((ast.unparse(inner.value), ast.unparse(inner.slice)))
    for inner in ast.walk(node):
        # `if key in table: table[key]`
        if isinstance(inner, ast.Compare) and isinstance(inner.ops[0], ast.In | ast.NotIn):
            container = ast.unparse(inner.comparators[0])
            if (container, ast.unparse(inner.left)) in indexed:
                dictionaries.add(container)
    return frozenset(dictionaries), frozenset(sets - dictionaries)


class _Function:
    """Writes one function's statements; nested functions get a writer of their own."""

    def __init__(self, expressions: Expressions, node: FunctionNode):
        self.expressions = expressions
        self.node = node
        self.declared: Declarations = declarations(node)
        self.caught: list[str] = []
        own = list(_own_nodes(node))
        self.is_generator = any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in own)

    def lines(self, *, arrow: bool = False) -> list[str]:
        """The whole function; as an arrow function (for a nested one) without its name."""
        asynchronous = "async " if isinstance(self.node, ast.AsyncFunctionDef) else ""
        parameters = self.expressions.parameters(self.node.args)
        if arrow:
            if self.is_generator:
                raise Unsupported("nested generator")
            head = f"{asynchronous}({parameters}) => {{"
        else:
            name = self.expressions.name(self.node.name)
            head = f"{asynchronous}function{'*' if self.is_generator else ''} {name}({parameters}) {{"
        body = self.block(self.node.body)
        if self.declared.hoisted:
            names = ", ".join(self.expressions.name(name) for name in self.declared.hoisted)
            body = [f"{_INDENT}let {names};", *body]
        return [head, *body, "}"]

    def block(self, statements: list[ast.stmt]) -> list[str]:
        """Statements, one level deeper."""
        lines = []
        for statement in statements:
            method = getattr(self, f"_{type(statement).__name__}", None)
            if method is None:
                raise Unsupported(type(statement).__name__)
            written = method(statement)
            lines += [written] if isinstance(written, str) else written
        return [_INDENT + line for line in lines]

    def _Pass(self, node):
        return []

    _Global = _Nonlocal = _Pass

    def _Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return []  # a string or ... that stands for nothing
        text = self.expressions.text(node.value)
        return f"({text});" if text.startswith(("{", "function")) else f"{text};"

    def _Return(self, node):
        return "return;" if node.value is None else f"return {self.expressions.text(node.value)};"

    def _Break(self, node):
        return "break;"

    def _Continue(self, node):
        return "continue;"

    def _Assign(self, node):
        targets = [self._target(target) for target in node.targets]
        text = " = ".join([*targets, self.expressions.text(node.value)])
        kind = self.declared.statements.get(id(node))
        return f"{kind} {text};" if kind else f"{text};"

    def _target(self, node):
        if isinstance(node, ast.Tuple | ast.List):
            if any(isinstance(item, ast.Starred) for item in node.elts[:-1]):
                raise Unsupported("starred target before the end")
            self.expressions.text(node)  # refuses a name that stands twice
            return "[" + ", ".join(self._target(item) for item in node.elts) + "]"
        return self.expressions.text(node, POSTFIX)

    def _AugAssign(self, node):
        target, value = self._target(node.target), node.value
        if isinstance(node.target, ast.Subscript) and is_negative(node.target.slice):
            raise Unsupported("store to a negative index")
        if isinstance(node.op, ast.FloorDiv):
            return f"{target} = Math.floor({target} / {self.expressions.text(value, UNARY)});"
        if isinstance(node.op, ast.Add) and isinstance(value, ast.List):
            return f"{target}.push({', '.join(map(self.expressions.text, value.elts))});"
        signs = {
            ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%", ast.Pow: "**", ast.LShift: "<<",
            ast.RShift: ">>", ast.BitOr: "|", ast.BitXor: "^", ast.BitAnd: "&",
        }  # fmt: skip
        if type(node.op) not in signs or isinstance(value, ast.Tuple):
            raise Unsupported(f"augmented {type(node.op).__name__}")
        return f"{target} {signs[type(node.op)]}= {self.expressions.text(value)};"

    def _Delete(self, node):
        lines = []
        for target in node.targets:
            if not isinstance(target, ast.Subscript | ast.Attribute):
                raise Unsupported("del of a variable")
            lines.append(f"delete {self.expressions.text(target, UNARY)};")
        return lines

    def _If(self, node):
        lines = [f"if ({self.expressions.text(node.test)}) {{", *self.block(node.body)]
        orelse = node.orelse
        if len(orelse) == 1 and isinstance(orelse[0], ast.If):
            chained = self._If(orelse[0])
            return [*lines, f"}} else {chained[0]}", *chained[1:]]
        return [*lines, "} else {", *self.block(orelse), "}"] if orelse else [*lines, "}"]

    def _While(self, node):
        if node.orelse:
            raise Unsupported("else of a loop")
        return [f"while ({self.expressions.text(node.test)}) {{", *self.block(node.body), "}"]

    def _For(self, node):
        if node.orelse:
            raise Unsupported("else of a loop")
        kind = self.declared.statements.get(id(node), "")
        return [f"{self._loop_head(node, kind)} {{", *self.block(node.body), "}"]

    def _AsyncFor(self, node):
        if node.orelse:
            raise Unsupported("else of a loop")
        kind = self.declared.statements.get(id(node), "")
        head = f"for await ({kind} {self._target(node.target)} of {self.expressions.text(node.iter)})"
        return [f"{head.replace('( ', '(')} {{", *self.block(node.body), "}"]

    def _loop_head(self, node, kind):
        call = node.iter
        counts = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"
        if counts and "range" not in self.expressions.variables and isinstance(node.target, ast.Name):
            return self._counting_head(node.target, call.args, kind)
        source = self.expressions.text(call)
        return f"for ({kind} {self._target(node.target)} of {source})".replace("( ", "(")

    def _counting_head(self, target, arguments, kind):
        # A loop variable that the body changes, or that lives on, counts differently in JavaScript.
        if kind != "const":
            raise Unsupported("counting variable used otherwise")
        name = self.expressions.name(target.id)
        low, high = ("0", arguments[0]) if len(arguments) == 1 else (self.expressions.text(arguments[0]), arguments[1])
        step = ast.literal_eval(arguments[2]) if len(arguments) == 3 and _is_literal(arguments[2]) else 1
        if len(arguments) == 3 and not _is_literal(arguments[2]):
            raise Unsupported("computed step")
        sign, change = ("<", "++" if step == 1 else f" += {step}")
        if step < 0:
            sign, change = (">", "--" if step == -1 else f" -= {-step}")
        return f"for (let {name} = {low}; {name} {sign} {self.expressions.text(high, SHIFT)}; {name}{change})"

    def _Raise(self, node):
        if node.exc is None:
            if not self.caught:
                raise Unsupported("raise outside a handler")
            return f"throw {self.caught[-1]};"
        raised = node.exc
        name = raised.id if isinstance(raised, ast.Name) else ""
        if name in self.expressions.variables:
            return f"throw {self.expressions.text(raised)};"
        arguments = raised.args if isinstance(raised, ast.Call) else []
        is_call = isinstance(raised, ast.Call) and not raised.keywords
        if not is_call and not (isinstance(raised, ast.Name | ast.Attribute) and _last(raised)[:1].isupper()):
            return f"throw {self.expressions.text(raised)};"
        parts = [self.expressions.text(argument) for argument in arguments]
        if node.cause is not None and not (isinstance(node.cause, ast.Constant) and node.cause.value is None):
            parts = parts or ["''"]
            parts.append(f"{{ cause: {self.expressions.text(node.cause)} }}")
        function = raised.func if is_call else raised
        new = "new " if _last(function).lstrip("_")[:1].isupper() else ""
        return f"throw {new}{self.expressions.text(function, POSTFIX)}({', '.join(parts)});"

    def _Assert(self, node):
        message = self.expressions.text(node.msg) if node.msg is not None else "'assertion failed'"
        test = ast.UnaryOp(op=ast.Not(), operand=node.test)
        return [f"if ({self.expressions.text(test)}) {{", f"{_INDENT}throw new Error({message});", "}"]

    def _Try(self, node):
        if node.orelse:
            raise Unsupported("else of a try")
        lines = ["try {", *self.block(node.body)]
        if node.handlers:
            lines += self._handlers(node.handlers)
        if node.finalbody:
            lines += ["} finally {", *self.block(node.finalbody)]
        return [*lines, "}"]

    def _handlers(self, handlers):
        names = {handler.name for handler in handlers if handler.name}
        if len(names) > 1:
            raise Unsupported("several names for one error")
        error = self.expressions.name(next(iter(names), "error"))
        tests = [self._handler_test(handler, error) for handler in handlers]
        if any(test is None for test in tests[:-1]):
            # Several Python exceptions are JavaScript's plain Error: the first such handler would take all.
            raise Unsupported("handlers that JavaScript cannot tell apart")
        if not names and any(isinstance(i, ast.Name) and i.id == error for h in handlers for i in ast.walk(h)):
            raise Unsupported("a variable named error")
        self.caught.append(error)
        bodies = [self.block(handler.body) for handler in handlers]
        self.caught.pop()
        if tests == [None]:
            used = names or any(line.strip() == f"throw {error};" for line in bodies[0])
            return [f"}} catch ({error}) {{" if used else "} catch {", *bodies[0]]
        lines = [f"}} catch ({error}) {{"]
        for index, (test, body) in enumerate(zip(tests, bodies, strict=True)):
            word = "if" if index == 0 else "} else if"
            head = f"{word} ({test}) {{" if test is not None else "} else {"
            lines += [_INDENT + head, *(_INDENT + line for line in body)]
        if tests[-1] is not None:
            lines += [_INDENT + "} else {", _INDENT * 2 + f"throw {error};"]
        return [*lines, _INDENT + "}"]

    def _handler_test(self, handler, error):
        """The condition of a handler, or None where it catches everything."""
        if handler.type is None:
            return None
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        texts = list(dict.fromkeys(self.expressions.text(kind, SHIFT) for kind in kinds))
        if any(isinstance(kind, ast.Name) and BUILTINS.get(kind.id) == "Error" for kind in kinds):
            return None
        return " || ".join(f"{error} instanceof {text}" for text in texts)

    def _FunctionDef(self, node):
        first, *rest = _Function(self.expressions, node).lines(arrow=True)
        kind = "" if node.name in self.declared.hoisted or self._is_outer(node.name) else "const "
        lines = [f"{kind}{self.expressions.name(node.name)} = {first}", *rest]
        return [*lines[:-1], lines[-1] + ";"]

    _AsyncFunctionDef = _FunctionDef

    def _is_outer(self, name: str) -> bool:
        nodes = _own_nodes(self.node)
        return any(isinstance(node, ast.Global | ast.Nonlocal) and name in node.names for node in nodes)


def _own_nodes(node: FunctionNode):
    """The nodes of a function without those of functions inside it."""
    waiting = list(node.body)
    while waiting:
        inner = waiting.pop()
        yield inner
        if not isinstance(inner, FunctionNode | ast.Lambda):
            waiting += ast.iter_child_nodes(inner)


def _is_literal(node: ast.expr) -> bool:
    operand = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    return isinstance(operand, ast.Constant) and isinstance(operand.value, int) and operand.value != 0


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")

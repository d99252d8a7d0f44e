"""Calls of Python's builtins and of the methods of its strings, lists and dictionaries, as JavaScript.

`writer` is the Expressions that writes the arguments. A function returns a text, (text, precedence), or None where the
call is written like any other.
"""

import ast

from codegen2_jax.data.javascript.strings import format_call, string
from codegen2_jax.data.javascript.syntax import (
    ASSIGN,
    BIT_OR,
    BUILTINS,
    COALESCE,
    EQUAL,
    MULTIPLY,
    NO_COUNTERPART,
    OR,
    POSTFIX,
    RELATION,
    SHIFT,
    UNARY,
    Unsupported,
)

Written = str | tuple[str, float] | None

_TYPES = {"str": "string", "int": "number", "float": "number", "bool": "boolean"}
_ARRAYS = ("list", "tuple")
# {} is the argument. Only for calls with exactly one positional argument.
_ONE_ARGUMENT = {
    "bool": "Boolean({})", "callable": "typeof {} === 'function'", "chr": "String.fromCharCode({})",
    "float": "parseFloat({})", "frozenset": "new Set({})", "int": "parseInt({}, 10)", "repr": "JSON.stringify({})",
    "set": "new Set({})", "str": "String({})", "len": "{.}.length", "ord": "{.}.charCodeAt(0)",
    "hex": "`0x${{.}.toString(16)}`", "bin": "`0b${{.}.toString(2)}`", "type": "{.}.constructor",
    "iter": "{.}[Symbol.iterator]()", "next": "{.}.next().value", "reversed": "[...{}].reverse()",
    "sorted": "[...{}].sort()", "list": "[...{}]", "tuple": "[...{}]", "dict": "{ ...{} }",
}  # fmt: skip
_NO_ARGUMENT = {
    "bool": "false", "dict": "{}", "float": "0", "frozenset": "new Set()", "int": "0", "list": "[]",
    "object": "new Object()", "set": "new Set()", "str": "''", "tuple": "[]",
}  # fmt: skip
_SPREAD = ("list", "tuple", "set", "frozenset", "sorted", "reversed")
_PLAIN = ("abs", "max", "min", "pow", "print", "round")

# (method, number of arguments) -> the JavaScript method that takes the same arguments.
_SAME_ARGUMENTS = {
    ("append", 1): "push", ("lower", 0): "toLowerCase", ("upper", 0): "toUpperCase", ("strip", 0): "trim",
    ("lstrip", 0): "trimStart", ("rstrip", 0): "trimEnd", ("startswith", 1): "startsWith", ("endswith", 1): "endsWith",
    ("replace", 2): "replaceAll", ("find", 1): "indexOf", ("find", 2): "indexOf", ("index", 1): "indexOf",
    ("rfind", 1): "lastIndexOf", ("ljust", 1): "padEnd", ("ljust", 2): "padEnd", ("rjust", 1): "padStart",
    ("rjust", 2): "padStart", ("discard", 1): "delete", ("appendleft", 1): "unshift", ("popleft", 0): "shift",
}  # fmt: skip
# Methods of strings and bytes that JavaScript lacks; keeping the name would invent one.
_NO_METHOD = frozenset(
    "capitalize casefold center encode expandtabs isalnum isalpha isdecimal isidentifier islower isnumeric isprintable "
    "istitle isupper partition rindex rpartition rsplit splitlines swapcase title translate zfill format_map".split()
)


def builtin_call(writer, name: str, call: ast.Call) -> Written:
    """A call of a builtin by its name; Unsupported where there is no counterpart."""
    known = name in BUILTINS or name in NO_COUNTERPART
    if not known or BUILTINS.get(name, "").endswith("Error"):
        return None
    if any(isinstance(argument, ast.Starred) for argument in call.args) and name not in _PLAIN:
        raise Unsupported(f"{name} of starred arguments")
    special = _SPECIAL.get(name)
    if special is not None:
        written = special(writer, call)
        if written is not None:
            return written
    if call.keywords:
        if name == "dict" and not call.args:
            return "{ " + writer.arguments(call).removeprefix("{ ")
        raise Unsupported(f"{name} with keywords")
    if name in _PLAIN:
        return f"{BUILTINS[name]}({writer.arguments(call)})"
    if not call.args and name in _NO_ARGUMENT:
        return _NO_ARGUMENT[name]
    if len(call.args) == 1 and name in _ONE_ARGUMENT:
        return _one_argument(writer, name, call.args[0])
    raise Unsupported(f"{name} with {len(call.args)} arguments" if name in _ONE_ARGUMENT else f"{name}()")


def _one_argument(writer, name: str, argument: ast.expr) -> Written:
    if name in _SPREAD and isinstance(argument, ast.GeneratorExp | ast.ListComp):
        array = writer.array(argument)
        return {"list": array, "tuple": array, "sorted": f"{array}.sort()", "reversed": f"{array}.reverse()"}.get(
            name, f"new Set({array})"
        )
    if name in _SPREAD and _is_range(argument):
        array = writer.array(argument)
        return array if name in _ARRAYS else _ONE_ARGUMENT[name].replace("{}", array)
    if name == "dict" and isinstance(argument, ast.GeneratorExp):
        return f"Object.fromEntries({writer.array(argument)})"
    template = _ONE_ARGUMENT[name]
    text = template.replace("{.}", writer.text(argument, POSTFIX)) if "{.}" in template else None
    if text is None:
        least = UNARY if template.startswith("typeof") else ASSIGN
        text = template.replace("{}", writer.text(argument, least), 1)
    return (text, EQUAL) if template.startswith("typeof") else text


def _is_range(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"


def _int(writer, call: ast.Call) -> Written:
    if len(call.args) == 2 and not call.keywords:
        return f"parseInt({writer.text(call.args[0])}, {writer.text(call.args[1])})"
    if len(call.args) == 1 and isinstance(call.args[0], ast.BinOp):
        return f"Math.trunc({writer.text(call.args[0])})"
    return None


def _isinstance(writer, call: ast.Call) -> Written:
    value, kind = call.args
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    tests = list(dict.fromkeys(_is_kind(writer, value, one) for one in kinds))
    return tests[0] if len(tests) == 1 else (" || ".join(text for text, _ in tests), OR)


def _is_kind(writer, value: ast.expr, kind: ast.expr) -> tuple[str, float]:
    name = kind.id if isinstance(kind, ast.Name) and kind.id not in writer.variables else ""
    if name in _TYPES:
        return f"typeof {writer.text(value, UNARY)} === '{_TYPES[name]}'", EQUAL
    if name in _ARRAYS:
        return f"Array.isArray({writer.text(value)})", POSTFIX
    if name in ("bytes", "bytearray"):
        return f"{writer.text(value, RELATION)} instanceof Uint8Array", RELATION
    if isinstance(kind, ast.BinOp):
        raise Unsupported("isinstance of a union")
    return f"{writer.text(value, RELATION)} instanceof {writer.text(kind, SHIFT)}", RELATION


def _getattr(writer, call: ast.Call) -> Written:
    member = _member(writer, call.args[0], call.args[1])
    return member if len(call.args) == 2 else _or_default(writer, member, call.args[2])


def _or_default(writer, text: str, default: ast.expr) -> Written:
    return f"{text} ?? {writer.text(default, BIT_OR)}", COALESCE


def _member(writer, owner: ast.expr, name: ast.expr) -> str:
    if isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value.isidentifier():
        return f"{writer.text(owner, POSTFIX)}.{name.value}"
    return f"{writer.text(owner, POSTFIX)}[{writer.text(name)}]"


def _hasattr(writer, call: ast.Call) -> Written:
    return f"{writer.text(call.args[1], RELATION)} in {writer.text(call.args[0], SHIFT)}", RELATION


def _setattr(writer, call: ast.Call) -> Written:
    return f"{_member(writer, *call.args[:2])} = {writer.text(call.args[2])}", ASSIGN


def _any_or_all(method: str):
    def write(writer, call: ast.Call) -> Written:
        argument = call.args[0]
        if isinstance(argument, ast.GeneratorExp | ast.ListComp):
            source, parameter, _ = writer.filtered(argument, argument.elt)
            return f"{source}.{method}({parameter} => {writer.arrow_body(argument.elt)})"
        return f"{writer.text(argument, POSTFIX)}.{method}(Boolean)"

    return write


def _each(method: str):
    def write(writer, call: ast.Call) -> Written:
        if len(call.args) != 2:
            raise Unsupported(f"{method} of several sequences")
        function, values = call.args
        is_none = isinstance(function, ast.Constant) and function.value is None
        return f"{writer.array(values)}.{method}({'Boolean' if is_none else writer.text(function)})"

    return write


def _sum(writer, call: ast.Call) -> Written:
    start = writer.text(call.args[1]) if len(call.args) == 2 else "0"
    return f"{writer.array(call.args[0])}.reduce((total, value) => total + value, {start})"


def _extreme(writer, call: ast.Call) -> Written:
    if call.keywords:
        raise Unsupported("max or min with keywords")
    if len(call.args) == 1 and not isinstance(call.args[0], ast.Starred):
        return f"Math.{call.func.id}(...{writer.array(call.args[0])})"
    return None


def _print(writer, call: ast.Call) -> Written:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    target = keywords.get("file")
    if set(keywords) == {"file"} and ast.unparse(target) == "sys.stderr":
        return f"console.error({', '.join(map(writer.text, call.args))})"
    return None


def _sorted(writer, call: ast.Call) -> Written:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if set(keywords) == {"reverse"} and ast.unparse(keywords["reverse"]) == "True":
        return f"[...{writer.text(call.args[0])}].sort().reverse()"
    return None


def _range(writer, call: ast.Call) -> Written:
    return writer.range(call.args)


def _zip(writer, call: ast.Call) -> Written:
    if len(call.args) != 2 or call.keywords:
        raise Unsupported("zip of other than two sequences")
    first, second = writer.array(call.args[0]), writer.text(call.args[1], POSTFIX)
    return f"{first}.map((item, i) => [item, {second}[i]])"


def _enumerate(writer, call: ast.Call) -> Written:
    if len(call.args) != 1 or call.keywords:
        raise Unsupported("enumerate with a start")
    return f"{writer.text(call.args[0], POSTFIX)}.entries()"


def _divmod(writer, call: ast.Call) -> Written:
    left, right = (writer.text(argument, MULTIPLY) for argument in call.args)
    return f"[Math.floor({left} / {right}), {left} % {right}]"


_SPECIAL = {
    "all": _any_or_all("every"), "any": _any_or_all("some"), "divmod": _divmod, "enumerate": _enumerate,
    "filter": _each("filter"), "getattr": _getattr, "hasattr": _hasattr, "int": _int, "isinstance": _isinstance,
    "map": _each("map"), "max": _extreme, "min": _extreme, "print": _print, "range": _range, "setattr": _setattr,
    "sorted": _sorted, "sum": _sum, "zip": _zip,
}  # fmt: skip


def method_call(writer, function: ast.Attribute, call: ast.Call) -> Written:
    """A call of a method that JavaScript names or shapes otherwise; None for all others, which keep their name."""
    name, count, owner = function.attr, len(call.args), function.value
    if isinstance(owner, ast.Constant) and isinstance(owner.value, str):
        if name == "join" and count == 1:
            return f"{writer.array(call.args[0])}.join({string(owner.value)})"
        if name == "format":
            return format_call(writer, owner.value, call)
    if name in _NO_METHOD:
        raise Unsupported(f"method {name}")
    if call.keywords or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    if name in ("startswith", "endswith") and any(isinstance(argument, ast.Tuple) for argument in call.args):
        test = "startsWith" if name == "startswith" else "endsWith"
        subject = writer.text(owner, POSTFIX)
        return " || ".join(f"{subject}.{test}({writer.text(prefix)})" for prefix in call.args[0].elts), OR
    if (name, count) in _SAME_ARGUMENTS:
        return f"{writer.text(owner, POSTFIX)}.{_SAME_ARGUMENTS[name, count]}({writer.arguments(call)})"
    shaped = _SHAPED.get((name, count))
    return shaped(writer, owner, call.args) if shaped is not None else None


def _get(writer, owner, arguments) -> Written:
    key = arguments[0]
    text = f"{writer.text(owner, POSTFIX)}[{writer.text(key)}]"
    default = arguments[1] if len(arguments) == 2 else ast.Constant(value=None)
    return _or_default(writer, text, default)


def _set_default(writer, owner, arguments) -> Written:
    return f"({writer.text(owner, POSTFIX)}[{writer.text(arguments[0])}] ??= {writer.text(arguments[1])})"


def _pop(writer, owner, arguments) -> Written:
    if isinstance(arguments[0], ast.Constant) and arguments[0].value == 0:
        return f"{writer.text(owner, POSTFIX)}.shift()"
    return None


def _insert(writer, owner, arguments) -> Written:
    index, value = arguments
    if isinstance(index, ast.Constant) and index.value == 0:
        return f"{writer.text(owner, POSTFIX)}.unshift({writer.text(value)})"
    return f"{writer.text(owner, POSTFIX)}.splice({writer.text(index)}, 0, {writer.text(value)})"


def _split(writer, owner, arguments) -> Written:
    subject = writer.text(owner, POSTFIX)
    return f"{subject}.split({writer.text(arguments[0])})" if arguments else f"{subject}.trim().split(/\\s+/)"


def _object(function: str):
    return lambda writer, owner, arguments: f"{function}({writer.text(owner)})"


def _extend(writer, owner, arguments) -> Written:
    return f"{writer.text(owner, POSTFIX)}.push(...{writer.text(arguments[0])})"


def _matches(pattern: str):
    return lambda writer, owner, arguments: f"/{pattern}/.test({writer.text(owner)})"


_SHAPED = {
    ("extend", 1): _extend, ("get", 1): _get, ("get", 2): _get, ("insert", 2): _insert,
    ("items", 0): _object("Object.entries"),
    ("isdigit", 0): _matches(r"^\d+$"), ("isspace", 0): _matches(r"^\s+$"),
    ("keys", 0): _object("Object.keys"), ("pop", 1): _pop, ("setdefault", 2): _set_default, ("split", 0): _split,
    ("split", 1): _split, ("values", 0): _object("Object.values"),
}  # fmt: skip

"""What a program printed last, and whether it is what was to be printed: MTPB's comparison (salesforce/CodeGen).

The program runs elsewhere. `instrumented` makes it write the first argument of its last call of `print` as one line of
JSON behind a marker; `printed` reads that line; `same` compares.
"""

import ast
import json
import math
import warnings
from typing import Any

MARKER = "\x01printed "
NOTHING = object()  # no call of print, or one without an argument
TOLERANCE = 1e-6

# Runs inside the program. Names are private to a function, so that the program's own cannot disturb them.
_RECORDER = '''\
def _record_prints():
    import builtins, json, sys
    held, write = [], sys.stdout.write
    def record(*values, **_):
        held[:] = [list(values[:1])]
    def plain(value, depth=0):
        if depth > 50: return ["o", "..."]
        if type(value).__module__.split(".")[0] in ("numpy", "pandas"):
            if hasattr(value, "values") and not callable(value.values): value = value.values
            if hasattr(value, "tolist"): value = value.tolist()
        kind = type(value)
        if value is None or kind is bool or kind is str: return ["p", value]
        if kind is int: return ["i", hex(value)]
        if kind is float: return ["f", repr(value)]
        if isinstance(value, dict):
            return ["d", [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in value.items()]]
        if kind in (list, tuple, set, frozenset):
            return [kind.__name__, [plain(one, depth + 1) for one in value]]
        if isinstance(value, (str, int, float)): return plain(getattr(value, "value", None) or str(value), depth + 1)
        if isinstance(value, type): return ["o", value.__name__]
        try: return ["list", [plain(one, depth + 1) for one in value]]
        except TypeError: return ["o", str(value)]
    def finish():
        write("\\n" + MARKER + json.dumps([plain(one) for one in held[0]] if held else []) + "\\n")
        sys.stdout.flush()
    builtins.print = record
    return finish
_finish_recording = _record_prints()
del _record_prints
'''


def instrumented(program: str) -> str:
    """The program with its last value printed, and what it prints recorded. One that cannot be parsed stays broken."""
    head = _RECORDER.replace("MARKER", repr(MARKER))
    return f"{head}{_with_last_value_printed(program)}\n_finish_recording()\n"


def _with_last_value_printed(program: str) -> str:
    """Where the last statement is no call of a function whose name begins with print, its value is printed instead."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the program's strings
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return program
    last = tree.body[-1] if tree.body else None
    value = getattr(last, "value", None)
    if not isinstance(value, ast.expr):
        return program
    function = getattr(value, "func", None)
    if isinstance(function, ast.Name) and function.id.startswith("print"):
        return program
    tree.body[-1] = ast.Expr(ast.Call(ast.Name("print", ast.Load()), [value], []))
    return ast.unparse(ast.fix_missing_locations(tree))


def printed(output: str) -> Any:
    """The recorded value, or NOTHING."""
    lines = [line for line in output.split("\n") if line.startswith(MARKER)]
    try:
        values = json.loads(lines[-1].removeprefix(MARKER)) if lines else []
        return _value(values[0]) if values else NOTHING
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return NOTHING  # the program wrote such a line itself


def _value(node: list) -> Any:
    kind, content = node
    if kind == "d":
        return {_hashable(_value(key)): _value(value) for key, value in content}
    if kind in ("list", "tuple", "set", "frozenset"):
        values = [_value(one) for one in content]
        return tuple(values) if kind == "tuple" else values
    if kind == "i":
        return int(content, 16)
    return float(content) if kind == "f" else content


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def same(value: Any, expected: Any, *, published: bool = False) -> bool:
    """Whether a recorded value counts as the expected one.

    A value of another type is cast to the expected one's, truth values are compared as text, and numbers may differ by
    1e-6. published: as the publishers' program, which takes no dictionary and no None for right.
    """
    if value is NOTHING:
        return False
    if expected is None or isinstance(expected, dict):
        return not published and (str(value) == "None" if expected is None else _same_dict(value, expected))
    if isinstance(expected, bool):
        return str(value) == str(expected)
    value = _as_lists(value)
    if type(value) is not type(expected):
        try:
            value = type(expected)(value)
        except (TypeError, ValueError, OverflowError):
            return False
    return _close(value, expected)


def _same_dict(value: Any, expected: dict) -> bool:
    """JSON knows text keys only, so keys are compared as text."""
    if not isinstance(value, dict):
        return False
    found = {str(key): one for key, one in value.items()}
    return found.keys() == expected.keys() and all(_close(_as_lists(found[key]), expected[key]) for key in expected)


def _as_lists(value: Any) -> Any:
    return [_as_lists(one) for one in value] if isinstance(value, list | tuple) else value


def _close(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        is_list = isinstance(value, list) and len(value) == len(expected)
        return is_list and all(_close(*pair) for pair in zip(value, expected, strict=True))
    if isinstance(expected, int | float) and isinstance(value, int | float):
        return value == expected or (math.isfinite(value) and abs(value - expected) < TOLERANCE)
    return value == expected

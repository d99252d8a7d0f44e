"""What the writer of JavaScript knows of the language: precedence, reserved words, counterparts of Python's names."""

# Operator precedence of ECMAScript, from loose to tight. A number literal stands below a member access: `1.x` is none.
ASSIGN, CONDITIONAL, COALESCE, OR, AND, BIT_OR, BIT_XOR, BIT_AND = 2, 3, 3.5, 4, 5, 6, 7, 8
EQUAL, RELATION, SHIFT, ADD, MULTIPLY, POWER, UNARY, NUMBER, POSTFIX, PRIMARY = 9, 10, 11, 12, 13, 14, 15, 15.5, 16, 20

RESERVED = frozenset(
    "arguments await break case catch class const continue debugger default delete do else enum eval export extends "
    "false finally for function if implements import in instanceof interface let new null package private protected "
    "public return static super switch this throw true try typeof undefined var void while with yield".split()
)

# Builtins with no counterpart as a bare name. Calls of some of them have one (javascript/calls.py).
NO_COUNTERPART = frozenset(
    "Ellipsis NotImplemented __build_class__ __debug__ __file__ __import__ __name__ __spec__ all any ascii bin "
    "breakpoint bytearray bytes callable chr classmethod compile complex delattr dir divmod enumerate exec filter "
    "format getattr globals hasattr hash help hex id input issubclass isinstance iter len locals map memoryview next "
    "oct open ord property range repr reversed setattr slice sorted staticmethod sum super type vars zip".split()
)

BUILTINS = {
    "abs": "Math.abs", "bool": "Boolean", "dict": "Object", "float": "Number", "frozenset": "Set", "int": "Number",
    "list": "Array", "max": "Math.max", "min": "Math.min", "object": "Object", "pow": "Math.pow",
    "print": "console.log", "round": "Math.round", "set": "Set", "str": "String", "tuple": "Array",
    "AttributeError": "TypeError", "IndexError": "RangeError", "LookupError": "RangeError",
    "NameError": "ReferenceError", "OverflowError": "RangeError", "RecursionError": "RangeError",
    "SyntaxError": "SyntaxError", "TypeError": "TypeError", "UnboundLocalError": "ReferenceError",
    "ZeroDivisionError": "RangeError",
    **dict.fromkeys(
        "ArithmeticError AssertionError BaseException BlockingIOError BrokenPipeError BufferError ChildProcessError "
        "ConnectionAbortedError ConnectionError ConnectionRefusedError ConnectionResetError EOFError EnvironmentError "
        "Exception FileExistsError FileNotFoundError FloatingPointError GeneratorExit IOError ImportError "
        "InterruptedError IsADirectoryError KeyError KeyboardInterrupt MemoryError ModuleNotFoundError "
        "NotADirectoryError NotImplementedError OSError PermissionError ProcessLookupError RuntimeError "
        "StopAsyncIteration StopIteration SystemError SystemExit TimeoutError UnicodeDecodeError UnicodeEncodeError "
        "UnicodeError ValueError Warning DeprecationWarning UserWarning".split(),
        "Error",
    ),
}  # fmt: skip


class Unsupported(Exception):
    """A Python construct that has no JavaScript counterpart here; the message names it, without the program's names."""

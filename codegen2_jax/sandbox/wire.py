"""Typed JSON: the one language between grader and jail.

Exact built-in types only, and four of `collections` as the plain values they hold; the reader builds every object
itself, so nothing that a solution made, no subclass and no operator of its own, reaches the tests. No pickle, no eval.

Tags (objects with one key): i whole number in hexadecimal, f nan and infinities, t tuple, s set, S frozenset, d dict as
pairs, b bytes, B bytearray, c complex, r range, C Counter, O OrderedDict, D defaultdict without its factory, q deque,
T a built-in type, ref an object that stays in the jail.
"""

import collections
import json
import math

MAX_BYTES = 4 * 2**20  # of a message
MAX_DEPTH = 100
MAX_ITEMS = 500_000
MAX_INTEGER_DIGITS = 2**16  # hexadecimal
_EXACT = 2**53  # beyond it other readers of JSON lose digits
_SEQUENCES = {tuple: "t", set: "s", frozenset: "S", collections.deque: "q"}
_MAPPINGS = {dict: "d", collections.Counter: "C", collections.OrderedDict: "O", collections.defaultdict: "D"}
_MAKE_SEQUENCE = {"t": tuple, "s": set, "S": frozenset, "q": collections.deque}
_MAKE_MAPPING = {"d": dict, "C": dict, "O": collections.OrderedDict, "D": dict}
_TYPES = {
    kind.__name__: kind
    for kind in (
        object, type, type(None), bool, int, float, complex, str, bytes, bytearray,
        list, tuple, set, frozenset, dict, range,
    )  # fmt: skip
}


class WireError(ValueError):
    """A value that cannot be sent, or a message that nobody who follows the protocol sends."""


class _Count:
    """Counts down the items of one message."""

    def __init__(self):
        self.left = MAX_ITEMS

    def take(self, number, depth):
        self.left -= number
        if self.left < 0:
            raise WireError(f"more than {MAX_ITEMS} items")
        if depth > MAX_DEPTH:
            raise WireError(f"nested deeper than {MAX_DEPTH}")


def encode(value, ref=lambda value: None):
    """A value as what `json.dumps` takes. `ref` gives the number of an object that is sent as a reference, or None.

    Raises WireError for other types and beyond the caps.
    """
    return _encode(value, ref, _Count(), 0)


def _encode(value, ref, count, depth):
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        if len(value) > MAX_BYTES:
            raise WireError(f"a text of {len(value)} characters")
        return value
    if kind is int:
        if -_EXACT < value < _EXACT:
            return value
        if value.bit_length() > 4 * MAX_INTEGER_DIGITS:
            raise WireError(f"a whole number of {value.bit_length()} bits")
        return {"i": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind is list:
        count.take(len(value), depth)
        return [_encode(item, ref, count, depth + 1) for item in value]
    if kind in _SEQUENCES:
        count.take(len(value), depth)
        return {_SEQUENCES[kind]: [_encode(item, ref, count, depth + 1) for item in value]}
    if kind in _MAPPINGS:
        count.take(2 * len(value), depth)
        pairs = ([_encode(part, ref, count, depth + 1) for part in pair] for pair in value.items())
        return {_MAPPINGS[kind]: list(pairs)}
    if kind is bytes or kind is bytearray:
        if len(value) > MAX_BYTES // 2:
            raise WireError(f"{len(value)} bytes")
        return {"b" if kind is bytes else "B": value.hex()}
    if kind is complex:
        return {"c": [_encode(value.real, ref, count, depth), _encode(value.imag, ref, count, depth)]}
    if kind is range:
        return {"r": [_encode(part, ref, count, depth) for part in (value.start, value.stop, value.step)]}
    if kind is type and _TYPES.get(value.__name__) is value:
        return {"T": value.__name__}
    number = ref(value)
    if number is not None:
        return {"ref": number}
    raise WireError(f"a {kind.__name__} is no plain value")


def decode(data, ref=None):
    """The value of what `json.loads` gave; `ref` makes the object of a reference. WireError for anything else."""
    return _decode(data, ref, _Count(), 0)


def _decode(data, ref, count, depth):
    kind = type(data)
    if data is None or kind in (bool, int, float, str):
        return data
    if kind is list:
        count.take(len(data), depth)
        return [_decode(item, ref, count, depth + 1) for item in data]
    if kind is not dict or len(data) != 1:
        raise WireError("a tag has one key")
    [(tag, content)] = data.items()
    try:
        if tag in _MAKE_SEQUENCE and type(content) is list:
            return _MAKE_SEQUENCE[tag](_decode(content, ref, count, depth + 1))
        if tag in _MAKE_MAPPING and type(content) is list:
            count.take(2 * len(content), depth)
            pairs = {}
            for key, item in content:
                pairs[_decode(key, ref, count, depth + 1)] = _decode(item, ref, count, depth + 1)
            made = _MAKE_MAPPING[tag](pairs)
            return collections.Counter(made) if tag == "C" else made
        if tag == "i" and type(content) is str and len(content) <= MAX_INTEGER_DIGITS + 3:
            return int(content, 16)
        if tag == "f" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag in ("b", "B") and type(content) is str:
            return bytes.fromhex(content) if tag == "b" else bytearray.fromhex(content)
        if tag == "c":
            real, imaginary = (_decode(part, ref, count, depth + 1) for part in content)
            if type(real) is type(imaginary) is float:
                return complex(real, imaginary)
        if tag == "r":
            return range(*(_decode(part, ref, count, depth + 1) for part in content))
        if tag == "T" and content in _TYPES:
            return _TYPES[content]
        if tag == "ref" and type(content) is int and ref is not None:
            return ref(content)
    except (TypeError, ValueError) as error:
        raise WireError(f"malformed {tag!r}: {error}") from error
    raise WireError(f"no value has the tag {str(tag)[:20]!r}")


def dumps(message):
    """A message as bytes: four of length, then JSON. WireError if it is longer than MAX_BYTES."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(body) > MAX_BYTES:
        raise WireError(f"a message of {len(body)} bytes; at most {MAX_BYTES} are sent")
    return len(body).to_bytes(4, "big") + body


def loads(body):
    """The message of the bytes behind a length. WireError where they are no JSON object."""
    try:
        message = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {type(error).__name__}") from error
    if type(message) is not dict:
        raise WireError("a message is an object")
    return message


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")

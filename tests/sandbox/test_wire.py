"""Typed JSON: what is sent arrives as the same built-in value, and nothing else arrives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.sandbox import wire

keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    keys | st.floats() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(keys) | st.frozensets(keys)
    | st.dictionaries(keys, inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(values)
def test_values_arrive_as_they_were(value):
    message = wire.loads(wire.dumps({"value": wire.encode(value)})[4:])
    assert repr(wire.decode(message["value"])) == repr(value) or wire.decode(message["value"]) == value
    assert type(wire.decode(message["value"])) is type(value)


@pytest.mark.parametrize(
    "data",
    [{}, {"t": [], "s": []}, {"x": 1}, {"t": 1}, {"d": [[1]]}, {"d": [[[], 1]]}, {"s": [[1]]}, {"i": "zz"}, {"i": 5},
     {"i": "0x" + "f" * 70_000}, {"f": 1}, {"f": "1e5"}, {"b": "x"}, {"c": [1, 2]}, {"c": [1.0]}, {"r": [1, 2, 0]},
     {"T": "open"}, {"T": []}, {"ref": 0}, {"q": "x"}, {"C": [[1, 2, 3]]}],
    ids=lambda data: json.dumps(data)[:30],
)  # fmt: skip
def test_other_messages_are_refused(data):
    with pytest.raises(wire.WireError):
        wire.decode(data)


def nested(depth):
    data = []
    for _ in range(depth):
        data = [data]
    return data


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 1, type("Own", (int,), {})(1), nested(200), 1 << 2**20, [0] * 600_000, open, wire],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_not_sent(value):
    with pytest.raises(wire.WireError):
        wire.encode(value)


def test_what_is_no_json_is_refused():
    for body in (b"", b"{", b"[1]", b"NaN", b'{"a": Infinity}', b"\xff", b"[" * 100_000):
        with pytest.raises(wire.WireError):
            wire.loads(body)
    with pytest.raises(wire.WireError):
        wire.decode(json.loads(json.dumps(nested(150))))

"""How an activation is laid out, said by the meaning of its axes; where that is on a mesh is not the models' business.

A model is given a function, `constrain(x, logical_axes) -> x` (`sharding.partitioning.Layout.constrain`), as its field
of that name, and hands it to the modules of its network for the length of one call. The modules are made of a
configuration alone and nested several deep; a field on each of them would say the same thing ten times over. Without a
function, as on one device, `constrain` returns what it is given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax

Constrain = Callable[[jax.Array, Sequence[str]], jax.Array]

_constrain: ContextVar[Constrain | None] = ContextVar("constrain", default=None)


@contextmanager
def placed_by(function: Constrain | None) -> Iterator[None]:
    """While entered, `constrain` asks this function; None for no constraints."""
    token = _constrain.set(function)
    try:
        yield
    finally:
        _constrain.reset(token)


def constrain(x: jax.Array, *logical_axes: str) -> jax.Array:
    """x with one logical axis name per dimension, laid out as the model was told; the same values."""
    function = _constrain.get()
    return x if function is None else function(x, logical_axes)

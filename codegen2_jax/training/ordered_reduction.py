"""Gradients that do not depend on how many devices made them, bit for bit.

Sums of floating-point numbers depend on their order, and a compiler orders them by how many devices there are. Here a
batch is always cut into the same number of parts, whatever the devices; every part is computed alone, by the same
program; and the results are gathered and added in the order of the parts. So 1, 2, 4 or 8 devices, in any number of
processes, give one result. The price: whole weights on every device, a gather of whole gradients for each part in place
of one reduction, and smaller matrix products.

With n devices, device d computes the parts d, n + d, 2 n + d, ... one after the other. What a part computes stands in a
loop of its own, and so does the sum over parts, with bounds that the compiler does not know: a loop it could unroll
it would fuse with what stands around it, which depends on n, and fused products and sums round otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from codegen2_jax.errors import UserError
from codegen2_jax.sharding.partitioning import DATA_AXIS, Layout


def check(parts: int, layout: Layout, batch_size: int) -> None:
    """Raises UserError when the parts do not fit the batch or the devices."""
    size = layout.mesh.shape[DATA_AXIS]
    if layout.mesh.size != size:
        raise UserError(
            f"ORDERED_REDUCTION={parts} needs whole weights on every device, and MESH cuts them "
            f"({dict(layout.mesh.shape)}); leave MESH at None, or set ORDERED_REDUCTION=0."
        )
    if parts < 1 or parts % size or batch_size % parts:
        raise UserError(
            f"ORDERED_REDUCTION={parts} parts must be a multiple of the {size} devices and divide the {batch_size} "
            "rows of a batch; 8 serves 1, 2, 4 and 8 devices."
        )


def in_order(function: Callable, parts: int, layout: Layout) -> Callable:
    """`summed(shared, batch) -> sum over the parts of function(shared, part of the batch, number of the part)`.

    Args:
        function: pure; its result is a tree of arrays that add up, such as gradients and losses summed over rows.
        parts: into how many the rows of a batch are cut, in their order; see `check`.

    shared is whole on every device, and so is the result.
    """
    size = layout.mesh.shape[DATA_AXIS]

    def local(shared, batch):
        """On one device: batch leaves [parts / size, 1, rows of a part, ...]."""
        device = jax.lax.axis_index(DATA_AXIS)
        nothing = _zero(batch)
        shapes = jax.eval_shape(function, shared, jax.tree.map(lambda x: x[0, 0], batch), device)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def one_round(number, total):
            rows = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False)[0], batch)
            part = number * size + device
            found = jax.lax.fori_loop(0, 1 + nothing, lambda _, __: function(shared, rows, part), zeros)
            for each in range(size):
                total = jax.tree.map(jnp.add, total, _from_device(found, each, device) if size > 1 else found)
            return total

        return jax.lax.fori_loop(0, parts // size + nothing, one_round, zeros)

    def summed(shared, batch):
        cut = jax.tree.map(lambda x: x.reshape(parts // size, size, x.shape[0] // parts, *x.shape[1:]), batch)
        spread = jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(None, DATA_AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return spread(shared, cut)

    return summed


def _from_device(tree: Any, sender: int, device: jax.Array) -> Any:
    """What device number `sender` holds, on every device: its values plus zeros, which changes none of them."""
    return jax.lax.psum(jax.tree.map(lambda x: jnp.where(device == sender, x, jnp.zeros_like(x)), tree), DATA_AXIS)


def _zero(batch: Any) -> jax.Array:
    """int32 0, which no compiler can tell: no token is the smallest integer."""
    token = next(leaf for leaf in jax.tree.leaves(batch) if leaf.dtype == jnp.int32).reshape(-1)[0]
    return (token == jnp.iinfo(jnp.int32).min).astype(jnp.int32)

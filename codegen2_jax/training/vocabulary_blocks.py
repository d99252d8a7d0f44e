"""The last layer and its loss together, a block of the vocabulary at a time, for logits cut over several devices.

Forward, a running maximum, sum, target logit and arg max go over the blocks; backward makes each block's logits again
and from them the exact gradient of cross-entropy and z-loss. Costs one product of the head's size more than the plain
way (four instead of three), saves its logits and their gradients; each block's part of the weights' gradient is summed
over the devices once. After the streaming softmax of Milakov and Gimelshein (2018, arXiv 1805.02867).

Shapes: B batch, T positions, D width, V vocabulary, W = V / (groups * blocks) columns of a block in one group.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Blocks are cut across so many groups of the vocabulary, where it divides: each device of a "model" axis then holds a
# part of every block, and none waits while another's rows are read.
GROUPS = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a vocabulary is cut: entry v = (group * blocks + block) * width + column; entries from V on are padding."""

    size: int
    groups: int
    blocks: int
    width: int

    @classmethod
    def of(cls, size: int, wanted: int) -> "Layout":
        """At least `wanted` blocks (or one a row of a group): of the numbers up to twice that, the least padding."""
        groups = math.gcd(size, GROUPS)
        rows = size // groups
        candidates = range(min(wanted, rows), min(2 * wanted, rows) + 1)
        blocks = min(candidates, key=lambda count: (-rows % count, count))
        return cls(size, groups, blocks, -(-rows // blocks))

    @property
    def padded(self) -> int:
        return self.groups * self.blocks * self.width

    def cut(self, array_V: jax.Array) -> jax.Array:
        """[V, ...] as [groups, blocks, W, ...], padded with zeros at the end."""
        if self.padded > self.size:
            array_V = jnp.pad(array_V, ((0, self.padded - self.size),) + ((0, 0),) * (array_V.ndim - 1))
        return array_V.reshape(self.groups, self.blocks, self.width, *array_V.shape[1:])

    def joined(self, array_GNW: jax.Array) -> jax.Array:
        """What `cut` cut, whole again."""
        return array_GNW.reshape(self.padded, *array_GNW.shape[3:])[: self.size]

    def entries(self, block: jax.Array) -> jax.Array:
        """The vocabulary entries of a block, int32[groups, W]."""
        group_G1 = np.arange(self.groups, dtype=np.int32)[:, None] * (self.blocks * self.width)
        return group_G1 + np.arange(self.width, dtype=np.int32)[None] + block * self.width


def _block_logits(x_BTD, table_GNWD, bias_GNW, block, layout: Layout) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits_BTGW float32, -inf in the padding; the block's weights in x's dtype, [G, W, D]; its entries, [G, W])."""
    table_GWD = jax.lax.dynamic_index_in_dim(table_GNWD, block, axis=1, keepdims=False).astype(x_BTD.dtype)
    logits_BTGW = jnp.einsum("btd,gwd->btgw", x_BTD, table_GWD, preferred_element_type=jnp.float32)
    if bias_GNW is not None:
        bias_GW = jax.lax.dynamic_index_in_dim(bias_GNW, block, axis=1, keepdims=False)
        logits_BTGW = logits_BTGW + bias_GW.astype(jnp.float32)[None, None]
    entry_GW = layout.entries(block)
    if layout.padded > layout.size:
        logits_BTGW = jnp.where((entry_GW < layout.size)[None, None], logits_BTGW, -jnp.inf)
    return logits_BTGW, table_GWD, entry_GW


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def sums(x_BTD, head: Any, targets_BT, loss_mask_BT, z_weight: float, layout: Layout):
    """(objective, cross-entropy, correct): float32 sums over true tokens; head: a `head_loss.Head`."""
    return _forward(x_BTD, head, targets_BT, loss_mask_BT, z_weight, layout)[0]


def _forward(x_BTD, head, targets_BT, loss_mask_BT, z_weight, layout):
    table_GNWD = layout.cut(head.table_VD)
    bias_GNW = None if head.bias_V is None else layout.cut(head.bias_V)

    def add(running, block):
        highest_BT, sum_BT, target_logit_BT, guess_BT = running
        logits_BTGW, _, entry_GW = _block_logits(x_BTD, table_GNWD, bias_GNW, block, layout)
        is_target_BTGW = entry_GW[None, None] == targets_BT[..., None, None]
        target_logit_BT = target_logit_BT + jnp.sum(jnp.where(is_target_BTGW, logits_BTGW, 0.0), axis=(2, 3))
        top_BT = jnp.max(logits_BTGW, axis=(2, 3))
        new_BT = jnp.maximum(highest_BT, top_BT)
        scaled_BT = jnp.sum(jnp.exp(logits_BTGW - new_BT[..., None, None]), axis=(2, 3))
        sum_BT = sum_BT * jnp.exp(highest_BT - new_BT) + scaled_BT
        # Of equal logits the first entry of the vocabulary wins, as in an arg max over all.
        is_top_BTGW = logits_BTGW == top_BT[..., None, None]
        first_BT = jnp.min(jnp.where(is_top_BTGW, entry_GW[None, None], layout.padded), axis=(2, 3))
        better_BT = (top_BT > highest_BT) | ((top_BT == highest_BT) & (first_BT < guess_BT))
        return (new_BT, sum_BT, target_logit_BT, jnp.where(better_BT, first_BT, guess_BT)), None

    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    start = (zeros_BT - jnp.inf, zeros_BT, zeros_BT, jnp.full(targets_BT.shape, layout.padded, jnp.int32))
    (highest_BT, sum_BT, target_logit_BT, guess_BT), _ = jax.lax.scan(add, start, jnp.arange(layout.blocks))
    log_z_BT = highest_BT + jnp.log(sum_BT)
    weights_BT = loss_mask_BT.astype(jnp.float32)
    loss = jnp.sum((log_z_BT - target_logit_BT) * weights_BT)
    objective = loss + z_weight * jnp.sum(jnp.square(log_z_BT) * weights_BT) if z_weight else loss
    correct = jnp.sum((guess_BT == targets_BT) & loss_mask_BT, dtype=jnp.float32)
    return (objective, loss, correct), (x_BTD, head, targets_BT, weights_BT, log_z_BT)


def _backward(z_weight, layout, residuals, gradients):
    x_BTD, head, targets_BT, weights_BT, log_z_BT = residuals
    scale_BT = weights_BT * gradients[0]
    softmax_scale_BT = scale_BT * (1.0 + 2.0 * z_weight * log_z_BT)
    table_GNWD = layout.cut(head.table_VD)
    bias_GNW = None if head.bias_V is None else layout.cut(head.bias_V)

    def add(running, block):
        dx_BTD, dtable_GNWD, dbias_GNW = running
        logits_BTGW, table_GWD, entry_GW = _block_logits(x_BTD, table_GNWD, bias_GNW, block, layout)
        probs_BTGW = jnp.exp(logits_BTGW - log_z_BT[..., None, None])
        is_target_BTGW = entry_GW[None, None] == targets_BT[..., None, None]
        dlogits_BTGW = softmax_scale_BT[..., None, None] * probs_BTGW
        dlogits_BTGW = dlogits_BTGW - jnp.where(is_target_BTGW, scale_BT[..., None, None], 0.0)
        if dbias_GNW is not None:
            dbias_GW = jnp.sum(dlogits_BTGW, axis=(0, 1)).astype(dbias_GNW.dtype)
            dbias_GNW = jax.lax.dynamic_update_index_in_dim(dbias_GNW, dbias_GW, block, axis=1)
        dlogits_BTGW = dlogits_BTGW.astype(x_BTD.dtype)
        dtable_GWD = jnp.einsum("btgw,btd->gwd", dlogits_BTGW, x_BTD, preferred_element_type=jnp.float32)
        dtable_GNWD = jax.lax.dynamic_update_index_in_dim(
            dtable_GNWD, dtable_GWD.astype(dtable_GNWD.dtype), block, axis=1
        )
        dx_BTD = dx_BTD + jnp.einsum("btgw,gwd->btd", dlogits_BTGW, table_GWD, preferred_element_type=jnp.float32)
        return (dx_BTD, dtable_GNWD, dbias_GNW), None

    start = (
        jnp.zeros(x_BTD.shape, jnp.float32),
        jnp.zeros_like(table_GNWD),
        None if bias_GNW is None else jnp.zeros_like(bias_GNW),
    )
    (dx_BTD, dtable_GNWD, dbias_GNW), _ = jax.lax.scan(add, start, jnp.arange(layout.blocks))
    dbias_V = None if dbias_GNW is None else layout.joined(dbias_GNW)
    return dx_BTD.astype(x_BTD.dtype), type(head)(layout.joined(dtable_GNWD), dbias_V), None, None


sums.defvjp(_forward, _backward)

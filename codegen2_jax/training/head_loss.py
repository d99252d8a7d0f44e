"""The last layer and its loss: all logits at once, or in blocks that are used up before the next are made.

On one device a block is a few tokens (token_blocks.py: the gradient in the same pass, no product more, and faster);
where logits lie on several, a part of the vocabulary (vocabulary_blocks.py). Loss, z-loss, hits and gradients are exact
in all three ways.

Shapes: B batch, T positions, D width, V vocabulary.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models.layers import accumulated
from codegen2_jax.training import losses, token_blocks, vocabulary_blocks

# On one device blocks are made of more bytes of float32 logits than this. Below it there is nothing to win: they fit in
# a cache or nearly. Eight, for what a loop costs, and more where a block would be larger than LARGEST_TOKEN_BLOCK.
SMALL_LOGITS, TOKEN_BLOCKS, LARGEST_TOKEN_BLOCK = 2**26, 8, 2**29
# On several they are made where one would hold more than this: below it logits fit beside the activations, and the
# product saved is worth more. A block is LARGEST_VOCABULARY_BLOCK bytes at most.
LARGEST_LOGITS, LARGEST_VOCABULARY_BLOCK = 2**29, 2**27


class Head(NamedTuple):
    """What turns last states into logits: x_BTD table_VD^T + bias_V, products in the dtype of x, sums in float32."""

    table_VD: Any
    bias_V: Any = None


class HeadLoss(NamedTuple):
    """Float32 scalars, summed over true tokens.

    objective: cross-entropy + z_weight * z, whose gradient is exact; the others carry none.
    """

    objective: jax.Array
    cross_entropy: jax.Array
    correct: jax.Array
    tokens: jax.Array


def num_blocks(positions: int, vocabulary: int, *, shards: int = 1) -> int:
    """Into how many blocks `head_loss` should cut logits of so many positions, which lie on `shards` devices."""
    logits_bytes = 4 * positions * vocabulary // shards
    if shards > 1:
        wanted = max(2, math.ceil(logits_bytes / LARGEST_VOCABULARY_BLOCK))
        return 1 if logits_bytes <= LARGEST_LOGITS else min(vocabulary, wanted)
    wanted = max(TOKEN_BLOCKS, math.ceil(logits_bytes / LARGEST_TOKEN_BLOCK))
    return 1 if logits_bytes <= SMALL_LOGITS else min(positions, wanted)


def check_blocks(blocks: int | None) -> None:
    """Raises UserError unless it is None or a number from 1."""
    if blocks is not None and blocks < 1:
        raise UserError(f"loss_blocks={blocks} is out of range; 1 is all at once, None lets memory decide.")


def head_loss(
    x_BTD, head: Head, targets_BT, loss_mask_BT, *, z_weight: float = 0.0, blocks: int = 1, shards: int = 1
) -> HeadLoss:
    """Cross-entropy, z-loss and hits of the logits of x, in `blocks` blocks (1: all at once).

    shards: how many devices the logits are cut over; 1: blocks of tokens, more: blocks of the vocabulary.
    """
    if blocks > 1:
        if shards > 1:
            layout = vocabulary_blocks.Layout.of(head.table_VD.shape[0], blocks)
            sums = vocabulary_blocks.sums(x_BTD, head, targets_BT, loss_mask_BT, z_weight, layout)
        else:
            sums = token_blocks.sums(x_BTD, *head, targets_BT, loss_mask_BT, z_weight, blocks)
        return HeadLoss(*sums, jnp.sum(loss_mask_BT, dtype=jnp.float32))
    logits_BTV = plain_logits(x_BTD, head)
    loss, tokens = losses.cross_entropy(logits_BTV, targets_BT, loss_mask_BT)
    correct = losses.token_accuracy(logits_BTV, targets_BT, loss_mask_BT)
    objective = loss + z_weight * losses.z_loss(logits_BTV, loss_mask_BT) if z_weight else loss
    return HeadLoss(objective, jax.lax.stop_gradient(loss), correct, tokens)


def plain_logits(x_BTD, head: Head) -> jax.Array:
    """float32 logits_BTV, all of them."""
    logits_BTV = accumulated("btd,vd->btv", x_BTD, head.table_VD.astype(x_BTD.dtype))
    return logits_BTV if head.bias_V is None else logits_BTV + head.bias_V[None, None]

"""The last layer, its loss and the gradient of both in one pass, a block of tokens at a time, on one device.

All that the gradient of a sum of losses needs from what follows is one factor. So while a block's logits are at hand,
their gradient and what it means for the states and the weights are found too, and the backward pass scales them. Three
products of the head's size as in the plain way, two where the head does not train, and no array of (tokens,
vocabulary): a block's logits are used up before the next are made. As Liger Kernel does it (Hsu et al. 2024, arXiv
2410.10989, FusedLinearCrossEntropy).

Where rows lie on several devices each block's gradient of the weights would be summed over all of them; head_loss.py
cuts the vocabulary there.

Shapes: B batch, T positions, D width, V vocabulary, C tokens of a block, N blocks.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class _Sums(NamedTuple):
    """Float32 scalars over true tokens: what is trained, cross-entropy alone, hits."""

    objective: jax.Array
    cross_entropy: jax.Array
    correct: jax.Array


class _Gradients(NamedTuple):
    """Of the objective; None where nobody asks."""

    x_BTD: jax.Array
    table_VD: Any
    bias_V: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def sums(x_BTD, table_VD, bias_V, targets_BT, loss_mask_BT, z_weight: float, blocks: int) -> _Sums:
    """Over true tokens; the gradient is the objective's, the other two carry none.

    Products are made in the dtype of x, with sums in float32. table_VD, bias_V: of any float dtype, which their
    gradients have too; bias_V may be None. targets_BT: int32. loss_mask_BT: bool. z_weight: of the squared logarithm of
    the softmax's normaliser. blocks: from 1; beyond B * T they are padding alone.
    """
    run = functools.partial(_of_block, weights_VD=table_VD.astype(x_BTD.dtype), bias_V=bias_V, z_weight=z_weight)

    def add(total, block):
        return jax.tree.map(jnp.add, total, run(*block)[0]), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, _Sums(zero, zero, zero), _cut(blocks, x_BTD, targets_BT, loss_mask_BT))[0]


def _sums_and_gradients(x_BTD, table_VD, bias_V, targets_BT, loss_mask_BT, z_weight, blocks):
    """Arguments say here whether they are differentiated."""
    trains = [one is not None and one.perturbed for one in (table_VD, bias_V)]
    x_BTD, table_VD, bias_V, targets_BT, loss_mask_BT = (
        None if one is None else one.value for one in (x_BTD, table_VD, bias_V, targets_BT, loss_mask_BT)
    )
    weights_VD = table_VD.astype(x_BTD.dtype)
    run = functools.partial(_of_block, weights_VD=weights_VD, bias_V=bias_V, z_weight=z_weight)

    def add(running, block):
        total, table_gradient_VD, bias_gradient_V = running
        x_CD = block[0]
        found, gradient_of_logits = run(*block)
        dlogits_CV = gradient_of_logits()
        if bias_gradient_V is not None:
            bias_gradient_V = bias_gradient_V + jnp.sum(dlogits_CV, axis=0)
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)
        if table_gradient_VD is not None:
            table_gradient_VD = table_gradient_VD + _product("cv,cd->vd", dlogits_CV, x_CD)
        dx_CD = _product("cv,vd->cd", dlogits_CV, weights_VD).astype(x_CD.dtype)
        return (jax.tree.map(jnp.add, total, found), table_gradient_VD, bias_gradient_V), dx_CD

    zero = jnp.zeros((), jnp.float32)
    start = [
        jnp.zeros(one.shape, jnp.float32) if train else None
        for one, train in zip((table_VD, bias_V), trains, strict=True)
    ]
    (total, dtable_VD, dbias_V), dx_NCD = jax.lax.scan(
        add, (_Sums(zero, zero, zero), *start), _cut(blocks, x_BTD, targets_BT, loss_mask_BT)
    )
    tokens, width = x_BTD.shape[0] * x_BTD.shape[1], x_BTD.shape[2]
    dx_BTD = dx_NCD.reshape(-1, width)[:tokens].reshape(x_BTD.shape)
    as_is = lambda gradient, one: None if gradient is None else gradient.astype(one.dtype)  # noqa: E731
    return total, _Gradients(dx_BTD, as_is(dtable_VD, table_VD), as_is(dbias_V, bias_V))


def _scaled(z_weight, blocks, found: _Gradients, gradients):
    factor = gradients[0]
    if isinstance(factor, jax.custom_derivatives.SymbolicZero):
        factor = jnp.zeros((), jnp.float32)
    times = lambda one: None if one is None else (factor * one).astype(one.dtype)  # noqa: E731
    return *map(times, found), None, None


sums.defvjp(_sums_and_gradients, _scaled, symbolic_zeros=True)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _cut(blocks: int, *arrays_BT) -> tuple[jax.Array, ...]:
    """[B, T, ...] as [N, C, ...], padded at the end with what no mask counts."""

    def cut(array_BT):
        flat = array_BT.reshape(-1, *array_BT.shape[2:])
        size = -(-flat.shape[0] // blocks)
        flat = jnp.pad(flat, ((0, blocks * size - flat.shape[0]),) + ((0, 0),) * (flat.ndim - 1))
        return flat.reshape(blocks, size, *flat.shape[1:])

    return tuple(map(cut, arrays_BT))


def _of_block(x_CD, target_C, counts_C, *, weights_VD, bias_V, z_weight):
    """(its sums, a function that gives the objective's gradient of its logits, float32[C, V])."""
    logits_CV = _product("cd,vd->cv", x_CD, weights_VD)
    if bias_V is not None:
        logits_CV = logits_CV + bias_V.astype(jnp.float32)[None]
    weight_C = counts_C.astype(jnp.float32)
    top_C = jnp.max(logits_CV, axis=-1)
    scaled_CV = jnp.exp(logits_CV - top_C[:, None])
    sum_C = jnp.sum(scaled_CV, axis=-1)
    log_z_C = top_C + jnp.log(sum_C)
    target_logit_C = jnp.take_along_axis(logits_CV, target_C[:, None], axis=-1)[:, 0]
    loss = jnp.sum((log_z_C - target_logit_C) * weight_C)
    objective = loss + z_weight * jnp.sum(jnp.square(log_z_C) * weight_C) if z_weight else loss
    correct = jnp.sum((jnp.argmax(logits_CV, axis=-1) == target_C) & counts_C, dtype=jnp.float32)

    def dlogits_CV():
        scale_C = weight_C * (1.0 + 2.0 * z_weight * log_z_C) / sum_C
        is_target_CV = jnp.arange(logits_CV.shape[1], dtype=target_C.dtype)[None] == target_C[:, None]
        return scale_C[:, None] * scaled_CV - jnp.where(is_target_CV, weight_C[:, None], 0.0)

    return _Sums(objective, loss, correct), dlogits_CV

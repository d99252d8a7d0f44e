"""Losses as sums and counts, so that devices, micro-batches and buckets add up to one number."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, loss_mask_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Token cross-entropy in nats, summed over true tokens, and the number of true tokens (both float32 scalars).

    The caller divides by the count over the *global* batch (at least 1), so that neither the device count nor
    gradient accumulation nor bucketing changes the loss.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    weights_BT = loss_mask_BT.astype(jnp.float32)
    return jnp.sum((log_z_BT - target_logit_BT) * weights_BT), jnp.sum(weights_BT)


def z_loss(logits_BTV: jax.Array, loss_mask_BT: jax.Array) -> jax.Array:
    """Sum over true tokens of the squared logarithm of the softmax's normaliser, a float32 scalar.

    Times a small weight it keeps logits from drifting (Chowdhery et al. 2022, section 5; CodeGen's recipe has 1e-4).
    """
    log_z_BT = jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.square(log_z_BT) * loss_mask_BT.astype(jnp.float32))


def token_accuracy(logits_BTV: jax.Array, targets_BT: jax.Array, loss_mask_BT: jax.Array) -> jax.Array:
    """Number of true tokens that the arg max predicts, a float32 scalar."""
    return jnp.sum((jnp.argmax(logits_BTV, axis=-1) == targets_BT) & loss_mask_BT, dtype=jnp.float32)

"""T5 attention: no scaling of the logits, additive relative-position bias, softmax in float32.

Shapes: B batch, Q queries, S keys, D width, N heads, H head width, K beams, T decoder positions, U buckets.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from codegen2_jax.models.layers import SCORES, accumulated, dropout, recomputed, softmax, weight
from codegen2_jax.models.placement import constrain

MASKED = -1e9  # finite, so that a row with nothing to attend to stays finite


def relative_buckets(num_queries: int, num_keys: int, *, bidirectional: bool, buckets: int, max_distance: int):
    """Bucket of (key position - query position), int32[num_queries, num_keys] (Raffel et al. 2020, section 2.1).

    Half the buckets of a direction are one distance each, the rest grow as a logarithm up to `max_distance`.
    Built in numpy on the host: the edges lie on powers of two, where a device's logarithm may round the other way.
    """
    relative = np.arange(num_keys)[None, :] - np.arange(num_queries)[:, None]
    offset = np.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0) * buckets
        distance = np.abs(relative)
    else:
        distance = np.maximum(-relative, 0)
    exact = buckets // 2
    # float32 as in the reference: the truncation below depends on the rounding of this logarithm.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    logarithmic = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int64), buckets - 1)
    return (offset + np.where(distance < exact, distance, logarithmic)).astype(np.int32)


def position_bias(table_UN, buckets_QS) -> jax.Array:
    """Relative bias of every head, float32[1, N, Q, S]; computed once per stack and given to each of its layers."""
    return jnp.transpose(table_UN.astype(jnp.float32)[buckets_QS], (2, 0, 1))[None]


def mask_bias(mask_BS) -> jax.Array:
    """0 where a key may be attended to, a large negative number elsewhere: float32[B, 1, 1, S]."""
    return jnp.where(mask_BS, 0.0, MASKED).astype(jnp.float32)[:, None, None, :]


def causal_bias(length: int) -> jax.Array:
    """float32[1, 1, T, T]: position i sees j <= i."""
    return jnp.where(np.tri(length, dtype=bool), 0.0, MASKED).astype(jnp.float32)[None, None]


@jax.custom_vjp
def add_bias(logits_BNQS: jax.Array, bias_1NQS: jax.Array) -> jax.Array:
    """Logits plus a bias that all rows of the batch share; its gradient sums over them by a product with ones.

    XLA's reduction over the slowest axis takes six times as long on a CPU.
    """
    return logits_BNQS + bias_1NQS


def _add_bias_forward(logits_BNQS, bias_1NQS):
    return logits_BNQS + bias_1NQS, None


def _add_bias_backward(_, gradient_BNQS):
    ones_1B = jnp.ones((1, gradient_BNQS.shape[0]), gradient_BNQS.dtype)
    return gradient_BNQS, jnp.einsum("ab,bnqs->anqs", ones_1B, gradient_BNQS)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class Attention(nn.Module):
    """Multi-head attention with weights q, k, v [D, N, H] and o [N, H, D], no biases.

    keeps_scores: False: scores and probabilities are made again in the backward pass, whatever the layer keeps.
    """

    width: int
    num_heads: int
    head_dim: int
    dropout_rate: float
    dtype: Any
    keeps_scores: bool = True

    def setup(self):
        D, N, H = self.width, self.num_heads, self.head_dim
        axes = ("embed", "heads", "head_dim")
        # Query weights also carry the 1/sqrt(H) that T5 leaves out of the attention itself.
        self.q_DNH = self.param("q", weight((D * H) ** -0.5, axes), (D, N, H), jnp.float32)
        self.k_DNH = self.param("k", weight(D**-0.5, axes), (D, N, H), jnp.float32)
        self.v_DNH = self.param("v", weight(D**-0.5, axes), (D, N, H), jnp.float32)
        out = weight((N * H) ** -0.5, ("heads", "head_dim", "embed"))
        self.o_NHD = self.param("o", out, (N, H, D), jnp.float32)

    def __call__(self, x_BQD, memory_BSD, *, bias_1NQS=None, mask_B11S=None, seed_2=None):
        """Attend from x to memory (x itself in self-attention); bias and mask (a `mask_bias`) are added to logits."""
        q_BQNH = jnp.einsum("bqd,dnh->bqnh", x_BQD, self.q_DNH.astype(self.dtype))
        k_BSNH = jnp.einsum("bsd,dnh->bsnh", memory_BSD, self.k_DNH.astype(self.dtype))
        v_BSNH = jnp.einsum("bsd,dnh->bsnh", memory_BSD, self.v_DNH.astype(self.dtype))
        q_BQNH = constrain(q_BQNH, "batch", "length", "heads", "head_dim")
        k_BSNH, v_BSNH = (constrain(x, "batch", "keys", "heads", "head_dim") for x in (k_BSNH, v_BSNH))
        mix = self._mixed if self.keeps_scores else recomputed(self._mixed)
        mixed_BQNH = mix(q_BQNH, k_BSNH, v_BSNH, bias_1NQS, mask_B11S, seed_2)
        return jnp.einsum("bqnh,nhd->bqd", mixed_BQNH, self.o_NHD.astype(self.dtype))

    def _mixed(self, q_BQNH, k_BSNH, v_BSNH, bias_1NQS, mask_B11S, seed_2):
        logits_BNQS = checkpoint_name(accumulated("bqnh,bsnh->bnqs", q_BQNH, k_BSNH), SCORES)
        if bias_1NQS is not None:
            logits_BNQS = add_bias(logits_BNQS, bias_1NQS)
        if mask_B11S is not None:
            logits_BNQS = logits_BNQS + mask_B11S
        probs_BNQS = dropout(softmax(logits_BNQS, self.dtype), seed_2, self.dropout_rate)
        return jnp.einsum("bnqs,bsnh->bqnh", probs_BNQS, v_BSNH)

    def heads_first(self, x_BSD):
        """Keys and values of x for decoding, each [B, N, S, H]: the layout a one-query step reads in order."""
        k_BSNH = jnp.einsum("bsd,dnh->bsnh", x_BSD, self.k_DNH.astype(self.dtype))
        v_BSNH = jnp.einsum("bsd,dnh->bsnh", x_BSD, self.v_DNH.astype(self.dtype))
        return k_BSNH.swapaxes(1, 2), v_BSNH.swapaxes(1, 2)

    def step(self, x_BKD, k_BNSH, v_BNSH, bias):
        """One position of K beams against S cached keys; `bias` broadcasts to [B, N, K, S]."""
        q_BKNH = jnp.einsum("bkd,dnh->bknh", x_BKD, self.q_DNH.astype(self.dtype))
        logits_BNKS = jnp.einsum("bknh,bnsh->bnks", q_BKNH, k_BNSH, preferred_element_type=jnp.float32)
        probs_BNKS = jax.nn.softmax(logits_BNKS + bias, axis=-1).astype(self.dtype)
        mixed_BNKH = jnp.einsum("bnks,bnsh->bnkh", probs_BNKS, v_BNSH)
        return jnp.einsum("bnkh,nhd->bkd", mixed_BNKH, self.o_NHD.astype(self.dtype))

"""Self-attention of decoders: rotary, scaled, softmax in float32, with as many key heads as query heads or fewer.

Shapes: B batch, T length, S keys of a prefix, D width, N query heads, G key and value heads, R = N / G queries that
share a key head, H head width, K beams or samples.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from codegen2_jax.models import attention_kernels, rotary
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.models.layers import weight
from codegen2_jax.models.placement import constrain

TURNS = {"neighbours": rotary.turn_neighbours, "halves": rotary.turn_halves}


class SelfAttention(nn.Module):
    """Weights q [D, N, H], k and v [D, G, H], o [N, H, D], no biases; logits are divided by sqrt(H)."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    turn: str  # which channels form a rotary pair, one of TURNS
    dtype: Any
    in_std: float
    out_std: float
    implementation: str = "xla"  # of attention_kernels.IMPLEMENTATIONS; a step of decoding is always XLA's
    truncated: bool = False  # whether values are drawn from a normal distribution cut at two standard deviations
    keeps_scores: bool = True  # False: XLA's scores and probabilities are made again in the backward pass

    @classmethod
    def of(cls, config: DecoderConfig, turn: str) -> "SelfAttention":
        """The attention of a decoder's block."""
        return cls(
            config.d_model,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            turn=turn,
            dtype=jnp.dtype(config.dtype),
            in_std=config.stds["in"],
            out_std=config.stds["out"],
            implementation=config.attention,
            truncated=config.truncates,
            keeps_scores=config.remat != "none",
        )

    def setup(self):
        D, N, G, H = self.width, self.num_heads, self.num_kv_heads, self.head_dim
        heads = weight(self.in_std, ("embed", "heads", "head_dim"), truncated=self.truncated)
        shared = weight(self.in_std, ("embed", "kv_heads", "head_dim"), truncated=self.truncated)
        out = weight(self.out_std, ("heads", "head_dim", "embed"), truncated=self.truncated)
        self.q_DNH = self.param("q", heads, (D, N, H), jnp.float32)
        self.k_DGH = self.param("k", shared, (D, G, H), jnp.float32)
        self.v_DGH = self.param("v", shared, (D, G, H), jnp.float32)
        self.o_NHD = self.param("o", out, (N, H, D), jnp.float32)

    def __call__(self, x_BTD, rotation, mask):
        """(output_BTD, (k_BTGH, v_BTGH)); the keys are turned already and are what a cache holds.

        mask: from `attention_kernels.prepared`.
        """
        q_BTGRH, k_BTGH, v_BTGH = self._heads(x_BTD, rotation)
        q_BTGRH = constrain(q_BTGRH, "batch", "length", "kv_heads", "group", "head_dim")
        # Two steps: where they are made, then where they are read. In one, each device would make what it reads.
        k_BTGH, v_BTGH = (constrain(x, "batch", "length", "kv_heads", "head_dim") for x in (k_BTGH, v_BTGH))
        k_BTGH, v_BTGH = (constrain(x, "batch", "keys", "kv_heads", "head_dim") for x in (k_BTGH, v_BTGH))
        options = dict(keeps_scores=self.keeps_scores)
        mixed_BTGRH = attention_kernels.attend(self.implementation, q_BTGRH, k_BTGH, v_BTGH, mask, **options)
        return self._out(mixed_BTGRH), (k_BTGH, v_BTGH)

    def step(self, x_BKD, rotation, cache, position, bias, prefix_bias):
        """One position of K beams against a prefix they share and their own past; (output_BKD, cache).

        cache: prefix_k, prefix_v [B, G, S, H]; k, v [B, G, K, T, H], where beam c writes position t into its own slot
        (c, t) and nothing is ever moved. bias broadcasts to [B, G, R, K, T] where a beam reads its own slots alone, to
        [B, G, R, K, K * T] where it may find its past in others'. prefix_bias broadcasts to [B, G, R, K, S].
        """
        q_BKGRH, k_BKGH, v_BKGH = self._heads(x_BKD, rotation)
        start = (0, 0, 0, position, 0)
        k_BGKTH = jax.lax.dynamic_update_slice(cache["k"], k_BKGH.swapaxes(1, 2)[:, :, :, None], start)
        v_BGKTH = jax.lax.dynamic_update_slice(cache["v"], v_BKGH.swapaxes(1, 2)[:, :, :, None], start)
        own_k, own_v, to_logits, to_values = k_BGKTH, v_BGKTH, "bkgrh,bgkth->bgrkt", "bgrkt,bgkth->bkgrh"
        if bias.shape[-1] != k_BGKTH.shape[3]:
            own_k, own_v = (slots.reshape(*slots.shape[:2], -1, self.head_dim) for slots in (k_BGKTH, v_BGKTH))
            to_logits, to_values = "bkgrh,bgsh->bgrks", "bgrks,bgsh->bkgrh"
        own = jnp.einsum(to_logits, q_BKGRH, own_k, preferred_element_type=jnp.float32) + bias
        past = jnp.einsum("bkgrh,bgsh->bgrks", q_BKGRH, cache["prefix_k"], preferred_element_type=jnp.float32)
        probs = jax.nn.softmax(jnp.concatenate([past + prefix_bias, own], axis=-1), axis=-1).astype(self.dtype)
        past, own = probs[..., : past.shape[-1]], probs[..., past.shape[-1] :]
        mixed_BKGRH = jnp.einsum(to_values, own, own_v)
        mixed_BKGRH = mixed_BKGRH + jnp.einsum("bgrks,bgsh->bkgrh", past, cache["prefix_v"])
        return self._out(mixed_BKGRH), {**cache, "k": k_BGKTH, "v": v_BGKTH}

    def _heads(self, x_BTD, rotation):
        """q_BTGRH, turned and divided by sqrt(H), k_BTGH, turned, v_BTGH."""
        q_BTNH, k_BTGH, v_BTGH = (
            jnp.einsum("btd,dnh->btnh", x_BTD, w.astype(self.dtype)) for w in (self.q_DNH, self.k_DGH, self.v_DGH)
        )
        turn = TURNS[self.turn]
        q_BTNH = turn(q_BTNH, rotation) * jnp.asarray(self.head_dim**-0.5, self.dtype)
        B, T = x_BTD.shape[:2]
        return q_BTNH.reshape(B, T, self.num_kv_heads, -1, self.head_dim), turn(k_BTGH, rotation), v_BTGH

    def _out(self, mixed_BTGRH):
        B, T = mixed_BTGRH.shape[:2]
        mixed_BTNH = mixed_BTGRH.reshape(B, T, self.num_heads, self.head_dim)
        return jnp.einsum("btnh,nhd->btd", mixed_BTNH, self.o_NHD.astype(self.dtype))

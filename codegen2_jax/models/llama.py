"""Decoders of the Llama architecture (Touvron et al. 2023): CodeGen2.5, and any small Llama.

RMS norms without bias, rotary over the whole head in halves, SwiGLU, no biases. Shapes: B batch, T length, D width,
K beams, L layers.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.models.layers import FeedForward, RMSNorm, dropout, site
from codegen2_jax.models.placement import constrain
from codegen2_jax.models.self_attention import SelfAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Shape of a Llama.

    Attributes:
      num_kv_heads: key and value heads; each serves num_heads / num_kv_heads query heads (Ainslie et al. 2023).
    """

    num_kv_heads: int
    rope_theta: float = 10000.0
    rms_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.num_kv_heads, int) or self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"LlamaConfig.num_kv_heads={self.num_kv_heads!r} must divide num_heads={self.num_heads}; "
                "equal numbers are plain multi-head attention."
            )
        if self.head_dim % 2:
            raise UserError(f"LlamaConfig.head_dim={self.head_dim} must be even: rotary turns pairs of channels.")

    @property
    def rotary_dim(self) -> int:
        return self.head_dim

    @property
    def ties_embeddings(self) -> bool:
        return self.tie_word_embeddings

    @property
    def stds(self) -> dict[str, float]:
        """Standard deviations to draw with: 0.02 throughout, as transformers."""
        return dict.fromkeys(("embedding", "head", "in", "out"), 0.02)

    @property
    def truncates(self) -> bool:
        return False

    def norm(self) -> nn.Module:
        return RMSNorm(self.rms_norm_epsilon, jnp.dtype(self.dtype))

    def layer(self) -> type[nn.Module]:
        return LlamaLayer


class LlamaLayer(nn.Module):
    """One block; `__call__` for a whole sequence, `step` for one position of a cache."""

    config: LlamaConfig
    SITES = 2  # dropout: attention output, MLP output

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.attention_norm, self.mlp_norm = config.norm(), config.norm()
        self.attention = SelfAttention.of(config, "halves")
        self.mlp = FeedForward(
            config.d_ff,
            activation="silu",
            gated=True,
            dtype=dtype,
            in_std=config.stds["in"],
            out_std=config.stds["out"],
        )

    def __call__(self, x_BTD, seeds_S2, rotation, mask):
        """(x_BTD, (k_BTGH, v_BTGH))."""
        rate = self.config.dropout_rate
        y_BTD, keys_values = self.attention(self.attention_norm(x_BTD), rotation, mask)
        x_BTD = constrain(x_BTD + dropout(y_BTD, site(seeds_S2, 0), rate), "batch", "sequence", "features")
        x_BTD = x_BTD + dropout(self.mlp(self.mlp_norm(x_BTD)), site(seeds_S2, 1), rate)
        return constrain(x_BTD, "batch", "sequence", "features"), keys_values

    def step(self, x_BKD, rotation, cache, position, bias, prefix_bias):
        """(x_BKD, cache), see `SelfAttention.step`."""
        y_BKD = self.attention_norm(x_BKD)
        y_BKD, cache = self.attention.step(y_BKD, rotation, cache, position, bias, prefix_bias)
        x_BKD = x_BKD + y_BKD
        return x_BKD + self.mlp(self.mlp_norm(x_BKD)), cache

"""The decoders CodeGen1 and CodeGen2 (arXiv 2203.13474, 2305.02309): one norm, attention and MLP side by side.

y = norm(x); x + attention(y) + mlp(y), as GPT-J. Shapes: B batch, T length, D width, K beams, L layers.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.models.layers import FeedForward, LayerNorm, dropout, site
from codegen2_jax.models.placement import constrain
from codegen2_jax.models.self_attention import SelfAttention

INITIALISATIONS = ("jaxformer", "huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeGenConfig(DecoderConfig):
    """Shape of a CodeGen; specs of the published ones are in gin_configs/models.

    Attributes:
      rotary_dim: channels of each head that are turned, in neighbouring pairs; the rest is left as it is.
      initialisation: "jaxformer" (truncated normal, its two output matrices smaller by the depth) or "huggingface"
        (normal, standard deviation 0.02).
    """

    vocab_size: int = 51200
    rotary_dim: int
    layer_norm_epsilon: float = 1e-5
    initialisation: str = "jaxformer"

    def __post_init__(self):
        super().__post_init__()
        whole = isinstance(self.rotary_dim, int)
        if not whole or not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise UserError(
                f"CodeGenConfig.rotary_dim={self.rotary_dim!r} must be even and at most head_dim={self.head_dim}."
            )
        if self.initialisation not in INITIALISATIONS:
            raise UserError(f"initialisation={self.initialisation!r} is unknown; choose one of {INITIALISATIONS}.")

    has_head_bias = True
    ties_embeddings = False
    rope_theta = 10000.0

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def stds(self) -> dict[str, float]:
        """Standard deviations to draw with (specification of `initialisation`; jaxformer `modules.py`)."""
        if self.initialisation == "huggingface":
            return dict.fromkeys(("embedding", "head", "in", "out"), 0.02)
        inside = self.d_model**-0.5
        # Both output matrices use the model's width, the MLP's too.
        return {"embedding": self.vocab_size**-0.5, "head": inside, "in": inside, "out": 2 / self.num_layers * inside}

    @property
    def truncates(self) -> bool:
        return self.initialisation == "jaxformer"

    def norm(self) -> nn.Module:
        return LayerNorm(self.layer_norm_epsilon, jnp.dtype(self.dtype))

    def layer(self) -> type[nn.Module]:
        return CodeGenLayer


class CodeGenLayer(nn.Module):
    """One block; `__call__` for a whole sequence, `step` for one position of a cache."""

    config: CodeGenConfig
    SITES = 2  # dropout: attention output, MLP output

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.norm = config.norm()
        self.attention = SelfAttention.of(config, "neighbours")
        self.mlp = FeedForward(
            config.d_ff,
            activation="gelu",
            biased=True,
            dtype=dtype,
            in_std=config.stds["in"],
            out_std=config.stds["out"],
            truncated=config.truncates,
        )

    def __call__(self, x_BTD, seeds_S2, rotation, mask):
        """(x_BTD, (k_BTGH, v_BTGH))."""
        y_BTD = self.norm(x_BTD)
        attended_BTD, keys_values = self.attention(y_BTD, rotation, mask)
        rate = self.config.dropout_rate
        x_BTD = x_BTD + dropout(attended_BTD, site(seeds_S2, 0), rate)
        x_BTD = x_BTD + dropout(self.mlp(y_BTD), site(seeds_S2, 1), rate)
        return constrain(x_BTD, "batch", "sequence", "features"), keys_values

    def step(self, x_BKD, rotation, cache, position, bias, prefix_bias):
        """(x_BKD, cache), see `SelfAttention.step`."""
        y_BKD = self.norm(x_BKD)
        attended_BKD, cache = self.attention.step(y_BKD, rotation, cache, position, bias, prefix_bias)
        return x_BKD + attended_BKD + self.mlp(y_BKD), cache

"""What every decoder's configuration holds, whatever its blocks."""

import dataclasses

import flax.linen as nn

from codegen2_jax.errors import UserError
from codegen2_jax.models.attention_kernels import IMPLEMENTATIONS, Implementation
from codegen2_jax.models.layers import DTYPES, REMATS, Remat, check_positive

SIZES = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "head_dim", "max_positions")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The fields that `models.decoder_only` reads; a family adds its own and says what a block is.

    Attributes:
      max_positions: the longest sequence; a longer one is an error unless `allow_extrapolation`.
      prefix_lm: whether a prefix is attended to in both directions (prefix-LM; Raffel et al. 2020, section 3.2.1). The
        weights are the same either way.
      attend_across_documents: whether a packed document sees those before it in its window (CodeGen2's choice).
      bos_token_id, eos_token_id, pad_token_id: None to take the vocabulary's.
      decoder_start_token_id: what stands between a source and its target when the model learns pairs.
      dtype: of the computation; parameters are always float32. remat: what a block keeps for its backward pass, one
        of layers.REMATS. attention: how it is computed, one of attention_kernels.IMPLEMENTATIONS; "auto" that
        nothing has resolved (attention_kernels.choose) is "xla".
      unrolled: the blocks one after another and not by a scan; the same numbers, for looking at a program (a compiler's
        estimate counts the body of a loop once).
    """

    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    head_dim: int
    max_positions: int = 2048
    allow_extrapolation: bool = False
    prefix_lm: bool = False
    attend_across_documents: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    dropout_rate: float = 0.0
    dtype: str = "float32"
    remat: Remat = "none"
    attention: Implementation = "xla"
    unrolled: bool = False

    def __post_init__(self):
        name = type(self).__name__
        for field in SIZES:
            if not isinstance(getattr(self, field), int) or getattr(self, field) < 1:
                raise UserError(f"{name}.{field}={getattr(self, field)!r} is no integer from 1; give the real size.")
        for field, choices in (("dtype", DTYPES), ("remat", tuple(REMATS)), ("attention", IMPLEMENTATIONS)):
            if getattr(self, field) not in choices:
                raise UserError(f"{name}.{field}={getattr(self, field)!r} is unknown; choose one of {choices}.")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"{name}.dropout_rate={self.dropout_rate} must lie in [0, 1); CodeGen2 has 0.")
        check_positive(self, "layer_norm_epsilon", "rms_norm_epsilon", "rope_theta")
        for field in IDS:
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and 0 <= value < self.vocab_size):
                raise UserError(f"{name}.{field}={getattr(self, field)} is outside vocab_size={self.vocab_size}.")

    has_head_bias = False

    # What a family adds: rotary_dim, rope_theta, num_kv_heads, ties_embeddings, stds, truncates, and

    def norm(self) -> nn.Module:
        """The norm before the head (and in the blocks)."""
        raise NotImplementedError

    def layer(self) -> type[nn.Module]:
        """The class of a block."""
        raise NotImplementedError

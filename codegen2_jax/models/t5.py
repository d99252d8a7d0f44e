"""T5 encoder-decoder (Raffel et al. 2020), the network of CodeT5 (Wang et al. 2021).

Layers are stacked on axis 0 of every layer parameter and run by a scan. Nothing outside `models` meets these modules:
`language_models.EncoderDecoder` wraps them in functions over nested dictionaries.
Shapes: B batch, S source length, T target length, D width, K beams, L layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models.attention import Attention, causal_bias, mask_bias, position_bias, relative_buckets
from codegen2_jax.models.attention_kernels import IMPLEMENTATIONS, Implementation
from codegen2_jax.models.layers import (
    DTYPES,
    REMATS,
    FeedForward,
    Remat,
    RMSNorm,
    accumulated,
    check_positive,
    dropout,
    rematerialised,
    seeds,
    site,
    weight,
)
from codegen2_jax.models.placement import constrain

FEED_FORWARDS = ("relu", "gated-gelu")


# What decides the shapes of the weights.
SIZES = ("vocab_size", "d_model", "d_ff", "num_encoder_layers", "num_decoder_layers", "num_heads", "head_dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Shape of a T5. `dtype` is the dtype of the computation; parameters are always float32."""

    vocab_size: int
    d_model: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int  # never inferred from d_model / num_heads: published T5s differ
    relative_attention_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.0
    layer_norm_epsilon: float = 1e-6
    feed_forward: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None  # d_model^-0.5 before the head; None: exactly when tied, T5's rule
    decoder_start_token_id: int = 0
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    dtype: str = "float32"
    remat: Remat = "none"  # what a layer keeps for its backward pass, one of layers.REMATS
    attention: Implementation = "xla"  # the kernels have no relative bias: "auto" is "xla", and the others are errors
    unrolled: bool = False  # layers one after another and not by a scan, as in DecoderConfig

    def __post_init__(self):
        for name in SIZES:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"T5Config.{name}={getattr(self, name)!r} is no integer from 1; give the real size.")
        choices_of = {"feed_forward": FEED_FORWARDS, "dtype": DTYPES, "remat": tuple(REMATS)}
        for name, choices in (choices_of | {"attention": IMPLEMENTATIONS}).items():
            if getattr(self, name) not in choices:
                raise UserError(f"T5Config.{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")
        check_positive(self, "layer_norm_epsilon", "relative_attention_max_distance")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"T5Config.dropout_rate={self.dropout_rate} must lie in [0, 1); 0.1 is usual.")
        if self.relative_attention_buckets < 4 or self.relative_attention_buckets % 4:
            raise UserError(
                f"T5Config.relative_attention_buckets={self.relative_attention_buckets} must be a multiple of 4; "
                "T5 has 32."
            )
        if self.relative_attention_max_distance <= self.relative_attention_buckets // 2:
            raise UserError(
                f"T5Config.relative_attention_max_distance={self.relative_attention_max_distance} must exceed half of "
                f"relative_attention_buckets={self.relative_attention_buckets}; T5 has 128."
            )
        for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise UserError(f"T5Config.{name}={getattr(self, name)} is outside vocab_size={self.vocab_size}.")

    @property
    def scales_outputs(self) -> bool:
        """Whether the head sees the decoder's output times d_model^-0.5."""
        return self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs


def _norm(config):
    return RMSNorm(config.layer_norm_epsilon, jnp.dtype(config.dtype))


def _attention(config):
    dtype, keeps_scores = jnp.dtype(config.dtype), config.remat != "none"
    return Attention(config.d_model, config.num_heads, config.head_dim, config.dropout_rate, dtype, keeps_scores)


def _feed_forward(config):
    activation = config.feed_forward.removeprefix("gated-")
    gated = config.feed_forward.startswith("gated-")
    return FeedForward(
        config.d_ff, activation, gated, dropout_rate=config.dropout_rate, dtype=jnp.dtype(config.dtype)
    )


def _placed(x_BSD):
    return constrain(x_BSD, "batch", "sequence", "features")


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normed before and added after."""

    config: T5Config
    SITES = 4  # dropout: attention probabilities, attention output, MLP hidden, MLP output

    def setup(self):
        self.attention_norm, self.attention = _norm(self.config), _attention(self.config)
        self.mlp_norm, self.mlp = _norm(self.config), _feed_forward(self.config)

    def __call__(self, x_BSD, seeds_S2, bias_1NSS, mask_B11S):
        rate = self.config.dropout_rate
        y_BSD = self.attention_norm(x_BSD)
        y_BSD = self.attention(y_BSD, y_BSD, bias_1NQS=bias_1NSS, mask_B11S=mask_B11S, seed_2=site(seeds_S2, 0))
        x_BSD = _placed(x_BSD + dropout(y_BSD, site(seeds_S2, 1), rate))
        y_BSD = self.mlp(self.mlp_norm(x_BSD), site(seeds_S2, 2))
        return _placed(x_BSD + dropout(y_BSD, site(seeds_S2, 3), rate)), None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each normed before and added after."""

    config: T5Config
    SITES = 6

    def setup(self):
        self.attention_norm, self.attention = _norm(self.config), _attention(self.config)
        self.cross_norm, self.cross_attention = _norm(self.config), _attention(self.config)
        self.mlp_norm, self.mlp = _norm(self.config), _feed_forward(self.config)

    def __call__(self, x_BTD, seeds_S2, bias_1NTT, mask_B11S, encoded_BSD):
        rate = self.config.dropout_rate
        y_BTD = self.attention_norm(x_BTD)
        y_BTD = self.attention(y_BTD, y_BTD, bias_1NQS=bias_1NTT, seed_2=site(seeds_S2, 0))
        x_BTD = _placed(x_BTD + dropout(y_BTD, site(seeds_S2, 1), rate))
        y_BTD = self.cross_norm(x_BTD)
        y_BTD = self.cross_attention(y_BTD, encoded_BSD, mask_B11S=mask_B11S, seed_2=site(seeds_S2, 2))
        x_BTD = _placed(x_BTD + dropout(y_BTD, site(seeds_S2, 3), rate))
        y_BTD = self.mlp(self.mlp_norm(x_BTD), site(seeds_S2, 4))
        return _placed(x_BTD + dropout(y_BTD, site(seeds_S2, 5), rate)), None

    def cross_heads(self, encoded_BSD):
        """Keys and values of the source, computed once per decoding and shared by all beams: each [B, N, S, H]."""
        return self.cross_attention.heads_first(encoded_BSD)

    def step(self, x_BKD, cache, position, bias_BNKS, cross_bias_B11S):
        """One decoder position of K beams; returns its output and the cache with this position written.

        cache: self keys and values [B, N, T * K, H], where a beam writes into its own slot of its own position and
        nothing is ever moved; cross keys and values [B, N, S, H]. bias_BNKS: ancestry and causality over those slots.
        """
        y_BKD = self.attention_norm(x_BKD)
        k_BNKH, v_BNKH = self.attention.heads_first(y_BKD)
        start = (0, 0, position * x_BKD.shape[1], 0)
        k_BNSH = jax.lax.dynamic_update_slice(cache["k"], k_BNKH, start)
        v_BNSH = jax.lax.dynamic_update_slice(cache["v"], v_BNKH, start)
        x_BKD = x_BKD + self.attention.step(y_BKD, k_BNSH, v_BNSH, bias_BNKS)
        y_BKD = self.cross_norm(x_BKD)
        x_BKD = x_BKD + self.cross_attention.step(y_BKD, cache["cross_k"], cache["cross_v"], cross_bias_B11S)
        x_BKD = x_BKD + self.mlp(self.mlp_norm(x_BKD))
        return x_BKD, {**cache, "k": k_BNSH, "v": v_BNSH}


class Stack(nn.Module):
    """`num_layers` equal layers run by a scan, with dropout before the first and after the final norm."""

    config: T5Config
    layer: type[nn.Module]
    num_layers: int

    def setup(self):
        scanned = nn.scan(
            rematerialised(self.layer, self.config.remat, unrolled=self.config.unrolled),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0,) + (nn.broadcast,) * (2 if self.layer is EncoderLayer else 3),
            length=self.num_layers,
            unroll=self.num_layers if self.config.unrolled else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = scanned(self.config)
        self.final_norm = _norm(self.config)
        table = weight(self.config.d_model**-0.5, ("buckets", "heads"))
        shape = (self.config.relative_attention_buckets, self.config.num_heads)
        self.relative_bias_UN = self.param("relative_bias", table, shape, jnp.float32)

    def __call__(self, x_BSD, mask_B11S, *memory, dropout_key=None):
        """mask_B11S: of the source, which an encoder layer attends to within x, a decoder layer in its memory."""
        rate = self.config.dropout_rate
        seeds_LS2 = ends_22 = None
        if dropout_key is not None and rate > 0.0:
            stream = 2 * (self.layer is DecoderLayer)
            seeds_LS2 = seeds(dropout_key, stream, (self.num_layers, self.layer.SITES))
            ends_22 = seeds(dropout_key, stream + 1, (2,))
        bias_1NSS = position_bias(self.relative_bias_UN, self.buckets(x_BSD.shape[1]))
        if self.layer is DecoderLayer:
            bias_1NSS = bias_1NSS + causal_bias(x_BSD.shape[1])
        x_BSD = _placed(dropout(x_BSD, site(ends_22, 0), rate))
        x_BSD, _ = self.layers(x_BSD, seeds_LS2, bias_1NSS, mask_B11S, *memory)
        return dropout(self.final_norm(x_BSD), site(ends_22, 1), rate)

    def buckets(self, length):
        return stack_buckets(self.config, length, bidirectional=self.layer is EncoderLayer)


def stack_buckets(config, length, *, bidirectional):
    """relative_buckets of a stack over `length` positions."""
    return relative_buckets(
        length,
        length,
        bidirectional=bidirectional,
        buckets=config.relative_attention_buckets,
        max_distance=config.relative_attention_max_distance,
    )


class T5(nn.Module):
    """The whole network; its methods are applied one by one by `language_models.EncoderDecoder`."""

    config: T5Config

    def setup(self):
        config = self.config
        shape, axes = (config.vocab_size, config.d_model), ("vocab", "embed")
        self.embedding_VD = self.param("embedding", weight(1.0, axes), shape, jnp.float32)
        if not config.tie_word_embeddings:
            self.head_VD = self.param("head", weight(1.0, axes), shape, jnp.float32)
        self.encoder = Stack(config, EncoderLayer, config.num_encoder_layers)
        self.decoder = Stack(config, DecoderLayer, config.num_decoder_layers)

    def embed(self, tokens_BS):
        return self.embedding_VD[tokens_BS].astype(self.config.dtype)

    def encode(self, x_BSD, mask_BS, dropout_key=None):
        return self.encoder(x_BSD, mask_bias(mask_BS), dropout_key=dropout_key)

    def decode(self, x_BTD, encoded_BSD, mask_BS, dropout_key=None):
        return self.decoder(x_BTD, mask_bias(mask_BS), encoded_BSD, dropout_key=dropout_key)

    def before_head(self, x_BTD):
        """What the head's table is multiplied with: scaled by d^-0.5 where tied, since that table has unit variance."""
        scale = self.config.d_model**-0.5 if self.config.scales_outputs else None
        return x_BTD if scale is None else x_BTD * jnp.asarray(scale, x_BTD.dtype)

    def head(self, x_BTD):
        """float32 logits."""
        config = self.config
        table_VD = (self.embedding_VD if config.tie_word_embeddings else self.head_VD).astype(config.dtype)
        return accumulated("btd,vd->btv", self.before_head(x_BTD), table_VD)

    def __call__(self, tokens_BS, mask_BS, decoder_BT):
        encoded_BSD = self.encode(self.embed(tokens_BS), mask_BS)
        return self.head(self.decode(self.embed(decoder_BT), encoded_BSD, mask_BS))

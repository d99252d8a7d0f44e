"""T5, CodeT5 and CodeT5+ (220M, 770M): Hugging Face's names, layouts and configuration, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from codegen2_jax.errors import UserError
from codegen2_jax.interop.layouts import (
    Row,
    Source,
    check_sizes,
    equal,
    first_id,
    into_heads,
    out_of_heads,
    required,
    same,
    transposed,
)
from codegen2_jax.interop.safetensors_files import Stored, one_line
from codegen2_jax.models.t5 import FEED_FORWARDS, T5Config

# Older files repeat the shared table under these names, and hold one table that T5 never used.
REPEATED_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
NORMS = {"attention": "attention_norm", "cross_attention": "cross_norm", "mlp": "mlp_norm"}
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def rows(config: T5Config) -> list[Row]:
    """Every weight of a T5."""
    D, V, buckets = config.d_model, config.vocab_size, config.relative_attention_buckets
    found = [same("shared.weight", (V, D), ("embedding",))]
    if not config.tie_word_embeddings:
        found.append(same("lm_head.weight", (V, D), ("head",)))
    for stack, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        for layer in range(layers):
            found += _block(config, stack, layer)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found.append(same(bias, (buckets, config.num_heads), (stack, "relative_bias")))
        found.append(same(f"{stack}.final_layer_norm.weight", (D,), (stack, "final_norm", "scale")))
    return found


def _block(config: T5Config, stack: str, layer: int) -> list[Row]:
    D, F, heads = config.d_model, config.d_ff, (config.d_model, config.num_heads, config.head_dim)
    parts = [("SelfAttention", "attention")]
    parts += [("EncDecAttention", "cross_attention")] if stack == "decoder" else []
    parts += [("DenseReluDense", "mlp")]
    gated = config.feed_forward == "gated-gelu"
    found = []
    for index, (theirs, ours) in enumerate(parts):
        prefix, place = f"{stack}.block.{layer}.layer.{index}", (stack, "layers", ours)
        if ours == "mlp":
            for name, our_name in [("wi_0", "wi"), ("wi_1", "wi_linear")] if gated else [("wi", "wi")]:
                found.append(transposed(f"{prefix}.{theirs}.{name}.weight", (F, D), (*place, our_name), layer))
            found.append(transposed(f"{prefix}.{theirs}.wo.weight", (D, F), (*place, "wo"), layer))
        else:
            for name in "qkv":
                found.append(into_heads(f"{prefix}.{theirs}.{name}.weight", *heads, (*place, name), layer))
            found.append(out_of_heads(f"{prefix}.{theirs}.o.weight", *heads, (*place, "o"), layer))
        found.append(same(f"{prefix}.layer_norm.weight", (D,), (stack, "layers", NORMS[ours], "scale"), layer))
    return found


def read(
    raw: Mapping[str, Any], stored: dict[str, Stored], source: Source
) -> tuple[T5Config, list[Row], dict[str, Stored], tuple[str, ...], None]:
    """(config, rows, weights without repeated tables, notes, None) of a configuration and the files beside it."""
    config = _config(raw, f"{source.name}/config.json")
    check_sizes(source.name, config, stored)
    shared = stored.get("shared.weight")
    if shared is None:  # some exports keep the table only under the encoder's name
        repeated = [name for name in (*REPEATED_TABLES, "lm_head.weight") if name in stored]
        if repeated and config.scales_outputs:
            shared = stored["shared.weight"] = stored[repeated[0]]
    if shared is not None:
        for name in (*REPEATED_TABLES, "lm_head.weight"):
            if name in stored and equal(stored[name], shared):
                del stored[name]
    if "lm_head.weight" in stored:
        config = dataclasses.replace(config, tie_word_embeddings=False)
    return config, rows(config), {name: stored[name] for name in stored if name not in IGNORED}, (), None


def _config(raw: Mapping[str, Any], path: str) -> T5Config:
    required(raw, ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), path)
    feed_forward = raw.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARDS:
        raise UserError(f"{path} asks for feed_forward_proj {feed_forward!r}; supported are {FEED_FORWARDS}.")
    scale = raw.get("scale_decoder_outputs")
    pad = raw.get("pad_token_id", 0)
    try:
        return T5Config(
            vocab_size=raw["vocab_size"],
            d_model=raw["d_model"],
            d_ff=raw["d_ff"],
            num_encoder_layers=raw["num_layers"],
            num_decoder_layers=first_id(raw.get("num_decoder_layers"), raw["num_layers"]),
            num_heads=raw["num_heads"],
            head_dim=raw["d_kv"],
            relative_attention_buckets=raw.get("relative_attention_num_buckets", 32),
            relative_attention_max_distance=raw.get("relative_attention_max_distance", 128),
            dropout_rate=raw.get("dropout_rate", 0.1),
            layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
            feed_forward=feed_forward,
            tie_word_embeddings=True,  # what the weights say decides, see read
            scale_decoder_outputs=(raw.get("tie_word_embeddings") is not False) if scale is None else bool(scale),
            decoder_start_token_id=first_id(raw.get("decoder_start_token_id"), pad),
            pad_token_id=pad,
            bos_token_id=first_id(raw.get("bos_token_id"), pad),
            eos_token_id=first_id(raw.get("eos_token_id", 1), 1),
        )
    except TypeError as error:
        raise UserError(f"{path} holds a value of a wrong type ({one_line(error)}); correct it.") from None


def write(config: T5Config, mp_num: int | None = None) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    """(rows, config.json without its dtype, metadata of the weights' file) for export."""
    del mp_num  # nothing of a T5 is fused
    return rows(config), {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "feed_forward_proj": config.feed_forward,
        "initializer_factor": 1.0,
        # transformers reads the scaling of the decoder's output from this flag, and the tying from the weights.
        "tie_word_embeddings": config.scales_outputs,
        "decoder_start_token_id": config.decoder_start_token_id,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "use_cache": True,
    }, {}

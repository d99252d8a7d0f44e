"""Llamas, of which CodeGen2.5 is one: Hugging Face's names, layouts and configuration, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.layouts import (
    OURS,
    Row,
    Source,
    check_sizes,
    equal,
    first_id,
    into_heads,
    ours_for,
    ours_of,
    out_of_heads,
    required,
    same,
    transposed,
    without,
)
from codegen2_jax.interop.safetensors_files import Stored, one_line
from codegen2_jax.models.llama import LlamaConfig

BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def rows(config: LlamaConfig) -> list[Row]:
    """Every weight of a Llama."""
    D, F, V, H, layers = config.d_model, config.d_ff, config.vocab_size, config.head_dim, ("decoder", "layers")
    found = [same(TABLE, (V, D), ("embedding",))]
    for i in range(config.num_layers):
        prefix, attention = f"model.layers.{i}", (*layers, "attention")
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        found += [
            same(f"{prefix}.input_layernorm.weight", (D,), (*layers, "attention_norm", "scale"), i),
            *(
                into_heads(f"{prefix}.self_attn.{name}_proj.weight", D, count, H, (*attention, name), i)
                for name, count in heads.items()
            ),
            out_of_heads(f"{prefix}.self_attn.o_proj.weight", D, config.num_heads, H, (*attention, "o"), i),
            same(f"{prefix}.post_attention_layernorm.weight", (D,), (*layers, "mlp_norm", "scale"), i),
            transposed(f"{prefix}.mlp.gate_proj.weight", (F, D), (*layers, "mlp", "wi"), i),
            transposed(f"{prefix}.mlp.up_proj.weight", (F, D), (*layers, "mlp", "wi_linear"), i),
            transposed(f"{prefix}.mlp.down_proj.weight", (D, F), (*layers, "mlp", "wo"), i),
        ]
    found.append(same("model.norm.weight", (D,), ("decoder", "final_norm", "scale")))
    return found if config.tie_word_embeddings else [*found, same(HEAD, (V, D), ("head",))]


def neighbours_to_halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k [N * H, D] from the order in which rotary pairs are neighbours to that of halves, head by head.

    Llama's own files, llama2.c and llama.cpp turn channels (2i, 2i + 1), Hugging Face and we turn (i, i + H/2).
    """
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def read(
    raw: Mapping[str, Any], stored: dict[str, Stored], source: Source
) -> tuple[LlamaConfig, list[Row], dict[str, Stored], tuple[str, ...], None]:
    """(config, rows, weights without buffers and repeated tables, notes, None)."""
    config = _config(raw, f"{source.name}/config.json" if source.directory else source.name)
    check_sizes(source.name, config, stored)
    stored = without(stored, BUFFERS, source.name)
    if config.tie_word_embeddings and HEAD in stored:
        if TABLE in stored and not equal(stored[HEAD], stored[TABLE]):
            config = dataclasses.replace(config, tie_word_embeddings=False)
        else:
            del stored[HEAD]
    return config, rows(config), stored, (), None


def _config(raw: Mapping[str, Any], path: str) -> LlamaConfig:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    required(raw, sizes, path)
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise UserError(f"{path} sets {name}; our Llama has no biases, so this model cannot be read.")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path} asks for hidden_act {raw['hidden_act']!r}; a Llama has 'silu'.")
    V, N = raw["vocab_size"], raw["num_attention_heads"]
    try:
        # What the file leaves out has transformers' default; null is for the vocabulary to say, and so is Meta's -1.
        given = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None} | raw
        ids = {name: first_id(given[name], None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ids = {name: None if value == -1 else value for name, value in ids.items()}
        return LlamaConfig(
            vocab_size=V,
            d_model=raw["hidden_size"],
            d_ff=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=N,
            num_kv_heads=first_id(raw.get("num_key_value_heads"), N),
            head_dim=first_id(raw.get("head_dim"), raw["hidden_size"] // N),
            rope_theta=_theta(raw, path),
            max_positions=raw.get("max_position_embeddings", 2048),
            rms_norm_epsilon=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            dropout_rate=0.0,
            **ids,
            **ours_of(raw),
        )
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path} holds a value of a wrong type ({one_line(error)}); correct it.") from None


def _theta(raw: Mapping[str, Any], path: str) -> float:
    """The base of the rotary angles; raises UserError for positions that are scaled."""
    theta = raw.get("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):  # older and newer name of the same
        found = raw.get(name)
        if found is None:
            continue
        kind = found.get("rope_type", found.get("type", "default")) if isinstance(found, Mapping) else found
        is_plain = isinstance(found, Mapping) and kind in (None, "default")
        if not is_plain or found.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{path} asks for {name} {kind!r}; only plain rotary positions ('default') are read.")
        theta = found.get("rope_theta", theta)
    if not isinstance(theta, int | float):
        raise UserError(f"{path} gives rope_theta {theta!r}, which is no number; 10000.0 is usual, so correct it.")
    return float(theta)


def write(config: LlamaConfig, mp_num: int | None = None) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    """(rows, config.json without its dtype, metadata of the weights' file) for export."""
    del mp_num  # nothing of a Llama is fused
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_epsilon,
        "rope_theta": config.rope_theta,  # where transformers before 5 looks for it
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
        OURS: ours_for(config),
    }
    return rows(config), raw, {}

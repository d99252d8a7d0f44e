"""CodeGen1 and CodeGen2: Hugging Face's names, layouts and configuration, both ways; see qkv_layout.py."""

import logging
from collections.abc import Mapping
from typing import Any

from codegen2_jax.errors import UserError
from codegen2_jax.interop import qkv_layout
from codegen2_jax.interop.layouts import (
    OURS,
    Row,
    Source,
    check_sizes,
    first_id,
    ours_for,
    ours_of,
    out_of_heads,
    required,
    same,
    transposed,
    without,
)
from codegen2_jax.interop.safetensors_files import Stored, one_line
from codegen2_jax.models.codegen import CodeGenConfig

LOG = logging.getLogger(__name__)
BUFFERS = r"transformer\.h\.\d+\.attn\.(causal_mask|bias|masked_bias)"
END_OF_TEXT = 50256  # of GPT-2's vocabulary and so of every published CodeGen's
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def rows(config: CodeGenConfig, mp_num: int) -> list[Row]:
    """Every weight of a CodeGen whose fused weights have `mp_num` shards."""
    D, F, V, layers = config.d_model, config.d_ff, config.vocab_size, ("decoder", "layers")
    found = [same("transformer.wte.weight", (V, D), ("embedding",))]
    for i in range(config.num_layers):
        prefix = f"transformer.h.{i}"
        found += [
            same(f"{prefix}.ln_1.weight", (D,), (*layers, "norm", "scale"), i),
            same(f"{prefix}.ln_1.bias", (D,), (*layers, "norm", "bias"), i),
            qkv_layout.fused(f"{prefix}.attn.qkv_proj.weight", config, mp_num, (*layers, "attention"), i),
            out_of_heads(
                f"{prefix}.attn.out_proj.weight", D, config.num_heads, config.head_dim, (*layers, "attention", "o"), i
            ),
            transposed(f"{prefix}.mlp.fc_in.weight", (F, D), (*layers, "mlp", "wi"), i),
            same(f"{prefix}.mlp.fc_in.bias", (F,), (*layers, "mlp", "wi_bias"), i),
            transposed(f"{prefix}.mlp.fc_out.weight", (D, F), (*layers, "mlp", "wo"), i),
            same(f"{prefix}.mlp.fc_out.bias", (D,), (*layers, "mlp", "wo_bias"), i),
        ]
    return found + [
        same("transformer.ln_f.weight", (D,), ("decoder", "final_norm", "scale")),
        same("transformer.ln_f.bias", (D,), ("decoder", "final_norm", "bias")),
        same("lm_head.weight", (V, D), ("head",)),
        same("lm_head.bias", (V,), ("head_bias",)),
    ]


def read(
    raw: Mapping[str, Any], stored: dict[str, Stored], source: Source
) -> tuple[CodeGenConfig, list[Row], dict[str, Stored], tuple[str, ...], int]:
    """(config, rows, weights without buffers, notes, shards) of a configuration and the files beside it."""
    config = _config(raw, source.name)
    check_sizes(source.name, config, stored)
    mp_num, because = qkv_layout.decide(config, raw, source)
    notes = (f"qkv layout: {mp_num} shards, by {'; '.join(because)}",)
    return config, rows(config, mp_num), without(stored, BUFFERS, source.name), notes, mp_num


def _config(raw: Mapping[str, Any], source: str) -> CodeGenConfig:
    path = f"{source}/config.json"
    required(raw, ("vocab_size", "n_embd", "n_layer", "n_head"), path)
    if raw.get("activation_function", "gelu_new") != "gelu_new":
        raise UserError(f"{path} asks for activation_function {raw['activation_function']!r}; CodeGen has 'gelu_new'.")
    if raw.get("tie_word_embeddings"):
        raise UserError(f"{path} ties its embeddings; CodeGen's are apart, so correct tie_word_embeddings.")
    try:
        D, N, V = raw["n_embd"], raw["n_head"], raw["vocab_size"]
        if D % N:
            raise UserError(f"{path}: n_embd={D} is no multiple of n_head={N}; correct it.")
        head_dim = D // N
        return CodeGenConfig(
            vocab_size=V,
            d_model=D,
            d_ff=first_id(raw.get("n_inner"), 4 * D),
            num_layers=raw["n_layer"],
            num_heads=N,
            head_dim=head_dim,
            rotary_dim=first_id(raw.get("rotary_dim"), head_dim),
            max_positions=raw.get("n_positions", 2048),
            layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
            dropout_rate=raw.get("resid_pdrop", 0.0),
            **_ids(raw, V, source),
            **ours_of(raw),
        )
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path} holds a value of a wrong type ({one_line(error)}); correct it.") from None


def _ids(raw: Mapping[str, Any], vocab_size: int, source: str) -> dict[str, int | None]:
    """The ids, None for those that the vocabulary decides.

    Published configurations give the ids of '"' and "#" for beginning and end, so none of theirs is believed; another
    vocabulary's ids are taken where they are in it.
    """
    given = {name: first_id(raw.get(name), None) for name in IDS}
    if vocab_size > END_OF_TEXT:
        right = dict.fromkeys(IDS, END_OF_TEXT)
    else:
        right = {name: None if value is None or not 0 <= value < vocab_size else value for name, value in given.items()}
    changed = [f"{name} {given[name]} -> {right[name]}" for name in IDS if given[name] not in (right[name], None)]
    if changed:
        LOG.warning("%s/config.json: wrong ids are replaced: %s.", source, ", ".join(changed))
    return right


def write(config: CodeGenConfig, mp_num: int | None = None) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    """(rows, config.json without its dtype, metadata of the weights' file) for export; mp_num=None: 4 shards."""
    if config.num_heads * config.head_dim != config.d_model:
        raise UserError(
            f"num_heads={config.num_heads} of head_dim={config.head_dim} are not d_model={config.d_model}; Hugging "
            "Face's CodeGen knows no other head_dim, so such a model has no place in its layout."
        )
    mp_num = qkv_layout.shards_for_export(config, mp_num)
    # Readers of CodeGen2 take this key for the mark of 8 shards, so it is there with 8 and never with 4.
    mark = {"head_dim": config.head_dim} if mp_num == 8 and config.head_dim in (128, 256) else {}
    otherwise = END_OF_TEXT if config.vocab_size > END_OF_TEXT else None
    raw = {
        "architectures": ["CodeGenForCausalLM"],
        "model_type": "codegen",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "rotary_dim": config.rotary_dim,
        "n_inner": None if config.d_ff == 4 * config.d_model else config.d_ff,
        "activation_function": "gelu_new",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout_rate),
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": False,
        **{name: otherwise if getattr(config, name) is None else getattr(config, name) for name in IDS},
        "use_cache": True,
        **mark,
        OURS: {qkv_layout.METADATA: mp_num, **ours_for(config)},
    }
    return rows(config, mp_num), raw, {qkv_layout.METADATA: str(mp_num)}

"""Weights in and out of Hugging Face's T5 layout: config.json and the weights' files, without torch.

The only place that knows foreign names and layouts. Their linear weights are [out, in], ours [in, out] with heads apart
and layers stacked on axis 0; see `_layout`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop.weight_files import INDEX, WEIGHTS, one_line, read_weights
from codegen2_jax.models.t5 import FEED_FORWARDS, T5Config

PACKAGED = {"nano_t5": Path(__file__).parents[1] / "pretrained" / "nano_t5"}
CONFIG = "config.json"
KNOWN_HUB_NAMES = (
    "Salesforce/codet5-small",
    "Salesforce/codet5-base",
    "Salesforce/codet5-large",
    "Salesforce/codet5p-220m",
    "Salesforce/codet5p-770m",
    "google-t5/t5-small",
    "google-t5/t5-base",
    "google/t5-v1_1-small",
)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Older files repeat the shared table under these names, and hold one table that T5 never used.
REPEATED_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
NORMS = {"attention": "attention_norm", "cross_attention": "cross_norm", "mlp": "mlp_norm"}
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


# ------------------------------------------------------------------------------------------------------------ layout


def _layout(config: T5Config) -> list[tuple[str, tuple[str, ...], int | None, str]]:
    """(their name, path of ours, layer or None, kind) of every weight; kind names the change of layout."""
    rows = [("shared.weight", ("embedding",), None, "same")]
    if not config.tie_word_embeddings:
        rows.append(("lm_head.weight", ("head",), None, "same"))
    gated = config.feed_forward == "gated-gelu"
    mlp = [("wi_0", "wi"), ("wi_1", "wi_linear"), ("wo", "wo")] if gated else [("wi", "wi"), ("wo", "wo")]
    for stack, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        parts = [("SelfAttention", "attention", [(n, n) for n in "qkvo"])]
        if stack == "decoder":
            parts.append(("EncDecAttention", "cross_attention", [(n, n) for n in "qkvo"]))
        parts.append(("DenseReluDense", "mlp", mlp))
        for layer in range(layers):
            for index, (theirs, ours, weights) in enumerate(parts):
                prefix = f"{stack}.block.{layer}.layer.{index}"
                for their_name, our_name in weights:
                    kind = our_name if ours != "mlp" else "transposed"
                    path = (stack, "layers", ours, our_name)
                    rows.append((f"{prefix}.{theirs}.{their_name}.weight", path, layer, kind))
                rows.append((f"{prefix}.layer_norm.weight", (stack, "layers", NORMS[ours], "scale"), layer, "same"))
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows.append((bias, (stack, "relative_bias"), None, "same"))
        rows.append((f"{stack}.final_layer_norm.weight", (stack, "final_norm", "scale"), None, "same"))
    return rows


def _their_shape(config: T5Config, name: str, kind: str) -> tuple[int, ...]:
    inner = config.num_heads * config.head_dim
    if kind in ("q", "k", "v"):
        return inner, config.d_model
    if kind == "o":
        return config.d_model, inner
    if kind == "transposed":
        return (config.d_model, config.d_ff) if name.endswith("wo.weight") else (config.d_ff, config.d_model)
    if name.endswith("relative_attention_bias.weight"):
        return config.relative_attention_buckets, config.num_heads
    return (config.d_model,) if name.endswith("norm.weight") else (config.vocab_size, config.d_model)


def _to_ours(config: T5Config, kind: str, theirs: np.ndarray) -> np.ndarray:
    D, N, H = config.d_model, config.num_heads, config.head_dim
    if kind in ("q", "k", "v"):
        return theirs.T.reshape(D, N, H)
    if kind == "o":
        return theirs.T.reshape(N, H, D)
    return theirs.T if kind == "transposed" else theirs


def _to_theirs(config: T5Config, kind: str, ours: np.ndarray) -> np.ndarray:
    D, inner = config.d_model, config.num_heads * config.head_dim
    if kind in ("q", "k", "v"):
        return ours.reshape(D, inner).T
    if kind == "o":
        return ours.reshape(inner, D).T
    return ours.T if kind == "transposed" else ours


# ------------------------------------------------------------------------------------------------------------ config


def _read_config(directory: Path) -> T5Config:
    path = directory / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a model directory holds {CONFIG} and {WEIGHTS}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({one_line(error)}); download or convert it again.") from None
    if not isinstance(raw, dict) or raw.get("model_type") != "t5":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{path} describes model_type {kind!r}; only 't5' (T5, CodeT5, CodeT5+ 220M and 770M) is read.")
    missing = [name for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads") if name not in raw]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; they are never inferred, so add them.")
    feed_forward = raw.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARDS:
        raise UserError(f"{path} asks for feed_forward_proj {feed_forward!r}; supported are {FEED_FORWARDS}.")
    try:
        return _our_config(raw)
    except TypeError as error:
        raise UserError(f"{path} holds a value of a wrong type ({one_line(error)}); correct it.") from None


def _our_config(raw: dict[str, Any]) -> T5Config:
    scale = raw.get("scale_decoder_outputs")
    eos, start, pad = raw.get("eos_token_id", 1), raw.get("decoder_start_token_id"), raw.get("pad_token_id", 0)
    return T5Config(
        vocab_size=raw["vocab_size"],
        d_model=raw["d_model"],
        d_ff=raw["d_ff"],
        num_encoder_layers=raw["num_layers"],
        num_decoder_layers=raw["num_layers"] if raw.get("num_decoder_layers") is None else raw["num_decoder_layers"],
        num_heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        relative_attention_buckets=raw.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=raw.get("relative_attention_max_distance", 128),
        dropout_rate=raw.get("dropout_rate", 0.1),
        layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
        feed_forward=raw.get("feed_forward_proj", "relu"),
        tie_word_embeddings=True,  # what the weights say decides, see load_t5
        scale_decoder_outputs=(raw.get("tie_word_embeddings") is not False) if scale is None else bool(scale),
        decoder_start_token_id=pad if start is None else start,
        pad_token_id=pad,
        bos_token_id=pad if raw.get("bos_token_id") is None else raw["bos_token_id"],
        eos_token_id=eos[0] if isinstance(eos, list) else eos,
    )


def _their_config(config: T5Config, dtype: str) -> dict[str, Any]:
    return {
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
        "dtype": dtype,
    }


# ------------------------------------------------------------------------------------------------------ load and save


def load_t5(directory: str | Path, dtype: Any = np.float32) -> tuple[T5Config, dict[str, Any]]:
    """Read a T5 checkpoint: (config, nested dict of numpy arrays as `models` has them, all of `dtype`).

    dtype=None keeps each weight's own dtype. Weights missing, unexpected, misshapen or of no float type are one
    UserError that lists them, and so are files that cannot be read.
    """
    directory = Path(directory)
    config = _read_config(directory)
    weights = read_weights(directory)
    shared = weights.get("shared.weight")
    if shared is None:  # some exports keep the table only under the encoder's name
        repeated = [name for name in (*REPEATED_TABLES, "lm_head.weight") if name in weights]
        if repeated and config.scales_outputs:
            shared = weights["shared.weight"] = weights[repeated[0]]
    if shared is not None:
        for name in (*REPEATED_TABLES, "lm_head.weight"):
            if name in weights and _equal(weights[name], shared):
                del weights[name]
    if "lm_head.weight" in weights:
        config = dataclasses.replace(config, tie_word_embeddings=False)
    rows = _layout(config)
    _check_names(directory, rows, weights)
    wrong = [
        f"{name} {weights[name].shape} {weights[name].dtype}, not {_their_shape(config, name, kind)}"
        for name, _, _, kind in rows
        if weights[name].shape != _their_shape(config, name, kind) or weights[name].dtype not in DTYPES.values()
    ]
    if wrong:
        raise UserError(f"{directory}: weights do not fit {CONFIG}: {_listed(wrong)}; is the config another model's?")
    params: dict[str, Any] = {}
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name, path, layer, kind in rows:
        ours = _to_ours(config, kind, weights.pop(name))
        if layer is None:
            _insert(params, path, np.ascontiguousarray(ours, dtype))
        else:
            stacks.setdefault(path, []).append(ours)
    for path in list(stacks):
        stacked = np.stack(stacks.pop(path))
        _insert(params, path, stacked if dtype is None else stacked.astype(dtype, copy=False))
    return config, params


def save_t5(directory: str | Path, config: T5Config, params: Mapping[str, Any], dtype: str | None = "bfloat16") -> None:
    """Write config.json and model.safetensors as transformers reads them; dtype=None keeps each array's own dtype.

    The same parameters always give the same bytes, and weights loaded with their own dtype are written back unchanged.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"save_t5 dtype={dtype!r} is unknown; choose one of {tuple(DTYPES)}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = to_their_weights(config, params, dtype)
    written = dtype or str(weights["shared.weight"].dtype)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})  # transformers insists on a format entry
    text = json.dumps(_their_config(config, written), indent=2, sort_keys=True) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")


def to_their_weights(config: T5Config, params: Mapping[str, Any], dtype: str | None = None) -> dict[str, np.ndarray]:
    """Our tree under Hugging Face's names and layouts, each in `dtype` or its own: weights, or their gradients."""
    weights: dict[str, np.ndarray] = {}
    arrays: dict[tuple[str, ...], np.ndarray] = {}
    for name, path, layer, kind in _layout(config):
        if path not in arrays:
            arrays[path] = np.asarray(_lookup(params, path))
        ours = arrays[path] if layer is None else arrays[path][layer]
        weights[name] = np.ascontiguousarray(_to_theirs(config, kind, ours), DTYPES[dtype] if dtype else None)
        assert weights[name].shape == _their_shape(config, name, kind), (name, weights[name].shape)
    return weights


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _listed(names: list[str]) -> str:
    return "; ".join(names[:20]) + (f"; and {len(names) - 20} more" if len(names) > 20 else "")


def _check_names(directory, rows, weights):
    expected = {row[0] for row in rows}
    missing = sorted(expected - set(weights))
    unexpected = sorted(set(weights) - expected - set(IGNORED))
    parts = [f"missing: {_listed(missing)}"] if missing else []
    parts += [f"unexpected: {_listed(unexpected)}"] if unexpected else []
    if parts:
        raise UserError(f"{directory} does not hold the weights its {CONFIG} describes; {'. '.join(parts)}.")


def _insert(tree, path, value):
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _lookup(tree, path):
    for part in path:
        tree = tree[part]
    return tree


# ---------------------------------------------------------------------------------------------------------- directory


def resolve_directory(name: str | Path) -> Path:
    """Where the model `name` lies: a directory, the packaged 'nano_t5', or a Hub name (the local cache if offline)."""
    if str(name) in PACKAGED:
        path = PACKAGED[str(name)]
        if not path.is_dir():
            raise UserError(f"the packaged model {name!r} is not at {path}; install the package with its data.")
        return path
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    suggestions = get_close_matches(str(name), (*PACKAGED, *KNOWN_HUB_NAMES), n=1)
    hint = f"; did you mean {suggestions[0]!r}?" if suggestions else ""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(name)):
        choices = "a directory with config.json, 'nano_t5', or a Hub name such as 'Salesforce/codet5-small'"
        raise UserError(f"model {str(name)!r} is no directory and no known name{hint}; give {choices}.")
    return _download(str(name), hint)


def _download(name: str, hint: str) -> Path:
    from huggingface_hub import snapshot_download  # late: imports an HTTP stack that offline runs do not need

    tokenizer = ["*.txt", "*token*.json", "vocab.json"]
    try:
        path = Path(snapshot_download(name, allow_patterns=[CONFIG, "model*.safetensors", WEIGHTS + INDEX, *tokenizer]))
        if not ((path / WEIGHTS).is_file() or (path / (WEIGHTS + INDEX)).is_file()):  # a model of before safetensors
            path = Path(snapshot_download(name, allow_patterns=[CONFIG, "pytorch_model*.bin*", *tokenizer]))
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        raise UserError(
            f"model {name!r} is no local directory and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {one_line(error)}){hint}; download it elsewhere and give its directory."
        ) from None
    return path

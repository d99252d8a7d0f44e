"""GGUF files of the Llama architecture (ggml-org/ggml `docs/gguf.md`): numbers unpacked by the PyPI package `gguf`.

The header is read here: the package's reader believes every length in it, and a hostile one keeps it busy for ever.
llama.cpp keeps rows of q and k in the order in which rotary pairs are neighbours (`convert_hf_to_gguf.py`, permute).
"""

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.llama_weights import HEAD, TABLE, neighbours_to_halves
from codegen2_jax.interop.safetensors_files import Stored, one_line, reader

MAX_HEADER = 64_000_000  # bytes; a vocabulary of 128,000 tokens takes 8 million
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NAMES = {"token_embd.weight": TABLE, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class _Header:
    """Takes values from the beginning of a file, never more than it has."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self._left = min(self.size, MAX_HEADER)

    def take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"its header asks for {count} more bytes than there are (or {MAX_HEADER} in all)")
        return self._file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"it has a value of the unknown kind {kind}")
        of, count = self.number("I"), self.number("Q")
        if of in SCALARS:
            code = SCALARS[of]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))
        if of != STRING:
            raise ValueError("it has a list of lists")
        return [self.text() for _ in range(count)]

    def tell(self) -> int:
        return self._file.tell()


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Stored], dict[str, Any]]:
    """(config.json, weights, the file's own metadata), the first two in Hugging Face's terms, the weights unread.

    Quantised weights are float32 when they are read. Raises UserError for files that are damaged or no plain Llama.
    """
    try:
        with path.open("rb") as file:
            header = _Header(file)
            if header.take(4) != b"GGUF" or header.number("I") not in (2, 3):
                raise ValueError("it does not begin as version 2 or 3 does")
            tensors, pairs = header.number("Q"), header.number("Q")
            metadata = {}
            for _ in range(pairs):
                key = header.text()
                if key in metadata:
                    raise ValueError(f"{key[:60]!r} stands twice")
                metadata[key] = header.value(header.number("I"))
            found = [_tensor(header) for _ in range(tensors)]
            step = metadata.get("general.alignment", 32)
            if type(step) is not int or step < 1 or step & (step - 1):
                raise ValueError(f"its alignment is {step!r}")
            begin = -(-header.tell() // step) * step
            stored = _stored(path, found, begin, header.size)
    except (OSError, ValueError, TypeError, struct.error, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no intact GGUF file ({one_line(error)}); copy it again.") from None
    raw = _config(path, metadata, stored)
    return raw, _renamed(stored, raw), metadata


def _tensor(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape with the fastest axis last, kind of numbers, offset)."""
    name, axes = header.text(), header.number("I")
    if not 1 <= axes <= 4:
        raise ValueError(f"{name} has {axes} axes")
    shape = tuple(header.number("Q") for _ in range(axes))[::-1]
    return name, shape, header.number("I"), header.number("Q")


def _stored(path: Path, found: list, begin: int, size: int) -> dict[str, Stored]:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # late: an extra
    except ModuleNotFoundError:
        raise UserError(f"reading {path} needs the package gguf; pip install 'codegen2_jax[gguf]'.") from None
    stored, places = {}, []
    for name, shape, number, offset in found:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ValueError(f"{name} has numbers of the unknown kind {number}") from None
        block, width = GGML_QUANT_SIZES[kind]
        if name in stored or shape[-1] % block:
            raise ValueError(f"{name} stands twice or has rows of {shape[-1]} numbers in blocks of {block}")
        packed = (*shape[:-1], shape[-1] // block * width)
        places.append((begin + offset, begin + offset + math.prod(packed), name))
        stored[name] = Stored(shape, np.dtype(np.float32), _unpacked(path, begin + offset, packed, kind, name))
    at = begin
    for first, last, name in sorted(places):
        if first < at or last > size:
            raise ValueError(f"{name} lies at bytes {first} to {last} of {size}, the tensor before it ends at {at}")
        at = last
    return stored


def _unpacked(path: Path, offset: int, packed: tuple[int, ...], kind: Any, name: str) -> Callable[[], np.ndarray]:
    read = reader(path, offset, packed, np.uint8)

    def unpack() -> np.ndarray:
        from gguf import dequantize

        try:
            return np.asarray(dequantize(read(), kind), np.float32)
        except NotImplementedError as error:
            raise UserError(f"{path}: {name} cannot be unpacked ({one_line(error)}); take another file.") from None

    return unpack


def _config(path: Path, metadata: dict[str, Any], stored: dict[str, Stored]) -> dict[str, Any]:
    """Hugging Face's configuration of a Llama."""
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise UserError(f"{path} holds the architecture {kind!r}; only 'llama' is read from GGUF.")
    if metadata.get("llama.expert_count") or metadata.get("llama.rope.scaling.type", "none") != "none":
        raise UserError(f"{path} has experts or scaled rotary positions; only plain Llamas are read.")

    def get(key: str, *otherwise: Any, kind: type = int) -> Any:
        value = metadata.get(f"llama.{key}", *otherwise)
        if type(value) is not kind or not value > 0:
            raise UserError(f"{path} gives llama.{key}={str(value)[:40]}, no positive number as Llamas have; not read.")
        return value

    width, heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", width // heads)
    turned = get("rope.dimension_count", head_dim)
    if turned != head_dim or get("attention.value_length", head_dim) != head_dim:
        raise UserError(f"{path}: rotary over {turned} of {head_dim} channels, or values of another width: not read.")
    if "token_embd.weight" not in stored:
        raise UserError(f"{path} has no token_embd.weight; is it a part of a model?")
    ids = {theirs: metadata.get(f"tokenizer.ggml.{ours}_token_id") for ours, theirs in IDS.items()}
    return {
        "model_type": "llama",
        "vocab_size": stored["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": _decimal(get("attention.layer_norm_rms_epsilon", 1e-5, kind=float)),
        "rope_theta": _decimal(get("rope.freq_base", 10000.0, kind=float)),
        "tie_word_embeddings": "output.weight" not in stored,
        **ids,
    }


def _decimal(value: float) -> float:
    """What was meant by a number that was stored in 32 bits: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _renamed(stored: dict[str, Stored], raw: dict[str, Any]) -> dict[str, Stored]:
    """The weights under Hugging Face's names, rows of q and k in its order; an unknown name stays as it is."""
    heads = {"attn_q": raw["num_attention_heads"], "attn_k": raw["num_key_value_heads"]}
    found = {}
    for name, tensor in stored.items():
        block, _, rest = name.removeprefix("blk.").partition(".")
        kind = rest.removesuffix(".weight")
        if name.startswith("blk.") and block.isdecimal() and rest.endswith(".weight") and kind in LAYER_NAMES:
            if kind in heads:
                tensor = tensor._replace(read=_halved(tensor.read, heads[kind]))
            name = f"model.layers.{block}.{LAYER_NAMES[kind]}.weight"
        found[NAMES.get(name, name)] = tensor
    return found


def _halved(read: Callable[[], np.ndarray], heads: int) -> Callable[[], np.ndarray]:
    return lambda: neighbours_to_halves(read(), heads)

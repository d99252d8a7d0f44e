"""Files of karpathy/llama2.c (`model.py`, `export.py` version 0; `run.c`): seven numbers, then float32 weights."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.llama_weights import HEAD, TABLE, neighbours_to_halves
from codegen2_jax.interop.safetensors_files import Stored, reader

HEADER = struct.Struct("<7i")
MOST = 2**31  # of any product of two sizes


def open_llama2c(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """(config.json, weights) in Hugging Face's terms, the weights unread; UserError if the sizes do not add up."""
    with path.open("rb") as file:
        head, length = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    if len(head) < HEADER.size:
        raise UserError(f"{path} has {len(head)} bytes: no llama2.c file; copy it again.")
    D, F, L, N, G, V, T = HEADER.unpack(head)
    tied, V = V > 0, abs(V)  # a negative vocabulary marks a head of its own
    sizes = {"dim": D, "hidden_dim": F, "n_layers": L, "n_heads": N, "n_kv_heads": G, "vocab_size": V, "seq_len": T}
    good = min(sizes.values()) > 0 and max(D, F, V) * D < MOST and D % N == 0 and N % G == 0 and (D // N) % 2 == 0
    if not good:
        raise UserError(f"{path} is no llama2.c file: its header says {sizes}; give the .bin of version 0.")
    if 4 * D * L > length:  # of its norms alone; before a table of all layers is made
        raise UserError(f"{path} has {length} bytes, too few for its header {sizes}; it is damaged, so copy it again.")
    stored, at = _weights(path, D, F, L, N, G, V)
    at += 2 * T * (D // N // 2) * 4  # tables of cosines and sines, which everybody makes anew
    if not tied:
        stored[HEAD] = Stored((V, D), np.dtype(np.float32), reader(path, at, (V, D), np.float32))
        at += V * D * 4
    if at != length:
        raise UserError(f"{path} has {length} bytes, its header {sizes} asks for {at}; it is damaged or quantised.")
    return {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": N,
        "num_key_value_heads": G,
        "max_position_embeddings": T,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }, stored


def _weights(path: Path, D: int, F: int, L: int, N: int, G: int, V: int) -> tuple[dict[str, Stored], int]:
    """All but the head in the order of the file, each kind for all layers, and where they end."""
    H, layer = D // N, "model.layers.{}"
    kinds = [
        (TABLE, 1, (V, D), 0),
        (f"{layer}.input_layernorm.weight", L, (D,), 0),
        (f"{layer}.self_attn.q_proj.weight", L, (N * H, D), N),
        (f"{layer}.self_attn.k_proj.weight", L, (G * H, D), G),
        (f"{layer}.self_attn.v_proj.weight", L, (G * H, D), 0),
        (f"{layer}.self_attn.o_proj.weight", L, (D, N * H), 0),
        (f"{layer}.post_attention_layernorm.weight", L, (D,), 0),
        (f"{layer}.mlp.gate_proj.weight", L, (F, D), 0),
        (f"{layer}.mlp.down_proj.weight", L, (D, F), 0),
        (f"{layer}.mlp.up_proj.weight", L, (F, D), 0),
        ("model.norm.weight", 1, (D,), 0),
    ]
    stored, at = {}, HEADER.size
    for name, count, shape, heads in kinds:
        for index in range(count):
            read = reader(path, at, shape, np.float32)
            stored[name.format(index)] = Stored(shape, np.dtype(np.float32), _halved(read, heads) if heads else read)
            at += int(np.prod(shape)) * 4
    return stored, at


def _halved(read: Callable[[], np.ndarray], heads: int) -> Callable[[], np.ndarray]:
    return lambda: neighbours_to_halves(read(), heads)


def tokenizer_of(path: Path, vocab_size: int) -> Path | None:
    """The tokenizer's file beside a model: tok512.bin for 512 tokens, or tokenizer.bin."""
    names = (f"tok{vocab_size}.bin", "tokenizer.bin")
    return next((path.parent / name for name in names if (path.parent / name).is_file()), None)

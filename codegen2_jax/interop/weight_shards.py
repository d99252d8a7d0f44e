"""Weights written as one safetensors file, or as several with an index, named and cut as transformers does.

Source: huggingface/huggingface_hub `serialization/_base.py` (where a shard ends), huggingface/transformers
`modeling_utils.py` (`save_pretrained`: the index, and which files of an earlier export go).
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import Stored, one_line, write_safetensors
from codegen2_jax.interop.weight_files import INDEX, WEIGHTS

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def parse_size(text: str) -> int:
    """Bytes of a size such as "5GB", "500MB", "2GiB" or "1000000"; raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip(), flags=re.IGNORECASE)
    unit = UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise UserError(f"max_shard_size={text!r} is no size; write bytes, or such as 500MB, 5GB or 2GiB.")
    return size


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, Stored]], metadata: dict[str, str], max_shard_size: int | None = None
) -> list[str]:
    """Writes the tensors into a directory, one at a time in memory; returns the names of the files.

    max_shard_size: bytes of numbers in a file, None for one file; a tensor that is larger has a file of its own. The
    same tensors always give the same files. Weights of an earlier export that are no part of this one are removed
    when all files stand, since a reader would take them for these.
    """
    tensors = list(tensors)
    shards = [tensors] if max_shard_size is None else _cut(tensors, max_shard_size)
    if len(shards) == 1:
        write_safetensors(directory / WEIGHTS, tensors, metadata)
        written = [WEIGHTS]
    else:
        written = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        for name, shard in zip(written, shards, strict=True):
            write_safetensors(directory / name, shard, metadata)
        weight_map = {tensor: name for name, shard in zip(written, shards, strict=True) for tensor, _ in shard}
        content = {
            "metadata": {
                "total_parameters": sum(math.prod(tensor.shape) for _, tensor in tensors),
                "total_size": sum(_size(tensor) for _, tensor in tensors),
            },
            "weight_map": weight_map,
        }
        index = directory / (WEIGHTS + INDEX)
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written.append(index.name)
    _remove_others(directory, written)
    return written


def _cut(tensors: list[tuple[str, Stored]], most: int) -> list[list[tuple[str, Stored]]]:
    """In order: a shard ends before the tensor that would make it larger than `most` bytes."""
    shards: list[list[tuple[str, Stored]]] = [[]]
    size = 0
    for name, tensor in tensors:
        own = _size(tensor)
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append((name, tensor))
        size += own
    return shards


def _size(tensor: Stored) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _remove_others(directory: Path, written: list[str]) -> None:
    for path in directory.iterdir():
        ours = path.name in (WEIGHTS, WEIGHTS + INDEX) or _SHARD.fullmatch(path.name)
        if ours and path.name not in written:
            try:
                path.unlink()
            except OSError as error:
                raise UserError(f"{path}, of an earlier model, cannot be removed ({one_line(error)}); do so.") from None

"""safetensors files (huggingface/safetensors, `README.md`, "Format"): tensors read and written one at a time.

8 bytes of length, a JSON header of {name: dtype, shape, data_offsets}, then the numbers. A file is read only if its
header describes every byte behind it exactly once, so that no tensor reaches into another or out of the file.
"""

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from codegen2_jax.errors import UserError

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library
# In the order in which the library lays tensors out: wide numbers first, so that every tensor is aligned.
DTYPES = {
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "F32": np.float32,
    "U32": np.uint32,
    "I32": np.int32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "U16": np.uint16,
    "I16": np.int16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor that lies in a file; `read` brings it into memory and keeps nothing."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# -------------------------------------------------------------------------------------------------------------- reading


def open_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """({name: tensor}, metadata) of a file whose header is read and checked, and of whose numbers nothing is read yet.

    Raises UserError, in one line, for a file that is truncated, too long, or whose header lies.
    """
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            length = _header_length(file.read(8), end)
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
        return _entries(path, header, 8 + length, end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no intact safetensors file ({one_line(error)}); copy it again.") from None


def _header_length(first: bytes, end: int) -> int:
    if len(first) < 8:
        raise ValueError(f"it has {len(first)} bytes")
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER or 8 + length > end:
        raise ValueError(f"its header would be {length} bytes of {end}, at most {MAX_HEADER} are read")
    return length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _entries(path: Path, header: Any, begin: int, end: int) -> tuple[dict[str, Stored], dict[str, str]]:
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is no text")
    stored, places = {}, []
    for name, entry in header.items():
        (first, last), shape = entry["data_offsets"], tuple(entry["shape"])
        if any(type(number) is not int or number < 0 for number in (first, last, *shape)):
            raise ValueError(f"{name} has shape {shape} and offsets {first}, {last}")
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} is of the unknown dtype {entry['dtype']!r}")
        dtype = np.dtype(DTYPES[entry["dtype"]])
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} and {entry['dtype']} has {last - first} bytes")
        places.append((first, last, name))
        stored[name] = Stored(shape, dtype, reader(path, begin + first, shape, dtype))
    at = 0
    for first, last, name in sorted(places):
        if first != at:
            raise ValueError(f"{name} begins at byte {first}, the tensor before it ends at {at}")
        at = last
    if begin + at != end:
        raise ValueError(f"its tensors take {begin + at} bytes, the file has {end}")
    return stored, metadata


def reader(path: Path, offset: int, shape: tuple[int, ...], dtype: Any) -> Callable[[], np.ndarray]:
    """Reads an array that lies at `offset` of a file, whose length was checked."""

    def read() -> np.ndarray:
        array = np.empty(shape, dtype)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                count = file.readinto(array.reshape(-1).view(np.uint8))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({one_line(error)}); copy it again.") from None
        if count != array.nbytes:
            raise UserError(f"{path} ends early: it was changed while it was read; start again.")
        return array

    return read


# -------------------------------------------------------------------------------------------------------------- writing


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Stored]], metadata: dict[str, str]) -> None:
    """Writes the file, in memory one tensor at a time; the same tensors always give the same bytes.

    Order and padding are those of the format's library. The file appears under its name when it is complete.
    """
    ranks = {name: rank for rank, name in enumerate(DTYPES)}
    ordered = sorted(tensors, key=lambda item: (ranks[NAMES[item[1].dtype]], item[0]))
    header, at = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name, tensor in ordered:
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        entry = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        header[name], at = entry, at + size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, tensor in ordered:
                array = np.asarray(tensor.read(), order="C")
                assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), (name, array.shape, array.dtype)
                file.write(array.reshape(-1).view(np.uint8).data)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({one_line(error)}); free space or choose another place.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()

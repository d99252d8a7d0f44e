"""The weight files of a model directory: safetensors, or torch's zip files without torch, read tensor by tensor.

A torch file is a pickle, which can name any function to call. This reader lets it name an ordered dictionary, torch's
storages and the function that puts a tensor over one, and refuses everything else before anything runs.
"""

import collections
import json
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import Stored, one_line, open_safetensors

WEIGHTS, TORCH_WEIGHTS = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # of a model in several files, after the name of the single one
MAX_PICKLE = 100_000_000  # bytes of names and shapes

Opened = tuple[dict[str, Stored], dict[str, str]]
"""({name: tensor}, metadata) of a file or a directory."""


def open_weights(directory: Path) -> Opened:
    """The tensors of a directory; safetensors win where it holds both formats. Metadata is that of all shards.

    Raises UserError for files that are missing, damaged, or lead out of the directory.
    """
    for name, read in ((WEIGHTS, open_safetensors), (TORCH_WEIGHTS, open_torch)):
        if (directory / name).is_file():
            return read(inside(directory, name))
        if (directory / (name + INDEX)).is_file():
            return _open_shards(directory, directory / (name + INDEX), read)
    raise UserError(f"{directory} holds neither {WEIGHTS} nor {TORCH_WEIGHTS} (nor the index of one); is it a model's?")


def inside(directory: Path, name: str) -> Path:
    """directory / name, if that is a file of the directory and no way out of it.

    The cache of the Hub links a snapshot's files to its own folder `blobs`; other links must stay in the directory.
    """
    root, path = Path(os.path.realpath(directory)), Path(os.path.realpath(directory / name))
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    if path.parent != root and path.parent != blobs:
        raise UserError(f"{directory / name} leads outside its directory, to {path}; copy it there if you trust it.")
    return directory / name


def _open_shards(directory: Path, index: Path, read: Callable[[Path], Opened]) -> Opened:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for name, shard in shard_of.items():
            shards.setdefault(shard, set()).add(name)
        if not all(isinstance(shard, str) for shard in shards):
            raise TypeError("a shard's name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is no weight index ({one_line(error)}); copy it again.") from None
    weights: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for shard, names in sorted(shards.items()):
        if Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise UserError(f"{index} names the shard {shard!r} outside its directory; do not trust it.")
        found, said = read(inside(directory, shard))
        missing = sorted(names - set(found))
        if missing:
            raise UserError(f"{directory / shard} lacks {'; '.join(missing[:20])}, which {index.name} places there.")
        weights.update((name, found[name]) for name in names)
        metadata |= said
    return weights, metadata


# ------------------------------------------------------------------------------------------------------ torch zip files

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


# What a pickle gets into its hands has no attribute that it could set: named tuples, and an object without any.


class _StorageType(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    """Numbers in the archive, checked to be as many as the pickle says."""

    dtype: Any
    size: int
    read: Callable[[], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """Resolves the few names that a file of tensors needs; see the allow-list in `find_class`."""

    def __init__(self, file, storage: Callable[[Any, str, int], _Storage]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in STORAGES:
            return _StorageType(np.dtype(STORAGES[name]))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"it holds the persistent id {kind!r}")
        return self._storage(storage_type.dtype, key, count)


class _Rebuild:
    """The tensor of an offset, size and stride (in elements) over a storage, after checking that it stays inside."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> Stored:
        del requires_grad, hooks, metadata
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"a tensor lies over {type(storage).__name__}")
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise pickle.UnpicklingError(f"a tensor has offset {offset}, size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > storage.size or (math.prod(size) and last >= storage.size):
            raise pickle.UnpicklingError(f"a tensor of size {size} reaches outside its storage of {storage.size}")

        def read() -> np.ndarray:
            if math.prod(size) == 0:
                return np.zeros(size, storage.dtype)
            strides = [step * storage.dtype.itemsize for step in stride]
            numbers = storage.read()[offset:]
            return np.asarray(np.lib.stride_tricks.as_strided(numbers, size, strides, writeable=False), order="C")

        return Stored(size, storage.dtype, read)


def open_torch(path: Path) -> Opened:
    """All tensors of a file that torch.save wrote as a zip archive (torch 1.6 and later); it has no metadata."""
    try:
        return _open_archive(path, zipfile.ZipFile(path)), {}
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is no intact zip archive: truncated, or saved by torch before 1.6; copy it again, "
            "or load and save it once with a newer torch."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise almost anything
        raise UserError(f"{path} is not read: {one_line(error)}; take weights in safetensors format instead.") from None


def _open_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, Stored]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("a name stands twice in its archive")
    (root,) = {name.split("/")[0] for name in members}  # torch names it after the file

    def member(name: str, limit: int | None = None) -> zipfile.ZipInfo:
        info = members[f"{root}/{name}"]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{name} is compressed")
        if limit is not None and info.file_size > limit:
            raise ValueError(f"{name} has {info.file_size} bytes, at most {limit} are read")
        return info

    if f"{root}/byteorder" in members and archive.read(member("byteorder", 10)) != b"little":
        raise ValueError("its numbers are not little-endian")

    def storage(dtype: Any, key: str, count: int) -> _Storage:
        info = member(f"data/{key}")
        if type(count) is not int or info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} holds {info.file_size} bytes, not {count} numbers of {dtype}")

        def read() -> np.ndarray:
            try:
                return np.frombuffer(archive.read(info), dtype)
            except (OSError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{path} is damaged ({one_line(error)}); copy it again.") from None

        return _Storage(dtype, count, read)

    content = archive.read(member("data.pkl", MAX_PICKLE))
    for operation, argument, _ in pickletools.genops(content):
        # The memo is an array that grows to the largest place named: 32 bits would ask for 64 GiB.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument >= len(content):
            raise pickle.UnpicklingError(f"it puts something at place {argument} of its memo")
    with archive.open(members[f"{root}/data.pkl"]) as file:
        weights = _Unpickler(file, storage).load()
    good = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(weight, Stored) for name, weight in weights.items()
    )
    if not good:
        raise ValueError("it holds something else than a dictionary of tensors")
    return dict(weights)

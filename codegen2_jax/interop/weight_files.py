"""Reads the weight files of a model directory as numpy arrays: safetensors, or torch's zip files, without torch.

A torch file is a pickle, which can name any function to call. This reader lets it name an ordered dictionary, torch's
storages and the function that puts a tensor over one, and refuses everything else before anything runs.
"""

import collections
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from codegen2_jax.errors import UserError

WEIGHTS, TORCH_WEIGHTS = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # of a model in several files, after the name of the single one


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """{name: array} of a directory's weights; safetensors win where a directory holds both formats."""
    for name, read in ((WEIGHTS, read_safetensors), (TORCH_WEIGHTS, read_torch)):
        if (directory / name).is_file():
            return read(directory / name)
        if (directory / (name + INDEX)).is_file():
            return _read_shards(directory, directory / (name + INDEX), read)
    raise UserError(f"{directory} holds neither {WEIGHTS} nor {TORCH_WEIGHTS} (nor the index of one); is it a model's?")


def _read_shards(directory: Path, index: Path, read: Callable) -> dict[str, np.ndarray]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {shard: {name for name in shard_of if shard_of[name] == shard} for shard in shard_of.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no weight index ({one_line(error)}); copy it again.") from None
    weights: dict[str, np.ndarray] = {}
    for shard, names in sorted(shards.items()):
        if Path(shard).name != shard:
            raise UserError(f"{index} names the shard {shard!r} outside its directory; do not trust it.")
        found = read(directory / shard)
        missing = sorted(names - set(found))
        if missing:
            raise UserError(f"{directory / shard} lacks {'; '.join(missing[:20])}, which {index.name} places there.")
        weights.update((name, found[name]) for name in names)
    return weights


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no intact safetensors file ({one_line(error)}); copy it again.") from None


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


class _StorageType(NamedTuple):
    dtype: Any


class _Unpickler(pickle.Unpickler):
    """Resolves the few names that a file of tensors needs; see the allow-list in `find_class`."""

    def __init__(self, file, storage: Callable[[Any, str, int], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"it holds the persistent id {kind!r}")
        return self._storage(storage_type.dtype, key, count)


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
    """The tensor of this offset, size and stride (in elements) over a storage, after checking that it stays inside."""
    del requires_grad, hooks, metadata
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.size or (math.prod(size) and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches outside its storage of {storage.size}")
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False), order="C")


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file that torch.save wrote as a zip archive (torch 1.6 and later)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is no intact zip archive: truncated, or saved by torch before 1.6; copy it again, "
            "or load and save it once with a newer torch."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise almost anything
        raise UserError(f"{path} is not read: {one_line(error)}; take weights in safetensors format instead.") from None


def _read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {info.filename: info for info in archive.infolist()}
    (root,) = {name.split("/")[0] for name in members}  # torch names it after the file
    order = f"{root}/byteorder"
    if order in members and archive.read(order) != b"little":
        raise ValueError("its numbers are not little-endian")
    arrays: dict[str, np.ndarray] = {}

    def storage(dtype: Any, key: str, count: int) -> np.ndarray:
        if key not in arrays:
            info = members[f"{root}/data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"storage {key} is compressed")
            arrays[key] = np.frombuffer(archive.read(info), dtype)
        if arrays[key].dtype != dtype or arrays[key].size != count:
            raise ValueError(f"storage {key} holds {arrays[key].size} numbers of {arrays[key].dtype}, not {count}")
        return arrays[key]

    with archive.open(f"{root}/data.pkl") as file:
        weights = _Unpickler(file, storage).load()
    if not isinstance(weights, dict) or not all(isinstance(w, np.ndarray) for w in weights.values()):
        raise ValueError("it holds something else than a dictionary of tensors")
    return dict(weights)

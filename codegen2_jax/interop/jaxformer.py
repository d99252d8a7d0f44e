"""Checkpoints of salesforce/jaxformer, which trained CodeGen: `model/0.npz` beside `ckpt.json`, sizes in a file apart.

Read off its source, since no checkpoint of this kind is public: `models/decoder/inter/checkpoint.py` saves the leaves
of the parameters by `np.savez`, in the order of JAX's trees (names sorted), each process a whole copy; `model.py` and
`modules.py` say which leaves there are, layers stacked on axis 0; `hf/convert.py` says what each is in Hugging Face's
CodeGen. The embedding there is a linear map of one-hot rows with a bias, so a row of the table is w + b.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import Stored, one_line, reader

CHECKPOINT, WEIGHTS = "ckpt.json", Path("model", "0.npz")
# What a jaxformer configuration calls the sizes.
SIZES = ("model_vocab_size", "model_dim", "model_layers", "model_heads", "model_seq_len", "model_pe_rotary_dims")
SHARDS = "tpu_cores"  # the mesh axis over which q, v and k were cut
DTYPES = {"<f4": np.float32, "<f2": np.float16, "|V2": ml_dtypes.bfloat16}  # numpy has no name for bfloat16
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and extra field


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory without config.json holds a checkpoint of this kind."""
    return (directory / WEIGHTS).is_file() or (directory / CHECKPOINT).is_file()


def open_jaxformer(directory: Path, config: Path | None) -> tuple[dict[str, Any], dict[str, Stored], dict[str, str]]:
    """(config.json, weights, metadata) in Hugging Face's terms, the weights unread.

    config: the JSON file that the training was started with, such as `config/codegen_16B_mono.json`. Raises UserError
    for files that are missing or damaged, and for shapes that the configuration does not ask for.
    """
    if config is None:
        raise UserError(
            f"{directory} is a checkpoint of jaxformer, which holds no sizes; add --jaxformer_config with the JSON "
            "file of its training run, or convert it by jaxformer/hf/convert.py and give that directory."
        )
    sizes = _sizes(config)
    V, D, L, N, T, rotary = (sizes[name] for name in SIZES)
    path = directory / WEIGHTS
    arrays = _arrays(path)
    names = _leaves(V, D, L)
    if len(arrays) != len(names):
        raise UserError(f"{path} holds {len(arrays)} arrays, a CodeGen of jaxformer {len(names)}; is it another model?")
    found = {}
    for (name, shape), (offset, actual, dtype) in zip(names.items(), arrays, strict=True):
        if actual != shape:
            raise UserError(f"{path}: {name} is {actual}, not {shape} as {config} asks for; is it another model's?")
        found[name] = (offset, dtype)
    raw = {
        "model_type": "codegen",
        "vocab_size": V,
        "n_embd": D,
        "n_layer": L,
        "n_head": N,
        "n_positions": T,
        "rotary_dim": rotary,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,  # Haiku's default
    }
    return raw, _stored(path, found, names, L), {"mp_num": str(sizes[SHARDS])}


def _sizes(config: Path) -> dict[str, int]:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        sizes = {name: content[name] for name in (*SIZES, SHARDS)}
        head_dim = content.get("model_head_dim", sizes["model_dim"] // sizes["model_heads"])
    except KeyError as error:
        raise UserError(f"{config} lacks {error}: it is no configuration of jaxformer; give that of the run.") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        text = one_line(error)
        raise UserError(f"{config} is no configuration of jaxformer ({text}); give that of the run.") from None
    wrong = {name: value for name, value in sizes.items() if type(value) is not int or value < 1}
    if wrong or head_dim * sizes["model_heads"] != sizes["model_dim"]:
        raise UserError(f"{config}: {wrong or {'model_head_dim': head_dim}} fits no CodeGen; give that of the run.")
    return sizes


def _leaves(V: int, D: int, L: int) -> dict[str, tuple[int, ...]]:
    """{leaf: shape} in the order of the file: embedding, projection, then a block's, sorted by module, b before w."""
    return {
        "embed/proj/b": (D,),
        "embed/proj/w": (V, D),
        "proj/layer_norm/offset": (D,),
        "proj/layer_norm/scale": (D,),
        "proj/linear/b": (V,),
        "proj/linear/w": (D, V),
        "transformer/attn/proj_out/w": (L, D, D),
        "transformer/attn/proj_qkv/w": (L, D, 3 * D),
        "transformer/ff/proj_in/b": (L, 4 * D),
        "transformer/ff/proj_in/w": (L, D, 4 * D),
        "transformer/ff/proj_out/b": (L, D),
        "transformer/ff/proj_out/w": (L, 4 * D, D),
        "transformer/ln/offset": (L, D),
        "transformer/ln/scale": (L, D),
    }


THEIRS = {
    "proj/layer_norm/offset": "transformer.ln_f.bias",
    "proj/layer_norm/scale": "transformer.ln_f.weight",
    "proj/linear/b": "lm_head.bias",
    "proj/linear/w": "lm_head.weight",
    "transformer/attn/proj_out/w": "attn.out_proj.weight",
    "transformer/attn/proj_qkv/w": "attn.qkv_proj.weight",
    "transformer/ff/proj_in/b": "mlp.fc_in.bias",
    "transformer/ff/proj_in/w": "mlp.fc_in.weight",
    "transformer/ff/proj_out/b": "mlp.fc_out.bias",
    "transformer/ff/proj_out/w": "mlp.fc_out.weight",
    "transformer/ln/offset": "ln_1.bias",
    "transformer/ln/scale": "ln_1.weight",
}


def _stored(path: Path, found: Mapping[str, tuple[int, Any]], shapes: Mapping[str, tuple], layers: int) -> dict:
    """The tensors under Hugging Face's names, each read on its own: of a stacked leaf one layer."""
    stored: dict[str, Stored] = {}

    def add(name: str, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        read = reader(path, offset, shape, dtype)
        turned = (lambda: read().T) if len(shape) == 2 else read  # theirs are [out, in]
        stored[name] = Stored(shape[::-1], np.dtype(dtype), turned)

    for leaf, name in THEIRS.items():
        (offset, dtype), shape = found[leaf], shapes[leaf]
        if not leaf.startswith("transformer/"):
            add(name, offset, shape, dtype)
            continue
        step = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        for layer in range(layers):
            add(f"transformer.h.{layer}.{name}", offset + layer * step, shape[1:], dtype)
    parts = [reader(path, found[f"embed/proj/{part}"][0], shapes[f"embed/proj/{part}"], found[f"embed/proj/{part}"][1])
             for part in ("w", "b")]  # fmt: skip
    dtype = np.dtype(found["embed/proj/w"][1])

    def table() -> np.ndarray:
        w_VD, b_D = (part().astype(np.float32) for part in parts)
        return (w_VD + b_D[None]).astype(dtype)

    stored["transformer.wte.weight"] = Stored(shapes["embed/proj/w"], dtype, table)
    return stored


def _arrays(path: Path) -> list[tuple[int, tuple[int, ...], Any]]:
    """(offset of the numbers, shape, dtype) of every array of an .npz file, in order; no number is read."""
    try:
        end = path.stat().st_size
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = {info.filename: info for info in archive.infolist()}
            found = []
            for number in range(len(members)):
                info = members[f"arr_{number}.npy"]
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} is compressed")
                file.seek(info.header_offset)
                local = file.read(LOCAL_HEADER)
                file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
                start = file.tell()
                shape, by_column, dtype = _header(file)
                if dtype.str not in DTYPES or by_column:
                    raise ValueError(f"{info.filename} has dtype {dtype.str} or lies by columns")
                size, at = math.prod(shape) * dtype.itemsize, file.tell()
                if at + size != start + info.file_size or at + size > end:
                    raise ValueError(f"{info.filename} of shape {shape} does not fill its {info.file_size} bytes")
                found.append((at, shape, DTYPES[dtype.str]))
            return found
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: np.savez did not write it so; copy it again.") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is no intact .npz file ({one_line(error)}); copy it again.") from None


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"an array has format version {version}")
    return read[version](file)

"""Weights in and out of Hugging Face's layouts: config.json and the weights' files, without torch.

What a weight is called and how it lies is known by one file per family (t5_weights, codegen_weights, llama_weights),
chosen here by the model_type of config.json, or by the class of our configuration.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop import codegen_weights, llama_weights, t5_weights
from codegen2_jax.interop.layouts import DTYPES, ForeignModel, Parts, Place, Source, check, parts_of, their_weights
from codegen2_jax.interop.names import CONFIG, resolve_directory
from codegen2_jax.interop.safetensors_files import one_line
from codegen2_jax.interop.weight_files import WEIGHTS, inside, open_weights
from codegen2_jax.interop.weight_shards import write_weights
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.llama import LlamaConfig
from codegen2_jax.models.t5 import T5Config

__all__ = ["check_dtype", "iterate", "leaves", "load", "open_model", "resolve_directory", "save", "to_their_weights"]
__all__ += ["write_model"]

FAMILIES = {"t5": t5_weights, "codegen": codegen_weights, "llama": llama_weights}
CLASSES = {T5Config: t5_weights, CodeGenConfig: codegen_weights, LlamaConfig: llama_weights}
MAX_CONFIG = 10_000_000  # bytes
GENERATION, ORIGINAL = "generation_config.json", "config.original.json"
TOKENIZERS = (
    *("*vocab.json", "*merges.txt", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja"),
)


# ------------------------------------------------------------------------------------------------------------------- in


def open_model(directory: str | Path, *, mp_num: int | None = None) -> ForeignModel:
    """The model of a directory, its weights checked by name, shape and dtype, and none of them read yet.

    mp_num: the number of shards in a CodeGen's qkv weights, where nothing else tells (see qkv_layout.py).
    Weights that are missing, unexpected, misshapen or of no float type are one UserError that lists them, and so are
    files that cannot be read. No code that lies with the weights is run, whatever the configuration asks for.
    """
    directory = Path(directory)
    raw = read_json(directory / CONFIG)
    kind = raw.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = "'t5' (T5, CodeT5, CodeT5+ 220M and 770M), 'codegen' (CodeGen1 and 2) and 'llama' (CodeGen2.5)"
        raise UserError(f"{directory / CONFIG} describes model_type {kind!r}; only {known} are read.")
    stored, metadata = open_weights(directory)
    source = Source(name=str(directory), directory=directory, metadata=metadata, mp_num=mp_num)
    return opened(family, raw, stored, source)


def opened(family: Any, raw: Mapping[str, Any], stored: dict[str, Any], source: Source) -> ForeignModel:
    """A model of a known family from its configuration and its weights, both in Hugging Face's terms."""
    config, rows, stored, notes, shards = family.read(raw, stored, source)
    if source.mp_num is not None and shards is None:
        raise UserError(f"--mp_num={source.mp_num} is for CodeGen; {source.name} has no fused weights, so drop it.")
    check(source.name, rows, stored)
    return ForeignModel(name=source.name, config=config, rows=rows, stored=stored, notes=notes, mp_num=shards)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a configuration's file."""
    try:
        with inside(path.parent, path.name).open("rb") as file:
            raw = json.loads(file.read(MAX_CONFIG).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a model directory holds {CONFIG} and {WEIGHTS}.") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({one_line(error)}); download or convert it again.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} describes model_type {type(raw).__name__!r}: it holds no object; convert it again.")
    return raw


def load(directory: str | Path, dtype: Any = np.float32, *, mp_num: int | None = None) -> tuple[Any, dict[str, Any]]:
    """(config, nested dict of numpy arrays as `models` has them, all of `dtype`); see `open_model` for what is raised.

    dtype=None keeps each weight's own dtype. Beside the result one foreign weight at a time is in memory.
    """
    model = open_model(directory, mp_num=mp_num)
    return model.config, model.params(dtype)


def iterate(
    directory: str | Path, dtype: Any = np.float32, *, mp_num: int | None = None
) -> Iterator[tuple[Place, int | None, np.ndarray]]:
    """(place in our tree, layer or None, array without the axis of layers), weight by weight; nothing is kept."""
    return open_model(directory, mp_num=mp_num).iterate(dtype)


def leaves(
    directory: str | Path, dtype: Any = np.float32, *, mp_num: int | None = None
) -> Iterator[tuple[Place, np.ndarray]]:
    """(place in our tree, whole array), leaf by leaf: what to put on a device where the host cannot hold the tree."""
    return open_model(directory, mp_num=mp_num).leaves(dtype)


# ------------------------------------------------------------------------------------------------------------------ out


def save(
    directory: str | Path,
    config: Any,
    params: Mapping[str, Any],
    dtype: str | None = "bfloat16",
    *,
    mp_num: int | None = None,
    vocabulary: str | Path | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors as transformers reads them.

    dtype=None keeps each array's own. The same parameters always give the same bytes, and weights loaded with their own
    dtype are written back unchanged. mp_num: shards of CodeGen's qkv weights, 4 unless given, since transformers reads
    no other. vocabulary: a directory whose tokenizer files are copied along.
    """
    write_model(directory, config, parts_of(params), dtype, mp_num=mp_num, vocabulary=vocabulary)


def check_dtype(dtype: str) -> None:
    """Raises UserError for a dtype that `save` does not write; for a run that saves when all is done."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown; choose one of {tuple(DTYPES)}.")


def write_model(
    directory: str | Path,
    config: Any,
    parts: Parts,
    dtype: str | None,
    *,
    mp_num: int | None = None,
    vocabulary: str | Path | None = None,
    original: Path | None = None,
    max_shard_size: int | None = None,
) -> list[str]:
    """`save`, of arrays that are asked for one by one; returns the names of the files written.

    original: a config.json to keep beside the new one, as config.original.json. max_shard_size: of a weight file in
    bytes, None for one file (see weight_shards.py).
    """
    if dtype is not None:
        check_dtype(dtype)
    rows, raw, metadata = CLASSES[type(config)].write(config, mp_num)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = list(their_weights(rows, parts, dtype))
    # transformers insists on a format entry
    files = write_weights(directory, weights, {"format": "pt", **metadata}, max_shard_size)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    generation = {name: raw[name] for name in ids if name in raw}
    _write_json(directory / CONFIG, raw | {"dtype": dtype or str(weights[0][1].dtype)})
    _write_json(directory / GENERATION, generation)
    written = [CONFIG, GENERATION, *files]
    if original is not None:
        shutil.copyfile(original, directory / ORIGINAL)
        written.append(ORIGINAL)
    return written + (copy_tokenizer(vocabulary, directory) if vocabulary else [])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def tokenizer_files(directory: str | Path) -> list[Path]:
    """The tokenizer's files of a directory."""
    return sorted({path for pattern in TOKENIZERS for path in Path(directory).glob(pattern) if path.is_file()})


def copy_tokenizer(directory: str | Path, target: Path) -> list[str]:
    """Copies the tokenizer's files; returns their names."""
    found = [inside(Path(directory), path.name) for path in tokenizer_files(directory)]
    for path in found:
        if path.resolve() != (target / path.name).resolve():
            shutil.copyfile(path, target / path.name)
    return [path.name for path in found]


def to_their_weights(config: Any, params: Mapping[str, Any], dtype: str | None = None) -> dict[str, np.ndarray]:
    """Our tree under Hugging Face's names and layouts, each in `dtype` or its own: weights, or their gradients."""
    rows, _, _ = CLASSES[type(config)].write(config)
    return {name: tensor.read() for name, tensor in their_weights(rows, parts_of(params), dtype)}

"""Brings a model from any layout that is read here into Hugging Face's, weight by weight, and says what it found."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop import codegen_weights, gguf, gguf_tokenizer, huggingface, jaxformer, llama2c, llama_weights
from codegen2_jax.interop.layouts import ForeignModel, Parts, Source
from codegen2_jax.interop.names import CONFIG, resolve
from codegen2_jax.interop.qkv_layout import CannotTellError, verify_layout
from codegen2_jax.interop.weight_shards import parse_size

# A text as any model of code has seen many, for telling a right reading of the weights from a wrong one.
SAMPLE = '''import os


def count_lines(path):
    """Return the number of lines in a text file."""
    with open(path, "r", encoding="utf-8") as f:
        return sum(1 for line in f)


def main():
    for name in sorted(os.listdir(".")):
        if name.endswith(".py"):
            print(name, count_lines(name))


if __name__ == "__main__":
    main()
'''

Encode = Callable[[str], Sequence[int]]

# The command's flags beside --from and --to, for argparse: the parameters of `convert`.
FLAGS: dict[str, dict[str, Any]] = {
    "dtype": {"choices": ("float32", "bfloat16", "float16"), "help": "default: that of each weight"},
    "mp_num": {"type": int, "metavar": "N", "help": "shards of a CodeGen's qkv weights, where nothing else tells"},
    "jaxformer_config": {"metavar": "FILE", "help": "of the run, where --from is a checkpoint of salesforce/jaxformer"},
    "export_mp_num": {"type": int, "metavar": "N", "help": "shards to write; default 4, which transformers reads"},
    "max_shard_size": {"metavar": "SIZE", "help": "of a weight file, such as 5GB: several with an index; default: one"},
    "keep_original_config": {"action": "store_true", "help": "keep the old config.json as config.original.json"},
    "verify_layout": {
        "dest": "verify",
        "action": argparse.BooleanOptionalAction,
        "help": "compare the loss under 4 and 8 shards; default: where there is a tokenizer",
    },
    "overwrite": {"action": "store_true", "help": "write into a directory that is not empty"},
}


def convert(
    source: str,
    target: str | Path,
    *,
    dtype: str | None = None,
    mp_num: int | None = None,
    jaxformer_config: str | None = None,
    export_mp_num: int | None = None,
    keep_original_config: bool = False,
    max_shard_size: str | None = None,
    verify: bool | None = None,
    overwrite: bool = False,
    encoder: Callable[[Path], Encode],
    write_llama2c_tokenizer: Callable[[Path, Path], Any],
    say: Callable[[str], None] = print,
) -> None:
    """Writes the model `source` into the directory `target`; nothing that comes with the model is run.

    Args:
      source: a directory or Hub name in Hugging Face's layout, a .gguf or llama2.c .bin file or a folder with one, or a
        packaged name.
      dtype: of the weights written, None to keep each weight's own.
      mp_num: shards of a CodeGen's qkv weights in the source, where nothing else tells; export_mp_num: in the target.
      jaxformer_config: of the training run, where the source is a checkpoint of jaxformer.
      keep_original_config: put the source's config.json beside the new one, as config.original.json.
      max_shard_size: of a weight file, such as "5GB"; None: one file.
      verify: compare the loss under both qkv layouts; None: where there is a tokenizer, memory, and a trained model.
      encoder: makes a function from text to ids of a directory's tokenizer.
      write_llama2c_tokenizer: writes llama2.c's tokenizer file (first argument) into a directory.
    Raises UserError for what cannot be read, and for a target that is not empty unless `overwrite`.
    """
    shard_size = None if max_shard_size is None else parse_size(max_shard_size)
    path, target = resolve(source), Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise UserError(f"{target} is not empty; give a new directory, or --overwrite.")
    above = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file, so no directory {target} can be made in it; give another --to.")
    if keep_original_config and not (path.is_dir() and (path / CONFIG).is_file()):
        raise UserError(f"--keep_original_config keeps a {CONFIG}, and {path} has none; drop it.")
    if target.resolve() in (path.resolve(), path.resolve().parent if path.is_file() else None):
        raise UserError(f"{target} is where the model lies; give another directory.")
    model, kind, tokenizer = _open(path, mp_num, jaxformer_config, write_llama2c_tokenizer)
    say(f"read {path} ({kind}, {type(model.config).__name__})")
    say(f"{model.parameters():,} parameters in {', '.join(model.dtypes())}")
    for note in model.notes:
        say(note)
    if export_mp_num is not None and model.mp_num is None:
        raise UserError(f"--export_mp_num={export_mp_num} is for CodeGen; {source} has no fused weights, so drop it.")
    if model.mp_num is not None and verify is not False:
        for line in _verified(model, path, encoder, insist=bool(verify)):
            say(line)
    elif verify:
        raise UserError(f"--verify_layout is for CodeGen; {source} has no fused weights, so drop it.")
    original = path / CONFIG if keep_original_config else None
    parts = _finite(model)
    options = {"mp_num": export_mp_num, "original": original, "max_shard_size": shard_size}
    written = huggingface.write_model(target, model.config, parts, dtype, **options)
    try:
        written += tokenizer(target)
    except UserError as error:  # the weights stand; a tokenizer can be put beside them
        say(f"no tokenizer: {error}")
    say(f"wrote {target}: {', '.join(written)}, weights in {dtype or 'their own dtype'}")


def _open(
    path: Path, mp_num: int | None, jaxformer_config: str | None, write_llama2c_tokenizer: Callable
) -> tuple[ForeignModel, str, Callable]:
    """(model, what kind of files, function that writes its tokenizer into a directory and returns the files' names)."""
    of_jaxformer = path.is_dir() and not (path / CONFIG).exists() and jaxformer.is_checkpoint(path)
    if jaxformer_config is not None and not of_jaxformer:
        raise UserError(f"--jaxformer_config is for a checkpoint of jaxformer; {path} is none, so drop it.")
    if of_jaxformer:
        file = None if jaxformer_config is None else Path(jaxformer_config).expanduser()
        raw, stored, metadata = jaxformer.open_jaxformer(path, file)
        source = Source(name=str(path), mp_num=mp_num, metadata=metadata)
        model = huggingface.opened(codegen_weights, raw, stored, source)
        return model, "jaxformer checkpoint", lambda target: huggingface.copy_tokenizer(path, target)
    if path.is_dir():
        model = huggingface.open_model(path, mp_num=mp_num)
        return model, "Hugging Face directory", lambda target: huggingface.copy_tokenizer(path, target)
    source = Source(name=str(path), mp_num=mp_num)
    if path.suffix == ".gguf":
        raw, stored, metadata = gguf.open_gguf(path)

        def write(target: Path) -> list[str]:
            found = gguf_tokenizer.tokenizer_of(metadata, str(path))
            for name, content in found.items():
                text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
                (target / name).write_text(text, encoding="utf-8")
            return list(found)

        return huggingface.opened(llama_weights, raw, stored, source), "GGUF file", write
    raw, stored = llama2c.open_llama2c(path)
    file = llama2c.tokenizer_of(path, raw["vocab_size"])

    def write_from_file(target: Path) -> list[str]:
        if file is None:
            raise UserError(f"neither tok{raw['vocab_size']}.bin nor tokenizer.bin lies beside {path}.")
        before = set(target.iterdir())
        write_llama2c_tokenizer(file, target)
        return sorted(made.name for made in set(target.iterdir()) - before)

    return huggingface.opened(llama_weights, raw, stored, source), "llama2.c file", write_from_file


def _finite(model: ForeignModel) -> Parts:
    """The model's arrays, with an error for the first that is not finite."""
    parts = model.parts()

    def read(place, layer):
        array = parts.read(place, layer)
        if not np.isfinite(array).all():
            where = "/".join(place) + ("" if layer is None else f" of layer {layer}")
            raise UserError(f"{model.name}: {where} holds NaN or infinite numbers: damaged, so copy the files again.")
        return array

    return Parts(read=read, dtype=parts.dtype)


# --------------------------------------------------------------------------------------------------------- verification


def _verified(model: ForeignModel, path: Path, encoder: Callable[[Path], Encode], *, insist: bool) -> list[str]:
    """What to say of the check of the qkv layout by its loss; without `insist` it is left out where it cannot work."""
    assert model.mp_num is not None
    if not huggingface.tokenizer_files(path):
        if insist:
            raise UserError(f"--verify_layout needs a tokenizer; put the model's tokenizer.json into {path}.")
        return ["qkv layout not verified: no tokenizer lies with the weights"]
    needed = 10 * model.parameters()  # float32 here and on the device, and three matrices of each layer once more
    if not insist and needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return [f"qkv layout not verified: that needs about {needed / 1e9:.0f} GB of memory; --verify_layout insists"]
    ids = np.asarray(encoder(path)(SAMPLE), np.int32)[: model.config.max_positions]
    if ids.max(initial=0) >= model.config.vocab_size or len(ids) < 2:
        raise UserError(
            f"the tokenizer in {path} gives ids up to {ids.max(initial=0)}, the model has {model.config.vocab_size}; "
            "put the model's own tokenizer there."
        )
    try:
        losses = verify_layout(sample_loss(model.config, ids), model.params(), model.config, model.mp_num)
    except CannotTellError as error:
        if insist or min(error.losses.values()) < math.log(model.config.vocab_size) - 1:
            raise
        return [f"qkv layout not verified: the weights look untrained (loss {min(error.losses.values()):.2f})"]
    text = ", ".join(f"{value:.3f} with {number} shards" for number, value in sorted(losses.items()))
    return [f"qkv layout verified: mean loss {text}"]


def sample_loss(config: Any, ids_T: np.ndarray) -> Callable[[Any], float]:
    """The mean loss in nats of a text under a tree of this configuration, computed causally and in float32."""
    import jax
    import jax.numpy as jnp

    from codegen2_jax.models.decoder_only import DecoderOnly

    model = DecoderOnly(dataclasses.replace(config, dtype="float32", prefix_lm=False))
    tokens_BT, targets_BT = ids_T[None, :-1], ids_T[None, 1:]
    batch = {
        "tokens_BT": tokens_BT,
        "positions_BT": np.arange(tokens_BT.shape[1], dtype=np.int32)[None],
        "segments_BT": np.ones_like(tokens_BT),
        "bidirectional_BT": np.zeros(tokens_BT.shape, bool),
    }

    @jax.jit
    def loss(params):
        log_probs_BTV = jax.nn.log_softmax(model.logits(params, batch))
        return -jnp.mean(jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1))

    return lambda params: float(loss(params))

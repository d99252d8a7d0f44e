"""What `python -m codegen2_jax.generate` does with a loaded model: texts in, text or records out."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import jax
import jax.numpy as jnp

from codegen2_jax.decoding import infill, truncation
from codegen2_jax.decoding.infill import Infilled
from codegen2_jax.decoding.settings import Generation, check_text
from codegen2_jax.decoding.text import Completion, complete
from codegen2_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be written, and where to.

    Attributes:
      texts: prompts, or with `infill` texts as their parts around the holes.
      truncation: name of a rule of `truncation.py`, for prompts only.
      format: "text" or "jsonl".
      out: a file, None for standard output.
    """

    texts: tuple[str | tuple[str, ...], ...]
    infill: bool
    truncation: str
    format: str
    out: str | None

    def __post_init__(self):
        truncation.rule(self.truncation)
        if self.infill and self.truncation != "none":
            raise UserError(f"truncation {self.truncation!r} is for prompts; an infilled answer ends with <eom> only.")
        for one in self.texts:
            for part in (one,) if isinstance(one, str) else one:
                check_text("a prompt", part)
        if self.out is not None:
            _check_writable(Path(self.out))

    @classmethod
    def of(cls, given: Mapping[str, Any], stdin: BinaryIO) -> "Asked":
        """From the command line's values; UserError where they exclude one another or name no readable file."""
        hole = (given["prefix"], given["suffix"])
        sources = [name for name in ("prompt", "file", "prefix", "suffix") if given[name] is not None]
        if len(sources) > 1 and sources != ["prefix", "suffix"]:
            raise UserError(f"--{' and --'.join(sources)} exclude one another; give one (or --prefix with --suffix).")
        if given["prompt"]:
            texts = list(given["prompt"])
        elif hole == (None, None):
            texts = [_read(given["file"], stdin)]
        else:
            texts = []
        is_infill = given["infill"] or not texts
        if is_infill:
            parts = [infill.parse_template(text) for text in texts] or [tuple(part or "" for part in hole)]
        options = {name: given[name] for name in ("truncation", "format", "out")}
        return cls(texts=tuple(parts if is_infill else texts), infill=is_infill, **options)


def _check_writable(path: Path) -> None:
    """UserError where the file could not be written; what it holds stays, and where there is none, none is left."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no directory {path.parent} for --out {path}; make it first.")
    is_new = not path.exists()
    try:
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out.") from None


def _read(file: str | None, stdin: BinaryIO) -> str:
    try:
        # As it stands: a prompt's line ends are tokens.
        return (stdin.read() if file is None else Path(file).read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file or 'standard input'}: {error}; give a text file in UTF-8.") from error


def answer(asked: Asked, settings: Generation, loaded: Any, stdout: TextIO, *, name: str) -> None:
    """Completes or infills, and writes.

    A single sample in text format is shown while it grows, unless its end is still to be cut.

    loaded: has model, params, vocabulary and digest. name: what the records call it. Raises UserError as `complete` and
    `infill` do, and for a file that cannot be written.
    """
    vocabulary, truncate = loaded.vocabulary, truncation.rule(asked.truncation)
    stop_ids = [vocabulary.eos_id] + ([vocabulary.eom_id] if asked.infill and vocabulary.eom_id is not None else [])
    names = {index: name for name, index in vocabulary.control_tokens.items()}
    print("stop ids: " + ", ".join(f"{index} {names[index]}" for index in stop_ids), file=sys.stderr)
    what = (loaded.model, jax.tree.map(jnp.asarray, loaded.params), vocabulary, asked.texts, settings)
    total = settings.n * len(asked.texts)

    def progress(done: int, total: int) -> None:
        if total > 1:
            print(f"{done} of {total} samples", file=sys.stderr)

    def show(_prompt: int, _sample: int, text: str) -> None:
        print(text, end="", flush=True, file=stdout)

    streams = total == 1 and asked.format == "text" and asked.out is None
    streams = streams and not asked.infill and asked.truncation == "none"
    if asked.infill:
        results = infill.infill(*what, progress=progress)
    else:
        results = complete(*what, on_text=show if streams else None, progress=progress)
    common = {"truncation": asked.truncation, "stop_ids": stop_ids, "model": name, "model_digest": loaded.digest}
    common |= {"dtype": loaded.model.config.dtype, "prefix_lm": getattr(loaded.model.config, "prefix_lm", False)}
    rows = records_of(asked.texts, results, truncate, {**dataclasses.asdict(settings), **common})
    if streams:
        print(file=stdout)
        return
    text = lines_of(rows, asked.format)
    if asked.out is None:
        stdout.write(text)
        return
    try:
        Path(asked.out).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        stdout.write(text)  # rather there than lost
        reason = f"cannot write {asked.out}: {error.strerror}"
        raise UserError(f"{reason}; the samples are on standard output, choose another --out.") from error
    print(f"wrote {asked.out}", file=sys.stderr)


def records_of(
    texts: Sequence[str | Sequence[str]],
    results: Sequence[Sequence[Completion | Infilled]],
    truncate,
    common: Mapping[str, Any],
) -> list[dict]:
    """One dictionary for each sample, JSON's types only, in the order of the texts.

    `completion` is what continues the prompt, truncated; or the whole text with its holes filled, whose `prompt` is the
    list of its parts. common: what all records say.
    """
    rows = []
    for number, (prompt, samples) in enumerate(zip(texts, results, strict=True)):
        for k, one in enumerate(samples):
            row = {"prompt_number": number, "sample": k, "prompt": prompt if isinstance(prompt, str) else list(prompt)}
            row["completion"] = truncate(one.text) if isinstance(one, Completion) else one.text
            if isinstance(one, Infilled):
                row |= {"answers": list(one.answers), "closed": list(one.closed)}
            rows.append(row | {"finish_reason": one.finish, "log_probability": one.log_probability, **common})
    return rows


def lines_of(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """The records as "jsonl", or as "text", in which each of several is headed by its numbers and finish reason."""
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lines = []
    for row in rows:
        if len(rows) > 1:
            lines.append(f"--- prompt {row['prompt_number'] + 1}, sample {row['sample'] + 1}, {row['finish_reason']}\n")
        lines.append(row["completion"] + ("" if row["completion"].endswith("\n") else "\n"))
    return "".join(lines)

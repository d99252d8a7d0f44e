"""What `python -m codegen2_jax.precompile` does with a job: compile, print, write, say where it does not fit."""

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from codegen2_jax.errors import DoesNotFitError, UserError
from codegen2_jax.sharding import topologies
from codegen2_jax.training import ahead_of_time, decoding_ahead, fitting

FORMAT = 1  # of the JSON file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line's values, checked.

    lengths: tokens of a source and a target, for a job that reads pairs. decode: rows, prompt tokens and new tokens, or
    None for the training step alone; rows None: eight a chip.
    """

    topology: topologies.Topology
    devices: int | None = None
    lengths: tuple[int, int] | None = None
    decode: tuple[int | None, int, int] | None = None
    out: Path | None = None

    @classmethod
    def of(cls, given: Any) -> "Asked":
        """From the parsed flags; UserError for numbers that are none, and for a file whose directory is missing."""
        out = Path(given.out) if given.out else None
        if out is not None and not out.absolute().parent.is_dir():
            raise UserError(f"there is no directory {out.parent} for --out {out}; make it first.")
        if given.decode_shape and not given.decode:
            raise UserError("--decode_shape has no effect without --decode.")
        decode = _numbers("--decode_shape", given.decode_shape, 3) if given.decode_shape else (None, 1792, 256)
        return cls(
            topology=topologies.parse(given.topology),
            devices=given.devices,
            lengths=_numbers("--lengths", given.lengths, 2) if given.lengths else None,
            decode=decode if given.decode else None,
            out=out,
        )


def _numbers(flag: str, text: str, count: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != count or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{flag}={text} is not {count} whole numbers from 1; write {flag}={','.join(['64'] * count)}.")
    return tuple(map(int, parts))


def run(job: Any, asked: Asked, arguments: Sequence[str]) -> dict[str, Any]:
    """Compiles a job's step for a slice, prints the table, writes the record and returns it.

    arguments: the other flags, for the record. Raises DoesNotFitError where a chip has too little memory.
    """
    if not hasattr(job, "built_for"):
        raise UserError(
            f"the gin files are of {type(job).__name__}, and what compiles here is a step of a stream of tasks or of "
            "pretraining; give the files of one, such as pp_tf.gin or pretraining/codegen2_1b.gin."
        )
    devices = topologies.devices(asked.topology, asked.devices)
    build = functools.partial(job.built_for, devices)
    if asked.lengths is not None:
        if "lengths" not in inspect.signature(job.built_for).parameters:
            raise UserError("--lengths is for a stream of tasks; this job's gin files say how long its sequences are.")
        build = functools.partial(build, lengths=asked.lengths)
    if asked.decode is not None:
        decoding_ahead.prefill_of(build(), asked.decode)  # a shape that is not possible answers at once
    record: dict[str, Any] = {"format": FORMAT, "job": list(arguments)}
    try:
        record |= ahead_of_time.examine(build, asked.topology, say=_say)
        print(fitting.table(record))
        record["advice"] = [] if record["fits"] else fitting.advice(record)
        if asked.decode is not None:
            record["decode"] = decoding_ahead.examine(build(), asked.topology, asked.decode, say=_say)
            print(decoding_ahead.table(record["decode"]))
    except ahead_of_time.OutOfMemory as error:
        built = build()
        record |= ahead_of_time.header(built, asked.topology) | {"fits": False, "compiler": str(error)}
        record["advice"] = fitting.advice_without_program(record)
    if asked.out is not None:
        _write(asked.out, record)
    if not record["fits"] or not record.get("decode", {"fits": True})["fits"]:
        raise DoesNotFitError(_complaint(record))
    return record


def _complaint(record: dict[str, Any]) -> str:
    what = record.get("compiler") or f"{fitting.gib(record['memory']['total'])} a chip"
    if record["fits"]:
        takes, has = (fitting.gib(record["decode"]["memory"][name]) for name in ("total", "chip"))
        return f"decoding takes {takes} of a chip's {has}; decode fewer rows or shorter ones (--decode_shape)."
    has = fitting.gib(record["chip"]["hbm_bytes"])
    remedies = "; or ".join(record["advice"])
    return f"the step takes {what}; a chip of {record['topology']} has {has}. Remedies: {remedies}."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out.") from error
    print(f"wrote {path} (jax {jax.__version__})", file=sys.stderr)

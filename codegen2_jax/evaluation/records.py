"""Answers of a model as JSON lines, made chunk by chunk: what a kill leaves is gone on from, to the same file.

A benchmark says which chunks there are (a function of its problems, the model and the settings alone) and makes the
records of one. A chunk is kept whole or made again whole, so every batch has the composition it would have had.
"""

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codegen2_jax import json_files
from codegen2_jax.errors import UserError

HEADER_SUFFIX = ".settings.json"
TIMING_SUFFIX = ".timing.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be written.

    Attributes:
      chunks: the (task_id, sample) of every record, chunk by chunk, in the order of the file.
      make: number of a chunk -> its records, each with "task_id", "sample" and "tokens" (read or written).
      header: everything that decides the records, in JSON's types; stored beside them and compared.
      facts: what else belongs to them, such as stop ids; stored, and not compared.
    """

    chunks: Sequence[Sequence[tuple[str, int]]]
    make: Callable[[int], list[dict[str, Any]]]
    header: dict[str, Any]
    facts: dict[str, Any]


def collect(path: Path, work: Work, tracker: Any) -> None:
    """Writes the records to `path`, or those that are missing there.

    Raises UserError where the file holds records of other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _owned(path.parent):
        done = _resume(path, work)
        total = sum(map(len, work.chunks))
        first = sum(map(len, work.chunks[:done]))
        if first == total:
            tracker.message(f"{path}: all {total} records are there.")
            return
        tracker.message(f"{path}: {first} of {total} records are there." if first else f"writing {path}")
        _write_header(path, work)
        with path.open("ab") as file, tracker.progress(path.parent.name, total, first=first) as progress:
            tokens, seconds = 0, 0.0
            for number in range(done, len(work.chunks)):
                began = time.perf_counter()
                rows = work.make(number)
                took = time.perf_counter() - began
                assert [(row["task_id"], row["sample"]) for row in rows] == list(work.chunks[number])
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())
                tokens, seconds = tokens + sum(row["tokens"] for row in rows), seconds + took
                _note_time(path, number, took, rows)
                first += len(rows)
                progress.update(first, tokens_per_second=tokens / max(seconds, 1e-9))


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file; UserError where it is missing or a line is no record."""
    if not path.is_file():
        raise UserError(f"{path} is missing, so there is nothing to score; run the command without --only score first.")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row["task_id"], str | int):
                raise TypeError("a task_id is text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} line {number} is no record with a task_id; remove it.") from error
        rows.append(row)
    return rows


def settings_of(path: Path) -> dict[str, Any]:
    """What the records of `path` were made with: header and facts; {} for a file from elsewhere."""
    stored = _stored(path)
    return {**stored["header"], **stored["facts"]}


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    """{"header", "facts"} of the records of `path`; UserError where their file is damaged."""
    place = path.with_name(path.stem + HEADER_SUFFIX)
    if not place.is_file():
        return {"header": {}, "facts": {}}
    try:
        stored = json.loads(place.read_text(encoding="utf-8"))
        found = {name: stored.get(name, {}) for name in ("header", "facts")}
        if not all(isinstance(part, dict) for part in found.values()):
            raise TypeError("a part is no object")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{place} is damaged ({error}); delete it to score without it, or both to draw anew."
        ) from None
    return found


def throughput(path: Path) -> dict[str, float] | None:
    """Seconds, tokens and samples of all chunks, of each its last making; None for a file from elsewhere."""
    place = path.with_name(path.stem + TIMING_SUFFIX)
    if not place.is_file():
        return None
    chunks = {}
    names = ("seconds", "tokens", "samples")
    for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            chunks[int(row["chunk"])] = {name: float(row[name]) for name in names}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut short by a kill
    sums = {name: sum(row[name] for row in chunks.values()) for name in names}
    return sums | {"tokens_per_second": sums["tokens"] / max(sums["seconds"], 1e-9)}


def _resume(path: Path, work: Work) -> int:
    """How many chunks are complete in the file; what stands behind them is cut off."""
    if not path.is_file():
        return 0
    check_settings(path, work.header)
    lines = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line end was cut short
    place, kept = 0, 0
    for number, chunk in enumerate(work.chunks):
        part = lines[place : place + len(chunk)]
        try:
            found = [(row["task_id"], row["sample"]) for row in map(json.loads, part)]
        except (ValueError, KeyError, TypeError):
            found = []
        if found != list(chunk):
            break
        place, kept = place + len(part), number + 1
    os.truncate(path, sum(len(line) + 1 for line in lines[:place]))
    return kept


def check_settings(path: Path, header: dict[str, Any]) -> None:
    """UserError where what lies at `path` was made with another header."""
    found = _stored(path)["header"]
    wanted = json.loads(json.dumps(header))  # through JSON, as the stored one went
    changed = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"{path} holds answers of other settings ({name}: {_short(found.get(name))} there, "
            f"{_short(wanted.get(name))} here); choose another --out, or delete that folder."
        )


def _write_header(path: Path, work: Work) -> None:
    place = path.with_name(path.stem + HEADER_SUFFIX)
    write_json(place, {"header": work.header, "facts": work.facts})


def write_json(path: Path, content: Any) -> None:
    """A kill leaves the old file or the new one."""
    json_files.write(path, content, ensure_ascii=False)


def _note_time(path: Path, chunk: int, seconds: float, rows: list[dict]) -> None:
    row = {"chunk": chunk, "seconds": round(seconds, 3), "tokens": sum(r["tokens"] for r in rows), "samples": len(rows)}
    with path.with_name(path.stem + TIMING_SUFFIX).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    """Two processes would write into each other's lines; the lock is the kernel's and goes with the process."""
    with (directory / ".running").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes into {directory}; wait for it, or choose another --out.") from None
        yield


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

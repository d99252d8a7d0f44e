"""Several runs of one configuration: which there are, which are missing, and one after another to the end.

A run is found again by the digest of its configuration, wherever it stands below the sweep's directory: a sweep that
was killed, or that grew by a seed, runs only what is not there.
"""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.continual.stream_tasks import task_names
from codegen2_jax.errors import PreemptedError, UserError
from codegen2_jax.training import run_directory

STOPPED = (-2, -15, 75, 130)  # exit codes of a run that a signal ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a sweep varies: a macro and its values as gin literals, with short names for directories.

    repeats: whether runs that differ in it alone are repetitions, of which a mean is formed: seeds and orders.
    """

    macro: str
    values: tuple[str, ...]
    names: tuple[str, ...]
    repeats: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep. settings: {macro: name of its value}; repetitions: the macros that make no row of their own.

    error: why there is no such run: its configuration is refused (its digest is then empty), or its directory holds a
    finished run on data that has changed since.
    """

    settings: dict[str, str]
    bindings: tuple[str, ...]
    digest: str
    directory: Path
    repetitions: frozenset[str] = frozenset({"SEED"})
    error: str | None = None

    @property
    def name(self) -> str:
        return " ".join(f"{macro}={name}" for macro, name in self.settings.items())

    def record(self) -> dict[str, Any] | None:
        """The result file's contents when the run is complete."""
        return None if self.error else run_directory.finished(self.directory, self.digest)


def axes(job: Any, *, seeds: str, orders: str | None, values: Sequence[str]) -> list[Axis]:
    """What the flags --seeds, --orders and --set ask for; raises UserError where they make no sense."""
    numbers = seeds.split(",")
    if not all(re.fullmatch(r"\d+", number) for number in numbers):
        raise UserError(f"--seeds={seeds} must be whole numbers from 0, comma separated, such as 0,1,2.")
    found = [Axis(macro="SEED", values=tuple(numbers), names=tuple(numbers), repeats=True)]
    if orders is not None:
        found.append(_orders(job, orders))
    for given in values:
        name, equals, text = given.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or not text:
            raise UserError(f"--set {given} must be NAME=VALUE1,VALUE2 with a macro such as REPLAY_SIZE=100,500.")
        literals = _between_commas(text)
        if "" in literals:
            raise UserError(f"--set {given} has an empty value; write NAME=VALUE1,VALUE2, or quotes for an empty text.")
        names = tuple(literal.strip("'\"") for literal in literals)
        found.append(Axis(macro=name, values=tuple(map(_literal, literals)), names=names))
    macros = [axis.macro for axis in found]
    for axis in found:
        if macros.count(axis.macro) > 1:
            raise UserError(f"{axis.macro} is given twice; --seeds is SEED, --orders is STREAM.")
        if len(set(axis.values)) < len(axis.values):
            raise UserError(f"{axis.macro} has a value twice: {', '.join(axis.names)}.")
    return found


def _between_commas(text: str) -> tuple[str, ...]:
    """The parts of a text; commas in quotes and brackets part nothing."""
    parts, quote, depth = [""], "", 0
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts)


def _literal(text: str) -> str:
    """A value as gin reads it: numbers, True, None, quoted and bracketed as they are, other words quoted."""
    known = re.fullmatch(r"-?[\d.]+(e-?\d+)?|True|False|None|'.*'|\".*\"|\(.*\)|\[.*\]", text)
    return text if known else repr(text)


def _orders(job: Any, orders: str) -> Axis:
    names = task_names(job)
    count = len(names)
    digits = [part.strip() for part in orders.split(",")]
    if count > 10:
        raise UserError(f"--orders writes tasks as digits and this stream has {count}; use at most 10 tasks.")
    if len(digits) == 1 and len(digits[0]) < count:
        wanted, possible = int(digits[0]) if digits[0].isdigit() else 0, int(np.prod(range(1, count + 1)))
        if not 1 <= wanted <= possible:
            raise UserError(f"--orders={orders}: {count} tasks have 1 to {possible} orders.")
        rng = np.random.default_rng((0, 11))
        chosen = ["".join(map(str, range(count)))]
        while len(chosen) < wanted:
            order = "".join(map(str, rng.permutation(count)))
            chosen += [order] * (order not in chosen)
        digits = chosen
    for order in digits:
        if sorted(order) != sorted("".join(map(str, range(count)))):
            raise UserError(f"--orders: {order!r} does not name each of 0 to {count - 1} once.")
    streams = [",".join(names[int(digit)] for digit in order) for order in digits]
    return Axis(macro="STREAM", values=tuple(map(repr, streams)), names=tuple(digits), repeats=True)


def plan(
    arguments: Sequence[str], axes: Sequence[Axis], place: Path, describe: Callable[[list[str]], tuple[Any, str]]
) -> list[Cell]:
    """The cells of the sweep, seeds innermost; the directory of each is an old one of its digest, or a new one.

    describe: (the job, the configuration's text as `run_directory` compares it) for a list of flags.
    """
    known = {}
    for path in sorted(place.glob(f"*/{run_directory.CONFIG_FILE}")):
        known[run_directory.config_digest(path.read_text(encoding="utf-8"))] = path.parent
    cells = []
    ordered = [*axes[1:], axes[0]]
    for chosen in itertools.product(*(range(len(axis.values)) for axis in ordered)):
        settings = {axis.macro: axis.names[i] for axis, i in zip(ordered, chosen, strict=True)}
        bindings = tuple(f"--gin.{axis.macro}={axis.values[i]}" for axis, i in zip(ordered, chosen, strict=True))
        label = "-".join(f"{macro.lower()}{_plain(name)}" for macro, name in settings.items())
        digest, directory, error = "", place / label, None
        try:
            job, text = describe([*arguments, *bindings])
            digest = run_directory.config_digest(text)
            directory = known.get(digest, place / f"{label}-{digest[:8]}")
            record = run_directory.finished(directory, digest)
            if record is not None and hasattr(job, "check_finished"):  # other jobs keep no word of their data
                job.check_finished(record, directory)
        except UserError as refused:
            error = " ".join(str(refused).split())
        cells.append(
            Cell(
                settings=settings,
                bindings=bindings,
                digest=digest,
                directory=directory,
                repetitions=frozenset(axis.macro for axis in axes if axis.repeats),
                error=error,
            )
        )
    return cells


def _plain(name: str) -> str:
    """For a file's name, which has an end; the digest behind it tells two apart."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)[:40]


def run(cells: Sequence[Cell], arguments: Sequence[str], failed: dict[int, str]) -> None:
    """Runs what is not complete, one run after another; fills `failed`: {number of a cell: why it has no result}.

    A run writes what it prints to log.txt in its directory. One that fails, for whatever reason, stops no other; a
    signal ends the sweep (PreemptedError).
    """
    failed |= {index: cell.error for index, cell in enumerate(cells) if cell.error}
    for message in failed.values():
        print(f"  refused: {message}", flush=True)
    complete = sum(cell.record() is not None for cell in cells)
    waiting = [index for index, cell in enumerate(cells) if index not in failed and cell.record() is None]
    print(f"{len(cells)} runs, {complete} of them complete", flush=True)
    began = time.monotonic()
    for number, index in enumerate(waiting):
        cell = cells[index]
        left = (time.monotonic() - began) / number * (len(waiting) - number) if number else None
        ends = f", about {left / 60:.0f} min left" if left is not None else ""
        print(f"[{number + 1}/{len(waiting)}] {cell.name} in {cell.directory}{ends}", flush=True)
        cell.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "codegen2_jax.train", *arguments, *cell.bindings]
        command.append(f"--model_dir={cell.directory}")
        log = cell.directory / "log.txt"
        with log.open("ab") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ)).returncode
        if code == 0:
            continue
        message = _last_line(log)
        if code in STOPPED:
            raise PreemptedError(f"{cell.name} was stopped; the same command continues.")
        failed[index] = f"code {code}, {message.removeprefix('error: ')} ({log})"
        print(f"  failed: {failed[index]}", flush=True)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"

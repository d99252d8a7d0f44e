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

from codegen2_jax.continual.setup import task_names
from codegen2_jax.errors import PreemptedError, UserError
from codegen2_jax.training import run_directory

STOPPED = (-2, -15, 75, 130)  # exit codes of a run that a signal ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a sweep varies: a macro and its values as gin literals, with short names for directories."""

    macro: str
    values: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep. settings: {macro: name of its value}."""

    settings: dict[str, str]
    bindings: tuple[str, ...]
    digest: str
    directory: Path

    def record(self) -> dict[str, Any] | None:
        """scores.json when the run is complete."""
        return run_directory.finished(self.directory, self.digest)


def axes(job: Any, *, seeds: str, orders: str | None, values: Sequence[str]) -> list[Axis]:
    """What the flags --seeds, --orders and --set ask for; raises UserError where they make no sense."""
    numbers = seeds.split(",")
    if not all(re.fullmatch(r"\d+", number) for number in numbers):
        raise UserError(f"--seeds={seeds} must be whole numbers from 0, comma separated, such as 0,1,2.")
    found = [Axis(macro="SEED", values=tuple(numbers), names=tuple(numbers))]
    if orders is not None:
        found.append(_orders(job, orders))
    for given in values:
        name, equals, text = given.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or not text:
            raise UserError(f"--set {given} must be NAME=VALUE1,VALUE2 with a macro such as REPLAY_SIZE=100,500.")
        literals = tuple(part.strip() for part in text.split(","))
        found.append(Axis(macro=name, values=tuple(map(_literal, literals)), names=literals))
    macros = [axis.macro for axis in found]
    for axis in found:
        if macros.count(axis.macro) > 1:
            raise UserError(f"{axis.macro} is given twice; --seeds is SEED, --orders is STREAM.")
        if len(set(axis.values)) < len(axis.values):
            raise UserError(f"{axis.macro} has a value twice: {', '.join(axis.names)}.")
    return found


def _literal(text: str) -> str:
    """A value as gin reads it: numbers, True, None and quoted strings as they are, other words quoted."""
    known = re.fullmatch(r"-?[\d.]+(e-?\d+)?|True|False|None|'.*'|\".*\"", text)
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
    return Axis(macro="STREAM", values=tuple(map(repr, streams)), names=tuple(digits))


def plan(
    arguments: Sequence[str], axes: Sequence[Axis], place: Path, config_of: Callable[[list[str]], str]
) -> list[Cell]:
    """The cells of the sweep, seeds innermost; the directory of each is an old one of its digest, or a new one.

    config_of: the configuration's text for a list of flags, as `run_directory` compares it.
    """
    known = {}
    for path in sorted(place.glob(f"*/{run_directory.CONFIG_FILE}")):
        known[run_directory.config_digest(path.read_text(encoding="utf-8"))] = path.parent
    cells = []
    ordered = [*axes[1:], axes[0]]
    for chosen in itertools.product(*(range(len(axis.values)) for axis in ordered)):
        settings = {axis.macro: axis.names[i] for axis, i in zip(ordered, chosen, strict=True)}
        bindings = tuple(f"--gin.{axis.macro}={axis.values[i]}" for axis, i in zip(ordered, chosen, strict=True))
        digest = run_directory.config_digest(config_of([*arguments, *bindings]))
        label = "-".join(f"{macro.lower()}{re.sub(r'[^A-Za-z0-9.]+', '_', name)}" for macro, name in settings.items())
        directory = known.get(digest, place / f"{label}-{digest[:8]}")
        cells.append(Cell(settings=settings, bindings=bindings, digest=digest, directory=directory))
    return cells


def run(cells: Sequence[Cell], arguments: Sequence[str]) -> list[str]:
    """Runs what is not complete, one run after another; returns a line for each run that failed.

    A run writes what it prints to log.txt in its directory. A mistake in the configuration (exit code 2) ends the
    sweep, since every other run would make it too, and so does a signal.
    """
    waiting = [cell for cell in cells if cell.record() is None]
    print(f"{len(cells)} runs, {len(cells) - len(waiting)} of them complete", flush=True)
    failed, began = [], time.monotonic()
    for number, cell in enumerate(waiting):
        named = " ".join(f"{macro}={name}" for macro, name in cell.settings.items())
        left = (time.monotonic() - began) / number * (len(waiting) - number) if number else None
        ends = f", about {left / 60:.0f} minutes left" if left is not None else ""
        print(f"[{number + 1}/{len(waiting)}] {named} in {cell.directory}{ends}", flush=True)
        cell.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "codegen2_jax.train", *arguments, *cell.bindings]
        command.append(f"--model_dir={cell.directory}")
        log = cell.directory / "log.txt"
        with log.open("ab") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ)).returncode
        if code == 0:
            continue
        message = _last_line(log)
        if code == 2:
            raise UserError(f"{named}: {message.removeprefix('error: ')}")
        if code in STOPPED:
            raise PreemptedError(f"{named} was stopped; the same command continues.")
        failed.append(f"{named} ended with code {code}, {message} ({log})")
        print(f"  failed: {failed[-1]}", flush=True)
    return failed


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"

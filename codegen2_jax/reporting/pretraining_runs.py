"""Pretraining runs of a report, finished or under way: what their metrics.jsonl and scores.json say, as curves."""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.errors import UserError
from codegen2_jax.reporting.finished_runs import METRICS_FILE, SCORES_FILE, lines_of

BITS, SEEN = ", bits per byte", " seen"  # how a held-out line of metrics.jsonl names what is no loss
QUANTITIES = ("tokens", "bytes", "epochs")
PAUSE = 5.0  # an interval slower than this many medians holds a pause, and says nothing of the speed

Curve = list[tuple[int, float]]
"""(step, value), in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """One run. `record` is its scores.json, empty while it is under way; `metrics` the lines of metrics.jsonl."""

    directory: Path
    name: str
    record: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]

    @property
    def is_finished(self) -> bool:
        return bool(self.record.get("complete"))

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.metrics), default=int(self.record.get("steps", 0)))

    @functools.cached_property
    def training_loss(self) -> Curve:
        """Nats per token of single training batches."""
        return _curve((line, line.get("loss")) for line in self.metrics if "split" not in line)

    @functools.cached_property
    def losses(self) -> dict[str, Curve]:
        """Nats per token of each held-out stream."""
        return self._held_out(lambda name: None if name.endswith((BITS, SEEN)) else name)

    @functools.cached_property
    def bits_per_byte(self) -> dict[str, Curve]:
        """Of each held-out stream that is plain text."""
        return self._held_out(lambda name: name.removesuffix(BITS) if name.endswith(BITS) else None)

    @functools.cached_property
    def seen(self) -> dict[str, dict[str, Curve]]:
        """{quantity: {source: curve}}, quantities as far as they were counted."""
        found = {}
        for quantity in QUANTITIES:
            end = f", {quantity}{SEEN}"
            curves = self._held_out(lambda name, end=end: name.removesuffix(end) if name.endswith(end) else None)
            if curves:
                found[quantity] = curves
        return found

    @functools.cached_property
    def tokens_per_second(self) -> Curve:
        """Tokens with loss per second, of the steps between two lines; evaluations and pauses are no part of it."""
        intervals = []
        for before, line in zip(self.metrics, self.metrics[1:], strict=False):
            tokens, seconds = line.get("tokens"), _seconds(before, line)
            steps = line["step"] - before["step"]
            if "split" not in line and steps > 0 and seconds and isinstance(tokens, int | float):
                intervals.append((line["step"], seconds / steps, float(tokens)))
        if not intervals:
            return []
        usual = statistics.median(per_step for _, per_step, _ in intervals)
        return [(step, tokens / per_step) for step, per_step, tokens in intervals if per_step <= PAUSE * usual]

    def _held_out(self, named) -> dict[str, Curve]:
        lines = [line for line in self.metrics if "split" in line]
        names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "time", "split"))
        found = {named(name): _curve((line, line.get(name)) for line in lines) for name in names if named(name)}
        return {name: curve for name, curve in found.items() if curve}


def is_pretraining(directory: str | Path) -> bool:
    """Whether a directory is a pretraining run's: by its scores.json, or while there is none by its metrics."""
    directory = Path(directory)
    try:
        record = json.loads((directory / SCORES_FILE).read_text(encoding="utf-8"))
        return isinstance(record, dict) and "stream" not in record and "steps" in record
    except (OSError, ValueError):
        pass
    if (directory / SCORES_FILE).exists():
        return False
    try:
        lines = lines_of(directory / METRICS_FILE)
    except (OSError, UserError):
        return False
    return bool(lines) and all(isinstance(line, dict) and "task" not in line for line in lines)


def load(paths: Sequence[str | Path]) -> list[PretrainingRun]:
    """The runs in these directories, in the order given; raises UserError for one that is given twice or unreadable."""
    places = [Path(path).resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"{paths[number]} is given twice; name each run directory once.")
    names = _names(places)
    return [_read(Path(path), name) for path, name in zip(paths, names, strict=True)]


def _read(directory: Path, name: str) -> PretrainingRun:
    path, record = directory / SCORES_FILE, {}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))  # `is_pretraining` has read it
    lines = lines_of(directory / METRICS_FILE)
    if not all(isinstance(line.get("step"), int) for line in lines):
        raise UserError(f"{directory / METRICS_FILE} has a line without a step; remove it to go on.")
    return PretrainingRun(directory=directory, name=name, record=record, metrics=tuple(lines))


def _names(places: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as tell all apart."""
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return ["/".join(place.parts[-depth:]) for place in places]


def _curve(pairs: Iterable[tuple[dict, Any]]) -> Curve:
    """Without what is no number or not finite (JSON has no word for it, so the log holds null, once a text)."""
    numbers = ((line["step"], value) for line, value in pairs if isinstance(value, int | float))
    return [(step, float(value)) for step, value in numbers if math.isfinite(value)]


def _seconds(before: dict, line: dict) -> float | None:
    times = [one.get("time") for one in (before, line)]
    if not all(isinstance(time, int | float) for time in times) or times[1] <= times[0]:
        return None
    return float(times[1] - times[0])

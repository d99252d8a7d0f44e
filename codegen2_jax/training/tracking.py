"""What a run tells: metrics.jsonl and TensorBoard for programs, progress, tables and messages for people.

Only process 0 writes. On a terminal the drawing is done by rich; into a file or a pipe go plain lines, few enough to
read. A resumed run leaves the same metrics.jsonl as one that was never stopped, but for the times in it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax import json_files
from codegen2_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_LINE_SECONDS = (2.0, 15.0)  # plain progress: never more often than the first, at least as often as the second
_LINE_SHARE = 0.1  # and in between when this share of the work has passed


class Tracker:
    """The log of one run.

    Args:
        directory: the run directory, made if missing.
        quiet: nothing is printed; the files are written all the same.
        process_index: of this process; any but 0 writes and prints nothing.
        tensorboard: whether event files are written too.
        clock: seconds that only grow, for speed and the time left.

    Use it as a context manager, or call `close()`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        quiet: bool = False,
        process_index: int = 0,
        tensorboard: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._directory = Path(directory)
        self._clock = clock
        self._writes = process_index == 0
        self._prints = self._writes and not quiet
        self._tensorboard = tensorboard and self._writes
        self._file = None
        self._events = None
        self._purge_step: int | None = None
        self._rewritten: set[str] = set()  # lines of the step a run was resumed from
        self._console = None
        self._live = None
        if self._writes:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{directory} cannot be made or is no folder ({reason}); choose another.") from None

    def resume(self, step: int) -> None:
        """Drops the lines beyond `step` (all of them for -1), and a last line that a kill cut short.

        Lines of `step` itself may have been written before the state was saved or after: they stay, and the same
        metrics of the same step are not appended twice. Call it once, before `metrics`.
        """
        assert self._file is None, "resume comes before the first metrics"
        path = self._directory / METRICS_FILE
        if not self._writes or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for line in lines:
            record = _parse(line)
            if record is not None and record["step"] <= step:
                kept.append(line)
                if record["step"] == step:
                    self._rewritten.add(_identity(record))
        if kept != lines:
            fresh = path.with_suffix(".tmp")
            fresh.write_text("".join(kept), encoding="utf-8")
            os.replace(fresh, path)
            self._purge_step = step + 1

    def metrics(self, step: int, values: Mapping[str, Any], **labels: Any) -> None:
        """Appends one line {"step", "time", **labels, **values}, and the numbers to TensorBoard.

        Args:
            step: of the whole run, so that it grows.
            values: name -> number (Python, NumPy or a JAX scalar). NaN and infinities, which JSON lacks, are
                written as null.
            labels: what the numbers belong to, such as stage="1", split="valid"; part of the TensorBoard name.
        """
        if not self._writes:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        taken = {"step", "time"} & (set(labels) | set(numbers)) | set(labels) & set(numbers)
        assert not taken, f"{sorted(taken)} would be written twice"
        record = {"step": int(step), "time": round(time.time(), 3), **labels, **numbers}
        if _identity(record) in self._rewritten:
            return
        if self._file is None:
            self._file = (self._directory / METRICS_FILE).open("a", encoding="utf-8")
        self._file.write(json_files.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard:
            prefix = "".join(f"{value}/" for value in labels.values())
            for name, number in numbers.items():
                if number is not None:  # a curve has no place for NaN
                    self._event_writer().add_scalar(prefix + name, float(number), record["step"])

    def progress(self, description: str, total: int, *, first: int = 0) -> "Progress":
        """A progress display from step `first` to `total`; a context manager with `update(step, **values)`."""
        return Progress(self, description, total, first)

    def message(self, text: str) -> None:
        """One line for the reader."""
        if not self._prints:
            return
        if console := self._terminal():
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; floats with two decimals, None as "-", columns of numbers to the right."""
        if not self._prints:
            return
        assert all(len(row) == len(columns) for row in rows), "a row has another number of cells than columns"
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
        if console := self._terminal():
            from rich.table import Table
            from rich.text import Text

            table = Table(title=Text(title), title_justify="left")
            for name, right in zip(columns, numeric, strict=True):
                table.add_column(Text(name), justify="right" if right else "left")
            for row in cells:
                table.add_row(*(Text(cell) for cell in row))
            console.print(table)
        else:
            print(plain_table(title, columns, cells, numeric), flush=True)

    def close(self) -> None:
        """Writes out what is buffered and ends a display left open."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event_writer(self):
        if self._events is None:
            # tensorboardX imports torch wherever it finds it, seconds and threads for nothing: hide it meanwhile.
            hidden = "torch" not in sys.modules
            if hidden:
                sys.modules["torch"] = None
            try:
                from tensorboardX import SummaryWriter  # more than a second to import
            finally:
                if hidden:
                    del sys.modules["torch"]
            self._events = SummaryWriter(str(self._directory / TENSORBOARD_FOLDER), purge_step=self._purge_step)
        return self._events

    def _terminal(self):
        """The rich console when standard output is a terminal, else None."""
        if self._console is None and sys.stdout.isatty():
            from rich.console import Console

            self._console = Console()
        return self._console

    def _live_progress(self):
        """The one live display: a terminal has room for one, so nested progress shares it."""
        if self._live is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._live = RichProgress(*columns, console=self._console, refresh_per_second=4)
            self._live.start()
        return self._live


class Progress:
    """One stretch of work: where it stands, how fast it goes, when it ends. Made by `Tracker.progress`."""

    def __init__(self, tracker: Tracker, description: str, total: int, first: int):
        self._tracker = tracker
        self._description = description
        self._total = total
        self._step = first
        self._values: dict[str, Any] = {}
        self._started = tracker._clock()
        self._origin = (first, self._started)  # moved to the first update, which waits for the compiler
        self._updates = 0
        self._printed = (first, self._started)
        self._task = None
        if tracker._prints and tracker._terminal():
            self._task = tracker._live_progress().add_task(description, total=total, completed=first, values="")

    def update(self, step: int, **values: Any) -> None:
        """Says that `step` of `total` steps are done, with numbers to show (loss=..., examples_per_second=...)."""
        now = self._tracker._clock()
        self._step = step
        self._values.update(values)
        self._updates += 1
        if self._updates == 1 and step < self._total:
            self._origin = (step, now)
        if self._task is not None:
            self._tracker._live.update(self._task, completed=step, values=_shown(self._values))
        elif self._tracker._prints:
            done, quiet_seconds = step - self._printed[0], now - self._printed[1]
            due = done >= _LINE_SHARE * self._total and quiet_seconds >= _LINE_SECONDS[0]
            if due or quiet_seconds >= _LINE_SECONDS[1]:
                self._printed = (step, now)
                print(self._line(now), flush=True)

    def close(self) -> None:
        """Ends the display with one line that stays."""
        tracker = self._tracker
        if self._task is not None and tracker._live is not None:
            tracker._live.remove_task(self._task)
            if not tracker._live.tasks:
                tracker._live.stop()
                tracker._live = None
        if tracker._prints and self._updates:
            tracker.message(self._line(tracker._clock(), last=True))
        self._task, self._updates = None, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, now: float, last: bool = False) -> str:
        parts = [f"{self._description}  {self._step}/{self._total}", _shown(self._values)]
        steps, seconds = self._step - self._origin[0], now - self._origin[1]
        if last:
            parts.append(f"took {_duration(now - self._started)}")
        elif steps > 0 and seconds > 0:
            parts.append(f"left {_duration((self._total - self._step) * seconds / steps)}")
        return "  ".join(part for part in parts if part)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Aligned text: title, header, a rule, one line per row; `right` says which columns go to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]

    def line(cells):
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([title, line(columns), "  ".join("-" * width for width in widths), *map(line, rows)])


def _parse(line: str) -> dict | None:
    """The record of a whole line, None for one that a kill cut short."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if line.endswith("\n") and isinstance(record, dict) and "step" in record else None


def _identity(record: Mapping[str, Any]) -> str:
    """What makes two lines the same one: step, labels and names. Redone work repeats its numbers, but not its times."""
    named = {key: "" if _is_measured(value) else value for key, value in record.items()}
    return json.dumps(named, sort_keys=True)


def _is_measured(value: Any) -> bool:
    return value is None or isinstance(value, float) or value in ("nan", "inf", "-inf")  # strings, once


def _number(value: Any) -> int | float | None:
    value = value.item() if hasattr(value, "item") else value
    assert isinstance(value, int | float), f"{value!r} is no number"
    return json_files.finite(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _shown(values: Mapping[str, Any]) -> str:
    """"loss 1.234  56.7 examples/s"."""
    parts = []
    for name, value in values.items():
        number = f"{float(value):.4g}"
        unit = name.removesuffix("_per_second")
        parts.append(f"{number} {unit}/s" if unit != name else f"{name.replace('_', ' ')} {number}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

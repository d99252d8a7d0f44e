"""The runs of a report: read, checked to be comparable, and gathered by method."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.continual.scores import Scores
from codegen2_jax.errors import UserError

SCORES_FILE = "scores.json"
METRICS_FILE = "metrics.jsonl"
SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: what scores.json holds, and the lines of metrics.jsonl (none where the file is missing)."""

    directory: Path
    record: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]

    @functools.cached_property
    def scores(self) -> Scores:
        return Scores.from_dict(self.record)

    @property
    def method(self) -> str:
        return str(self.record.get("method", self.directory.name))

    @property
    def seed(self) -> int | None:
        return self.record.get("seed")

    @property
    def name(self) -> str:
        """For a title: the method and the seed."""
        return self.method if self.seed is None else f"{self.method}, seed {self.seed}"

    @property
    def is_individual(self) -> bool:
        """Whether each task started from the initial weights, so that only the diagonal of R says something."""
        return self.record.get("walk") == "individual"

    @property
    def last_split(self) -> str:
        """The split that final scores are taken from: test, or valid where only that was scored."""
        return SPLITS[-1] if SPLITS[-1] in self.scores.splits else SPLITS[0]

    def final(self, split: str, metric: str) -> np.ndarray:
        """The score on each task at the end, float64 (J,): the last row of R, the diagonal of an individual run."""
        score_SJ = self.scores.splits[split][metric]
        return np.diagonal(score_SJ[1:]) if self.is_individual else score_SJ[-1]

    def diagnostic(self, name: str) -> list | None:
        """One value per stage, or None where the run has no such diagnostic at any stage."""
        values = self.record.get("diagnostics", {}).get(name)
        return None if not values or all(value is None for value in values) else values


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one method that differ in their seed: one row of a table."""

    name: str
    runs: tuple[Run, ...]

    @property
    def is_individual(self) -> bool:
        return self.runs[0].is_individual


def load(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in these directories, in the order given; raises UserError where they cannot share a table."""
    if not paths:
        raise UserError("no run directory given; name at least one, such as runs/pp_tf.")
    places = [Path(path).resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"{paths[number]} is given twice; name each run directory once.")
    runs = [_read(Path(path)) for path in paths]
    for run in runs[1:]:
        if run.last_split != runs[0].last_split:
            raise UserError(
                f"{run.directory} was scored on {run.last_split} but {runs[0].directory} on {runs[0].last_split}; give "
                "only runs with one EVAL_SPLITS."
            )
        for name, remedy in (
            ("stream", "give only runs of one stream"),
            ("data_digest", "the same stream from other data; give only runs of the same files"),
            ("eval_examples", "they scored different examples; give only runs with one EVAL_EXAMPLES"),
            ("scorers", "give only runs scored alike"),
        ):
            first, other = runs[0].record.get(name), run.record.get(name)
            if first != other:
                values = f"{_short(other)} in {run.directory} but {_short(first)} in {runs[0].directory}"
                raise UserError(f"{name} is {values}; {remedy}.")
    return runs


def gather(runs: Iterable[Run]) -> list[Group]:
    """One group per method, in the order of first appearance but for individual finetuning, a ceiling, which is last.

    Runs are seeds of one another when method, weights, decoding and sizes agree. Where two of them have the same seed
    they differ in something that scores.json does not name, so each stands alone under its directory's name.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        cost = run.record.get("cost", {})
        parts = [run.method, run.record.get("weights_digest"), run.record.get("decoding"), run.record.get("walk")]
        key = json.dumps([*parts, cost.get("trainable_parameters"), cost.get("prompt_tokens")])
        found.setdefault(key, []).append(run)
    methods = [members[0].method for members in found.values()]
    groups = []
    for members in found.values():
        method = members[0].method
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            groups += [Group(f"{method} ({run.directory.resolve().name})", (run,)) for run in members]
        elif methods.count(method) > 1:
            groups.append(Group(f"{method} ({members[0].directory.resolve().name})", tuple(members)))
        else:
            groups.append(Group(method, tuple(members)))
    return sorted(groups, key=lambda group: group.is_individual)


def short_names(tasks: Sequence[str]) -> list[str]:
    """Task names without the prefix that they share: pytask_generate, pytask_refine -> generate, refine."""
    prefix = tasks[0].split("_")[0] + "_"
    short = [task.removeprefix(prefix) for task in tasks]
    return short if all(task.startswith(prefix) and len(task) > len(prefix) for task in tasks) else list(tasks)


def ceiling(groups: Sequence[Group], split: str, metric: str) -> np.ndarray | None:
    """a*, float64 (J,): the mean of the individual runs, else the individual row that a run stored, else None."""
    individual = [run for group in groups for run in group.runs if run.is_individual]
    if individual:
        return np.mean([run.final(split, metric) for run in individual], axis=0)
    for group in groups:
        row = baseline(group.runs[0], "individual", split, metric)
        if row is not None:
            return row
    return None


def baseline(run: Run, name: str, split: str, metric: str) -> np.ndarray | None:
    """A baseline's score on each task, float64 (J,) with NaN where there is none, or None without the baseline."""
    row = run.scores.baselines.get(name, {}).get(split, {}).get(metric)
    return None if row is None else np.array([math.nan if value is None else value for value in row], np.float64)


def _read(directory: Path) -> Run:
    hint = "give the directory of a finished run, such as runs/pp_tf"
    if directory.is_file():
        raise UserError(f"{directory} is a file; {hint}.")
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist; {hint}.")
    path = directory / SCORES_FILE
    if not path.is_file():
        raise UserError(f"{directory} holds no {SCORES_FILE}; {hint}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        run = Run(directory=directory, record=record, metrics=tuple(lines_of(directory / METRICS_FILE)))
        scores = run.scores
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the training command again or {hint}.") from error
    if not record.get("complete"):
        raise UserError(f"{directory} is unfinished; start its training command again, which continues it.")
    for split in dict.fromkeys((SPLITS[0], *scores.splits)):
        if "bleu" not in scores.splits.get(split, {}):
            raise UserError(f"{path} has no bleu of the {split} split; {hint}.")
    return run


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a kill cut short is no record."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {path.name} is no JSON; remove it to go on.") from error
        records.append(record)
    return records


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""The runs of a report: read, checked to be comparable, and gathered by their settings."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.continual.scores import Scores
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import settings

SCORES_FILE = "scores.json"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.gin"
SPLITS = ("valid", "test")
# Columns of R of which tables and figures speak, the first that scores every task; as words.
TITLES = {"bleu": "BLEU", "exact_match": "exact match"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: what scores.json holds, the lines of metrics.jsonl and the bindings of config.gin.

    metrics and config are empty where their files are missing. label: what its group is called, where it differs from
    the method. order: of its tasks, as numbers in that of its group's first run, where the group has several.
    """

    directory: Path
    record: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""
    order: str = ""

    @functools.cached_property
    def scores(self) -> Scores:
        return Scores.from_dict(self.record)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What scores.json names of the setting, flat."""
        return settings.of(self.record)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.record["stream"])

    @functools.cached_property
    def metric(self) -> str:
        """The column of R that tables and figures speak of: BLEU, or exact match where a task has no BLEU.

        Raises UserError where neither scores every task.
        """
        columns, scorers = self.scores.splits.get("valid", {}), self.scores.scorers
        whole = [name for name in TITLES if name in columns and None not in scorers.get(name, ())]
        if not whole:
            raise UserError("no bleu of the valid split, nor exact_match of all its tasks: there is no report of it.")
        return whole[0]

    @property
    def method(self) -> str:
        return str(self.record.get("method", self.directory.name))

    @property
    def seed(self) -> int | None:
        return self.record.get("seed")

    @property
    def name(self) -> str:
        """For a title: the method or the group, the seed, and the order where it varies."""
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join([self.label or self.method, *seed, *([f"order {self.order}"] if self.order else [])])

    @property
    def is_individual(self) -> bool:
        """Whether each task started from the initial weights, so that only the diagonal of R says something."""
        return self.record.get("walk") == "individual"

    def final(self, split: str, metric: str, tasks: Sequence[str]) -> np.ndarray:
        """The score on each of these tasks at the end, float64 (J,): the last row of R, of an individual run the
        diagonal.
        """
        score_SJ = self.scores.splits[split][metric]
        return self.in_order(np.diagonal(score_SJ[1:]) if self.is_individual else score_SJ[-1], tasks)

    def in_order(self, value_J: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
        """One value per task of this run, in the order of `tasks`."""
        return np.asarray(value_J)[[self.tasks.index(task) for task in tasks]]

    def diagnostic(self, name: str) -> list | None:
        """One value per stage, or None where the run has no such diagnostic at any stage."""
        values = self.record.get("diagnostics", {}).get(name)
        return None if not values or all(value is None for value in values) else values


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed, and in the order of their tasks, alone: one row of a table."""

    name: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the first run, which is that of tables."""
        return self.runs[0].tasks

    @property
    def settings(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What scores.json and config.gin name."""
        return self.runs[0].settings, self.runs[0].config

    @property
    def is_individual(self) -> bool:
        return self.runs[0].is_individual


def load(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in these directories, in the order given; raises UserError where they cannot share a table."""
    if not paths:
        raise UserError("no run directory given; name at least one, such as runs/pp_tf.")
    check_once(paths)
    runs = [_read(Path(path)) for path in paths]
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    return runs


def check_once(paths: Sequence[str | Path]) -> None:
    """Raises UserError where a directory is among the paths twice."""
    places = [Path(path).resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"{paths[number]} is given twice; name each run directory once.")


def _check_comparable(first: Run, run: Run) -> None:
    """Raises UserError where two runs do not share a task, or scored what they share on other data or otherwise."""
    shared = [task for task in first.tasks if task in run.tasks]
    facts = [("stream", "give only runs that share tasks")] * (not shared)
    if first.tasks == run.tasks:
        facts.append(("data_digest", "the same stream from other data; give only runs of the same files"))
    facts.append(("eval_examples", "they scored different examples; give only runs with one EVAL_EXAMPLES"))
    for name, remedy in facts:
        if first.record.get(name) != run.record.get(name):
            raise UserError(f"{name} is {_short(run.record.get(name))} in {run.directory} but "
                            f"{_short(first.record.get(name))} in {first.directory}; {remedy}.")  # fmt: skip
    for task in shared:
        scorers = [_by_task(one, one.scores.scorers, task) for one in (run, first)]
        if scorers[0] != scorers[1]:
            raise UserError(f"scorers of {task} are {_short(scorers[0])} in {run.directory} but {_short(scorers[1])} "
                            f"in {first.directory}; give only runs scored alike.")  # fmt: skip
        # The digest is of a whole stream; what copying the input scores tells data of one task apart.
        copied = [_by_task(one, one.scores.baselines.get("copy", {}).get("valid", {}), task) for one in (run, first)]
        known = [row[first.metric] for row in copied if row.get(first.metric) is not None]
        if len(known) == 2 and not math.isclose(*known, abs_tol=1e-6):
            raise UserError(f"copying the input of {task} scores {known[0]:.2f} in {run.directory} but {known[1]:.2f} "
                            f"in {first.directory}: other data; give only runs of the same files.")  # fmt: skip


def _by_task(run: Run, rows: Mapping[str, Sequence], task: str) -> dict[str, Any]:
    return {metric: row[run.tasks.index(task)] for metric, row in rows.items()}


def gather(runs: Iterable[Run]) -> list[Group]:
    """The groups in the order of first appearance, but for individual finetuning, a ceiling, which is last.

    Runs are of one group exactly when they agree in all that scores.json and, where each has one, config.gin say of
    their settings: seeds and orders of the same tasks are no settings. Two runs of one group with the same seed and
    order differ in something that no file names, so each stands alone. Groups of one method are called by what
    differs, or by their directories where that is nothing or too much.
    """

    def named(run: Run) -> list:
        cost = run.record.get("cost", {})
        sizes = [cost.get(name) for name in ("trainable_parameters", "prompt_tokens")]
        return [run.method, sorted(run.tasks), run.settings, sizes]

    found: list[list[Run]] = []
    for members in settings.gathered(runs, named):
        known = all(run.config for run in members)
        parts = settings.gathered(members, lambda run: run.config) if known else [members]
        for part in parts:
            repeated = len({(run.seed, run.tasks) for run in part}) < len(part)
            found += [[run] for run in part] if repeated else [part]
    groups = []
    for alike in settings.gathered(found, lambda part: [part[0].method, sorted(part[0].tasks)]):
        groups += _named(alike)
    ranks = {run.directory: number for number, run in enumerate(run for part in found for run in part)}
    return sorted(groups, key=lambda group: (group.is_individual, ranks[group.runs[0].directory]))


def _named(parts: Sequence[Sequence[Run]]) -> list[Group]:
    """Groups of one method and stream, with their names in their runs."""
    method = parts[0][0].method
    labels = settings.labels([(part[0].settings, part[0].config) for part in parts])
    groups = []
    for number, part in enumerate(parts):
        named = f"{method}, {labels[number]}" if labels else f"{method} ({part[0].directory.resolve().name})"
        name = method if len(parts) == 1 else named
        several = len({run.tasks for run in part}) > 1
        orders = [_order(run.tasks, part[0].tasks) if several else "" for run in part]
        runs = [dataclasses.replace(run, label=name, order=o) for run, o in zip(part, orders, strict=True)]
        groups.append(Group(name, tuple(runs)))
    return groups


def _order(tasks: Sequence[str], first: Sequence[str]) -> str:
    return ("" if len(first) <= 10 else "-").join(str(first.index(task)) for task in tasks)


def by_stream(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups whose runs learned the same tasks, in whatever order, together; most tasks first."""
    found = settings.gathered(groups, lambda group: sorted(group.tasks))
    return sorted(found, key=lambda alike: -len(alike[0].tasks))


def scored_split(groups: Sequence[Group]) -> str:
    """The split of which tables and figures speak: test, or valid where a run has no test scores."""
    runs = [run for group in groups for run in group.runs]
    return "test" if all(run.metric in run.scores.splits.get("test", {}) for run in runs) else "valid"


def short_names(tasks: Sequence[str]) -> list[str]:
    """Task names without the prefix that they share: pytask_generate, pytask_refine -> generate, refine."""
    prefix = tasks[0].split("_")[0] + "_"
    short = [task.removeprefix(prefix) for task in tasks]
    return short if all(task.startswith(prefix) and len(task) > len(prefix) for task in tasks) else list(tasks)


def slug(run: Run, runs: Sequence[Run]) -> str:
    """A file name for a run: method and seed, with a number where another run has the same."""

    def plain(other: Run) -> str:
        return re.sub(r"[^a-z0-9]+", "_", f"{other.label or other.method}_seed{other.seed}".lower()).strip("_")

    same = [other for other in runs if plain(other) == plain(run)]
    return (
        plain(run) if len(same) == 1 else f"{plain(run)}_{1 + next(n for n, other in enumerate(same) if other is run)}"
    )


def ceiling(groups: Sequence[Group], split: str, metric: str, tasks: Sequence[str] | None = None) -> np.ndarray | None:
    """a*, float64 (J,): the mean of the individual runs, else the individual row that a run stored, else None.

    tasks: whose, in which order; default: the first group's.
    """
    tasks = groups[0].tasks if tasks is None else tasks
    individual = [run for group in groups for run in group.runs if run.is_individual]
    individual = [run for run in individual if metric in run.scores.splits.get(split, {})]
    if individual:
        return np.mean([run.final(split, metric, tasks) for run in individual], axis=0)
    for group in groups:
        row = baseline(group.runs[0], "individual", split, metric, tasks)
        if row is not None:
            return row
    return None


def baseline(run: Run, name: str, split: str, metric: str, tasks: Sequence[str] | None = None) -> np.ndarray | None:
    """A baseline's score on each task, float64 (J,) with NaN where there is none, or None without the baseline."""
    row = run.scores.baselines.get(name, {}).get(split, {}).get(metric)
    if row is None:
        return None
    value_J = np.array([math.nan if value is None else value for value in row], np.float64)
    return run.in_order(value_J, run.tasks if tasks is None else tasks)


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
        place = directory / CONFIG_FILE
        config = settings.bindings(place.read_text(encoding="utf-8")) if place.is_file() else {}
        metrics = tuple(lines_of(directory / METRICS_FILE))
        run = Run(directory=directory, record=record, metrics=metrics, config=config)
        scores, metric = run.scores, run.metric
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the training command again or {hint}.") from error
    if not record.get("complete"):
        raise UserError(f"{directory} is unfinished; start its training command again, which continues it.")
    for split in scores.splits:  # the test split may not be there
        if metric not in scores.splits[split]:
            raise UserError(f"{path} has no {metric} of the {split} split; {hint}.")
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

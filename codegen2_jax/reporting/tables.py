"""The tables of a report: numbers from scores.json, with intervals over seeds, as cells that CSV and HTML write."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from codegen2_jax.continual.scores import copy_normalised, copy_normalised_per_task, forget_paper_per_task
from codegen2_jax.reporting.finished_runs import TITLES, Group, Run, baseline, ceiling, scored_split, short_names

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its interval, None where one seed gives no interval."""

    mean: float
    half_width: float | None


@dataclasses.dataclass(frozen=True)
class Column:
    """heading and detail stand in the page, one under the other; name is the whole of it in CSV; digits of floats."""

    heading: str
    detail: str = ""
    name: str = ""
    digits: int = 2

    @property
    def csv_name(self) -> str:
        return self.name or (f"{self.heading} ({self.detail})" if self.detail else self.heading)


Cell = str | float | int | None | Estimate


@dataclasses.dataclass(frozen=True)
class Table:
    """columns and rows of cells; None is a figure that there is none of. `reference` rows are no methods."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    reference: frozenset[int] = frozenset()

    def __post_init__(self):
        assert all(len(row) == len(self.columns) for row in self.rows), "a row has another number of cells"

    @property
    def estimated(self) -> list[bool]:
        """Whether each column has an interval in any row."""
        cells = [[row[number] for row in self.rows] for number in range(len(self.columns))]
        return [any(isinstance(c, Estimate) and c.half_width is not None for c in column) for column in cells]


def to_csv(table: Table) -> str:
    """The table with all digits; an interval has a column of its own; an empty cell is a figure that is not there."""
    estimated = table.estimated
    header = []
    for column, has_interval in zip(table.columns, estimated, strict=True):
        header += [column.csv_name, *([f"{column.csv_name}, 95 % interval +-"] if has_interval else [])]
    lines = [header]
    for row in table.rows:
        line: list[Any] = []
        for cell, has_interval in zip(row, estimated, strict=True):
            half = cell.half_width if isinstance(cell, Estimate) else None
            line.append(_plain(cell.mean if isinstance(cell, Estimate) else cell))
            line += [_plain(half)] if has_interval else []
        lines.append(line)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean and its two-sided 95 % interval by Student's t with n - 1 degrees of freedom; None if a value is not.

    half width = t(0.975, n - 1) s / sqrt(n), s^2 with n - 1 in the denominator: it assumes that seeds are independent
    draws from a normal distribution.
    """
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        return None
    if numbers.size == 1:
        return Estimate(float(numbers[0]), None)
    quantile = float(stdtrit(numbers.size - 1, 0.5 + CONFIDENCE / 2))
    return Estimate(float(numbers.mean()), quantile * float(numbers.std(ddof=1)) / math.sqrt(numbers.size))


def scorer_names(run: Run, metric: str) -> list[str]:
    """The scorer of each task, the metric's own name where the run does not say."""
    return list(run.scores.scorers.get(metric, [metric] * len(run.scores.tasks)))


def scorers_text(run: Run, metric: str) -> str:
    """Each scorer once, with the tasks that it scored: 'codet5_bleu (generate), codet5_smooth_bleu (summarize)'."""
    names, short = scorer_names(run, metric), short_names(run.scores.tasks)
    parts = []
    for name in dict.fromkeys(names):
        tasks = ", ".join(task for task, used in zip(short, names, strict=True) if used == name)
        parts.append(name if len(set(names)) == 1 else f"{name} ({tasks})")
    return ", ".join(parts)


def methods(groups: Sequence[Group]) -> Table:
    """One row per group and the reference rows: individual finetuning, before training, copy, constant."""
    first, split = groups[0].runs[0], scored_split(groups)
    tasks, short = first.scores.tasks, short_names(first.scores.tasks)
    without = first.scores.leave_out
    rest = [number for number, task in enumerate(tasks) if task not in without]
    removed = ", ".join(name for name, task in zip(short, tasks, strict=True) if task in without)
    metric = first.metric
    top = ceiling(groups, split, metric)
    copied = baseline(first, "copy", split, metric)
    names, scorers = scorer_names(first, metric), scorers_text(first, metric)
    has_match = metric != "exact_match"  # else it would stand there twice

    columns = [Column("method")]
    columns += [
        Column(name, f"{split} {scorer}", f"{split} {metric} {task} ({scorer})")
        for name, task, scorer in zip(short, tasks, names, strict=True)
    ]
    columns += [Column("average", f"{split} {TITLES[metric]}", f"average_{metric} ({split})")]
    if without and rest:
        columns += [
            Column(
                f"average without {removed}",
                f"{split} {TITLES[metric]}",
                f"average_without_{'_'.join(without)}_{metric} ({split})",
            )
        ]
    if has_match:
        columns.append(Column("exact match", f"{split} average", f"average_exact_match ({split})"))
    columns += [
        Column(f"forget_paper_{metric}", "valid", f"forget_paper_{metric} (valid; {scorers})"),
        Column(
            f"copy_normalised_{metric}", f"{split}, vs individual", f"copy_normalised_vs_individual_{metric} ({split})"
        ),
        Column("trained parameters"),
        Column("prompt tokens"),
        Column("examples seen"),
        Column("wall minutes", digits=1),
        Column("runs" if any(run.order for group in groups for run in group.runs) else "seeds"),
    ]

    def scores_of(score_RJ: np.ndarray, match_RJ: np.ndarray | None, forgotten_R: Sequence[float]) -> list[Cell]:
        cells: list[Cell] = [estimate(score_R) for score_R in score_RJ.T]
        cells.append(estimate(score_RJ.mean(axis=1)))
        if without and rest:
            cells.append(estimate(score_RJ[:, rest].mean(axis=1)))
        if has_match:
            cells.append(None if match_RJ is None else estimate(match_RJ.mean(axis=1)))
        cells.append(estimate(forgotten_R))
        cells.append(None if top is None or copied is None else estimate(_normalised(score_RJ, top, copied)))
        return cells

    def reference(name: str, stored: str) -> list[Cell]:
        row, match = (baseline(first, stored, split, column) for column in (metric, "exact_match"))
        if row is None:
            return [f"{name} (not computed)", *[None] * (len(columns) - 1)]
        return [name, *scores_of(row[None], None if match is None else match[None], []), *[None] * 5]

    rows = []
    for group in groups:
        forgotten = [] if group.is_individual else [_forget(run) for run in group.runs]
        match = _finals(group, "exact_match", split, tasks)
        cost = [_cost(group, name) for name in ("trainable_parameters", "prompt_tokens", "train_examples_seen")]
        minutes = estimate([seconds / 60 for seconds in _costs(group, "wall_seconds")])
        numbers = scores_of(_finals(group, metric, split, tasks), match, forgotten)
        rows.append([group.name, *numbers, *cost, minutes, len(group.runs)])
    references = [reference("individual", "individual")] if _stored_individual(groups, split) else []
    for name, run in _starts(groups).items():
        start = {name: run.in_order(score_SJ[0], tasks) for name, score_SJ in run.scores.splits[split].items()}
        score_J, match_J = (start.get(column, np.full(1, np.nan)) for column in (metric, "exact_match"))
        references.append([name, *scores_of(score_J[None], match_J[None], []), *[None] * 5])
    references += [reference("copy", "copy"), reference("constant", "constant")]
    return Table(columns, rows + references, frozenset(range(len(rows), len(rows) + len(references))))


def matrix(run: Run, groups: Sequence[Group], *, split: str, metric: str) -> Table:
    """R of one run, a row per stage, with the copy, constant and individual rows where there are any."""
    scores, short = run.scores, short_names(run.scores.tasks)
    scorers = scorer_names(run, metric)
    columns = [Column("stage")]
    columns += [
        Column(name, scorer, f"{split} {metric} {task} ({scorer})")
        for name, task, scorer in zip(short, scores.tasks, scorers, strict=True)
    ]
    columns.append(Column("average", "", f"average_{metric} ({split})"))
    labels = ["before training"] + [f"after {number} {name}" for number, name in enumerate(short, start=1)]
    lines = list(zip(labels, scores.splits[split][metric], strict=True))
    num_stages = len(lines)
    for name in ("copy", "constant"):
        row = baseline(run, name, split, metric)
        lines.append((name, row) if row is not None else (f"{name} (not computed)", np.full(len(short), np.nan)))
    top = ceiling(groups, split, metric, run.tasks)
    if top is not None:
        lines.append(("individual", top))
    rows = [[label, *map(_number, row), _number(np.mean(row))] for label, row in lines]
    return Table(columns, rows, frozenset(range(num_stages, len(rows))))


def forget_by_task(groups: Sequence[Group]) -> Table:
    """The terms of forget_paper on the valid split: a row per group, a column per task, the mean.

    The last task of a run has no term; a task that is last in every order has no column.
    """
    first = groups[0].runs[0]
    sequential = [run for group in groups if not group.is_individual for run in group.runs]
    kept = [any(task in run.tasks[:-1] for run in sequential) for task in first.tasks]
    tasks = [task for task, is_kept in zip(first.tasks, kept, strict=True) if is_kept]
    named, all_scorers, metric = short_names(first.tasks), scorer_names(first, first.metric), first.metric
    short = [named[first.tasks.index(task)] for task in tasks]
    scorers = [all_scorers[first.tasks.index(task)] for task in tasks]
    columns = [Column("method")]
    columns += [
        Column(name, f"valid {scorer}", f"forget_paper_{metric} term of {task} (valid; {scorer})")
        for name, task, scorer in zip(short, tasks, scorers, strict=True)
    ]
    columns.append(Column("mean", f"forget_paper_{metric}, valid", f"forget_paper_{metric} (valid)"))
    rows = []
    for group in groups:
        if not group.is_individual:
            terms: dict[str, list[float]] = {task: [] for task in first.tasks}
            for run in group.runs:
                drops = forget_paper_per_task(run.scores.splits["valid"][metric])
                for task, drop in zip(run.tasks, drops, strict=False):
                    terms[task].append(drop)
            rows.append([group.name, *(estimate(terms[task]) for task in tasks), forget_paper_of(group)])
    return Table(columns, rows)


def final_average(group: Group, split: str) -> Estimate | None:
    """The average score at the end, over seeds."""
    return estimate(_finals(group, group.metric, split, group.tasks).mean(axis=1))


def forget_paper_of(group: Group) -> Estimate | None:
    """forget_paper on the valid split, over seeds; None for individual runs and single tasks."""
    return None if group.is_individual else estimate([*map(_forget, group.runs)])


def cost_against_score(groups: Sequence[Group]) -> Table:
    """The average score at the end with what it took."""
    names, split, metric = ("average", "wall minutes", "trained parameters"), scored_split(groups), groups[0].metric
    columns = [Column("method"), Column(names[0], f"{split} {TITLES[metric]}")]
    columns += [Column(names[1], digits=1), Column(names[2])]
    rows = []
    for group in groups:
        minutes = estimate([seconds / 60 for seconds in _costs(group, "wall_seconds")])
        rows.append([group.name, final_average(group, split), minutes, _cost(group, "trainable_parameters")])
    copied = baseline(groups[0].runs[0], "copy", split, metric)
    if copied is not None:
        rows.append(["copy", _number(copied.mean()), None, None])
    return Table(columns, rows, frozenset({len(rows) - 1} if copied is not None else ()))


def _finals(group: Group, metric: str, split: str, tasks: Sequence[str]) -> np.ndarray | None:
    """score_RJ of a group's runs at the end, None where they lack the metric."""
    if any(metric not in run.scores.splits[split] for run in group.runs):
        return None
    return np.array([run.final(split, metric, tasks) for run in group.runs])


def _forget(run: Run) -> float:
    drops = forget_paper_per_task(run.scores.splits["valid"][run.metric])
    return float(drops.mean()) if drops.size else math.nan


def _normalised(score_RJ: np.ndarray, top_J: np.ndarray, copied_J: np.ndarray) -> list[float]:
    """copy_normalised of rows that are final scores."""
    if not np.isfinite([top_J, copied_J]).all():
        return []
    found = []
    for score_J in score_RJ:
        matrix_SJ = np.tile(score_J, (len(score_J) + 1, 1))
        found.append(copy_normalised(matrix_SJ, top_J, copied_J))
    return found


def without_headroom(run: Run, top_J: np.ndarray, split: str) -> list[str]:
    """Tasks that copy_normalised leaves out: their ceiling is less than a point above copying."""
    copied_J = baseline(run, "copy", split, run.metric)
    if copied_J is None:
        return []
    normalised_J = copy_normalised_per_task(np.tile(top_J, (len(top_J) + 1, 1)), top_J, copied_J)
    names = short_names(run.scores.tasks)
    return [name for name, value in zip(names, normalised_J, strict=True) if np.isnan(value)]


def _stored_individual(groups: Sequence[Group], split: str) -> bool:
    stored = baseline(groups[0].runs[0], "individual", split, groups[0].metric) is not None
    return stored and not any(group.is_individual for group in groups)


def _starts(groups: Sequence[Group]) -> dict[str, Run]:
    """One run per set of initial weights, whose row 0 they share (it is decoded without a prompt)."""
    found: dict[str, Run] = {}
    for group in groups:
        for run in group.runs:
            found.setdefault(str(run.record.get("weights_digest")), run)
    if len(found) == 1:
        return {"before training": next(iter(found.values()))}
    return {f"before training ({run.record.get('init_from')}, {digest[:8]})": run for digest, run in found.items()}


def _costs(group: Group, name: str) -> list[float]:
    return [run.record.get("cost", {}).get(name, math.nan) for run in group.runs]


def _cost(group: Group, name: str) -> Cell:
    """A count: itself where all runs agree, else its estimate."""
    values = _costs(group, name)
    if len(set(values)) == 1:
        return values[0] if isinstance(values[0], int) else _number(values[0])
    return estimate(values)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(cell: Any) -> Any:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return repr(cell) if isinstance(cell, float) else cell

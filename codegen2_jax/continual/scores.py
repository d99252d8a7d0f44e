"""The scores of a continual-learning run: the matrix R, every metric drawn from it, and scores.json.

R_SJ[i, j] is the score on task j after stage i; row 0 is before any training, so S = J + 1 for J tasks. There is one
matrix per split and metric. Higher is better, but for `loss`. A cell that was not measured is NaN here and null in the
file. A metric that needs such a cell is NaN, and is left out of the file, never guessed. A task that a metric does not
score at all is no such hole: means are taken over the tasks that `scored_J` (bool; None: all) names.

There are half a dozen definitions of how much a model forgets, and they disagree. So none has the plain word as its
name: each result carries its variant's name, its split and its metric, and `scorers` in the file says what computed
the metric for each task.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError

LOWER_IS_BETTER = ("loss", "perplexity")
ORACLE = "_oracle"  # a metric named bleu_oracle is bleu with prompts chosen by the true task id
FLOORS = ("copy", "constant")  # baselines from below; all others are ceilings
MIN_HEADROOM = 1.0
Tasks = Sequence[bool] | None


def average(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """Mean over tasks of the last row: (1/J) sum_j R[J, j]."""
    scores = _matrix(score_SJ)
    return _mean(scores[-1, _scored(scores, scored_J)])


def avg_incremental(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """(1/J) sum_i (1/i) sum_{j<=i} R[i, j]: the mean, over stages, of the average on the tasks seen so far."""
    scores = _matrix(score_SJ)
    has_J = _scored(scores, scored_J)
    return _mean(np.array([scores[i, :i][has_J[:i]].mean() for i in range(1, len(scores)) if has_J[:i].any()]))


def forget_paper(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """Mean over all but the last task of (best score from stage j to J-1) - (final score); may be negative.

    As in arXiv 2307.02435 (there on the validation split), after Chaudhry et al. 2018: the last row is no candidate
    for the best, so a task that ends better than ever before counts below zero.
    """
    return _mean(_drops(score_SJ, last_row_may_be_best=False)[_scored(score_SJ, scored_J)[:-1]])


def forget_paper_per_task(score_SJ: np.ndarray) -> np.ndarray:
    """What `forget_paper` is the mean of: one drop for each task but the last, float64 (J - 1,)."""
    return _drops(score_SJ, last_row_may_be_best=False)


def forget_clipped(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """As `forget_paper`, but the last row may be the best, so no task counts below zero (Mammoth, L2P)."""
    return _mean(_drops(score_SJ, last_row_may_be_best=True)[_scored(score_SJ, scored_J)[:-1]])


def forget_last(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """(1/(J-1)) sum_{j<J} (R[j, j] - R[J, j]): from just after learning to the end; -bwt (Avalanche)."""
    return -bwt(score_SJ, scored_J)


def forget_step(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """(1/(J-1)) sum_{i=2..J} (1/(i-1)) sum_{j<i} (R[i-1, j] - R[i, j]): the mean drop in one stage (CODA-Prompt)."""
    scores = _matrix(score_SJ)
    has_J = _scored(scores, scored_J)
    drops = [scores[i - 1, : i - 1] - scores[i, : i - 1] for i in range(2, len(scores))]
    return _mean(np.array([_mean(drop_J[has_J[: len(drop_J)]]) for drop_J in drops if has_J[: len(drop_J)].any()]))


def bwt(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """Backward transfer (1/(J-1)) sum_{j<J} (R[J, j] - R[j, j]) (GEM, Lopez-Paz and Ranzato 2017)."""
    scores = _matrix(score_SJ)
    return _mean((scores[-1] - np.diagonal(scores[1:]))[:-1][_scored(scores, scored_J)[:-1]])


def fwt(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """Forward transfer (1/(J-1)) sum_{j>1} (R[j-1, j] - R[0, j]) (GEM); needs row 0 and cells above the diagonal."""
    scores = _matrix(score_SJ)
    return _mean((np.diagonal(scores[1:], offset=1) - scores[0, 1:])[_scored(scores, scored_J)[1:]])


def learning_accuracy(score_SJ: np.ndarray, scored_J: Tasks = None) -> float:
    """(1/J) sum_j R[j, j]: the score on each task just after learning it."""
    scores = _matrix(score_SJ)
    return _mean(np.diagonal(scores[1:])[_scored(scores, scored_J)])


def intransigence(score_SJ: np.ndarray, ceiling_J: Sequence[float], scored_J: Tasks = None) -> float:
    """(1/J) sum_j (a*_j - R[j, j]): how far learning a task in the stream stays below `ceiling_J`."""
    scores = _matrix(score_SJ)
    return _mean((_row(ceiling_J, scores) - np.diagonal(scores[1:]))[_scored(scores, scored_J)])


def copy_normalised_per_task(score_SJ: np.ndarray, ceiling_J: Sequence[float], copy_J: Sequence[float]) -> np.ndarray:
    """(R[J, j] - copy_j) / (a*_j - copy_j) per task, float64 (J,); not clipped.

    0 is copying the input to the output, 1 the ceiling. A task whose ceiling is less than one point above copying has
    no headroom to measure and is NaN.
    """
    scores = _matrix(score_SJ)
    copied, headroom = _row(copy_J, scores), _row(ceiling_J, scores) - _row(copy_J, scores)
    measurable = headroom >= MIN_HEADROOM
    return np.where(measurable, (scores[-1] - copied) / np.where(measurable, headroom, 1.0), np.nan)


def copy_normalised(score_SJ: np.ndarray, ceiling_J: Sequence[float], copy_J: Sequence[float]) -> float:
    """Mean of `copy_normalised_per_task` over the tasks with headroom; NaN without any, or when a score is missing.

    A task that is not scored has neither ceiling nor copy, and so no headroom.
    """
    scores = _matrix(score_SJ)
    headroom = _row(ceiling_J, scores) - _row(copy_J, scores) >= MIN_HEADROOM
    return _mean(copy_normalised_per_task(scores, ceiling_J, copy_J)[headroom])


def oracle_gap(oracle_SJ: np.ndarray, pool_SJ: np.ndarray) -> float:
    """average(true task id) - average(prompts found by the query): what wrong retrieval costs."""
    return average(oracle_SJ) - average(pool_SJ)


METRICS = {
    function.__name__: function
    for function in (
        average,
        avg_incremental,
        forget_paper,
        forget_clipped,
        forget_last,
        forget_step,
        bwt,
        fwt,
        learning_accuracy,
    )
}




def _rise(forget: Callable) -> Callable:
    """The drop of minus a loss is its rise: final loss - lowest loss, and so on; above 0 is worse."""
    return lambda loss_SJ, scored_J=None: forget(-_matrix(loss_SJ), scored_J)


RISES = {name.replace("forget", "rise"): _rise(METRICS[name]) for name in METRICS if name.startswith("forget")}


@dataclasses.dataclass(kw_only=True)
class Scores:
    """Everything a run has measured; `to_dict` is scores.json, `from_dict` continues from one.

    tasks: names in stream order. scorers: metric -> scorer id per task (None: the task has none), e.g.
    {"bleu": ["codet5_bleu", ...]}.
    header: method, seed, digests, versions, decoding: facts that are stored as they are.
    leave_out: tasks without usable signal; an average without each of them is added (e.g. refinement, whose BLEU does
    not leave the copy baseline).
    """

    tasks: Sequence[str]
    scorers: Mapping[str, Sequence[str | None]] = dataclasses.field(default_factory=dict)
    header: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    leave_out: Sequence[str] = ()
    splits: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    baselines: dict[str, dict[str, dict[str, list[float | None]]]] = dataclasses.field(default_factory=dict)
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        unknown = [name for name in self.leave_out if name not in self.tasks]
        if unknown:
            raise UserError(f"leave_out={unknown} names no task of this stream; it has {list(self.tasks)}.")
        for metric, ids in self.scorers.items():
            assert len(ids) == len(self.tasks), (metric, ids)

    def record(self, split: str, metric: str, *, stage: int, task: int, value: float) -> None:
        """Sets R[stage, task]; stage 0 is before training, stage i after the i-th task, task counts from 0."""
        num_tasks = len(self.tasks)
        assert 0 <= stage <= num_tasks and 0 <= task < num_tasks, (stage, task, num_tasks)
        matrices = self.splits.setdefault(split, {})
        if metric not in matrices:
            matrices[metric] = np.full((num_tasks + 1, num_tasks), np.nan)
        matrices[metric][stage, task] = value

    def record_baseline(self, name: str, split: str, metric: str, values_J: Sequence[float | None]) -> None:
        """One score per task of something that is no stage: "copy", "constant", "individual", "multitask"."""
        assert len(values_J) == len(self.tasks), values_J
        row = [None if value is None else float(value) for value in values_J]
        self.baselines.setdefault(name, {}).setdefault(split, {})[metric] = row

    def summary(self) -> dict[str, dict[str, Any]]:
        """split -> {"<metric name>_<score>": number}, what could be computed so far. See the functions above.

        Beside METRICS: average_without_<task>_*, oracle_gap_*, and for every baseline that is a ceiling, such as
        "individual", intransigence_vs_individual_* and copy_normalised_vs_individual_*, the latter also with _per_task_
        (null where there is no headroom) and with the names of those tasks in no_headroom_vs_individual_*. Of a loss,
        which is better when low, rise_* stand for forget_*.
        """
        return {split: self._summary_of(split) for split in self.splits}

    def _summary_of(self, split: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric, matrix in self.splits[split].items():
            scored_J = np.array([name is not None for name in self._scorers_of(metric)])
            metrics = {"average": average} if metric.endswith(ORACLE) else METRICS
            if metric in LOWER_IS_BETTER:
                metrics = {"average": average, "avg_incremental": avg_incremental, **RISES}
            found |= {f"{name}_{metric}": function(matrix, scored_J) for name, function in metrics.items()}
            for left_out in self.leave_out:
                others = scored_J & (np.array(self.tasks) != left_out)
                found[f"average_without_{left_out}_{metric}"] = _mean(matrix[-1, others])
            if metric in LOWER_IS_BETTER or metric.endswith(ORACLE):
                continue
            if metric + ORACLE in self.splits[split]:
                found[f"oracle_gap_{metric}"] = oracle_gap(self.splits[split][metric + ORACLE], matrix)
            copy = self._baseline("copy", split, metric)
            for name in [name for name in self.baselines if name not in FLOORS]:
                ceiling = self._baseline(name, split, metric)
                if ceiling is not None:
                    found[f"intransigence_vs_{name}_{metric}"] = intransigence(matrix, ceiling, scored_J)
                if ceiling is not None and copy is not None:
                    found[f"copy_normalised_vs_{name}_{metric}"] = copy_normalised(matrix, ceiling, copy)
                    flat_J = ~(_row(ceiling, matrix) - _row(copy, matrix) >= MIN_HEADROOM) & scored_J
                    found[f"no_headroom_vs_{name}_{metric}"] = [self.tasks[task] for task in np.flatnonzero(flat_J)]
                    if not np.isnan(matrix[-1]).any():
                        per_task = copy_normalised_per_task(matrix, ceiling, copy)
                        found[f"copy_normalised_per_task_vs_{name}_{metric}"] = _nullable(per_task)
        told = lambda value: value if isinstance(value, list) else math.isfinite(value)  # noqa: E731
        return {name: value for name, value in found.items() if told(value)}

    def _scorers_of(self, metric: str) -> Sequence[str | None]:
        """The scorer of each task; a metric that `scorers` does not name scores them all by itself."""
        return self.scorers.get(metric.removesuffix(ORACLE), [metric] * len(self.tasks))

    def _baseline(self, name: str, split: str, metric: str) -> list[float] | None:
        row = self.baselines.get(name, {}).get(split, {}).get(metric)
        return None if row is None else [math.nan if value is None else value for value in row]

    def to_dict(self) -> dict[str, Any]:
        """The contents of scores.json: plain lists and numbers, null for a cell that was not measured."""
        return {
            "stream": list(self.tasks),
            **self.header,
            "scorers": {metric: list(ids) for metric, ids in self.scorers.items()},
            "leave_out": list(self.leave_out),
            "splits": {
                split: {metric: _nullable(matrix) for metric, matrix in matrices.items()}
                for split, matrices in self.splits.items()
            },
            "baselines": self.baselines,
            "summary": self.summary(),
            "diagnostics": self.diagnostics,
            "cost": self.cost,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Scores":
        """The inverse of `to_dict`; the summary is computed anew."""
        own = ("stream", "scorers", "leave_out", "splits", "baselines", "summary", "diagnostics", "cost")
        missing = [name for name in ("stream", "splits") if name not in stored]
        if missing:
            raise UserError(f"scores lack {missing}; this is no scores.json of a training run.")
        return cls(
            tasks=tuple(stored["stream"]),
            scorers=stored.get("scorers", {}),
            header={name: value for name, value in stored.items() if name not in own},
            leave_out=tuple(stored.get("leave_out", ())),
            splits={
                split: {metric: np.array(rows, dtype=np.float64) for metric, rows in matrices.items()}
                for split, matrices in stored["splits"].items()
            },
            baselines=stored.get("baselines", {}),
            diagnostics=stored.get("diagnostics", {}),
            cost=stored.get("cost", {}),
        )


def format_matrix(scores: Mapping[str, Any], *, split: str, metric: str) -> list[str]:
    """The matrix of one split and metric as lines of text, from the contents of scores.json.

    Rows are the stages, columns the tasks and their average. Copying the input and the best constant output always
    have a row where higher is better, since a score says little without them; other baselines follow. '-' is a cell
    that was not measured.
    """
    tasks, rows = list(scores["stream"]), scores["splits"][split][metric]
    labels = ["before training"] + [f"after {number} {task}" for number, task in enumerate(tasks, start=1)]
    table = [(label, row) for label, row in zip(labels, rows, strict=True) if any(cell is not None for cell in row)]
    stored = scores.get("baselines", {})
    floors = () if metric in LOWER_IS_BETTER else FLOORS
    for name in (*floors, *(name for name in stored if name not in FLOORS and metric in stored[name].get(split, {}))):
        row = stored.get(name, {}).get(split, {}).get(metric)
        table.append((name if row else f"{name} (not computed)", row or [None] * len(tasks)))
    headings = ["", *tasks, "average"]
    scored = [name is not None for name in _scorers(scores, metric)]
    cells = [[label, *(_cell(value) for value in row), _cell(_row_average(row, scored))] for label, row in table]
    widths = [max(len(line[column]) for line in [headings, *cells]) for column in range(len(headings))]
    body = [
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))])
        for line in [headings, *cells]
    ]
    return [_title(scores, split, metric), *body]


def format_summary(scores: Mapping[str, Any], *, split: str) -> list[str]:
    """One line per figure of a split's summary: name, split, the tasks that it speaks of where not of all, value."""
    lines, matrices = [], scores["splits"].get(split, {})
    for name, value in scores["summary"].get(split, {}).items():
        metric = max((metric for metric in matrices if name.endswith(f"_{metric}")), key=len, default=None)
        ids = _scorers(scores, metric)
        scored = [task for task, scorer in zip(scores["stream"], ids, strict=True) if scorer is not None]
        of = f"; over {', '.join(scored)}" if len(scored) < len(ids) else ""
        text = " ".join(map(_cell, value)) if isinstance(value, list) else _cell(value)
        lines.append(f"{name} ({split}{of}): {text}")
    return lines


def _scorers(scores: Mapping[str, Any], metric: str | None) -> list[str | None]:
    """The scorer of each task, from the contents of scores.json; None: the metric has no score of that task."""
    name = (metric or "").removesuffix(ORACLE)
    return list(scores.get("scorers", {}).get(name) or [name] * len(scores["stream"]))


def _title(scores: Mapping[str, Any], split: str, metric: str) -> str:
    """E.g. 'test bleu: codet5_bleu (a, b), codet5_smooth_bleu (c)'."""
    ids = scores.get("scorers", {}).get(metric.removesuffix(ORACLE))
    if metric == "loss":
        return f"{split} loss: cross-entropy in nats per target token, teacher-forced; lower is better"
    if not ids:
        return f"{split} {metric}"
    users = {
        scorer: [task for task, used in zip(scores["stream"], ids, strict=True) if used == scorer]
        for scorer in ids
        if scorer is not None
    }
    if len(users) == 1 and None not in ids:
        return f"{split} {metric}: {ids[0]}"
    return f"{split} {metric}: " + ", ".join(f"{scorer} ({', '.join(tasks)})" for scorer, tasks in users.items())


def _scored(score_SJ: np.ndarray, scored_J: Tasks) -> np.ndarray:
    """bool (J,): the tasks that means are taken over."""
    num_tasks = _matrix(score_SJ).shape[1]
    return np.ones(num_tasks, bool) if scored_J is None else np.asarray(scored_J, bool)


def _drops(score_SJ: np.ndarray, *, last_row_may_be_best: bool) -> np.ndarray:
    scores = _matrix(score_SJ)
    num_tasks = scores.shape[1]
    end = num_tasks + 1 if last_row_may_be_best else num_tasks
    return np.array([scores[j + 1 : end, j].max() - scores[-1, j] for j in range(num_tasks - 1)])


def _matrix(score_SJ: np.ndarray) -> np.ndarray:
    scores = np.asarray(score_SJ, np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] + 1 or scores.shape[1] < 1:
        raise UserError(
            f"a score matrix of shape {scores.shape} is not (tasks + 1) x tasks; row 0 is the score before training."
        )
    return scores


def _row(values_J: Sequence[float], scores: np.ndarray) -> np.ndarray:
    row = np.asarray(values_J, np.float64)
    assert row.shape == scores.shape[1:], (row.shape, scores.shape)
    return row


def _mean(values: np.ndarray) -> float:
    """NaN for nothing: with a single task there is no earlier one to compare with."""
    return float(values.mean()) if values.size else math.nan


def _nullable(values: np.ndarray) -> list:
    if values.ndim > 1:
        return [_nullable(row) for row in values]
    return [float(value) if np.isfinite(value) else None for value in values]


def _row_average(row: Sequence[float | None], scored: Sequence[bool]) -> float | None:
    """Over the tasks that the metric scores at all, where each of them has a score."""
    values = [value for value, has in zip(row, scored, strict=True) if has]
    return None if not values or any(value is None for value in values) else sum(values) / len(values)


def _cell(value: float | str | None) -> str:
    return value if isinstance(value, str) else "-" if value is None else f"{value:z.2f}"

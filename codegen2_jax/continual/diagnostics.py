"""What a prompt pool retrieves and how its keys and queries lie: numpy arrays in, numbers out.

B examples, K keys chosen, M keys in the pool, J tasks, D query width. selected_BK, score_BK and the table
assignment_JM are what `PromptPool.prompt` and its state give; selections are those of `selection="pool"`, made without
the task id. A figure about nothing (a task without examples, a key never set) is NaN.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

COLLAPSED_COSINE = 0.99


def retrieval_top1(
    selected_BK: np.ndarray, score_BK: np.ndarray, task_B: np.ndarray, assignment_JM: np.ndarray
) -> float:
    """Share of examples whose most similar key belongs to their task, in [0, 1].

    Always 1 when every task owns every key (plain Prompt Pooling).
    """
    best_B = np.take_along_axis(np.asarray(selected_BK), np.argmax(score_BK, axis=1)[:, None], axis=1)[:, 0]
    return _mean(np.asarray(assignment_JM)[task_B, best_B])


def retrieval_majority(selected_BK: np.ndarray, task_B: np.ndarray, assignment_JM: np.ndarray) -> float:
    """Share of examples whose chosen keys belong to their own task more often than to any other, in [0, 1].

    The task with the most owned keys among the chosen is the guess, the lowest number among equals; so the figure
    says nothing when every task owns every key.
    """
    votes_BJ = np.asarray(assignment_JM)[:, np.asarray(selected_BK)].sum(axis=2).T
    return _mean(votes_BJ.argmax(axis=1) == task_B)


def own_key_recall(selected_BK: np.ndarray, task_B: np.ndarray, assignment_JM: np.ndarray) -> np.ndarray:
    """Per task, the mean share of its keys (of k, when it owns more) that its examples chose: float64 (J,).

    With s keys shared per pair a task loses them to later owners: at most (k - s (T - t)) / k is left after task T.
    """
    selected, tasks, table = np.asarray(selected_BK), np.asarray(task_B), np.asarray(assignment_JM)
    findable_J = np.minimum(selected.shape[1], table.sum(axis=1))
    recall_B = table[tasks[:, None], selected].sum(axis=1) / findable_J[tasks]
    return np.array([_mean(recall_B[tasks == task]) for task in range(len(table))])


def own_key_limit(assignment_JM: np.ndarray, top_k: int, num_seen: int) -> np.ndarray:
    """The own-key recall left to each of the first `num_seen` tasks when later owners took every shared key.

    (keys that no later task owns) / min(k, keys owned), at most 1, float64 (num_seen,): (k - s (T - t)) / k where a
    task owns k keys and shares s with each later one.
    """
    table = np.asarray(assignment_JM, bool)[:num_seen]
    kept_J = np.array([(owned_M & ~table[task + 1 :].any(axis=0)).sum() for task, owned_M in enumerate(table)])
    return np.minimum(kept_J / np.maximum(np.minimum(top_k, table.sum(axis=1)), 1), 1.0)


def usage_counts(selected_BK: np.ndarray, task_B: np.ndarray, assignment_JM: np.ndarray) -> np.ndarray:
    """How often each task's examples chose each key: int64 (J, M)."""
    usage_JM = np.zeros(np.shape(assignment_JM), np.int64)
    np.add.at(usage_JM, (np.asarray(task_B)[:, None], np.asarray(selected_BK)), 1)
    return usage_JM


def usage_entropy(usage_M: np.ndarray) -> tuple[float, float]:
    """(H / log M, exp(H)) of the selection shares: evenness in [0, 1], and the effective number of keys in use."""
    usage = np.asarray(usage_M, np.float64)
    if usage.sum() == 0:
        return math.nan, math.nan
    share = usage[usage > 0] / usage.sum()
    entropy = float(-(share * np.log(share)).sum())
    return (entropy / math.log(usage.size) if usage.size > 1 else math.nan), math.exp(entropy)


def selection_overlap(usage_JM: np.ndarray) -> np.ndarray:
    """Intersection over union of the key sets that two tasks use, float64 (J, J); used means a share of >= 1/M."""
    usage = np.asarray(usage_JM, np.float64)
    total_J1 = usage.sum(axis=1, keepdims=True)
    used = (usage * usage.shape[1] >= total_J1) & (usage > 0)
    both = (used[:, None] & used[None]).sum(axis=2)
    either = (used[:, None] | used[None]).sum(axis=2)
    valid = (total_J1 > 0) & (total_J1 > 0).T
    return np.where(valid, both / np.maximum(either, 1), np.nan)


def key_drift(before_MD: np.ndarray, after_MD: np.ndarray, rows_M: np.ndarray) -> float:
    """Mean of 1 - cos(key before a task, the key after it) over the keys `rows_M` (bool): those of past owners."""
    chosen = np.asarray(rows_M, bool)
    before, after = _unit(np.asarray(before_MD)[chosen]), _unit(np.asarray(after_MD)[chosen])
    return _mean(np.maximum(1.0 - (before * after).sum(axis=1), 0.0))  # a rounded cosine may exceed 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuerySeparation:
    """cosine_JJ: mean cosine of pairs of queries, within a task on the diagonal (an example is not its own pair) and
    between tasks off it. within, cross: means of the two parts; gap: their difference. nearest_mean_accuracy: share
    of queries whose nearest task mean is their own task's, the query itself left out of that mean. A task with a single
    query has no pair within it and no mean without it: NaN there, and the means are over the other tasks.
    """

    cosine_JJ: np.ndarray
    within: float
    cross: float
    gap: float
    nearest_mean_accuracy: float

    @property
    def collapsed(self) -> bool:
        """Whether the queries of different tasks are practically one direction, so that no key can tell them apart."""
        return self.cross > COLLAPSED_COSINE

    def lines(self, tasks: Sequence[str]) -> list[str]:
        """The figures as lines of text, with a warning when the queries collapsed."""
        width = max(map(len, tasks))
        rows = [
            f"{task.ljust(width)}  " + "  ".join(figure(value).rjust(6) for value in row)
            for task, row in zip(tasks, self.cosine_JJ, strict=True)
        ]
        figures = (
            f"within {figure(self.within)}  cross {figure(self.cross)}  gap {figure(self.gap)}  "
            f"nearest-mean accuracy {figure(self.nearest_mean_accuracy)}"
        )
        return ["query cosines", *rows, figures, *([collapse_warning(self.cross)] if self.collapsed else [])]


def figure(value: float | None) -> str:
    """Three digits, without the sign of a value that rounds to 0; '-' for a figure about nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text


def collapse_warning(cross: float) -> str:
    """What is said of queries whose mean cosine between tasks is above COLLAPSED_COSINE."""
    return (
        f"WARNING: queries collapsed: mean cosine between tasks {cross:.4f} exceeds {COLLAPSED_COSINE}; "
        "every task will choose the same prompts."
    )


def query_separation(queries: Sequence[np.ndarray]) -> QuerySeparation:
    """How far apart the tasks' queries lie; `queries` holds one query_ND per task.

    What a pool with fixed assignment retrieves after training is close to the nearest task mean, so
    `nearest_mean_accuracy` foretells retrieval without training anything. Use 256 rows or more each.
    """
    counts = [len(query_ND) for query_ND in queries]
    units = [_unit(np.asarray(query_ND, np.float64)) for query_ND in queries]
    sum_JD = np.stack([unit_ND.sum(axis=0) for unit_ND in units])
    count_J = np.array(counts, np.float64)
    cosine_JJ = (sum_JD @ sum_JD.T) / np.outer(count_J, count_J)
    self_J = np.array([(unit_ND * unit_ND).sum() for unit_ND in units])
    pairs_J = count_J * (count_J - 1)
    within_J = np.where(pairs_J > 0, ((sum_JD * sum_JD).sum(axis=1) - self_J) / np.maximum(pairs_J, 1), np.nan)
    cosine_JJ[np.diag_indices(len(units))] = within_J
    apart = ~np.eye(len(units), dtype=bool)
    within, cross = _mean(within_J[pairs_J > 0]), _mean(cosine_JJ[apart])
    return QuerySeparation(
        cosine_JJ=cosine_JJ,
        within=within,
        cross=cross,
        gap=within - cross,
        nearest_mean_accuracy=_nearest_mean_accuracy(units, sum_JD),
    )


def _nearest_mean_accuracy(units: list[np.ndarray], sum_JD: np.ndarray) -> float:
    correct = []
    for task, unit_ND in enumerate(units):
        if len(unit_ND) < 2:
            continue
        similarity_NJ = unit_ND @ _unit(sum_JD).T
        similarity_NJ[:, task] = (unit_ND * _unit(sum_JD[task][None] - unit_ND)).sum(axis=1)
        correct.append(similarity_NJ.argmax(axis=1) == task)
    return _mean(np.concatenate(correct)) if correct else math.nan


def _unit(x_ND: np.ndarray) -> np.ndarray:
    x = np.asarray(x_ND, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if np.size(values) else math.nan

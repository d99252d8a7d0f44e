"""All that is known of a pool's selections after a stage: one dictionary of plain numbers, from numpy arrays.

B scored examples, N of one task, J tasks, M keys, K selected, D query width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codegen2_jax.continual import diagnostics, projection


def stage_diagnostics(
    assignment_JM: np.ndarray,
    key_MD: np.ndarray,
    queries: Sequence[np.ndarray],
    selected_BK: np.ndarray,
    *,
    last: int,
    before_MD: np.ndarray | None,
    plane: projection.Plane | None = None,
) -> dict[str, Any]:
    """Every diagnostic of the specification's section 5, by its name; lists by task hold None for tasks not started.

    queries: query_ND of each task, whose rows stand in this order in selected_BK. last: number of the task learned
    last. before_MD: the keys a stage earlier, for `key_drift`. plane: where to draw keys and queries.
    """
    task_B = np.repeat(np.arange(len(queries)), [len(query_ND) for query_ND in queries])
    query_BD = np.concatenate(queries)
    score_BK = np.take_along_axis(_unit(query_BD) @ _unit(key_MD).T, selected_BK, axis=1)
    usage_JM = diagnostics.usage_counts(selected_BK, task_B, assignment_JM)
    separation = diagnostics.query_separation(queries)

    def per_task(function, *arrays):
        values = [function(*(array[task_B == task] for array in arrays), assignment_JM) for task in range(last + 1)]
        return values + [None] * (len(queries) - last - 1)

    def recall(selected_NK, task_N, table_JM):
        return diagnostics.own_key_recall(selected_NK, task_N, table_JM)[task_N[0]]

    found: dict[str, Any] = {}
    if not assignment_JM.all():  # where every key belongs to every task there is nothing to retrieve
        found = {
            "retrieval_top1": per_task(diagnostics.retrieval_top1, selected_BK, score_BK, task_B),
            "retrieval_majority": per_task(diagnostics.retrieval_majority, selected_BK, task_B),
            "own_key_recall": per_task(recall, selected_BK, task_B),
            "own_key_limit": diagnostics.own_key_limit(assignment_JM, selected_BK.shape[1], last + 1).tolist(),
        }
    found |= {
        "usage_entropy": [diagnostics.usage_entropy(usage_M)[0] for usage_M in usage_JM],
        "effective_keys": [diagnostics.usage_entropy(usage_M)[1] for usage_M in usage_JM],
        "effective_keys_overall": diagnostics.usage_entropy(usage_JM.sum(axis=0))[1],
        "selection_overlap": diagnostics.selection_overlap(usage_JM).tolist(),
        "query_cosine": separation.cosine_JJ.tolist(),
        "nearest_mean_accuracy": separation.nearest_mean_accuracy,
        "key_usage": usage_JM.tolist(),
        "assignment": assignment_JM.tolist(),
    }
    if plane is not None:
        found["key_plane"] = plane.place(key_MD)
    if plane is not None and last == 0:  # the queries of later stages are the same
        found["query_plane"] = plane.sample(query_BD, task_B)
    if before_MD is not None:
        found["key_drift"] = diagnostics.key_drift(before_MD, key_MD, assignment_JM[:last].any(axis=0))
    return _plain(found)


def by_name(stages: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """[{name: value}] of each stage -> {name: [value of each stage]}."""
    names = dict.fromkeys(name for stage in stages for name in stage)
    return {name: [stage.get(name) for stage in stages] for name in names}


def _plain(value: Any) -> Any:
    """Numbers rounded to six places, in whatever they are nested; None for a figure about nothing."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-6)

"""A plane to look at a prompt pool in: queries and keys as points, from numpy arrays to plain numbers.

B queries, M keys, D their width. A key is chosen by cosine, so both are brought to length 1 before they are projected.
"""

import dataclasses
from typing import Any

import numpy as np

QUERIES_PER_TASK = 60


@dataclasses.dataclass(frozen=True)
class Plane:
    """The two principal axes of a set of unit vectors.

    mean_D: their mean; axis_2D: orthonormal rows, the wider one first; explained: the share of their variance that
    each axis carries, in [0, 1].
    """

    mean_D: np.ndarray
    axis_2D: np.ndarray
    explained: tuple[float, float]

    def place(self, x_ND: np.ndarray) -> list[list[float]]:
        """[[x, y] of each row], the row brought to length 1 first."""
        return ((_unit(x_ND) - self.mean_D) @ self.axis_2D.T).tolist()

    def sample(self, query_BD: np.ndarray, task_B: np.ndarray, *, per_task: int = QUERIES_PER_TASK) -> dict[str, Any]:
        """At most `per_task` queries of each task, evenly spaced: {"points": [[x, y]], "task": [...], "explained"}."""
        tasks = np.asarray(task_B)
        rows = np.concatenate([_spaced(np.flatnonzero(tasks == task), per_task) for task in np.unique(tasks)])
        chosen = self.place(np.asarray(query_BD)[rows])
        return {"points": chosen, "task": tasks[rows].tolist(), "explained": list(self.explained)}


def fit(query_BD: np.ndarray) -> Plane:
    """The plane of the queries. They are constants of the examples, so every stage of a run finds the same one.

    The keys take no part, as they move: a plane fitted to them would move too (as in figure 2 of arXiv 2307.02435).
    """
    unit_BD = _unit(query_BD)
    mean_D = unit_BD.mean(axis=0)
    centred_BD = unit_BD - mean_D
    # Of the D x D scatter, whose cost does not grow with the queries; eigenvalues come in ascending order.
    variance_D, axis_DR = np.linalg.eigh(centred_BD.T @ centred_BD)
    axis_2D, variance_2 = np.zeros((2, unit_BD.shape[1])), np.zeros(2)
    found = min(2, len(variance_D), max(len(unit_BD) - 1, 0))
    axis_2D[:found], variance_2[:found] = axis_DR.T[::-1][:found], np.maximum(variance_D[::-1][:found], 0.0)
    # The decomposition leaves the sign of an axis open: its largest component is made positive.
    largest_21 = np.take_along_axis(axis_2D, np.abs(axis_2D).argmax(axis=1)[:, None], axis=1)
    axis_2D *= np.where(largest_21 < 0, -1.0, 1.0)
    share_2 = variance_2 / max(float(variance_D.sum()), 1e-12)
    return Plane(mean_D, axis_2D, (float(share_2[0]), float(share_2[1])))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    x = np.asarray(x_ND, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def _spaced(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) <= count:
        return rows
    return rows[np.arange(count) * len(rows) // count]

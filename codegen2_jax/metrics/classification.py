"""Accuracy beside what a constant answer scores, and MAP@R of a retrieval by vectors."""

import collections
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError

ROWS = 512  # queries compared with all vectors at once


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Percentage of predictions equal to their reference."""
    if len(predictions) != len(references) or not references:
        raise UserError(f"{len(predictions)} predictions for {len(references)} references; give one for each.")
    return 100.0 * sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def macro_f1(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Unweighted mean over the labels of either list of 2 TP / (2 TP + FP + FN), as a percentage."""
    hits = collections.Counter(p for p, r in zip(predictions, references, strict=True) if p == r)
    answered, asked = collections.Counter(predictions), collections.Counter(references)
    labels = set(answered) | set(asked)
    return 100.0 * sum(2 * hits[label] / (answered[label] + asked[label]) for label in labels) / len(labels)


def summary(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """{"accuracy", "macro_f1", "majority", "predicted", "references", "constant"}.

    majority: accuracy of always giving the most frequent reference. predicted, references: how often each label stands
    there. constant: whether one label is the answer to everything, which an accuracy alone hides.
    """
    predicted, asked = collections.Counter(predictions), collections.Counter(references)
    return {
        "accuracy": accuracy(predictions, references),
        "macro_f1": macro_f1(predictions, references),
        "majority": 100.0 * max(asked.values()) / len(references),
        "predicted": dict(sorted(predicted.items())),
        "references": dict(sorted(asked.items())),
        "constant": len(predicted) == 1 and len(asked) > 1,
    }


def average_precision_at_r(vectors_ND: np.ndarray, labels: Sequence[Hashable]) -> np.ndarray:
    """[N] average precision at R of every item as a query: items of its label are to come first (CodeXGLUE, POJ-104).

    R is the number of other items with the query's label. Of the R nearest others by cosine, precision is taken at each
    place that holds a right one and summed, over R. A query without any partner is NaN. Equal similarities are taken
    in the order of the items.
    """
    vectors_ND = np.asarray(vectors_ND, np.float32)
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(labels):
        raise UserError(f"vectors of shape {vectors_ND.shape} for {len(labels)} labels; give one for each.")
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.maximum(norm_N1, 1e-12)
    _, label_N = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
    partners_N = np.bincount(label_N)[label_N] - 1
    scores_N = np.full(len(labels), np.nan)
    for first in range(0, len(labels), ROWS):
        similarity_QN = unit_ND[first : first + ROWS] @ unit_ND.T
        rows = np.arange(len(similarity_QN))
        similarity_QN[rows, first + rows] = -np.inf
        order_QN = np.argsort(-similarity_QN, axis=1, kind="stable")
        for row in rows:
            wanted = partners_N[first + row]
            if wanted:
                hits_R = label_N[order_QN[row, :wanted]] == label_N[first + row]
                scores_N[first + row] = np.sum(hits_R * np.cumsum(hits_R) / np.arange(1, wanted + 1)) / wanted
    return scores_N


def map_at_r(vectors_ND: np.ndarray, labels: Sequence[Hashable]) -> float:
    """Mean of `average_precision_at_r` over the queries that have a partner, 0..100."""
    scores_N = average_precision_at_r(vectors_ND, labels)
    if np.all(np.isnan(scores_N)):
        raise UserError("no two items share a label, so there is nothing to retrieve; give at least two of a label.")
    return 100.0 * float(np.nanmean(scores_N))

"""Accuracy, F1 and MAP@R equal scikit-learn's or their definition written out."""

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.metrics import classification


def test_accuracy_and_f1_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = int(rng.integers(1, 40))
        predicted, asked = (rng.choice(["a", "b", "c"], size).tolist() for _ in range(2))
        right = 100 * sklearn.accuracy_score(asked, predicted)
        assert classification.accuracy(predicted, asked) == pytest.approx(right)
        f1 = sklearn.f1_score(asked, predicted, average="macro", zero_division=0)
        assert classification.macro_f1(predicted, asked) == pytest.approx(100 * f1)


def test_a_constant_answer_is_seen():
    found = classification.summary(["yes"] * 4, ["yes", "no", "yes", "yes"])
    assert found["constant"] and found["accuracy"] == found["majority"] == 75.0
    assert found["predicted"] == {"yes": 4} and found["references"] == {"no": 1, "yes": 3}
    assert not classification.summary(["yes", "no"], ["yes", "no"])["constant"]
    with pytest.raises(UserError):
        classification.accuracy([], [])


def written_out(vectors, labels):
    """MAP@R as CodeXGLUE's evaluator computes it, by loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = []
    for i in range(len(labels)):
        others = sorted((j for j in range(len(labels)) if j != i), key=lambda j: (-float(unit[i] @ unit[j]), j))
        partners = sum(labels[j] == labels[i] for j in others)
        hits, total = 0, 0.0
        for place, j in enumerate(others[:partners], start=1):
            if labels[j] == labels[i]:
                hits += 1
                total += hits / place
        scores.append(total / partners)
    return 100 * float(np.mean(scores))


def test_map_at_r_is_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        vectors = rng.normal(size=(30, 4)).astype(np.float32)
        labels = (np.arange(30) % 5).tolist()
        assert classification.map_at_r(vectors, labels) == pytest.approx(written_out(vectors, labels), abs=1e-4)
    perfect = np.repeat(np.eye(5, dtype=np.float32), 6, axis=0)
    assert classification.map_at_r(perfect, np.repeat(range(5), 6)) == pytest.approx(100.0)
    assert np.isnan(classification.average_precision_at_r(np.eye(3), ["a", "b", "b"])[0])
    with pytest.raises(UserError):
        classification.map_at_r(np.eye(3), ["a", "b", "c"])

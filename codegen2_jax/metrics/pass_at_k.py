"""pass@k: the chance that at least one of k samples of a problem is right (Chen et al. 2021, section 2.1)."""

from collections.abc import Sequence

import numpy as np

from codegen2_jax.errors import UserError

CHUNK = 2_000_000  # drawn counts held at once


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples of which c are right.

    As a product, 1 - prod over i = n - c + 1 .. n of (1 - k / i), which neither overflows nor cancels. Raises UserError
    for k > n, where it is not defined: no estimate for a larger k follows from fewer samples.

    >>> round(pass_at_k(10, 3, 1), 6), round(pass_at_k(5, 2, 3), 6)
    (0.3, 0.9)
    """
    if k < 1:
        raise UserError(f"k={k} is out of range; pass@k needs at least 1.")
    if not 0 <= c <= n:
        raise UserError(f"c={c} of n={n} samples cannot be right; c lies between 0 and n.")
    if n < k:
        raise UserError(f"pass@{k} is not defined for n={n} samples; generate at least {k} of every problem.")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Mean over problems, each given as (n, c); every problem has the same weight."""
    if not counts:
        raise UserError("there is no problem, so pass@k is not defined; give at least one.")
    return float(np.mean([pass_at_k(n, c, k) for n, c in counts]))


def bootstrap_interval(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean: (low, high), values drawn with replacement.

    Of pass@k the values are the problems' estimates, so the interval says what another draw of problems would have
    given; it does not hold the chance of sampling apart.
    """
    value_N = np.asarray(values, np.float64)
    if not len(value_N):
        raise UserError("there is no value to draw from; give at least one.")
    rng, means, size = np.random.default_rng(seed), [], max(1, CHUNK // len(value_N))
    for start in range(0, resamples, size):
        draws_RN = rng.integers(len(value_N), size=(min(size, resamples - start), len(value_N)))
        means.append(value_N[draws_RN].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)

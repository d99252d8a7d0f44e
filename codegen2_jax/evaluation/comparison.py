"""Whether models differ on the same files: a paired bootstrap over files and seeds, and what may be said of it.

Letters: S seeds, F files, R resamples.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from codegen2_jax.errors import UserError

VERDICTS = ("reproduced", "inconclusive", "contradicted")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Cost of each file under each seed's model: nats_SF, and the files' bytes_F."""

    nats_SF: np.ndarray
    bytes_F: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats_SF.sum() / np.log(2) / (len(self.nats_SF) * self.bytes_F.sum()))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def verdict(self, *, negative: bool) -> str:
        """What the interval says about "the figure is negative" (or positive)."""
        low, high = (self.low, self.high) if negative else (-self.high, -self.low)
        return "reproduced" if high < 0 else "contradicted" if low > 0 else "inconclusive"


def by_file(file_N: np.ndarray, value_N: np.ndarray, files: int) -> np.ndarray:
    """Sums of the examples' values over their files, [F]."""
    return np.bincount(file_N, weights=value_N, minlength=files)


def compare(
    measured: Mapping[str, Measured],
    figure: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A figure of several models' bits per byte, with the interval of resampled files and seeds.

    figure: {name: bits per byte, an array of any shape} -> the figure, elementwise. A resample draws files and seeds
    with replacement, the same for all models: they are paired by both. Raises UserError where they cannot be.
    """
    shapes = {name: one.nats_SF.shape for name, one in measured.items()}
    if len(set(shapes.values())) != 1:
        raise UserError(f"the models were not measured on the same seeds and files: {shapes}; measure them again.")
    (S, F), rng = next(iter(shapes.values())), np.random.default_rng(seed)
    seeds_RS = rng.multinomial(S, np.full(S, 1 / S), size=resamples)
    files_RF = rng.multinomial(F, np.full(F, 1 / F), size=resamples)

    def bits_per_byte(one: Measured, seeds_RS: np.ndarray, files_RF: np.ndarray) -> np.ndarray:
        nats_R = np.einsum("rs,sf,rf->r", seeds_RS, one.nats_SF, files_RF)
        return nats_R / np.log(2) / (S * (files_RF @ one.bytes_F))

    whole = (np.ones((1, S)), np.ones((1, F)))
    value = figure({name: bits_per_byte(one, *whole) for name, one in measured.items()})
    drawn = figure({name: bits_per_byte(one, seeds_RS, files_RF) for name, one in measured.items()})
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(value[0]), float(low), float(high))

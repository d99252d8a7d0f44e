"""The paired bootstrap: figures that can be worked out, what pairing buys, how often it holds the truth."""

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.comparison import VERDICTS, Interval, Measured, by_file, compare

LN2 = np.log(2)


def measured(bits_SF, bytes_F):
    """From bits per byte of each file under each seed."""
    return Measured(np.asarray(bits_SF) * np.asarray(bytes_F) * LN2, np.asarray(bytes_F, float))


def difference(b):
    return b["a"] - b["b"]


def test_files_weigh_as_much_as_they_are_long():
    one = measured([[1.0, 4.0], [2.0, 5.0]], [300, 100])
    assert one.bits_per_byte == pytest.approx((1.5 * 300 + 4.5 * 100) / 400)
    interval = compare({"a": one, "b": measured([[0.0, 0.0]] * 2, [300, 100])}, difference, resamples=50)
    assert interval.value == pytest.approx(one.bits_per_byte)


def test_a_constant_difference_has_no_width_however_much_the_files_differ():
    """Paired by file and by seed: what all models share is no uncertainty about their difference."""
    rng = np.random.default_rng(0)
    bits_SF, bytes_F = rng.uniform(0.5, 9.0, (3, 40)), rng.integers(50, 5000, 40)
    models = {"a": measured(bits_SF, bytes_F), "b": measured(bits_SF + 0.01, bytes_F)}
    interval = compare(models, difference, resamples=500)
    for value in (interval.value, interval.low, interval.high):
        assert value == pytest.approx(-0.01, abs=1e-9)
    assert interval.verdict(negative=True) == "reproduced" and interval.verdict(negative=False) == "contradicted"
    # The same numbers with the files of one model in another order: the files' spread is in the interval.
    models["b"] = measured((bits_SF + 0.01)[:, ::-1], np.asarray(bytes_F))
    apart = compare(models, difference, resamples=500)
    assert apart.low < 0 < apart.high and apart.verdict(negative=True) == "inconclusive"


def test_seeds_are_drawn_too():
    """All files alike, the seeds not: files alone would give an interval of no width."""
    bytes_F = np.full(200, 100)
    models = {"a": measured([[bits] * 200 for bits in (1.0, 1.2, 1.4)], bytes_F)}
    models["b"] = measured([[1.2] * 200] * 3, bytes_F)
    interval = compare(models, difference, resamples=2000)
    assert interval.value == pytest.approx(0.0, abs=1e-9)
    assert interval.low == pytest.approx(-0.2) and interval.high == pytest.approx(0.2)


def test_figures_of_three_models_are_taken_resample_by_resample():
    bytes_F = np.full(30, 10)
    bits = {"clm": 1.0, "span": 2.0, "mix": 1.3}
    models = {name: measured(np.full((3, 30), value), bytes_F) for name, value in bits.items()}
    interval = compare(models, lambda b: b["mix"] - (b["clm"] + b["span"]) / 2, resamples=100)
    assert (interval.value, interval.low, interval.high) == pytest.approx((-0.2, -0.2, -0.2))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """95 %, of 200 experiments of 60 files with a known mean difference: between 89 % and 99 %."""
    rng, truth, bytes_F, held = np.random.default_rng(1), 0.05, np.full(60, 100), 0
    for number in range(200):
        shared_F = rng.uniform(1.0, 4.0, 60)
        noise_F = rng.normal(0.0, 0.1, 60)
        models = {
            "a": measured(np.tile(shared_F + truth + noise_F, (3, 1)), bytes_F),
            "b": measured(np.tile(shared_F, (3, 1)), bytes_F),
        }
        interval = compare(models, difference, resamples=400, seed=number)
        held += interval.low <= truth <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(2)
    models = {name: measured(rng.uniform(1, 2, (3, 9)), np.arange(9) + 1) for name in "ab"}
    first, again = (compare(models, difference, resamples=300, seed=5) for _ in range(2))
    assert first == again != compare(models, difference, resamples=300, seed=6)
    assert first.low < first.value < first.high


def test_what_cannot_be_paired_is_refused():
    models = {"a": measured([[1.0, 1.0]], [1, 1]), "b": measured([[1.0]], [1])}
    with pytest.raises(UserError, match="not measured on the same seeds and files"):
        compare(models, difference)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2.0, -1.0, 0), (-1.0, 0.0, 1), (-1.0, 1.0, 1), (0.0, 1.0, 1), (1.0, 2.0, 2)],
)
def test_a_verdict_is_the_side_of_zero_on_which_the_interval_lies(low, high, verdict):
    assert Interval((low + high) / 2, low, high).verdict(negative=True) == VERDICTS[verdict]
    assert Interval(-(low + high) / 2, -high, -low).verdict(negative=False) == VERDICTS[verdict]


def test_examples_are_summed_over_their_files():
    np.testing.assert_array_equal(by_file(np.array([2, 0, 2]), np.array([1.0, 2.0, 4.0]), 4), [2.0, 0.0, 5.0, 0.0])

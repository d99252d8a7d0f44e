from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data import objectives

BOS, EOS, MASK = 1, 2, 4
SENTINELS = tuple(range(999, 967, -1))
TEXT_IDS = (5, 968)
FACTS = {"bos_id": BOS, "eos_id": EOS}
span_corruption = partial(objectives.span_corruption, **FACTS, sentinel_ids=SENTINELS)
denoising = partial(objectives.denoising, **FACTS, mask_id=MASK, text_ids=TEXT_IDS)
ALL = {
    "span_corruption": span_corruption,
    "denoising": denoising,
    "continuation": partial(objectives.continuation, **FACTS),
    "text_to_code": partial(objectives.text_to_code, **FACTS),
    "code_to_text": partial(objectives.code_to_text, **FACTS),
}

seeds = st.integers(0, 2**32)
windows = st.lists(st.integers(*TEXT_IDS).filter(lambda i: i < TEXT_IDS[1]), min_size=1, max_size=200)
limits = st.tuples(st.integers(8, 250), st.integers(8, 250))


def window(tokens):
    return {"targets": np.asarray(tokens, np.int32)}


def recover(inputs, targets):
    """Puts the spans of the targets back in the place of their sentinels."""
    spans, at = {}, None
    for token in targets[1:-1].tolist():
        if token in SENTINELS:
            at = token
            spans[at] = []
        else:
            spans[at].append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    restored = []
    for token in inputs[1:-1].tolist():
        restored += spans.pop(token) if token in SENTINELS else [token]
    assert not spans
    return restored


@given(tokens=windows, seed=seeds, limits=limits, density=st.floats(0.05, 0.9), mean=st.floats(1, 8))
@settings(max_examples=300, deadline=None)
def test_span_corruption_gives_the_window_back(tokens, seed, limits, density, mean):
    made = span_corruption(
        window(tokens),
        np.random.default_rng(seed),
        noise_density=density,
        mean_span_length=mean,
        max_source=limits[0],
        max_target=limits[1],
    )
    restored = recover(made["inputs"], made["targets"])
    assert restored == tokens[: len(restored)]
    if len(tokens) + 2 + len(SENTINELS) <= min(limits):
        assert restored == tokens


@given(pair=st.tuples(windows, windows), seed=seeds, limits=limits, name=st.sampled_from(sorted(ALL)))
@settings(max_examples=300, deadline=None)
def test_every_objective_wraps_fits_and_repeats(pair, seed, limits, name):
    record = {"inputs": np.asarray(pair[0], np.int32), "targets": np.asarray(pair[1], np.int32)}
    before = {side: tokens.copy() for side, tokens in record.items()}
    one, other = (
        ALL[name](record, np.random.default_rng(seed), max_source=limits[0], max_target=limits[1]) for _ in range(2)
    )
    for side, limit in zip(("inputs", "targets"), limits, strict=True):
        tokens = one[side]
        assert tokens.dtype == np.int32 and len(tokens) <= limit
        assert tokens[0] == BOS and tokens[-1] == EOS
        assert np.count_nonzero(tokens == EOS) == np.count_nonzero(tokens == BOS) == 1
        np.testing.assert_array_equal(tokens, other[side])
        np.testing.assert_array_equal(record[side], before[side])


@pytest.mark.parametrize("length", [20, 64, 200])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.5, 8.0), (0.3, 2.0)])
def test_span_corruption_has_the_ratio_and_span_length_asked_for(length, density, mean):
    record = window(np.arange(5, 5 + length))
    sentinels = tuple(range(2000, 1800, -1))
    for seed in range(10):
        made = span_corruption(
            record,
            np.random.default_rng(seed),
            sentinel_ids=sentinels,
            noise_density=density,
            mean_span_length=mean,
            max_source=512,
            max_target=512,
        )
        num_spans = np.count_nonzero(np.isin(made["targets"], sentinels))
        num_noise = len(made["targets"]) - 2 - num_spans
        assert num_noise == round(length * density)
        assert num_spans == max(round(num_noise / mean), 1)


def test_span_corruption_of_a_hand_made_window():
    # Ten tokens at half noise in one span: the text comes first, whatever the generator says.
    made = span_corruption(
        window(range(10, 20)),
        np.random.default_rng(0),
        noise_density=0.5,
        mean_span_length=5.0,
        max_source=20,
        max_target=20,
    )
    assert made["inputs"].tolist() == [1, 10, 11, 12, 13, 14, 999, 2]
    assert made["targets"].tolist() == [1, 999, 15, 16, 17, 18, 19, 2]


def test_spans_take_every_place():
    starts = set()
    for seed in range(300):
        made = span_corruption(
            window(range(10, 20)),
            np.random.default_rng(seed),
            noise_density=0.4,
            mean_span_length=2.0,
            max_source=20,
            max_target=20,
        )
        starts.add(int(np.flatnonzero(made["inputs"] == SENTINELS[0])[0]) - 1)
    assert starts == {1, 2, 3, 4, 5}  # text and noise alternate: one token of text at least before and after


@given(tokens=windows, seed=seeds, low=st.floats(0.05, 0.5), width=st.floats(0, 0.4))
@settings(max_examples=200, deadline=None)
def test_denoising_keeps_the_target_and_the_share_of_noise(tokens, seed, low, width):
    # Deleting only: what is missing from the source is exactly the noise.
    made = denoising(
        window(tokens),
        np.random.default_rng(seed),
        noise_range=(low, low + width),
        kinds=(0.0, 1.0, 0.0),
        max_source=256,
        max_target=256,
    )
    assert made["targets"][1:-1].tolist() == tokens
    missing = len(tokens) - (len(made["inputs"]) - 2)
    assert min(round(len(tokens) * low), len(tokens) - 1) <= missing <= round(len(tokens) * (low + width))
    remaining = iter(tokens)
    assert all(token in remaining for token in made["inputs"][1:-1].tolist())


def test_denoising_masks_one_for_a_span_and_replaces_one_for_one():
    tokens, rng = np.arange(10, 110), np.random.default_rng(3)
    sizes = {"noise_range": (0.3, 0.3), "mean_span_length": 3.0, "max_source": 128, "max_target": 128}
    masked = denoising(window(tokens), rng, kinds=(1.0, 0.0, 0.0), **sizes)["inputs"]
    assert np.count_nonzero(masked == MASK) == 10 and len(masked) == 2 + 70 + 10
    replaced = denoising(window(tokens), rng, kinds=(0.0, 0.0, 1.0), **sizes)["inputs"][1:-1]
    assert len(replaced) == 100 and np.count_nonzero(replaced != tokens) in (29, 30)  # a draw may hit the token itself
    assert TEXT_IDS[0] <= replaced.min() and replaced.max() < TEXT_IDS[1]


def test_denoising_draws_the_share_from_the_whole_range():
    shares, rng = [], np.random.default_rng(0)
    for _ in range(1000):
        made = denoising(
            window(range(10, 110)),
            rng,
            noise_range=(0.1, 0.5),
            kinds=(0.0, 1.0, 0.0),
            max_source=128,
            max_target=128,
        )
        shares.append(1 - (len(made["inputs"]) - 2) / 100)
    assert min(shares) < 0.12 and max(shares) > 0.48 and abs(np.mean(shares) - 0.3) < 0.02


@given(tokens=windows, seed=seeds)
@settings(max_examples=100, deadline=None)
def test_continuation_cuts_the_window_in_two(tokens, seed):
    made = ALL["continuation"](window(tokens), np.random.default_rng(seed), max_source=256, max_target=256)
    assert [*made["inputs"][1:-1], *made["targets"][1:-1]] == tokens
    assert len(made["targets"]) > 2


def test_continuation_keeps_what_stands_next_to_the_cut():
    tokens = list(range(10, 210))
    made = ALL["continuation"](window(tokens), np.random.default_rng(1), max_source=12, max_target=12)
    source, target = made["inputs"][1:-1].tolist(), made["targets"][1:-1].tolist()
    assert source[-1] + 1 == target[0] and len(source) <= 10 and len(target) <= 10


def test_pairs_go_both_ways():
    record = {"inputs": np.asarray([10, 11], np.int32), "targets": np.asarray([20, 21, 22], np.int32)}
    rng = np.random.default_rng(0)
    forth = ALL["text_to_code"](record, rng, max_source=8, max_target=4)
    back = ALL["code_to_text"](record, rng, max_source=8, max_target=8)
    assert (forth["inputs"].tolist(), forth["targets"].tolist()) == ([1, 10, 11, 2], [1, 20, 21, 2])
    assert (back["inputs"].tolist(), back["targets"].tolist()) == ([1, 20, 21, 22, 2], [1, 10, 11, 2])

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data import converters

lengths = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 150)), min_size=1, max_size=80)


def test_a_batch_written_out_by_hand():
    # Token 0 and token 2 inside the texts: only the lengths may say what is padding.
    batch = converters.encoder_decoder_batch(
        [np.asarray([1, 0, 7, 2]), np.asarray([1, 2])],
        [np.asarray([1, 9, 2]), np.asarray([1, 0, 0, 2])],
        (5, 6),
        start_id=8,
        pad_id=3,
    )
    assert batch["inputs_BS"].tolist() == [[1, 0, 7, 2, 3], [1, 2, 3, 3, 3]]
    assert batch["inputs_mask_BS"].tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
    assert batch["targets_BT"].tolist() == [[1, 9, 2, 3, 3, 3], [1, 0, 0, 2, 3, 3]]
    assert batch["decoder_inputs_BT"].tolist() == [[8, 1, 9, 3, 3, 3], [8, 1, 0, 0, 3, 3]]
    assert batch["loss_mask_BT"].tolist() == [[True] * 3 + [False] * 3, [True] * 4 + [False] * 2]


def test_empty_targets_have_no_loss():
    batch = converters.encoder_decoder_batch([np.asarray([1, 2])], [np.asarray([], np.int32)], (4, 4))
    assert not batch["loss_mask_BT"].any() and not batch["targets_BT"].any()
    assert batch["inputs_mask_BS"].sum() == 2


def test_a_record_longer_than_the_shape_is_our_mistake():
    with pytest.raises(AssertionError):
        converters.encoder_decoder_batch([np.arange(5)], [np.arange(2)], (4, 4))
    with pytest.raises(AssertionError):
        converters.smallest_shape([(16, 8)], np.asarray([17]), np.asarray([1]))


@pytest.mark.parametrize(
    ("length", "multiple", "expected"), [(0, 8, 8), (1, 8, 8), (8, 8, 8), (9, 8, 16), (320, 16, 320)]
)
def test_rounding(length, multiple, expected):
    assert converters.round_up(length, multiple) == expected


def test_chosen_shapes_are_the_obvious_ones():
    source, target = np.asarray([10] * 50 + [100] * 50 + [300]), np.asarray([100] * 50 + [5] * 50 + [120])
    shapes = converters.choose_shapes(source, target, count=3)
    assert shapes == [(112, 8), (16, 104), (304, 120)]
    assert converters.smallest_shape(shapes, source, target).tolist() == [1] * 50 + [0] * 50 + [2]
    assert converters.larger_shape(shapes) == [2, 2, 2]
    assert converters.choose_shapes(source, target, count=1) == [(304, 120)]


def test_shapes_of_equal_cost_have_one_order():
    assert converters.in_order([(32, 16), (48, 16), (16, 24)]) == [(16, 24), (32, 16), (48, 16)]


@given(lengths=lengths, count=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_shapes_hold_every_record_and_more_of_them_never_cost_more(lengths, count):
    source, target = np.asarray(lengths).T
    shapes = converters.choose_shapes(source, target, count=count)
    assert 1 <= len(shapes) <= count and shapes == converters.in_order(set(shapes))
    assert all(s % 16 == 0 and t % 8 == 0 and s > 0 and t > 0 for s, t in shapes)
    assert shapes[-1] == (converters.round_up(source.max(), 16), converters.round_up(target.max(), 8))
    chosen = converters.smallest_shape(shapes, source, target)
    for (s, t), number in zip(lengths, chosen, strict=True):
        assert s <= shapes[number][0] and t <= shapes[number][1]
        assert not any(s <= a and t <= b for a, b in shapes[:number])
    costs = [converters.shape_cost(shapes[number]) for number in chosen]
    assert sum(costs) <= len(lengths) * converters.shape_cost(shapes[-1])
    for number, following in enumerate(converters.larger_shape(shapes)):
        assert following == len(shapes) - 1 or following > number
        assert all(a <= b for a, b in zip(shapes[number], shapes[following], strict=True))

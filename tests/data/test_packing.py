import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data.infilling import UL2, CausalLM, Mixture, PrefixLM, PrefixSuffixMiddle, SpanCorruption
from codegen2_jax.data.packing import plan_windows
from codegen2_jax.errors import UserError

documents = st.lists(st.integers(0, 150), min_size=1, max_size=30)
seeds = st.integers(0, 2**32)
SMALL = SpanCorruption(max_spans=4, min_file_tokens=8)
GROWING = [
    SMALL,
    Mixture(corrupt=SMALL),
    Mixture(corrupt=SMALL, coin="file"),
    PrefixLM(objective=Mixture(corrupt=SMALL)),
    PrefixSuffixMiddle(),
    UL2(min_file_tokens=4),
]


def plan(lengths, objective=None, *, seed=0, order=None, **settings):
    order = np.arange(len(lengths)) if order is None else order
    rng = np.random.default_rng(seed)
    return plan_windows(np.asarray(lengths), order, objective or CausalLM(), rng, **settings)


def covered(windows):
    """{document: its places in the order of the plan}."""
    places = {}
    for document, start, stop in zip(windows.document_P, windows.start_P, windows.stop_P, strict=True):
        places.setdefault(int(document), []).extend(range(start, stop))
    return places


def sizes(windows):
    """Raw tokens of each window."""
    return np.add.reduceat(windows.stop_P - windows.start_P, windows.first_W[:-1]).tolist()


def assert_whole(windows, lengths):
    """Every place of every document stands in the plan once, in order, and every window holds something."""
    assert covered(windows) == {document: list(range(length + 1)) for document, length in enumerate(lengths)}
    assert (np.diff(windows.first_W) > 0).all() and windows.dropped == 0
    assert windows.first_W[0] == 0 and windows.first_W[-1] == len(windows.document_P)


@given(lengths=documents, length=st.integers(1, 200), seed=seeds)
@settings(max_examples=200, deadline=None)
def test_concat_is_one_stream_in_the_order_given(lengths, length, seed):
    order = np.random.default_rng(seed).permutation(len(lengths))
    windows = plan(lengths, order=order, sequence_length=length)
    assert_whole(windows, lengths)
    assert [document for document in covered(windows)] == order.tolist()
    assert sizes(windows)[:-1] == [length] * (len(windows) - 1)
    assert len(windows) == -(-(sum(lengths) + len(lengths)) // length)


@given(lengths=documents, length=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_none_gives_every_document_its_own_windows(lengths, length):
    windows = plan(lengths, sequence_length=length, packing="none")
    assert_whole(windows, lengths)
    assert len(windows) == len(windows.document_P) == sum(-(-(n + 1) // length) for n in lengths)


@given(lengths=st.lists(st.integers(0, 900), min_size=1, max_size=20), length=st.integers(65, 300))
@settings(max_examples=100, deadline=None)
def test_jaxformer_cuts_documents_and_joins_their_tails(lengths, length):
    windows = plan(lengths, sequence_length=length, packing="jaxformer")
    full = sum((n + 1) // length for n in lengths)
    tails = [(n + 1) % length for n in lengths]
    kept = sum(tail for tail in tails if tail >= 64) // length
    assert len(windows) == full + kept and windows.dropped == sum(tails) - kept * length
    assert sizes(windows) == [length] * (full + kept) if full + kept else True
    assert (np.diff(windows.first_W)[:full] == 1).all()
    places = covered(windows)
    assert sum(map(len, places.values())) + windows.dropped == sum(lengths) + len(lengths)
    for document, found in places.items():
        assert len(set(found)) == len(found) and max(found) <= lengths[document]


def test_jaxformer_by_the_example_of_its_source():
    # 5,000 tokens with the end token make two records and a tail of 904; one of 63 tokens is dropped.
    windows = plan([4999, 2048 + 62, 1143], sequence_length=2048, packing="jaxformer")
    pieces = list(
        zip(windows.document_P.tolist(), windows.start_P.tolist(), windows.stop_P.tolist(), strict=True)
    )
    assert pieces == [(0, 0, 2048), (0, 2048, 4096), (1, 0, 2048), (0, 4096, 5000), (2, 0, 1144)]
    assert windows.first_W.tolist() == [0, 1, 2, 3, 5] and windows.dropped == 63


@given(
    lengths=documents,
    length=st.integers(60, 120),
    seed=seeds,
    number=st.integers(0, len(GROWING) - 1),
    packing=st.sampled_from(["concat", "none"]),
    more=st.integers(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_fitted_records_have_room_and_nothing_is_lost(lengths, length, seed, number, packing, more):
    objective = GROWING[number]
    settings = {"sequence_length": length, "room": length + more, "packing": packing}
    windows, again = (plan(lengths, objective, seed=seed, **settings) for _ in range(2))
    assert_whole(windows, lengths)
    for name in ("document_P", "start_P", "stop_P", "branch_P", "first_W"):
        np.testing.assert_array_equal(getattr(windows, name), getattr(again, name))
    for first, end in zip(windows.first_W[:-1], windows.first_W[1:], strict=True):
        branches = windows.branch_P[first:end].tolist()
        used = 0
        for piece, branch in zip(range(first, end), branches, strict=True):
            size = lengths[windows.document_P[piece]]
            start, stop = int(windows.start_P[piece]), int(windows.stop_P[piece])
            used += objective.longest(branch, min(stop, size) - start, stop > size)
        assert used <= length + more
        if all(map(objective.is_plain, branches)):
            assert (windows.stop_P - windows.start_P)[first:end].sum() <= length
        if objective.coin == "window":
            assert len(set(branches)) == 1
        if packing == "none":
            assert end - first == 1


@given(lengths=documents, seed=seeds)
@settings(max_examples=100, deadline=None)
def test_a_window_is_left_before_it_is_full_only_where_no_piece_fits(lengths, seed):
    windows = plan(lengths, SMALL, seed=seed, sequence_length=100)
    for window in range(len(windows) - 1):
        pieces = range(windows.first_W[window], windows.first_W[window + 1])
        used = 0
        for piece in pieces:
            size, stop = lengths[windows.document_P[piece]], int(windows.stop_P[piece])
            used += SMALL.longest(0, min(stop, size) - int(windows.start_P[piece]), stop > size)
        following = windows.first_W[window + 1]
        rest = lengths[windows.document_P[following]] - int(windows.start_P[following])
        assert used + SMALL.longest(0, min(rest, SMALL.min_file_tokens), True) > 100


def test_coins_are_thrown_for_windows_or_files():
    lengths = np.random.default_rng(0).integers(1, 200, 3000)
    for coin in ("window", "file"):
        for overflow in ("fit", "truncate"):
            objective = Mixture(corrupt=SMALL, coin=coin, p_corrupt=0.3)
            windows = plan(lengths, objective, sequence_length=100, overflow=overflow)
            of = windows.document_P if coin == "file" else np.repeat(np.arange(len(windows)), np.diff(windows.first_W))
            for branch in (0, 1):
                assert not set(of[windows.branch_P == branch]) & set(of[windows.branch_P == 1 - branch])
            share = len(set(of[windows.branch_P == 1])) / len(set(of))
            assert abs(share - 0.3) < 0.03
    other = plan(lengths, objective, seed=1, sequence_length=100, overflow="truncate")
    assert other.branch_P.tolist() != windows.branch_P.tolist()


def test_truncating_takes_whole_windows_of_raw_tokens():
    lengths = [50, 300, 20]
    windows = plan(lengths, SMALL, sequence_length=64, overflow="truncate")
    assert_whole(windows, lengths)
    assert sizes(windows) == [64] * 5 + [53]


def test_mistakes_name_the_remedy():
    with pytest.raises(UserError, match="packing='stream' is unknown; use one of concat, jaxformer, none"):
        plan([5], sequence_length=8, packing="stream")
    with pytest.raises(UserError, match="overflow='cut' is unknown"):
        plan([5], sequence_length=8, overflow="cut")
    with pytest.raises(UserError, match='needs overflow="truncate"'):
        plan([5], SMALL, sequence_length=80, packing="jaxformer")
    with pytest.raises(UserError, match="fits 24 tokens; raise sequence_length or lower max_spans"):
        plan([50], SpanCorruption(), sequence_length=24)


def test_planning_is_quick_enough_to_do_at_the_start_of_an_epoch():
    import time

    lengths = np.random.default_rng(0).integers(50, 3000, 20_000)
    for objective in (CausalLM(), Mixture()):
        begun = time.process_time()
        plan(lengths, objective, sequence_length=2048)
        assert time.process_time() - begun < 2.0

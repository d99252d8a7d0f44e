
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data import infilling, span_records
from codegen2_jax.data.infilling import (
    UL2,
    CausalLM,
    Mixture,
    PrefixLM,
    PrefixSuffixMiddle,
    SpanCorruption,
)
from codegen2_jax.data.packing import most_tokens
from codegen2_jax.data.span_records import Piece, infill_prompt, middle_prompt, restore
from codegen2_jax.data.vocabulary import train_vocabulary
from codegen2_jax.errors import UserError

seeds = st.integers(0, 2**32)
# Ids of text only; 0 is one of them, as "!" is in GPT-2's vocabulary.
files = st.lists(st.integers(0, 255), max_size=120).map(lambda tokens: np.asarray(tokens, np.int32))
pieces = st.builds(Piece, files, st.booleans())
span_knobs = st.fixed_dictionaries(
    {
        "ratio_range": st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
        "span_max": st.none() | st.integers(1, 30),
        "max_spans": st.integers(1, 30),
        "min_file_tokens": st.integers(0, 30),
        "eos_before_sep": st.sampled_from(["always", "real_only"]),
        "final_eos": st.booleans(),
        "loss_on": st.sampled_from(["all", "targets", "no_context_sentinels"]),
    }
)


def apply(objective, pieces, vocabulary, seed=0, branches=None):
    rng = np.random.default_rng(seed)
    return objective.apply(pieces, branches or [0] * len(pieces), rng, vocabulary)


def number_of_spans(record, vocabulary):
    return int(np.count_nonzero(record.tokens == vocabulary.eom_id))


# ------------------------------------------------------------------------------------------------------------ spans


@given(piece=pieces, knobs=span_knobs, seed=seeds)
@settings(max_examples=300, deadline=None)
def test_spans_lose_nothing_and_keep_their_format(vocabulary, piece, knobs, seed):
    objective = SpanCorruption(**knobs)
    (record,) = apply(objective, [piece], vocabulary, seed)
    n, tokens = len(piece.tokens), record.tokens.tolist()
    assert record.tokens.dtype == np.int32 and record.weights.dtype == bool
    assert len(record.tokens) == len(record.weights) <= objective.longest(0, n, piece.final)
    if n < max(objective.min_file_tokens, 2):
        assert tokens == [*piece.tokens, *[vocabulary.eos_id] * piece.final] and record.weights.all()
        return
    assert restore(record.tokens, vocabulary).tolist() == piece.tokens.tolist()
    spans, with_eos = number_of_spans(record, vocabulary), piece.final or objective.eos_before_sep == "always"
    assert 1 <= spans <= objective.max_spans
    assert len(tokens) == n + 3 * spans + 1 + with_eos + objective.final_eos
    masks = [vocabulary.sentinel_id(k) for k in range(spans)]
    separator = tokens.index(vocabulary.sep_id)
    assert record.context == separator + 1
    assert (tokens[separator - 1] == vocabulary.eos_id) == with_eos
    assert (tokens[-1] == vocabulary.eos_id) == objective.final_eos
    assert [token for token in tokens[:separator] if token in masks] == masks
    assert [token for token in tokens[separator:] if token in masks] == masks
    masked = sum(token < 256 for token in tokens[separator:])
    low, high = (round(ratio * n) for ratio in objective.ratio_range)
    assert min(max(low, 1), n - 1) <= masked <= min(max(high, 1), n - 1)
    # Spans never touch: between two masks of the context stands text.
    places = np.flatnonzero(np.isin(tokens[:separator], masks))
    assert (np.diff(places) > 1).all()
    if objective.span_max is not None and spans < min(objective.max_spans, n - masked + 1):
        assert max(np.diff(np.flatnonzero(np.isin(tokens[separator:], [*masks, vocabulary.eom_id])))) <= 1 + max(
            objective.span_max, 1
        )


@given(piece=pieces, knobs=span_knobs, seed=seeds)
@settings(max_examples=200, deadline=None)
def test_spans_carry_the_loss_that_was_asked_for(vocabulary, piece, knobs, seed):
    objective = SpanCorruption(**knobs)
    (record,) = apply(objective, [piece], vocabulary, seed)
    if not record.context:
        return
    place = np.arange(len(record.tokens))
    expected = np.ones(len(place), bool)
    if objective.loss_on == "targets":
        expected = place >= record.context
    elif objective.loss_on == "no_context_sentinels":
        expected = ~np.isin(record.tokens, vocabulary.sentinel_ids) | (place >= record.context)
    if not piece.final:
        expected &= ~((record.tokens == vocabulary.eos_id) & (place < record.context))
    assert record.weights.tolist() == expected.tolist()


def test_a_hand_made_span_record(vocabulary):
    e, s, o, m = vocabulary.eos_id, vocabulary.sep_id, vocabulary.eom_id, [vocabulary.sentinel_id(k) for k in (0, 1)]
    starts, lengths = np.asarray([0, 5]), np.asarray([2, 3])
    piece = Piece(np.arange(10, 18, dtype=np.int32), False)
    record = span_records.span_record(piece, starts, lengths, vocabulary)
    assert record.tokens.tolist() == [m[0], 12, 13, 14, m[1], e, s, m[0], 10, 11, o, m[1], 15, 16, 17, o, e]
    assert np.flatnonzero(~record.weights).tolist() == [5] and record.context == 7
    record = span_records.span_record(piece, starts, lengths, vocabulary, eos_before_sep="real_only", final_eos=False)
    assert record.tokens.tolist() == [m[0], 12, 13, 14, m[1], s, m[0], 10, 11, o, m[1], 15, 16, 17, o]
    whole = span_records.span_record(piece._replace(final=True), starts, lengths, vocabulary, loss_on="targets")
    assert np.flatnonzero(whole.weights).tolist() == list(range(7, 17))


@given(masked=st.integers(1, 300), seed=seeds, span_max=st.none() | st.integers(1, 40), most=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_lengths_add_up_and_merging_takes_the_smallest(masked, seed, span_max, most):
    lengths = span_records.draw_lengths(masked, np.random.default_rng(seed), span_max)
    assert sum(lengths) == masked and min(lengths) >= 1 and max(lengths) <= (span_max or masked)
    merged, expected = span_records.merge_smallest(lengths, most), sorted(lengths)
    while len(expected) > most:
        expected = sorted([expected[0] + expected[1], *expected[2:]])
    assert sorted(merged) == expected


def test_the_number_of_spans_is_harmonic(vocabulary):
    rng = np.random.default_rng(0)
    counts = [len(span_records.draw_lengths(500, rng)) for _ in range(4000)]
    assert abs(np.mean(counts) - 6.79) < 0.12
    piece, objective = Piece(np.zeros(2000, np.int32), True), SpanCorruption()
    records = [apply(objective, [piece], vocabulary, seed)[0] for seed in range(2000)]
    counts = [number_of_spans(record, vocabulary) for record in records]
    assert abs(np.mean(counts) - 7.2) < 0.15 and np.percentile(counts, 99) == 14


def test_every_gap_and_ratio_is_drawn(vocabulary):
    piece = Piece(np.arange(20, dtype=np.int32), True)
    objective = SpanCorruption(ratio_range=(0.25, 0.25), max_spans=1)
    first = [int(np.flatnonzero(r.tokens == vocabulary.sentinel_id(0))[0]) for r in _many(objective, piece, vocabulary)]
    assert set(first) == set(range(16))
    piece = Piece(np.zeros(1000, np.int32), True)
    records = _many(SpanCorruption(ratio_range=(0.2, 0.6)), piece, vocabulary)
    shares = [np.count_nonzero(r.tokens[r.context :] < 256) / 1000 for r in records]
    assert 0.199 < min(shares) < 0.21 and 0.59 < max(shares) <= 0.6 and abs(np.mean(shares) - 0.4) < 0.02


def _many(objective, piece, vocabulary, count=400):
    return [apply(objective, [piece], vocabulary, seed)[0] for seed in range(count)]


@given(both=st.lists(pieces, min_size=1, max_size=4), seed=seeds)
@settings(max_examples=100, deadline=None)
def test_spans_stay_in_their_file_unless_the_scope_is_the_window(vocabulary, both, seed):
    records = apply(SpanCorruption(), both, vocabulary, seed)
    for piece, record in zip(both, records, strict=True):
        made = restore(record.tokens, vocabulary) if record.context else record.tokens
        assert made[: len(piece.tokens)].tolist() == piece.tokens.tolist()
    (whole,) = apply(SpanCorruption(scope="window"), both, vocabulary, seed)
    stream = [token for piece in both for token in [*piece.tokens, *[vocabulary.eos_id] * piece.final]]
    if whole.context:
        ended = [vocabulary.eos_id] * both[-1].final
        assert [*restore(whole.tokens, vocabulary), *ended] == stream
    else:
        assert whole.tokens.tolist() == stream


@given(pieces=st.lists(pieces, min_size=1, max_size=3), seed=seeds, number=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_every_objective_repeats_and_leaves_its_input_alone(vocabulary, pieces, seed, number):
    objective = [
        CausalLM(),
        SpanCorruption(),
        Mixture(),
        PrefixSuffixMiddle(),
        UL2(),
        PrefixLM(objective=Mixture()),
        PrefixLM(per="window"),
    ][number]
    before = [piece.tokens.copy() for piece in pieces]
    branches = objective.choose(np.random.default_rng(seed).random(1)).tolist() * len(pieces)
    one, other = (apply(objective, pieces, vocabulary, seed, branches) for _ in range(2))
    for left, right in zip(one, other, strict=True):
        for value, again in zip(left, right, strict=True):
            np.testing.assert_array_equal(value, again)
        assert len(left.tokens) == len(left.weights) and left.tokens.dtype == np.int32
    for piece, tokens in zip(pieces, before, strict=True):
        np.testing.assert_array_equal(piece.tokens, tokens)
    if len(one) == len(pieces):
        for piece, record in zip(pieces, one, strict=True):
            assert len(record.tokens) <= objective.longest(branches[0], len(piece.tokens), piece.final)


@pytest.mark.parametrize("room", [2, 20, 64, 65, 128, 511])
@pytest.mark.parametrize(
    "objective",
    [CausalLM(), SpanCorruption(), UL2(), UL2(fixed=True), PrefixSuffixMiddle(), SpanCorruption(max_spans=3)],
    ids=range(6),
)
def test_the_longest_cut_piece_fits(objective, room):
    for branch in range(int(objective.choose(np.asarray([0.999]))[0]) + 1):
        tokens = most_tokens(objective, branch, room)
        if tokens:
            assert objective.longest(branch, tokens, False) <= room < objective.longest(branch, tokens + 1, False)
        else:
            assert objective.longest(branch, objective.least(branch), False) > room
    if room == 511:
        assert most_tokens(SpanCorruption(), 0, room) == room - 3 - 3 * 20


# ------------------------------------------------------------------------------------------------------ the others


def test_causal_records(vocabulary):
    tokens = np.asarray([0, 7, 0], np.int32)
    whole, cut, ended = apply(
        CausalLM(), [Piece(tokens, True), Piece(tokens, False), Piece(tokens[:0], True)], vocabulary
    )
    assert whole.tokens.tolist() == [0, 7, 0, vocabulary.eos_id] and whole.weights.all()
    assert cut.tokens.tolist() == [0, 7, 0] and ended.tokens.tolist() == [vocabulary.eos_id]
    assert whole.bidirectional == 0 == whole.context


def test_the_mixture_follows_its_coin(vocabulary):
    mixture = Mixture(p_corrupt=0.25)
    branches = mixture.choose(np.random.default_rng(0).random(20_000))
    assert abs(branches.mean() - 0.25) < 0.01
    assert not Mixture(p_corrupt=0.0).choose(np.zeros(9)).any() and Mixture(p_corrupt=1.0).choose(np.zeros(9)).all()
    pieces = [Piece(np.arange(40, dtype=np.int32), True)] * 3
    assert [bool(r.context) for r in apply(mixture, pieces, vocabulary, branches=[1, 1, 1])] == [True] * 3
    mixed = apply(Mixture(coin="file"), pieces, vocabulary, branches=[0, 1, 0])
    assert [bool(r.context) for r in mixed] == [False, True, False]


def test_a_mixture_draws_its_members_branches_too(vocabulary):
    """Every branch with its share, made and measured as its member does; objectives of one branch keep their draws."""
    uniform = (np.arange(14_000) + 0.5) / 14_000
    assert np.array_equal(Mixture().choose(uniform), uniform < 0.5)
    middles = Mixture(plain=UL2(), corrupt=PrefixSuffixMiddle(fim_rate=0.5, cut="token"))
    nested = PrefixLM(objective=Mixture(p_corrupt=0.75, plain=CausalLM(), corrupt=middles))
    shares = dict(zip(*np.unique(nested.choose(uniform), return_counts=True), strict=True))
    # Causal 1/4; UL2's seven 3/56 each; plain and cut documents 3/16 each.
    assert sum(shares.values()) == 14_000 and shares.pop(0) == 3500
    assert sorted(shares.values()) == pytest.approx([750] * 7 + [2625] * 2, abs=1)
    piece = Piece(np.arange(40, dtype=np.int32), True)
    for branch in shares:
        own = branch // 2
        member = middles.corrupt if own % 2 else middles.plain.members[own // 2]
        (alone,) = member.apply([piece], [own // 2], np.random.default_rng(3), vocabulary)
        (record,) = nested.objective.apply([piece], [branch], np.random.default_rng(3), vocabulary)
        np.testing.assert_array_equal(record.tokens, alone.tokens)
        assert nested.longest(branch, 40, True) == member.longest(own // 2, 40, True)
        assert nested.least(branch) == member.least(own // 2)
        assert nested.is_plain(branch) == member.is_plain(own // 2)
    records = apply(Mixture(coin="file", p_corrupt=1.0, corrupt=middles.corrupt), [piece] * 3, vocabulary, 0, [1, 3, 1])
    assert [record.tokens[0] == vocabulary.fim_prefix_id for record in records] == [False, True, False]
    for p_corrupt in (0.0, 0.1, 1.0):  # no draw leaves a member's branches
        edges = np.asarray([0.0, np.nextafter(p_corrupt, 0.0), p_corrupt, np.nextafter(1.0, 0.0)]).clip(0, 1 - 1e-16)
        assert Mixture(p_corrupt=p_corrupt, plain=UL2(), corrupt=UL2()).choose(edges).max() <= 13


def test_prefix_lm_of_causal_records(vocabulary):
    piece = Piece(np.arange(9, dtype=np.int32), True)
    records = _many(PrefixLM(), piece, vocabulary)
    assert {r.bidirectional for r in records} == set(range(1, 10))  # 10 tokens with the end token: p from 1 to 9
    for record in records:
        assert record.weights.tolist() == [t >= record.bidirectional for t in range(10)]
    (lone,) = apply(PrefixLM(), [Piece(piece.tokens[:0], True)], vocabulary)
    assert lone.bidirectional == 0 and lone.weights.all()


def test_prefix_lm_ends_with_sep_or_mid(vocabulary, library_text):
    piece = Piece(np.asarray(vocabulary.encode(library_text[:400]), np.int32), False)
    (spans,) = apply(PrefixLM(objective=SpanCorruption()), [piece], vocabulary)
    assert spans.tokens[spans.bidirectional - 1] == vocabulary.sep_id
    middle = PrefixLM(objective=PrefixSuffixMiddle(fim_rate=1.0))
    (middle,) = apply(middle, [piece], vocabulary, branches=[1])
    assert middle.tokens[middle.bidirectional - 1] == vocabulary.fim_middle_id
    for record in (spans, middle):
        place = np.arange(len(record.tokens))
        assert record.weights.tolist() == (place >= record.bidirectional).tolist()


def test_a_windows_prefix_runs_through_its_records(vocabulary):
    pieces = [Piece(np.arange(4, dtype=np.int32), True)] * 3
    seen = set()
    for seed in range(200):
        prefixes = [r.bidirectional for r in apply(PrefixLM(per="window"), pieces, vocabulary, seed)]
        total = sum(prefixes)
        assert prefixes == [min(max(total - start, 0), 5) for start in (0, 5, 10)]
        seen.add(total)
    assert seen == set(range(1, 15))


@given(text=st.text(max_size=60), seed=seeds, final=st.booleans(), cut=st.sampled_from(["character", "token"]))
@settings(max_examples=200, deadline=None)
def test_fill_in_the_middle_keeps_the_text(vocabulary, text, seed, final, cut):
    tokens = np.asarray(vocabulary.encode(text), np.int32)
    objective = PrefixSuffixMiddle(fim_rate=1.0, cut=cut)
    (record,) = apply(objective, [Piece(tokens, final)], vocabulary, seed, [1])
    made = record.tokens.tolist()
    assert record.weights.all() and len(made) <= objective.longest(1, len(tokens), final)
    if not len(tokens):
        assert made == [vocabulary.eos_id] * final
        return
    second, third = made.index(vocabulary.fim_suffix_id), made.index(vocabulary.fim_middle_id)
    assert made[0] == vocabulary.fim_prefix_id and made[-2:] == [vocabulary.eom_id, vocabulary.eos_id]
    assert record.context == third + 1
    prefix, suffix, middle = made[1:second], made[second + 1 : third], made[third + 1 : -2]
    if cut == "token" or "\ufffd" in text:
        assert [*prefix, *middle, *suffix] == tokens.tolist()
    assert vocabulary.decode([*prefix, *middle, *suffix]) == text


def test_fill_in_the_middle_cuts_inside_of_tokens_and_not_inside_of_characters(vocabulary):
    tokens = np.asarray(vocabulary.encode("def default_decoder(self): return self.decoder"), np.int32)
    lengths = {cut: {len(r.tokens) for r in _many_fim(cut, tokens, vocabulary)} for cut in ("character", "token")}
    assert lengths["token"] == {len(tokens) + 5} and max(lengths["character"]) > len(tokens) + 5
    # A piece that begins within a character cannot be cut at characters without loss.
    tokens = np.asarray(vocabulary.encode("\u4e2d" * 8)[1:], np.int32)
    for record in _many_fim("character", tokens, vocabulary):
        assert len(record.tokens) == len(tokens) + 5


def _many_fim(cut, tokens, vocabulary):
    objective = PrefixSuffixMiddle(fim_rate=1.0, cut=cut)
    return [apply(objective, [Piece(tokens, True)], vocabulary, seed, [1])[0] for seed in range(50)]


def test_ul2_masks_the_share_that_it_should(vocabulary):
    piece = Piece(np.zeros(1000, np.int32), True)
    for objective, share in ((UL2(), 0.314), (UL2(fixed=True), 0.625)):
        branches = objective.choose(np.random.default_rng(0).random(7000))
        assert (np.bincount(branches) > 7000 / len(objective.members) - 150).all()
        masked = []
        for branch in range(len(objective.members)):
            (record,) = apply(objective, [piece], vocabulary, branch, [branch])
            assert restore(record.tokens, vocabulary).tolist() == piece.tokens.tolist()
            assert record.weights.tolist() == (np.arange(len(record.tokens)) >= record.context).tolist()
            masked.append(np.count_nonzero(record.tokens[record.context :] < 256))
        assert abs(np.mean(masked) / 1000 - share) < 0.001


def test_ul2s_denoisers(vocabulary):
    piece = Piece(np.arange(200, dtype=np.int32).repeat(5) % 256, True)
    for branch, (mean, ratio) in enumerate(infilling.UL2_DENOISERS):
        (record,) = apply(UL2(), [piece], vocabulary, branch, [branch])
        spans = number_of_spans(record, vocabulary)
        assert spans == (1 if mean is None else round(1000 * ratio / mean))
        if mean is None:  # one span, at the end
            assert record.tokens[: 1000 - 250].tolist() == piece.tokens[:750].tolist()
            assert record.tokens[750] == vocabulary.sentinel_id(0)
        elif spans > 20:  # lengths vary about their mean
            ends = np.flatnonzero(record.tokens == vocabulary.eom_id)
            lengths = np.diff(ends) - 2
            assert lengths.min() >= 1 and 0.3 * mean**0.5 < lengths.std() < 1.5 * mean**0.5


# ---------------------------------------------------------------------------------------------------- prompts, errors


def test_prompts_are_beginnings_of_records(vocabulary):
    e, s, m = vocabulary.eos_id, vocabulary.sep_id, vocabulary.sentinel_id
    one, two, three = (vocabulary.encode(text) for text in ("def f(x):\n    ", "\n    return y", "<mask_1>"))
    assert infill_prompt(vocabulary, ["def f(x):\n    ", "\n    return y"]).tolist() == [*one, m(0), *two, e, s, m(0)]
    several = infill_prompt(vocabulary, ["def f(x):\n    ", "\n    return y", "<mask_1>"])
    assert several.tolist() == [*one, m(0), *two, m(1), *three, e, s, m(0)]
    answer = [65, 66, vocabulary.eom_id, m(1), 67, vocabulary.eom_id, e]
    assert restore([*several, *answer], vocabulary).tolist() == [*one, 65, 66, *two, 67, *three]
    middle = middle_prompt(vocabulary, "a", "b").tolist()
    assert vocabulary.decode(middle) == "ab" and middle[-1] == vocabulary.fim_middle_id


def test_restoring_what_is_no_record_is_an_error(vocabulary):
    with pytest.raises(UserError, match="has 0 <sep>, one is expected"):
        restore(np.arange(5), vocabulary)
    tokens = infill_prompt(vocabulary, ["a", "b"])
    with pytest.raises(UserError, match="1 masks and 0 spans"):
        restore(tokens, vocabulary)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpanCorruption(ratio_range=(0.5, 0.2)), r"ratio_range=\(0.5, 0.2\) is no range"),
        (lambda: SpanCorruption(max_spans=0), "max_spans=0 is below 1"),
        (lambda: SpanCorruption(scope="files"), "scope='files' is unknown; use one of file, window"),
        (lambda: SpanCorruption(loss_on="some"), "loss_on='some' is unknown"),
        (lambda: SpanCorruption(span_lengths="poison"), "span_lengths='poison' is unknown"),
        (lambda: Mixture(p_corrupt=1.5), "p_corrupt=1.5 is no probability"),
        (lambda: Mixture(coin="file", corrupt=SpanCorruption(scope="window")), "has no meaning"),
        (lambda: PrefixSuffixMiddle(fim_rate=-1), "fim_rate=-1 is no probability"),
        (lambda: PrefixSuffixMiddle(cut="word"), "cut='word' is unknown"),
        (lambda: PrefixLM(per="file"), "per='file' is unknown"),
    ],
)
def test_bad_knobs_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_vocabulary_without_the_control_tokens_is_an_error(vocabulary, tmp_path, library_text):
    plain = train_vocabulary([library_text], 400, 10, tmp_path)
    for objective in (SpanCorruption(), Mixture(), UL2(), PrefixLM(objective=Mixture())):
        objective.check(vocabulary)
        with pytest.raises(UserError, match="has 10 masks and no sep_id and no eom_id: use CodeGen2's"):
            objective.check(plain)
    with pytest.raises(UserError, match="401 spans need as many masks.* has 400 masks: use"):
        SpanCorruption(max_spans=401).check(vocabulary)
    with pytest.raises(UserError, match="no fim_prefix_id, fim_middle_id"):
        PrefixSuffixMiddle().check(plain)
    with pytest.raises(UserError, match="1 parts has no hole"):
        infill_prompt(vocabulary, ["alone"])
    CausalLM().check(plain)

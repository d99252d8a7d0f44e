import json
import time
from collections import Counter

import numpy as np
import pytest

from codegen2_jax.data import cache
from codegen2_jax.data.infilling import (
    UL2,
    CausalLM,
    Mixture,
    PrefixLM,
    PrefixSuffixMiddle,
    SpanCorruption,
)
from codegen2_jax.data.packed_batches import PackedBatches
from codegen2_jax.data.packed_text import describe
from codegen2_jax.data.span_records import restore
from codegen2_jax.errors import UserError

SMALL = SpanCorruption(max_spans=4, min_file_tokens=8)
KEYS = {
    "tokens_BT": "int32",
    "targets_BT": "int32",
    "positions_BT": "int32",
    "segments_BT": "int32",
    "bidirectional_BT": "bool",
    "loss_mask_BT": "bool",
    "task_B": "int32",
    "record_B": "int32",
}


def make_documents(count, seed, longest=120):
    """Documents of ids that are text; 0 stands in them on purpose."""
    rng = np.random.default_rng(seed)
    return [{"targets": rng.integers(0, 256, rng.integers(0, longest)).astype(np.int32)} for _ in range(count)]


@pytest.fixture(scope="module")
def sources():
    return {"code": make_documents(60, 1), "text": make_documents(25, 2, longest=300)}


def packed(sources, vocabulary, **changes):
    settings = {"sequence_length": 64, "batch_size": 4, "seed": 3, "vocabulary": vocabulary}
    return PackedBatches(sources, **settings | changes)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def row_of(batch, b):
    """The row's tokens, with its last target."""
    tokens = batch["tokens_BT"][b][batch["segments_BT"][b] > 0].tolist()
    full = len(tokens) == batch["tokens_BT"].shape[1]
    return [*tokens, int(batch["targets_BT"][b, -1])] if full else tokens


OBJECTIVES = {
    "causal": CausalLM(),
    "spans": SMALL,
    "mixture": Mixture(corrupt=SMALL),
    "coin of the file": Mixture(corrupt=SMALL, coin="file"),
    "prefix": PrefixLM(objective=Mixture(corrupt=SMALL)),
    "middle": PrefixSuffixMiddle(),
    "ul2": UL2(min_file_tokens=4),
    "scope of the window": Mixture(corrupt=SpanCorruption(max_spans=4, scope="window")),
}


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shift", ["drop_last", "carry_one"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_batch_keeps_its_promises(sources, vocabulary, name, shift, across):
    settings = {"objective": OBJECTIVES[name], "shift": shift, "attend_across_documents": across}
    batches = packed(sources, vocabulary, **settings)
    length = 63 if shift == "drop_last" else 64
    for number in (0, 1, 7, 40):
        batch = batches.batch(number)
        assert {key: str(value.dtype) for key, value in batch.items()} == KEYS
        for key, value in batch.items():
            assert value.shape == ((4, length) if key.endswith("_BT") else (4,))
        segments, loss = batch["segments_BT"], batch["loss_mask_BT"]
        assert (segments[:, 0] == 1).all() and np.isin(np.diff(segments, axis=1)[segments[:, 1:] > 0], (0, 1)).all()
        # The target is the next token wherever there is one, and padding neither predicts nor is predicted.
        np.testing.assert_array_equal(batch["targets_BT"][:, :-1], batch["tokens_BT"][:, 1:])
        assert not loss[segments == 0].any() and not loss[:, :-1][segments[:, 1:] == 0].any()
        assert (batch["tokens_BT"][segments == 0] == vocabulary.pad_id).all()
        restarts = np.diff(segments, axis=1) == 1
        if across:
            expected = np.where(segments > 0, np.arange(length), 0)
            np.testing.assert_array_equal(batch["positions_BT"], expected)
        else:
            assert not loss[:, :-1][restarts].any()
            assert (batch["positions_BT"][:, 1:][restarts] == 0).all()
            same = (np.diff(segments, axis=1) == 0) & (segments[:, 1:] > 0)
            assert (np.diff(batch["positions_BT"], axis=1)[same] == 1).all()
        if name != "prefix":
            assert not batch["bidirectional_BT"].any()
        # Nothing is predicted that was seen: a target in a prefix has no loss.
        assert not (loss[:, :-1] & batch["bidirectional_BT"][:, 1:]).any()
        assert_same(batch, packed(sources, vocabulary, **settings).batch(number))


def test_a_batch_depends_on_seed_and_number_only(sources, vocabulary):
    one, again = (packed(sources, vocabulary, objective=Mixture(corrupt=SMALL)) for _ in range(2))
    for number in (300, 5, 2000, 0):  # read backwards and far ahead: what was read before must not matter
        assert_same(one.batch(number), again.batch(number))
    other = packed(sources, vocabulary, objective=Mixture(corrupt=SMALL), seed=4)
    assert (one.batch(0)["tokens_BT"] != other.batch(0)["tokens_BT"]).any()


@pytest.mark.parametrize("mixing", ["windows", "documents"])
def test_processes_read_slices_of_the_same_batches(sources, vocabulary, mixing):
    settings = {"objective": Mixture(corrupt=SMALL), "mixing": mixing}
    whole = packed(sources, vocabulary, **settings)
    parts = [packed(sources, vocabulary, rows=np.arange(whole.batch_size)[i::2], **settings) for i in range(2)]
    for number in (0, 9):
        for index, part in enumerate(parts):
            assert_same({key: value[index::2] for key, value in whole.batch(number).items()}, part.batch(number))


def test_resuming_is_exact_and_the_state_is_json(sources, vocabulary):
    batches = packed(sources, vocabulary, objective=Mixture(corrupt=SMALL))
    iterator = batches.iterator()
    for number in range(7):
        assert_same(next(iterator), batches.batch(number))
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    resumed = packed(sources, vocabulary, objective=Mixture(corrupt=SMALL)).iterator()
    resumed.set_state(state)
    for number in range(7, 12):
        assert_same(next(resumed), batches.batch(number))
    resumed.close()


def test_an_epoch_of_one_stream_loses_no_token(vocabulary):
    documents = make_documents(40, 5)
    batches = packed({"code": documents}, vocabulary, batch_size=1)
    expected = Counter()
    for document in documents:
        expected.update([*document["targets"].tolist(), vocabulary.eos_id])
    windows = -(-sum(expected.values()) // 64)
    orders = []
    for epoch in range(3):
        rows = [row_of(batches.batch(epoch * windows + k), 0) for k in range(windows)]
        assert Counter(token for row in rows for token in row) == expected
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]


def test_an_epoch_of_span_records_loses_no_token(vocabulary):
    documents = make_documents(40, 5)
    batches = packed({"code": documents}, vocabulary, batch_size=1, objective=SMALL)
    expected = Counter(token for document in documents for token in document["targets"].tolist())
    total, number, seen = sum(expected.values()), 0, Counter()
    while sum(seen.values()) < total:
        tokens = np.asarray(row_of(batches.batch(number), 0))
        seen.update(tokens[tokens < 256].tolist())
        number += 1
    assert seen == expected
    assert batches.progress(number)["code"]["epochs"] == 1.0


@pytest.mark.parametrize("objective", [SMALL, PrefixLM(objective=SMALL)], ids=["causal", "prefix"])
def test_segments_are_records(vocabulary, objective):
    documents = make_documents(30, 6, longest=40)
    known = {tuple(document["targets"].tolist()) for document in documents}
    batch = packed({"code": documents}, vocabulary, sequence_length=256, objective=objective).batch(0)
    found = 0
    for b in range(4):
        for segment in range(1, int(batch["segments_BT"][b].max())):  # the last one may be cut off from its document
            here = batch["segments_BT"][b] == segment
            tokens = batch["tokens_BT"][b][here]
            if vocabulary.sep_id not in tokens:
                continue
            separator = tokens.tolist().index(vocabulary.sep_id)
            if tuple(restore(tokens, vocabulary).tolist()) in known:
                found += 1
            if isinstance(objective, PrefixLM):
                place = np.arange(here.sum())
                np.testing.assert_array_equal(batch["bidirectional_BT"][b][here], place <= separator)
                # SEP predicts the first mask; nothing before it predicts anything.
                np.testing.assert_array_equal(batch["loss_mask_BT"][b][here][:-1], place[:-1] >= separator)
    assert found > 10


def test_carry_one_predicts_the_first_token_of_what_follows(vocabulary):
    document = {"targets": np.arange(200, dtype=np.int32)}
    settings = {"batch_size": 1, "sequence_length": 50, "shift": "carry_one"}
    batches = packed({"code": [document]}, vocabulary, **settings)
    following = {}
    for number in range(5):  # 201 places: four windows of 50 and one of the end token alone
        batch = batches.batch(number)
        first, last = int(batch["tokens_BT"][0, 0]), int(batch["targets_BT"][0, -1])
        following[first] = (last, bool(batch["loss_mask_BT"][0, -1]))
    end, pad = vocabulary.eos_id, vocabulary.pad_id
    assert following == {0: (50, True), 50: (100, True), 100: (150, True), 150: (end, True), end: (pad, False)}

    # Two documents, 49 tokens and an end token each: what follows is another document, in whatever order they come.
    documents = [{"targets": np.full(49, k, np.int32)} for k in (7, 9)]
    for across in (True, False):
        batches = packed({"code": documents}, vocabulary, attend_across_documents=across, **settings)
        found = {}
        for number in range(2):
            batch = batches.batch(number)
            found[int(batch["tokens_BT"][0, 0])] = (int(batch["targets_BT"][0, -1]), bool(batch["loss_mask_BT"][0, -1]))
        assert found in ({7: (9, across), 9: (pad, False)}, {9: (7, across), 7: (pad, False)})


def test_sources_share_the_rows_and_begin_again_alone(sources, vocabulary):
    batches = packed(sources, vocabulary, rates={"code": 3, "text": 1}, batch_size=8)
    tasks = np.concatenate([batches.batch(number)["task_B"] for number in range(150)])
    assert abs(np.mean(tasks == 0) - 0.75) < 0.04
    progress = batches.progress(150)
    windows = {name: np.count_nonzero(tasks == k) for k, name in enumerate(batches.names)}
    for name, documents in sources.items():
        total = sum(len(document["targets"]) + 1 for document in documents)
        per_epoch = -(-total // 64)
        assert abs(progress[name]["epochs"] - windows[name] / per_epoch) < 1
        assert progress[name]["tokens"] == pytest.approx(progress[name]["epochs"] * total)
        assert progress[name]["bytes"] > 0
    assert progress["code"]["epochs"] > 5 and progress["code"]["epochs"] > 2 * progress["text"]["epochs"] - 5
    assert batches.progress(0)["code"] == {"epochs": 0.0, "tokens": 0.0, "bytes": 0.0}
    alone = packed(sources, vocabulary, rates={"text": 1})
    assert {int(task) for number in range(5) for task in alone.batch(number)["task_B"]} == {1}
    assert alone.names == ("code", "text") and "code" not in alone.progress(3)


def test_mixing_documents_gives_each_source_its_share_of_the_tokens(sources, vocabulary):
    batches = packed(sources, vocabulary, mixing="documents", rates={"code": 1, "text": 1})
    progress = batches.progress(400)
    share = progress["code"]["tokens"] / sum(one["tokens"] for one in progress.values())
    assert abs(share - 0.5) < 0.05
    mixed = 0
    for number in range(30):
        found = batches.statistics(number)
        assert found["tokens/code"] + found["tokens/text"] == pytest.approx(1)
        mixed += 0 < found["tokens/code"] < 1
    assert mixed > 20


def test_without_redrawing_epochs_differ_in_order_only(vocabulary):
    documents = make_documents(30, 8)
    settings = {"objective": Mixture(corrupt=SMALL), "batch_size": 1}
    for redraw in (True, False):
        batches = packed({"code": documents}, vocabulary, redraw_per_epoch=redraw, **settings)
        windows = batches.progress(1)  # plans the first epoch
        assert windows["code"]["tokens"] > 0
        count = next(k for k in range(1, 200) if batches.progress(k)["code"]["epochs"] >= 1)
        first, second = ([tuple(row_of(batches.batch(e * count + k), 0)) for k in range(count)] for e in (0, 1))
        assert first != second
        assert (sorted(first) == sorted(second)) == (not redraw)


def test_truncation_counts_what_it_loses(vocabulary):
    documents = make_documents(30, 9, longest=400)
    fitted, cut = (
        packed({"code": documents}, vocabulary, objective=SMALL, overflow=overflow) for overflow in ("fit", "truncate")
    )
    assert sum(fitted.statistics(k)["lost_target_tokens"] for k in range(20)) == 0
    found = [cut.statistics(k) for k in range(20)]
    assert sum(one["lost_target_tokens"] for one in found) > 100
    assert max(one["padding_fraction"] for one in found[:5]) < 0.3
    jaxformer = packed({"code": documents}, vocabulary, objective=SMALL, overflow="truncate", packing="jaxformer")
    assert (jaxformer.batch(3)["segments_BT"] > 0).all()


def test_statistics(sources, vocabulary):
    causal = packed(sources, vocabulary).statistics(0)
    assert causal["loss_token_fraction"] == pytest.approx(63 / 64, abs=0.01)
    assert causal["padding_fraction"] < 0.3 and causal["tokens/code"] + causal["tokens/text"] == pytest.approx(1)
    documents = {"code": [{"targets": np.zeros(4000, np.int32)} for _ in range(9)]}
    for objective, low, high in ((UL2(), 0.28, 0.42), (UL2(fixed=True), 0.57, 0.67), (PrefixLM(), 0.4, 0.6)):
        batches = packed(documents, vocabulary, sequence_length=512, batch_size=16, objective=objective)
        fractions = [batches.statistics(number)["loss_token_fraction"] for number in range(12)]
        assert low < np.mean(fractions) < high


def test_cached_splits_and_lists_give_the_same_batches(tmp_path, vocabulary):
    documents = make_documents(20, 11)
    entry = cache.write_split(tmp_path / "toy", "train", documents)
    info = {"task": "toy", "splits": {"train": entry}, "has_targets": {"train": True}}
    (tmp_path / "toy" / "info.json").write_text(json.dumps(info), encoding="utf-8")
    split = cache.open_split(tmp_path, "toy", "train")
    one, other = (packed({"toy": records}, vocabulary, objective=SMALL) for records in (split, documents))
    for number in range(6):
        assert_same(one.batch(number), other.batch(number))


def test_describing_shows_records_to_read(vocabulary):
    documents = [{"targets": np.asarray(vocabulary.encode("def f(x):\n    return x + <mask_1> 1\n"), np.int32)}] * 8
    batches = packed({"code": documents}, vocabulary, sequence_length=128, objective=PrefixLM(objective=SMALL))
    text = describe(batches.batch(0), vocabulary, names=batches.names, rows=2)
    assert text.count("--- row ") == 2 and "--- row 1: code, document" in text
    assert "<sep><mask_1>" in text and "<eom><|endoftext|>" in text and "bidirectional" in text
    plain = describe(packed({"code": documents}, vocabulary).batch(0), vocabulary)
    assert "def f(x):\n    return x + <mask_1> 1\n<|endoftext|>" in plain and "source 0" in plain


def test_a_batch_takes_a_few_milliseconds(vocabulary):
    documents = {"code": make_documents(400, 12, longest=1500)}
    batches = packed(documents, vocabulary, sequence_length=512, batch_size=16, objective=Mixture())
    batches.batch(0)
    begun = time.thread_time()
    for number in range(1, 21):
        batches.batch(number)
    assert (time.thread_time() - begun) / 20 < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": "none"}, "shift='none' is unknown; use one of drop_last, carry_one"),
        ({"mixing": "tokens"}, "mixing='tokens' is unknown"),
        ({"sequence_length": 1}, "sequence_length=1 holds no token and its target"),
        ({"rates": {"prose": 1}}, "rates name prose, the sources are code, text"),
        ({"rates": {"code": -1}}, "give each 0 or more, one above 0"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"objective": SpanCorruption(max_spans=500)}, "500 spans need as many masks"),
    ],
)
def test_mistakes_are_named_at_once(sources, vocabulary, changes, message):
    with pytest.raises(UserError, match=message):
        packed(sources, vocabulary, **changes)


def test_a_source_that_cannot_fill_a_row_is_named(vocabulary):
    with pytest.raises(UserError, match="source 'code' has no document"):
        packed({"code": []}, vocabulary)
    with pytest.raises(UserError, match='40 tokens fill no window of 64 with packing="jaxformer"'):
        packed({"code": [{"targets": np.zeros(39, np.int32)}]}, vocabulary, packing="jaxformer").batch(0)

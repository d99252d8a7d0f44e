import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data import objectives
from codegen2_jax.data.loader import PretrainingBatches, TrainingBatches, evaluation_batches
from codegen2_jax.data.plan import Subset
from codegen2_jax.errors import UserError

FACTS = {"bos_id": 1, "eos_id": 2}


def make_records(count, seed, longest=(90, 40)):
    """Records whose tokens tell them apart; ids 0 (padding) and 2 (end) stand inside them on purpose."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        source, target = rng.integers(1, longest[0]), rng.integers(1, longest[1])
        inputs = np.concatenate([[1, 1000 * seed + number], rng.integers(0, 50, source - 1), [2]]).astype(np.int32)
        targets = np.concatenate([[1], rng.integers(0, 50, target), [2]]).astype(np.int32)
        records.append({"id": f"{seed}/{number}", "inputs": inputs, "targets": targets})
    return records


@pytest.fixture(scope="module")
def splits():
    return [make_records(150, 1), make_records(61, 2, longest=(30, 60))]


def rows_of(batch):
    return list(zip(batch["task_B"].tolist(), batch["record_B"].tolist(), strict=True))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def assert_holds(batch, row, record, start_id=0):
    """Row `row` of the batch is the record, and its masks are the record's lengths."""
    inputs, targets = record["inputs"], record["targets"]
    assert batch["inputs_BS"][row, : len(inputs)].tolist() == inputs.tolist()
    assert batch["inputs_mask_BS"][row].tolist() == [i < len(inputs) for i in range(batch["inputs_BS"].shape[1])]
    assert batch["targets_BT"][row, : len(targets)].tolist() == targets.tolist()
    assert batch["loss_mask_BT"][row].tolist() == [i < len(targets) for i in range(batch["targets_BT"].shape[1])]
    assert batch["decoder_inputs_BT"][row, : len(targets)].tolist() == [start_id, *targets[:-1].tolist()]
    for name, mask in (("inputs_BS", "inputs_mask_BS"), ("targets_BT", "loss_mask_BT")):
        assert not batch[name][row][~batch[mask][row]].any()
    assert not batch["decoder_inputs_BT"][row, len(targets) :].any()


def test_batches_hold_their_records(splits):
    batches = TrainingBatches(splits, [3, 7], 8, seed=0, start_id=9)
    for number in range(batches.batches_per_epoch):
        batch = batches.batch(number)
        assert {key: str(value.dtype) for key, value in batch.items()} == {
            "inputs_BS": "int32",
            "inputs_mask_BS": "bool",
            "decoder_inputs_BT": "int32",
            "targets_BT": "int32",
            "loss_mask_BT": "bool",
            "task_B": "int32",
            "record_B": "int32",
        }
        for row, (task, record) in enumerate(rows_of(batch)):
            assert_holds(batch, row, splits[[3, 7].index(task)][record], start_id=9)


def test_an_epoch_takes_every_record_at_most_once_and_leaves_out_less_than_a_batch(splits):
    batches = TrainingBatches(splits, [0, 1], 8, seed=0)
    per_epoch = batches.batches_per_epoch
    assert per_epoch == 211 // 8
    left_out = []
    for epoch in range(3):
        rows = [row for k in range(per_epoch) for row in rows_of(batches.batch(epoch * per_epoch + k))]
        assert len(set(rows)) == len(rows) == per_epoch * 8
        left_out.append({(t, r) for t, split in enumerate(splits) for r in range(len(split))} - set(rows))
    assert left_out[0] != left_out[1] != left_out[2]


def test_order_depends_on_seed_and_epoch_only(splits):
    one, again, other = (TrainingBatches(splits, [0, 1], 8, seed=seed) for seed in (5, 5, 6))
    per_epoch = one.batches_per_epoch
    # Read backwards: what was read before must not matter.
    for number in reversed(range(0, 3 * per_epoch, 7)):
        assert_same(one.batch(number), again.batch(number))
    first = [rows_of(one.batch(k)) for k in range(per_epoch)]
    assert first != [rows_of(one.batch(per_epoch + k)) for k in range(per_epoch)]
    assert first != [rows_of(other.batch(k)) for k in range(per_epoch)]


def test_shapes_are_few_tight_and_hold_everything(splits):
    batches = TrainingBatches(splits, [0, 1], 8, seed=0, num_shapes=5)
    assert len(batches.shapes) <= 5
    real, padded = 0, 0
    for number in range(2 * batches.batches_per_epoch):
        batch = batches.batch(number)
        assert (batch["inputs_BS"].shape[1], batch["targets_BT"].shape[1]) in batches.shapes
        real += batch["inputs_mask_BS"].sum() + batch["loss_mask_BT"].sum()
        padded += batch["inputs_BS"].size + batch["targets_BT"].size
    one_shape = TrainingBatches(splits, [0, 1], 8, seed=0, num_shapes=1)
    batch = one_shape.batch(0)
    in_one_shape = 2 * batches.batches_per_epoch * (batch["inputs_BS"].size + batch["targets_BT"].size)
    assert len(one_shape.shapes) == 1
    assert real / padded > 1.3 * real / in_one_shape


@pytest.mark.parametrize("steps_before", [0, 1, 5, 30, 60])
def test_resuming_is_exact_and_the_state_is_json(splits, steps_before):
    batches = TrainingBatches(splits, [0, 1], 8, seed=1)
    iterator = batches.iterator()
    for _ in range(steps_before):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [next(iterator) for _ in range(4)]
    resumed = TrainingBatches(splits, [0, 1], 8, seed=1).iterator(num_threads=1, prefetch=1)
    resumed.set_state(state)
    for number, (one, other) in enumerate(zip(rest, (next(resumed) for _ in rest), strict=True)):
        assert_same(one, other)
        assert_same(one, batches.batch(steps_before + number))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_see_slices_of_the_same_global_batches(splits, count):
    whole = TrainingBatches(splits, [0, 1], 8, seed=2)
    parts = [TrainingBatches(splits, [0, 1], 8, seed=2, rows=np.arange(8)[h::count]) for h in range(count)]
    for number in (0, 3, 40):
        batch = whole.batch(number)
        for h, part in enumerate(parts):
            assert_same({key: value[h::count] for key, value in batch.items()}, part.batch(number))


def test_queries_follow_their_records(splits):
    queries = [
        np.random.default_rng(j).normal(size=(len(split), 3)).astype(np.float32) for j, split in enumerate(splits)
    ]
    batch = TrainingBatches(splits, [0, 1], 8, seed=0, queries=queries).batch(2)
    expected = np.stack([queries[task][record] for task, record in rows_of(batch)])
    assert batch["query_BD"].dtype == np.float32
    np.testing.assert_array_equal(batch["query_BD"], expected)


@pytest.mark.parametrize("rates", [None, [0.9, 0.1]])
def test_the_records_of_the_first_batches_are_known_before_they_are_read(splits, rates):
    batches = TrainingBatches(splits, [0, 1], 8, seed=5, rates=rates, rows=np.arange(3))
    everyones = TrainingBatches(splits, [0, 1], 8, seed=5, rates=rates)
    for count in (1, 7, 3 * batches.batches_per_epoch):
        taken = {row for number in range(count) for row in rows_of(everyones.batch(number))}
        for task, records in enumerate(batches.visited(count)):
            assert records.tolist() == sorted(record for of, record in taken if of == task)


def test_rates_decide_the_share_of_a_split_and_use_its_records_evenly(splits):
    batches = TrainingBatches(splits, [0, 1], 8, seed=0, rates=[0.25, 0.75])
    counts = [np.zeros(len(split), int) for split in splits]
    for number in range(6 * batches.batches_per_epoch):
        for task, record in rows_of(batches.batch(number)):
            counts[task][record] += 1
    total = sum(map(np.sum, counts))
    assert abs(counts[0].sum() / total - 0.25) < 0.02
    assert counts[1].max() - counts[1].min() <= 4  # uneven only by what the ends of epochs leave out


def test_fewer_records_than_a_batch_are_repeated(splits):
    batches = TrainingBatches([splits[0][:5]], [0], 16, seed=0)
    assert batches.batches_per_epoch == 1
    counts = np.bincount(batches.batch(0)["record_B"], minlength=5)
    assert counts.sum() == 16 and counts.min() >= 3 and counts.max() <= 4


def test_transform_is_a_function_of_seed_epoch_and_record(splits):
    def shuffled(record, rng):
        return record | {"inputs": rng.permutation(record["inputs"])}

    one, other = (TrainingBatches(splits, [0, 1], 8, seed=4, transform=shuffled) for _ in range(2))
    assert_same(one.batch(9), other.batch(9))
    per_epoch = one.batches_per_epoch
    seen = {row: k for k in range(per_epoch) for row in rows_of(one.batch(k))}
    again = one.batch(per_epoch)
    row = next(row for row in rows_of(again) if row in seen)
    first = one.batch(seen[row])
    at, before = rows_of(again).index(row), rows_of(first).index(row)
    length = again["inputs_mask_BS"][at].sum()
    assert sorted(again["inputs_BS"][at, :length]) == sorted(first["inputs_BS"][before, :length])
    assert again["inputs_BS"][at, :length].tolist() != first["inputs_BS"][before, :length].tolist()


def test_subset_reads_its_records_under_new_numbers(splits):
    subset = Subset(splits[0], [7, 3, 100])
    assert len(subset) == 3 and subset[1]["id"] == "1/3"
    assert [record["id"] for record in subset.__getitems__([2, 0])] == ["1/100", "1/7"]
    assert subset.source_lengths_N.tolist() == [len(splits[0][i]["inputs"]) for i in (7, 3, 100)]
    batch = TrainingBatches([splits[1], subset], [1, 0], 8, seed=0, rates=[0.5, 0.5]).batch(0)
    for row, (task, record) in enumerate(rows_of(batch)):
        assert_holds(batch, row, subset[record] if task == 0 else splits[1][record])


@given(
    lengths=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40)), min_size=1, max_size=60),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_lengths_give_full_batches_of_known_shapes(lengths, batch_size, seed):
    records = [{"inputs": np.full(s, 5, np.int32), "targets": np.full(t, 6, np.int32)} for s, t in lengths]
    batches = TrainingBatches([records], [0], batch_size, seed)
    rows = []
    for number in range(batches.batches_per_epoch):
        batch = batches.batch(number)
        rows += batch["record_B"].tolist()
        assert len(batch["inputs_BS"]) == batch_size
        assert (batch["inputs_BS"].shape[1], batch["targets_BT"].shape[1]) in batches.shapes
        assert [lengths[r] for r in batch["record_B"]] == list(
            zip(batch["inputs_mask_BS"].sum(1), batch["loss_mask_BT"].sum(1), strict=True)
        )
    assert len(rows) >= max(len(records) - batch_size + 1, batch_size if len(records) < batch_size else 0)


def test_evaluation_scores_every_record_once(splits):
    queries = np.arange(150 * 2, dtype=np.float32).reshape(150, 2)
    batches = evaluation_batches(splits[0], task_id=5, batch_size=16, queries=queries)
    assert len(batches) == 10
    seen = []
    for batch in batches:
        assert len(batch["inputs_BS"]) == 16 and set(batch["task_B"]) == {5}
        seen += batch["record_B"][batch["valid_B"]].tolist()
        for row, record in enumerate(batch["record_B"]):
            assert_holds(batch, row, splits[0][record])
            assert batch["query_BD"][row].tolist() == queries[record].tolist()
    assert sorted(seen) == list(range(150))
    last = batches[9]
    assert last["valid_B"].tolist() == [True] * 6 + [False] * 10
    assert (last["record_B"][6:] == last["record_B"][0]).all()


def test_evaluation_limit_takes_evenly_spaced_records(splits):
    batches = evaluation_batches(splits[0], task_id=0, batch_size=4, limit=10)
    seen = [record for batch in batches for record in batch["record_B"][batch["valid_B"]].tolist()]
    assert sorted(seen) == list(range(0, 150, 15))
    everything = evaluation_batches(splits[0], task_id=0, batch_size=50, limit=1000)
    assert sum(batch["valid_B"].sum() for batch in everything) == 150


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(0)
    windows = [{"targets": rng.integers(5, 900, rng.integers(8, 80)).astype(np.int32)} for _ in range(200)]
    pairs = make_records(60, 3)
    sentinels = tuple(range(999, 969, -1))
    spans = partial(objectives.span_corruption, **FACTS, sentinel_ids=sentinels)
    noise = partial(objectives.denoising, **FACTS, mask_id=4, text_ids=(5, 900))
    return {
        "spans": (windows, spans, 2.0, (96, 48)),
        "unused": ([], noise, 0.0, (96, 96)),
        "noise": (windows, noise, 1.0, (96, 96)),
        "pairs": (pairs, partial(objectives.text_to_code, **FACTS), 1.0, (64, 32)),
    }


def test_pretraining_draws_one_objective_per_batch_by_its_rate(streams):
    batches = PretrainingBatches(streams, 8, seed=0)
    assert batches.names == tuple(streams)
    drawn = np.asarray([batches.stream_of(number)[0] for number in range(6000)])
    np.testing.assert_allclose(np.bincount(drawn) / 6000, [0.5, 0, 0.25, 0.25], atol=0.025)
    for number in (0, 1, 2, 3, 4, 5000):
        batch = batches.batch(number)
        assert set(batch["task_B"]) == {drawn[number]}
        name = batches.names[drawn[number]]
        assert (batch["inputs_BS"].shape[1], batch["targets_BT"].shape[1]) in batches.shapes[name]
        assert (batch["targets_BT"][:, 0] == 1).all() and (batch["loss_mask_BT"].sum(1) > 2).all()
    counted = [batches.stream_of(number) for number in range(4090, 4105)]
    assert [before for _, before in counted] == [int((drawn[:n] == drawn[n]).sum()) for n in range(4090, 4105)]


def test_an_objective_is_not_drawn_before_it_starts(streams):
    starts = {"spans": 5000, "pairs": 700}  # one start inside the first block of draws, one behind it
    batches = PretrainingBatches(streams, 8, seed=0, starts=starts)
    drawn = np.asarray([batches.names[batches.stream_of(number)[0]] for number in range(9000)])
    assert set(drawn[:700]) == {"noise"} and set(drawn[700:5000]) == {"noise", "pairs"}
    np.testing.assert_allclose(np.mean(drawn[700:5000] == "pairs"), 0.5, atol=0.03)
    np.testing.assert_allclose(np.mean(drawn[5000:] == "spans"), 0.5, atol=0.03)
    assert batches.stream_of(5500)[1] == np.count_nonzero(drawn[:5500] == drawn[5500])
    with pytest.raises(UserError, match="one of a rate above 0 must be 0"):
        PretrainingBatches(streams, 8, seed=0, starts=dict.fromkeys(("spans", "noise", "pairs"), 3))


def test_pretraining_walks_through_all_records_before_repeating_one(streams):
    batches = PretrainingBatches({"noise": streams["noise"]}, 8, seed=3)
    records = np.concatenate([batches.batch(number)["record_B"] for number in range(25)])
    assert sorted(records) == list(range(200))
    again = np.concatenate([batches.batch(number)["record_B"] for number in range(25, 50)])
    assert sorted(again) == list(range(200)) and again.tolist() != records.tolist()


def test_pretraining_makes_new_noise_in_each_epoch_and_resumes_exactly(streams):
    batches = PretrainingBatches({"spans": (streams["spans"][0][:8], *streams["spans"][1:])}, 8, seed=3)
    by_record = [
        dict(zip(b["record_B"].tolist(), b["inputs_BS"].tolist(), strict=True)) for b in map(batches.batch, (0, 1))
    ]
    assert by_record[0].keys() == by_record[1].keys() and by_record[0] != by_record[1]
    batches = PretrainingBatches(streams, 8, seed=3)
    iterator = batches.iterator()
    for _ in range(11):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = PretrainingBatches(streams, 8, seed=3).iterator()
    resumed.set_state(state)
    for _ in range(5):
        assert_same(next(iterator), next(resumed))


@pytest.mark.parametrize("num_shapes", [0, 3])
def test_pretraining_slices_over_processes(streams, num_shapes):
    whole = PretrainingBatches(streams, 8, seed=1, num_shapes=num_shapes)
    parts = [
        PretrainingBatches(streams, 8, seed=1, num_shapes=num_shapes, rows=np.arange(8)[h::2]) for h in (0, 1)
    ]
    for number in range(6):
        batch = whole.batch(number)
        for h, part in enumerate(parts):
            assert_same({key: value[h::2] for key, value in batch.items()}, part.batch(number))
    if num_shapes == 0:
        assert whole.shapes == {"spans": [(96, 48)], "noise": [(96, 96)], "pairs": [(64, 32)]}


def test_user_errors_name_value_and_remedy(splits, streams):
    with pytest.raises(UserError, match="batch_size=0 is out of range"):
        TrainingBatches(splits, [0, 1], 0, 0)
    with pytest.raises(UserError, match="seed=-1"):
        TrainingBatches(splits, [0, 1], 8, -1)
    with pytest.raises(UserError, match="split number 1 of 2 has no record"):
        TrainingBatches([splits[0], []], [0, 1], 8, 0)
    with pytest.raises(UserError, match="rates="):
        TrainingBatches(splits, [0, 1], 8, 0, rates=[-1, 2])
    with pytest.raises(UserError, match="'unused' has no record"):
        PretrainingBatches(streams | {"unused": (*streams["unused"][:2], 1.0, (9, 9))}, 8, 0)
    with pytest.raises(UserError, match="give each 0 or more"):
        PretrainingBatches({"noise": (*streams["noise"][:2], 0.0, (96, 96))}, 8, 0)
    with pytest.raises(UserError, match="no record to evaluate"):
        evaluation_batches([], task_id=0, batch_size=2)


def test_reading_imports_no_tensorflow(program_environment):
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from codegen2_jax.data import cache, loader\n"
        "records = [{'inputs': np.arange(5, dtype=np.int32), 'targets': np.arange(4, dtype=np.int32)}] * 8\n"
        "next(loader.TrainingBatches([records], [0], 4, 0).iterator())\n"
        "print(sorted({'tensorflow', 'seqio', 'torch'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=program_environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"

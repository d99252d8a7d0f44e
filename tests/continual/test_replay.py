"""Replay: what the buffer keeps, when it is seen again, and that none of it depends on where a run was cut."""

import collections
import contextlib
import dataclasses
import json
import types
from unittest import mock

import numpy as np
import pytest

from codegen2_jax.continual import run
from codegen2_jax.continual.replay import Buffer, Replay, epoch_end_batches
from codegen2_jax.continual.run import Run
from codegen2_jax.data.loader import JoinedBatches, TrainingBatches
from codegen2_jax.data.plan import Subset
from codegen2_jax.errors import UserError

SIZES = (40, 7, 90)


def filled(replay, sizes=SIZES, seed=0):
    buffer = Buffer()
    for task, size in enumerate(sizes):
        buffer = replay.admit(buffer, task, size, num_tasks=len(sizes), seed=seed)
    return buffer


def test_a_ring_gives_every_task_its_slots_and_no_record_twice():
    buffer = filled(Replay(size=30))
    assert [len(buffer.records_of(task)) for task in range(3)] == [10, 7, 10]  # task 1 has only 7 examples
    assert len(set(buffer.pairs)) == 27 and all(0 <= record < SIZES[task] for task, record in buffer.pairs)
    assert filled(Replay(size=30), seed=1) != buffer


def test_what_a_ring_holds_of_a_task_stays_when_others_enter():
    replay = Replay(size=30)
    first = replay.admit(Buffer(), 0, 40, num_tasks=3, seed=0)
    assert filled(replay).pairs[:10] == first.pairs


def test_a_reservoir_is_a_uniform_sample_of_all_that_was_offered():
    counts = collections.Counter()
    for seed in range(400):
        buffer = filled(Replay(size=12, policy="reservoir"), seed=seed)
        assert len(buffer.pairs) == len(set(buffer.pairs)) == 12 and buffer.offered == sum(SIZES)
        counts.update(task for task, _ in buffer.pairs)
    expected = np.asarray(SIZES) / sum(SIZES) * 12 * 400
    deviation = np.sqrt(400 * 12 * 0.25)
    assert all(abs(counts[task] - expected[task]) < 4 * deviation for task in range(3))


def test_a_buffer_survives_the_checkpoint():
    buffer = filled(Replay(size=12, policy="reservoir"))
    assert Buffer.from_json(json.loads(json.dumps(buffer.to_json()))) == buffer


def test_a_pass_shows_every_kept_record_in_batches_of_one_task():
    buffer = filled(Replay(size=30))
    seen, order = collections.Counter(), []
    for task, records in epoch_end_batches(buffer, 4, seed=0, stage=1, epoch=2):
        assert len(records) == 4
        seen.update((task, record) for record in records.tolist())
        order.append(task)
    assert set(seen) == set(buffer.pairs) and sum(seen.values()) == 12 + 8 + 12
    assert len([a for a, b in zip(order, order[1:], strict=False) if a != b]) == 2  # whole tasks
    again = [records.tolist() for _, records in epoch_end_batches(buffer, 4, seed=0, stage=1, epoch=2)]
    other = [records.tolist() for _, records in epoch_end_batches(buffer, 4, seed=0, stage=1, epoch=3)]
    assert again == [records.tolist() for _, records in epoch_end_batches(buffer, 4, seed=0, stage=1, epoch=2)] != other


def test_joined_batches_hold_both_parts_in_one_shape():
    rng = np.random.default_rng(0)

    def split(count, longest):
        return [
            {"inputs": rng.integers(1, 9, rng.integers(2, longest)), "targets": rng.integers(1, 9, 4)}
            for _ in range(count)
        ]

    shapes = [(16, 8), (48, 8)]
    new, old = split(30, 40), split(30, 12)
    parts = [
        TrainingBatches([new], [2], 4, 0, shapes=shapes),
        TrainingBatches([Subset(old, [3, 5, 8]), Subset(old, [0, 1])], [0, 1], 2, 0, shapes=shapes),
    ]
    joined = JoinedBatches(parts, shapes)
    assert joined.batch_size == 6
    for number in range(5):
        batch, halves = joined.batch(number), [part.batch(number) for part in parts]
        assert batch["inputs_BS"].shape in [(6, source) for source, _ in shapes]
        assert batch["task_B"].tolist() == [*halves[0]["task_B"], *halves[1]["task_B"]]
        width = halves[1]["inputs_BS"].shape[1]
        np.testing.assert_array_equal(batch["inputs_BS"][4:, :width], halves[1]["inputs_BS"])
        assert batch["loss_mask_BT"].sum() == sum(half["loss_mask_BT"].sum() for half in halves)
        assert not batch["inputs_mask_BS"][4:, width:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "replay size=0 is out of range"),
        ({"size": 5, "policy": "queue"}, "policy='queue' is unknown"),
        ({"size": 5, "schedule": "always"}, "schedule='always' is unknown"),
        ({"size": 5, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Replay(**settings)


def test_a_ring_too_small_for_the_stream_is_refused():
    with pytest.raises(UserError, match="size=3 leaves no slot for each of 4 tasks"):
        Replay(size=3).check(4)
    dataclasses.replace(Replay(size=3), policy="reservoir").check(4)


def test_a_pass_over_the_buffer_never_waits_for_the_step_it_has_just_given():
    read, given = [], []

    class Loss:
        def __init__(self, number):
            self.number = number

        def __array__(self, *_, **__):
            read.append((self.number, len(given)))
            return np.asarray(1.0)

        def __float__(self):
            return float(self.__array__())

    def step(state, batch):
        given.append(batch)
        return state, {"loss": Loss(len(given))}

    walk = object.__new__(Run)
    walk.config = types.SimpleNamespace(replay=Replay(size=24, schedule="epoch_end", batch_size=1), batch_size=2)
    walk.tracker = types.SimpleNamespace(progress=lambda *_: contextlib.nullcontext(mock.Mock()))
    batches = types.SimpleNamespace(replayed=lambda *_: range(24))
    walk.setup = types.SimpleNamespace(batches=batches, replay_step=step, put=lambda batch: batch)
    pairs = tuple((0, record) for record in range(24))
    walk._replay(None, {"stage": 0, "replayed_seen": 0}, Buffer(pairs=pairs), epoch=1)
    assert read == [(9, 10), (19, 20), (23, 24)]


def test_an_epoch_that_early_stopping_cuts_short_is_replayed_too(monkeypatch):
    """Ten steps an epoch, a validation every 6 steps that never improves: stopped at 18, inside the second epoch."""
    events = []
    walk = object.__new__(Run)
    walk.stop = walk.clock = walk.profile = None
    walk.tracker = types.SimpleNamespace(progress=lambda *_, **__: contextlib.nullcontext())
    walk.num_tasks = walk.num_stages = 1
    state = types.SimpleNamespace(step=0, trainable=np.zeros(1))
    walk.config = types.SimpleNamespace(
        replay=Replay(size=4, schedule="epoch_end"), batch_size=2, evaluations_per_task=5, save_every=100, model_dir="x"
    )
    batches = types.SimpleNamespace(
        batch_size=2, batches_per_epoch=10, iterator=lambda: types.SimpleNamespace(get_state=lambda: None)
    )
    walk.setup = types.SimpleNamespace(
        batches=types.SimpleNamespace(training=lambda *_: batches), steps_per_stage=30, train_step=None, layout=None,
        stages=[(0,)], tasks=[types.SimpleNamespace(name="toy")],
    )  # fmt: skip

    def validate(state, meta, step):
        events.append(("validate", step))
        meta["stalled"] = len(events) > 3
        return False

    def replay(state, meta, buffer, *, epoch):
        events.append(("replay", epoch))
        return state

    walk._validate, walk._replay, walk._save = validate, replay, lambda *_, **__: None
    monkeypatch.setattr(run, "run_steps", lambda step, state, batches, *, first, last, **_: (state, last))
    meta = {"stage": 0, "buffer": Buffer().to_json(), "data": None, "stalled": False, "trained": False}
    meta |= {"examples_seen": 0, "examples_before": 0, "replayed_seen": 0}
    walk._train(state, state.trainable, meta)
    assert events[:-2] == [("validate", 6), ("replay", 1), ("validate", 12), ("validate", 18)]
    assert events[-2:] == [("replay", 2), ("validate", 18)] and meta["stalled"] and meta["trained"]

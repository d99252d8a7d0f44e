"""Queries are computed for the records that are asked for, once, and say how far they are."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.continual import queries
from codegen2_jax.continual.replay import Buffer
from codegen2_jax.continual.stream_batches import StreamBatches
from codegen2_jax.sharding import partitioning


class Model:
    """Its query is the mean of the true tokens."""

    config = "toy"

    def query(self, params, inputs_BS, inputs_mask_BS, *, pooling):
        total_B = (inputs_BS * inputs_mask_BS).sum(axis=1) * params
        return (total_B / inputs_mask_BS.sum(axis=1))[:, None]


class Split(list):
    digest = "d"


@pytest.fixture
def made(tmp_path):
    """A store over a split of 24 records of 2 to 33 tokens; the lines that it says; the records that it computes."""
    split = Split(
        {"inputs": np.full(2 + n % 32, n, np.int32), "targets": np.ones(1, np.int32)} for n in range(24)
    )
    layout = partitioning.make_layout(None, None, None)
    said, computed = [], []
    store = queries.QueryStore(tmp_path, Model(), jnp.float32(1.0), "e", layout, batch_size=8, tell=said.append)
    compute = store._compute

    def counted(split, records):
        computed.extend(records.tolist())
        return compute(split, records)

    store._compute = counted
    return types.SimpleNamespace(store=store, split=split, said=said, computed=computed)


def test_only_what_is_asked_for_is_computed_and_only_once(made):
    assert made.store.of(made.split, [5, 3, 5])[:, 0].tolist() == [5, 3, 5], "in the order asked for"
    assert made.computed == [3, 5]
    assert made.store.of(made.split, [3, 4, 20])[:, 0].tolist() == [3, 4, 20]
    assert made.computed == [3, 5, 4, 20]
    assert made.store.of(made.split, range(24))[:, 0].tolist() == list(range(24))
    assert sorted(made.computed) == list(range(24))
    assert len(list(made.store.directory.iterdir())) == 1, "one file for a split"


def test_of_no_record_there_are_no_queries_of_the_same_width(made):
    """A short stage may take nothing of a split."""
    assert made.store.of(made.split, []).shape == (0, 1)
    assert made.store.of(made.split, []).shape == (0, 1) and made.computed == [0]


def test_a_short_stage_asks_for_the_queries_of_what_it_visits(made):
    config = types.SimpleNamespace(batch_size=8, seed=0, joint_exponent=0.7, replay=None, tags="none")
    batches = StreamBatches(
        config, made.store.layout, [types.SimpleNamespace(train=made.split)], [(0,)], [(48, 8)],
        start_id=0, steps_per_stage=1, queries=made.store,
    ).training(0, Buffer())  # fmt: skip
    assert len(made.computed) == 8, "one step of eight rows, of 24 records"
    batch = batches.batch(0)
    assert batch["query_BD"][:, 0].tolist() == batch["record_B"].tolist()
    assert np.isnan(batches.batch(1)["query_BD"]).all(), "a record that was not foreseen is loud"


def test_a_query_does_not_depend_on_the_records_beside_it(made, tmp_path):
    whole = made.store.of(made.split, range(24))
    other = queries.QueryStore(tmp_path / "other", Model(), jnp.float32(1.0), "e", made.store.layout, batch_size=8)
    np.testing.assert_array_equal(np.concatenate([other.of(made.split, [n]) for n in range(24)]), whole)


def test_what_another_process_lacks_is_computed_again(made, monkeypatch):
    """Each process may have a disk of its own, and all have to compute together."""
    made.store.of(made.split, [1, 2, 3])
    monkeypatch.setattr(queries.processes, "all_agree", lambda known_N: known_N & (np.arange(24) != 2))
    assert made.store.of(made.split, [1, 2, 3])[:, 0].tolist() == [1, 2, 3]
    assert made.computed == [1, 2, 3, 2]


def test_long_queries_say_how_far_they_are(made, monkeypatch):
    monkeypatch.setattr(queries, "SAY_EVERY", 0.0)
    query_ND = made.store.of(made.split, range(24))
    assert query_ND[:, 0].tolist() == list(range(24))
    assert [line.split(",")[0] for line in made.said] == ["queries: 8 of 24 examples", "queries: 16 of 24 examples"]
    assert all("a second, about" in line and line.endswith("min left") for line in made.said)
    made.said.clear()
    np.testing.assert_array_equal(made.store.of(made.split, range(24)), query_ND)
    assert not made.said, "they are kept"


def test_short_queries_say_nothing(made):
    made.store.of(made.split, range(24))
    assert not made.said

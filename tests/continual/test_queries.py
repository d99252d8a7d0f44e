"""Queries of a split say how far they are, and are computed once."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.continual import queries
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
def made(tmp_path, monkeypatch):
    """A store over a split of 24 records of two tokens, and the lines that it says."""
    split = Split(np.asarray([n, n + 2], np.int32) for n in range(24))

    def batches(split, *, task_id, batch_size, limit):
        for first in range(0, len(split), batch_size):
            record_B = np.arange(first, first + batch_size)
            valid_B = record_B < len(split)
            inputs_BS = np.stack([split[r] if v else split[0] for r, v in zip(record_B, valid_B, strict=True)])
            yield {
                "inputs_BS": inputs_BS,
                "inputs_mask_BS": np.ones_like(inputs_BS, bool),
                "valid_B": valid_B,
                "record_B": np.where(valid_B, record_B, 0),
            }

    monkeypatch.setattr(queries, "evaluation_batches", batches)
    said = []
    layout = partitioning.make_layout(None, None, None)
    store = queries.QueryStore(
        tmp_path, Model(), jnp.float32(1.0), "e", layout, batch_size=8, tell=said.append
    )
    return types.SimpleNamespace(store=store, split=split, said=said)


def test_long_queries_say_how_far_they_are(made, monkeypatch):
    monkeypatch.setattr(queries, "SAY_EVERY", 0.0)
    query_ND = made.store.of(made.split)
    assert query_ND[:, 0].tolist() == [n + 1 for n in range(24)]
    assert [line.split(",")[0] for line in made.said] == ["queries: 8 of 24 examples", "queries: 16 of 24 examples"]
    assert all("a second, about" in line and line.endswith("min left") for line in made.said)
    made.said.clear()
    np.testing.assert_array_equal(made.store.of(made.split), query_ND)
    assert not made.said, "they are kept"


def test_short_queries_say_nothing(made):
    made.store.of(made.split)
    assert not made.said

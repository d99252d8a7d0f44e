"""Keys with two owners, keys that a later task takes over, and keys that start at the centres of their task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.prompts.clusters import kmeans
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.prompts.sharing import similar_keys

WIDTH, QUERY_WIDTH = 6, 8
EMBEDDING_VD = np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
# Tasks 0 and 2 look alike, task 1 is another direction.
CENTRE_JD = np.eye(3, QUERY_WIDTH)[[0, 1, 0]] + 0.3 * np.eye(3, QUERY_WIDTH)[[0, 1, 2]]


def sample(task, n, rng):
    return CENTRE_JD[task] + 0.05 * rng.normal(size=(n, QUERY_WIDTH)), rng.normal(size=(n, WIDTH))


def started(tasks=(0, 1, 2), **settings):
    pool = PromptPool(**{"top_k": 4, "prompt_length": 2, "shared_per_pair": 2, **settings})
    init = functools.partial(pool.init, num_tasks=3, query_width=QUERY_WIDTH)
    params, state = jax.jit(init)(jax.random.key(1), embedding_VD=jnp.asarray(EMBEDDING_VD))
    for task in tasks:
        before = {name: np.array(value) for name, value in params.items()}
        rng = np.random.default_rng(task)
        params, state = pool.start_task(params, state, task=task, sample=sample, rng=rng)
    return pool, before, params, state


def active(pool, state, task):
    return np.flatnonzero(jax.jit(pool.active_rows)(state, jnp.asarray([task]))["keys"])


def test_shared_keys_are_trained_by_both_owners_unless_frozen():
    pool, _, _, state = started(assignment="pairwise", shared_per_pair=1)
    shared = np.flatnonzero(state["assignment"].sum(axis=0) == 2)
    assert set(shared) & set(active(pool, state, 1)) and len(active(pool, state, 1)) == 4
    pool, _, _, state = started(assignment="pairwise", shared_per_pair=1, sharing="freeze_after_first_owner")
    first = state["assignment"].argmax(axis=0)
    for task in range(3):
        assert set(active(pool, state, task)) == set(np.flatnonzero(state["assignment"][task] & (first == task)))
    assert state["assignment"].sum(axis=0).max() == 2, "frozen keys are still selected by both"


def test_copies_start_where_the_first_owner_left_off():
    _, before, params, state = started(assignment="pairwise", shared_per_pair=1, sharing="copy_on_share")
    assert (state["assignment"].sum(axis=0) == 1).all() and (state["assignment"].sum(axis=1) == 4).all()
    copies = np.flatnonzero((state["copy_of"] >= 0) & state["assignment"][2])
    assert len(copies) == 2  # task 2 shares a key with each of the others
    for name in ("keys", "prompts"):
        np.testing.assert_array_equal(params[name][copies], before[name][state["copy_of"][copies]])


@pytest.mark.parametrize("sharing", ["train_both", "copy_on_share"])
def test_a_later_task_takes_keys_from_the_most_similar_one_before_it(sharing):
    _, before, params, state = started(assignment="similarity", sharing=sharing)
    assert (state["assignment"].sum(axis=1) == 4).all() and state["ready"].all()
    if sharing == "train_both":
        taken = np.flatnonzero(state["assignment"][2] & state["assignment"][0])
        assert len(taken) == 2
    else:
        own = np.flatnonzero(state["assignment"][2])
        taken = state["copy_of"][own[-2:]]
        assert state["assignment"][0, taken].all() and (state["assignment"].sum(axis=0) == 1).all()
        np.testing.assert_array_equal(params["keys"][own[-2:]], before["keys"][taken])


def test_similar_keys_are_the_nearest_of_the_most_similar_seen_task():
    means_JD, seen_J = np.asarray([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]), np.asarray([True, True, False])
    assignment_JM = np.asarray([[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    keys_MD = np.asarray([[0.0, 1.0], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    chosen = similar_keys(np.asarray([2.0, 0.0]), means_JD, seen_J, assignment_JM, keys_MD, 2)
    assert chosen.tolist() == [1, 2]


def test_kmeans_finds_separated_groups_and_repeats_itself():
    rng = np.random.default_rng(0)
    rows_ND = np.concatenate([np.eye(5)[k] + 0.05 * rng.normal(size=(30, 5)) for k in range(3)])
    centre_KD = kmeans(rows_ND, 3, np.random.default_rng(1))
    np.testing.assert_allclose(np.sort(centre_KD.argmax(axis=1)), [0, 1, 2])
    np.testing.assert_allclose(np.linalg.norm(centre_KD, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(centre_KD, kmeans(rows_ND, 3, np.random.default_rng(1)))
    assert kmeans(rows_ND[:2], 4, np.random.default_rng(1)).shape == (4, 5)
    assert np.isfinite(kmeans(np.ones((6, 5)), 3, np.random.default_rng(1))).all()


def test_kmeans_keys_cover_the_kinds_of_input_of_a_task():
    def two_kinds(task, n, rng):
        kind_N = rng.integers(2, size=n)
        return np.eye(2, QUERY_WIDTH)[kind_N] + 0.01 * rng.normal(size=(n, QUERY_WIDTH)), rng.normal(size=(n, WIDTH))

    pool = PromptPool(top_k=2, prompt_length=1, assignment="kmeans")
    init = functools.partial(pool.init, num_tasks=1, query_width=QUERY_WIDTH)
    params, state = jax.jit(init)(jax.random.key(1), embedding_VD=jnp.asarray(EMBEDDING_VD))
    for seed in range(5):
        keys_MD = pool.start_task(params, state, task=0, sample=two_kinds, rng=np.random.default_rng(seed))[0]["keys"]
        assert sorted(keys_MD.argmax(axis=1)) == [0, 1]


def test_uniform_keys_are_l2ps():
    _, _, params, state = started(tasks=(0,), assignment="learned", pool_size=10, initialisation="uniform")
    for name in ("keys", "prompts"):
        values = np.asarray(params[name])
        assert (values >= 0).all() and 0.004 < values.mean() < 0.006 and values.max() < 0.01
    assert state["ready"].all()


@pytest.mark.parametrize("assignment", ["kmeans", "similarity"])
def test_what_needs_data_at_a_tasks_start_refuses_other_starts(assignment):
    with pytest.raises(UserError, match=f"assignment='{assignment}' .* needs initialisation='strict'"):
        PromptPool(assignment=assignment, initialisation="paper")
    with pytest.raises(UserError, match="sharing='both' is unknown"):
        PromptPool(sharing="both")

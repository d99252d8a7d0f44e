"""The prompt pool's promises: what is chosen, what gets a gradient, what each task's start may read and set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.prompts.soft import SoftPrompts

WIDTH, QUERY_WIDTH, NUM_TASKS = 6, 8, 3
EMBEDDING_VD = 3.0 * np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
CENTRE_JD = np.eye(NUM_TASKS, QUERY_WIDTH, dtype=np.float32)  # one direction per task: well separated


def queries(task_B, seed=0, spread=0.2):
    noise = np.random.default_rng(seed).normal(size=(len(task_B), QUERY_WIDTH))
    return jnp.asarray(CENTRE_JD[np.asarray(task_B)] + spread * noise, jnp.float32)


class Data:
    """Training inputs of the synthetic tasks, keeping a list of which tasks were read."""

    def __init__(self):
        self.read = []

    def sample(self, task, n, rng):
        self.read.append(task)
        query_ND = CENTRE_JD[task] + 0.2 * rng.normal(size=(n, QUERY_WIDTH))
        return query_ND.astype(np.float32), rng.normal(loc=task, size=(n, WIDTH)).astype(np.float32)


@functools.cache
def initialised(pool, num_tasks):
    init = functools.partial(pool.init, num_tasks=num_tasks, query_width=QUERY_WIDTH)
    return jax.jit(init)(jax.random.key(1), embedding_VD=jnp.asarray(EMBEDDING_VD))


def made(start=(0, 1, 2), **settings):
    """(pool, params, state) of a small pool after the tasks in `start` were started."""
    pool = PromptPool(**{"top_k": 4, "prompt_length": 2, "shared_per_pair": 1, **settings})
    params, state = initialised(pool, NUM_TASKS)
    for task in start:
        params, state = pool.start_task(
            params, state, task=task, sample=Data().sample, rng=np.random.default_rng((5, task))
        )
    return pool, params, state


@functools.cache
def compiled(pool, selection):
    return jax.jit(functools.partial(pool.prompt, selection=selection))


def unit_rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- selection


@pytest.mark.parametrize("selection", ["train", "pool"])
def test_forward_equals_l2p(selection):
    """L2P's formula (google-research/l2p, models/prompt.py) on random arrays: cosine, task mask, top-k, sum / B."""
    pool, params, state = made(assignment="code", prompt_order="score", initialisation="random_unit")
    task_B, rng = np.asarray([2, 0, 1, 1, 2]), np.random.default_rng(3)
    params = {"keys": rng.normal(size=params["keys"].shape).astype(np.float32), "prompts": params["prompts"]}
    query_BD = rng.normal(size=(5, QUERY_WIDTH)).astype(np.float32)
    prompt_BPD, aux = compiled(pool, selection)(params, state, jnp.asarray(task_B), jnp.asarray(query_BD))

    similarity_BM = unit_rows(query_BD) @ unit_rows(params["keys"]).T
    masked_BM = np.where(np.asarray(state["assignment"])[task_B], similarity_BM, -np.inf)
    ranked_BM = masked_BM if selection == "train" else similarity_BM
    chosen_BK = np.argsort(-ranked_BM, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(aux["selected_BK"], chosen_BK)
    np.testing.assert_allclose(
        aux["pull_B"].mean(), np.take_along_axis(similarity_BM, chosen_BK, 1).sum() / 5, rtol=1e-5
    )
    np.testing.assert_array_equal(prompt_BPD, np.asarray(params["prompts"])[chosen_BK].reshape(5, 8, WIDTH))


def test_block_stands_by_ascending_key_id():
    pool, params, state = made()
    by_score = PromptPool(top_k=4, prompt_length=2, prompt_order="score")
    task_B = jnp.asarray([0, 1, 2, 2])
    prompt_BPD, aux = compiled(pool, "pool")(params, state, task_B, queries(task_B))
    _, scored = compiled(by_score, "pool")(params, state, task_B, queries(task_B))
    np.testing.assert_array_equal(aux["selected_BK"], np.sort(scored["selected_BK"], axis=1))
    assert (np.diff(scored["score_BK"], axis=1) <= 0).all()
    np.testing.assert_array_equal(
        np.asarray(prompt_BPD)[3].reshape(4, 2, WIDTH), params["prompts"][np.asarray(aux["selected_BK"])[3]]
    )


def test_ties_go_to_the_lowest_id():
    pool, params, state = made(assignment="learned", pool_size=9)
    params = {**params, "keys": np.ones_like(params["keys"])}
    _, aux = compiled(pool, "pool")(params, state, jnp.asarray([0, 1]), jnp.ones((2, QUERY_WIDTH)))
    np.testing.assert_array_equal(aux["selected_BK"], [[0, 1, 2, 3]] * 2)


def test_pool_selection_never_reads_the_task_id():
    pool, params, state = made(assignment="code")
    query_BD = queries([0, 1, 2, 0])
    clean = compiled(pool, "pool")(params, state, jnp.asarray([0, 1, 2, 0]), query_BD)
    poisoned = compiled(pool, "pool")(params, state, jnp.asarray([2, -9, 10**6, 1]), query_BD)
    jax.tree.map(np.testing.assert_array_equal, clean, poisoned)


def test_only_keys_of_tasks_seen_so_far_are_offered():
    pool, params, state = made(start=(0, 1))
    _, aux = compiled(pool, "pool")(params, state, jnp.asarray([2, 2]), queries([2, 2]))
    assert np.asarray(aux["selected_BK"]).max() < 8
    early, params, state = made(start=(0,), initialisation="paper", selectable="all")
    _, aux = compiled(early, "pool")(params, state, jnp.asarray([2]), queries([2], spread=0.0))
    np.testing.assert_array_equal(aux["selected_BK"], [[8, 9, 10, 11]])


def test_before_the_first_task_selection_is_defined_and_finite():
    pool, params, state = made(start=())
    for selection in ("pool", "oracle", "train"):
        prompt_BPD, aux = compiled(pool, selection)(params, state, jnp.asarray([1]), queries([1]))
        np.testing.assert_array_equal(prompt_BPD, 0.0)
        np.testing.assert_array_equal(aux["pull_B"], 0.0)
    assert not pool.active_rows(state, jnp.asarray([1]))["keys"].any()


def test_batch_size_and_order_change_nothing():
    pool, params, state = made(assignment="code")
    task_B = np.asarray([0, 1, 2, 1, 0, 2, 2, 0])
    query_BD = queries(task_B, spread=0.6)
    whole, aux = compiled(pool, "pool")(params, state, jnp.asarray(task_B), query_BD)
    order = np.random.default_rng(0).permutation(8)
    for rows in np.split(order, 4):
        part, part_aux = compiled(pool, "pool")(params, state, jnp.asarray(task_B[rows]), query_BD[rows])
        np.testing.assert_array_equal(part, np.asarray(whole)[rows])
        np.testing.assert_array_equal(part_aux["selected_BK"], np.asarray(aux["selected_BK"])[rows])


def test_mixed_batch_is_the_concatenation_of_single_task_batches():
    pool, params, state = made(assignment="code")
    task_B = np.asarray([0, 1, 2, 1])
    query_BD = queries(task_B, spread=0.6)
    mixed, aux = compiled(pool, "train")(params, state, jnp.asarray(task_B), query_BD)
    for task in range(NUM_TASKS):
        rows = np.flatnonzero(task_B == task)
        alone, alone_aux = compiled(pool, "train")(params, state, jnp.asarray(task_B[rows]), query_BD[rows])
        np.testing.assert_array_equal(alone, np.asarray(mixed)[rows])
        np.testing.assert_allclose(alone_aux["pull_B"], np.asarray(aux["pull_B"])[rows], rtol=1e-6)
        assert np.asarray(state["assignment"])[task, np.asarray(alone_aux["selected_BK"])].all()


def test_oracle_is_the_training_selection_and_equals_pool_under_perfect_retrieval():
    pool, params, state = made()  # disjoint, separated tasks
    task_B = jnp.asarray([0, 1, 2, 2, 0])
    oracle, train, blind = (
        compiled(pool, selection)(params, state, task_B, queries(task_B)) for selection in ("oracle", "train", "pool")
    )
    jax.tree.map(np.testing.assert_array_equal, oracle, train)
    jax.tree.map(np.testing.assert_array_equal, oracle, blind)


def test_with_all_keys_chosen_every_method_prepends_the_same_block():
    """k = M: PP, PP-TF on one common block, and shared soft prompts with the same vectors in the same order."""
    plain, params, state = made(assignment="learned", pool_size=4)
    forced, _, forced_state = made(assignment="all_to_all")
    task_B = jnp.asarray([0, 2])
    soft = SoftPrompts(num_tokens=8, per_task=False)
    blocks = {"prompts": jnp.reshape(params["prompts"], (1, 8, WIDTH))}
    expected, _ = soft.prompt(blocks, {"seen": jnp.ones(3, bool)}, task_B, selection="train")
    for pool, pool_state in ((plain, state), (forced, forced_state)):
        for selection in ("train", "pool"):
            prompt_BPD, _ = compiled(pool, selection)(params, pool_state, task_B, queries(task_B))
            np.testing.assert_array_equal(prompt_BPD, expected)


# ---- gradients and training


def loss_parts(pool, params, state, task_B, query_BD):
    prompt_BPD, aux = pool.prompt(params, state, task_B, query_BD, selection="train")
    return (jnp.sin(prompt_BPD) ** 2).sum(), aux["pull_B"].mean()


def gradient_of(loss, at):
    return jax.jit(jax.grad(loss))(at)


def test_keys_learn_from_the_pull_and_prompts_from_the_model_only():
    pool, params, state = made()
    task_B = jnp.asarray([0, 1])
    for part, (learns, stays) in enumerate([("prompts", "keys"), ("keys", "prompts")]):
        gradient = gradient_of(lambda p, i=part: loss_parts(pool, p, state, task_B, queries(task_B))[i], params)
        assert np.abs(gradient[learns]).max() > 0
        np.testing.assert_array_equal(gradient[stays], 0.0)
    gradient_BD = gradient_of(lambda q: sum(loss_parts(pool, params, state, task_B, q)), queries(task_B))
    np.testing.assert_array_equal(gradient_BD, 0.0)


def test_gradient_is_finite_for_keys_that_are_still_zero():
    pool, params, state = made(start=(0,))
    gradient = gradient_of(lambda p: loss_parts(pool, p, state, jnp.asarray([0]), queries([0]))[1], params)
    assert np.isfinite(gradient["keys"]).all()


def test_pull_brings_the_chosen_keys_closer():
    pool, params, state = made()
    task_B = jnp.asarray([0, 1, 2, 1])
    query_BD = queries(task_B, spread=0.6)

    def loss(params):
        return -pool.pull_weight * loss_parts(pool, params, state, task_B, query_BD)[1]

    moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient_of(loss, params))
    _, before = compiled(pool, "train")(params, state, task_B, query_BD)
    _, after = compiled(pool, "train")(moved, state, task_B, query_BD)
    np.testing.assert_array_equal(after["selected_BK"], before["selected_BK"])
    assert after["pull_B"].mean() > before["pull_B"].mean()


@pytest.mark.parametrize(("assignment", "active"), [("disjoint", 8), ("code", 7), ("learned", 100)])
def test_gradients_stay_within_the_active_rows(assignment, active):
    pool, params, state = made(assignment=assignment)
    task_B = jnp.asarray([0, 2, 0])
    rows = pool.active_rows(state, task_B)
    owned_M = np.asarray(state["assignment"])[[0, 2]].any(axis=0)
    gradient = gradient_of(lambda p: sum(loss_parts(pool, p, state, task_B, queries(task_B))), params)
    for name in ("keys", "prompts"):
        np.testing.assert_array_equal(rows[name], owned_M)
        assert rows[name].sum() == active
        moved_M = np.asarray(gradient[name] != 0).reshape(len(owned_M), -1).any(axis=1)
        assert moved_M.any() and not (moved_M & ~np.asarray(rows[name])).any()


@functools.cache
def trained_on_the_stream(assignment):
    """A pool taught three tasks in order with plain gradient ascent on the pull, rows masked as in training."""
    pool, params, state = made(start=(), assignment=assignment, top_k=8, shared_per_pair=2)

    @jax.jit
    def step(params, state, task_B, query_BD):
        gradient = jax.grad(lambda p: loss_parts(pool, p, state, task_B, query_BD)[1])(params)
        active_M = pool.active_rows(state, task_B)["keys"]
        return {**params, "keys": params["keys"] + active_M[:, None] * gradient["keys"]}

    for task in range(NUM_TASKS):
        rng = np.random.default_rng(task)
        params, state = pool.start_task(params, state, task=task, sample=Data().sample, rng=rng)
        task_B = jnp.full((16,), task)
        for number in range(60):
            params = step(params, state, task_B, queries(task_B, seed=number))
    return pool, params, state


def test_retrieval_is_perfect_on_separated_tasks_after_training():
    pool, params, state = trained_on_the_stream("disjoint")
    task_B = np.repeat(np.arange(NUM_TASKS), 20)
    _, aux = compiled(pool, "pool")(params, state, jnp.asarray(task_B), queries(task_B, seed=99))
    assert np.asarray(state["assignment"])[task_B[:, None], np.asarray(aux["selected_BK"])].all()


def test_a_task_keeps_only_the_shared_keys_no_later_task_took():
    """k - s (T - t) own keys are found: 4, 6, 8 here; with k = 20 and four tasks 14, 16, 18, 20."""
    pool, params, state = trained_on_the_stream("code")
    task_B = np.arange(NUM_TASKS)
    _, aux = compiled(pool, "pool")(params, state, jnp.asarray(task_B), queries(task_B, spread=0.02))
    own_BK = np.asarray(state["assignment"])[task_B[:, None], np.asarray(aux["selected_BK"])]
    # A key at a right angle to the query is no match, whoever owns it.
    np.testing.assert_array_equal((own_BK & (np.asarray(aux["score_BK"]) > 0.5)).sum(axis=1), [4, 6, 8])


def test_converged_keys_of_the_published_table_are_found_14_16_18_20_times():
    pool = PromptPool(top_k=20, prompt_length=1, assignment="code", initialisation="random_unit")
    params, state = initialised(pool, 4)
    last_owner_M = 3 - np.asarray(state["assignment"])[::-1].argmax(axis=0)
    params = {**params, "keys": jnp.eye(4, QUERY_WIDTH)[last_owner_M]}
    state = {**state, "seen": jnp.ones(4, bool)}
    task_B = np.arange(4)
    _, aux = compiled(pool, "pool")(params, state, jnp.asarray(task_B), jnp.eye(4, QUERY_WIDTH))
    own_BK = np.asarray(state["assignment"])[task_B[:, None], np.asarray(aux["selected_BK"])]
    np.testing.assert_array_equal((own_BK & (np.asarray(aux["score_BK"]) > 0.5)).sum(axis=1), [14, 16, 18, 20])


# ---- the start of a task


def test_strict_start_reads_and_sets_this_task_only():
    pool, params, state = made(start=(), assignment="code")
    for task in range(NUM_TASKS):
        data = Data()
        new_params, new_state = pool.start_task(
            params, state, task=task, sample=data.sample, rng=np.random.default_rng(task)
        )
        assert data.read == [task]
        new_M = np.asarray(state["assignment"])[task] & ~np.asarray(state["ready"])
        np.testing.assert_array_equal(new_state["ready"], np.asarray(state["ready"]) | new_M)
        for name in ("keys", "prompts"):
            changed_M = (new_params[name] != np.asarray(params[name])).reshape(len(new_M), -1).any(axis=1)
            np.testing.assert_array_equal(changed_M, new_M)
        params, state = new_params, new_state
    assert state["ready"].all() and state["seen"].all()
    assert not pool.sees_future_data
    again, _ = pool.start_task(params, state, task=1, sample=data.sample, rng=np.random.default_rng(0))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_new_rows_are_queries_and_mean_embeddings_of_one_group():
    seen = {}

    def sample(task, n, rng):
        seen["query"], seen["embedding"] = rng.normal(size=(n, QUERY_WIDTH)), rng.normal(size=(n, WIDTH))
        return seen["query"], seen["embedding"]

    pool, params, state = made(start=())
    params, _ = pool.start_task(params, state, task=1, sample=sample, rng=np.random.default_rng(0))
    vectors = unit_rows(seen["embedding"]).reshape(4, 2, WIDTH)
    np.testing.assert_allclose(params["prompts"][4:8], vectors, rtol=1e-5)
    groups = unit_rows(seen["query"]).reshape(4, 2, QUERY_WIDTH)
    for key, group in zip(params["keys"][4:8], groups, strict=True):
        assert np.isclose(key, group, atol=1e-5).all(axis=1).any()


@pytest.mark.parametrize(("assignment", "counts"), [("code", [6, 4, 2]), ("learned", [4, 3, 3])])
def test_paper_start_sets_all_keys_from_all_tasks_before_the_first(assignment, counts):
    settings = {"pool_size": 10} if assignment == "learned" else {"shared_per_pair": 2, "top_k": 6}
    pool, params, state = made(start=(), assignment=assignment, initialisation="paper", **settings)
    data, asked = Data(), []

    def sample(task, n, rng):
        asked.append(n // pool.prompt_length)
        return data.sample(task, n, rng)

    params, state = pool.start_task(params, state, task=0, sample=sample, rng=np.random.default_rng(0))
    assert pool.sees_future_data and data.read == [0, 1, 2] and asked == counts
    assert state["ready"].all()
    np.testing.assert_array_equal(state["seen"], [True, False, False])
    after, _ = pool.start_task(params, state, task=1, sample=sample, rng=np.random.default_rng(0))
    assert data.read == [0, 1, 2]
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_random_start_is_ready_at_once_and_reads_no_data():
    def sample(task, n, rng):
        raise AssertionError("random initialisation opened the data")

    pool, params, state = made(start=(), assignment="learned", initialisation="random_unit")
    assert state["ready"].all()
    np.testing.assert_allclose(np.linalg.norm(params["keys"], axis=1), 1.0, rtol=1e-5)
    rows = {tuple(row) for row in EMBEDDING_VD}
    vectors = [tuple(row) for row in np.asarray(params["prompts"]).reshape(-1, WIDTH)]
    assert set(vectors) <= rows and len(set(vectors)) == len(vectors) == 200
    started, state = pool.start_task(params, state, task=0, sample=sample, rng=np.random.default_rng(0))
    jax.tree.map(np.testing.assert_array_equal, started, params)


@pytest.mark.parametrize("scale", ["unit", "embedding"])
def test_prompt_scale(scale):
    _, params, _ = made(prompt_scale=scale)
    expected = 1.0 if scale == "unit" else np.linalg.norm(EMBEDDING_VD, axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(params["prompts"], axis=-1), expected, rtol=1e-5)


# ---- state


def test_the_table_is_data_and_survives_a_file(tmp_path):
    pool, params, state = made(assignment="code")
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz") as stored:
        loaded = dict(stored)
    assert loaded.keys() == state.keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(state))
    task_B = jnp.asarray([0, 1, 2])
    jax.tree.map(
        np.testing.assert_array_equal,
        compiled(pool, "train")(params, state, task_B, queries(task_B)),
        compiled(pool, "train")(params, loaded, task_B, queries(task_B)),
    )
    # Never computed again from the settings: exchange two tasks' rows and the selection follows the data.
    swapped = {**loaded, "assignment": loaded["assignment"][[1, 0, 2]]}
    _, aux = compiled(pool, "train")(params, swapped, jnp.asarray([0]), queries([0]))
    assert loaded["assignment"][1, np.asarray(aux["selected_BK"])].all()


def test_a_state_holds_nothing_that_no_one_reads():
    """What was selected is counted where it is scored (key_usage), not in every checkpoint."""
    _, _, state = made()
    assert set(state) == {"assignment", "ready", "seen", "prompt_norm", "copy_of"}


def test_interface_matches_its_shapes():
    pool, params, state = made(start=())
    assert pool.needs_query and pool.num_tokens == 8
    shapes = jax.eval_shape(
        lambda key, rows: pool.init(key, num_tasks=3, embedding_VD=rows, query_width=QUERY_WIDTH),
        jax.random.key(0),
        jnp.asarray(EMBEDDING_VD),
    )
    assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(lambda s: s.shape, shapes)
    started, started_state = made()[1:]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), (started, started_state)) == jax.tree.map(
        lambda s: (s.shape, s.dtype), shapes
    )
    assert {name: len(axes) for name, axes in pool.param_axes().items()} == {"keys": 2, "prompts": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assignment": "pairs"}, "assignment='pairs' is unknown"),
        ({"initialisation": "future"}, "choose one of"),
        ({"selectable": "none"}, "selectable='none'"),
        ({"prompt_scale": "big"}, "prompt_scale='big'"),
        ({"prompt_order": "random"}, "prompt_order='random'"),
        ({"top_k": 0}, "top_k=0"),
        ({"prompt_length": 0}, "prompt_length=0"),
        ({"pull_weight": -0.1}, "pull_weight=-0.1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        PromptPool(**settings)


def test_a_pool_that_cannot_serve_the_stream_is_refused():
    pool = PromptPool(top_k=20, assignment="code")
    with pytest.raises(UserError, match="at most 11 tasks"):
        pool.init(jax.random.key(0), num_tasks=12, embedding_VD=jnp.asarray(EMBEDDING_VD), query_width=QUERY_WIDTH)

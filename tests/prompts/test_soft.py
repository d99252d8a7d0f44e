"""Soft prompts: whose block is prepended, what may change, where the vectors start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.prompts.soft import SoftPrompts

EMBEDDING_VD = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def made(per_task, num_tasks=3):
    module = SoftPrompts(num_tokens=5, per_task=per_task)
    params, state = module.init(
        jax.random.key(0), num_tasks=num_tasks, embedding_VD=jnp.asarray(EMBEDDING_VD), query_width=8
    )
    return module, params, state


@pytest.mark.parametrize(("per_task", "blocks"), [(False, 1), (True, 3)])
def test_blocks_are_different_rows_of_the_embedding(per_task, blocks):
    _, params, state = made(per_task)
    assert params["prompts"].shape == (blocks, 5, 8)
    prompts = np.asarray(params["prompts"])
    rows = [[np.flatnonzero((EMBEDDING_VD == v).all(axis=1)).item() for v in block] for block in prompts]
    assert all(len(set(block)) == 5 for block in rows)
    assert len({tuple(block) for block in rows}) == blocks
    assert not state["seen"].any()


def test_per_task_takes_the_block_of_each_example():
    module, params, state = made(per_task=True)
    task_B = jnp.asarray([2, 0, 2, 1])
    prompt_BPD, aux = module.prompt(params, state, task_B, None, selection="pool")
    np.testing.assert_array_equal(prompt_BPD, np.asarray(params["prompts"])[[2, 0, 2, 1]])
    np.testing.assert_array_equal(aux["selected_BK"][:, 0], task_B)
    np.testing.assert_array_equal(aux["pull_B"], 0.0)


def test_shared_never_reads_the_task():
    module, params, state = made(per_task=False)
    poisoned_B = jnp.asarray([10**6, -7])
    prompt_BPD, aux = module.prompt(params, state, poisoned_B, None, selection="pool")
    np.testing.assert_array_equal(prompt_BPD, np.repeat(params["prompts"], 2, axis=0))
    np.testing.assert_array_equal(aux["selected_BK"], 0)


@pytest.mark.parametrize(("per_task", "active"), [(False, [True]), (True, [True, False, True])])
def test_gradients_reach_active_rows_only(per_task, active):
    module, params, state = made(per_task)
    task_B = jnp.asarray([2, 0, 2])

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: (module.prompt(p, state, task_B, None, selection="train")[0] ** 2).sum())(params)

    moved = np.asarray(gradient(params)["prompts"] != 0).any(axis=(1, 2))
    np.testing.assert_array_equal(moved, active)
    np.testing.assert_array_equal(module.active_rows(state, task_B)["prompts"], active)


def test_start_task_marks_it_and_reads_no_data():
    def sample(task, n, rng):
        raise AssertionError("a soft prompt opened the data")

    module, params, state = made(per_task=True)
    started, state = module.start_task(params, state, task=1, sample=sample, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(started["prompts"], params["prompts"])
    np.testing.assert_array_equal(state["seen"], [False, True, False])


def test_interface_matches_its_shapes():
    module, params, state = made(per_task=True)
    assert not module.needs_query and module.pull_weight == 0.0 and module.num_tokens == 5
    assert {name: len(axes) for name, axes in module.param_axes().items()} == {
        name: array.ndim for name, array in params.items()
    }
    shapes = jax.eval_shape(
        lambda key, rows: module.init(key, num_tasks=3, embedding_VD=rows, query_width=8),
        jax.random.key(0),
        jnp.asarray(EMBEDDING_VD),
    )
    assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(lambda s: s.shape, shapes)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="num_tokens=0"):
        SoftPrompts(num_tokens=0, per_task=False)
    with pytest.raises(UserError, match="41 prompt vectors .* vocabulary of 40"):
        SoftPrompts(num_tokens=41, per_task=False).init(
            jax.random.key(0), num_tasks=1, embedding_VD=jnp.asarray(EMBEDDING_VD), query_width=8
        )

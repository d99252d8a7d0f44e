"""The step: only labelled leaves move, rows without an owner stay bit for bit, sizes do not change the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.prompts.soft import SoftPrompts
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import head_loss
from codegen2_jax.training.optimizers import Adafactor, AdamW, schedule
from codegen2_jax.training.step import (
    Learner,
    TrainState,
    make_train_step,
    merge_params,
    split_params,
    state_shardings,
)

VOCAB, WIDTH, TASKS, BATCH = 48, 16, 2, 8
MODEL = EncoderDecoder(
    T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_ff=32, num_encoder_layers=2, num_decoder_layers=2, num_heads=4, head_dim=4
    )
)
POOL = PromptPool(top_k=2, prompt_length=2, assignment="disjoint")
PROMPT_ONLY = (("prompt/.*", "train"), (".*", "freeze"))
EVERYTHING = ((".*", "train"),)
METHODS = {
    "pool": (POOL, PROMPT_ONLY),
    "task_prompts": (SoftPrompts(num_tokens=3, per_task=True), PROMPT_ONLY),
    "shared_prompt": (SoftPrompts(num_tokens=3, per_task=False), PROMPT_ONLY),
    "finetune": (None, EVERYTHING),
}


def make_batch(seed, *, tasks=(0, 1), size=BATCH, source=10, target=7):
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, VOCAB, (size, target)).astype(np.int32)
    lengths = rng.integers(2, target + 1, size)
    return {
        "inputs_BS": rng.integers(3, VOCAB, (size, source)).astype(np.int32),
        "inputs_mask_BS": np.arange(source)[None] < rng.integers(3, source + 1, size)[:, None],
        "decoder_inputs_BT": np.concatenate([np.zeros((size, 1), np.int32), targets[:, :-1]], axis=1),
        "targets_BT": targets,
        "loss_mask_BT": np.arange(target)[None] < lengths[:, None],
        "task_B": np.resize(np.asarray(tasks, np.int32), size),
        "query_BD": rng.normal(size=(size, WIDTH)).astype(np.float32),
    }


def build(method, optimizer, *, labels=None, constrain=None, **options):
    prompt, method_labels = METHODS[method]
    labels = labels or method_labels
    learner = Learner(model=dataclasses.replace(MODEL, constrain=constrain), prompt=prompt)

    def initial():
        params, prompt_state = {"model": MODEL.init_params(jax.random.key(0))}, {}
        if prompt is not None:
            params["prompt"], prompt_state = prompt.init(
                jax.random.key(1), num_tasks=TASKS, embedding_VD=params["model"]["embedding"], query_width=WIDTH
            )
            if "ready" in prompt_state:  # as after both tasks were opened
                prompt_state["ready"] = jnp.ones_like(prompt_state["ready"])
                params["prompt"]["keys"] = jax.random.normal(jax.random.key(2), params["prompt"]["keys"].shape)
                params["prompt"]["prompts"] = jax.random.normal(jax.random.key(3), params["prompt"]["prompts"].shape)
            prompt_state["seen"] = jnp.ones_like(prompt_state["seen"])
        return *split_params(params, labels), prompt_state

    trainable, frozen, prompt_state = jax.eval_shape(initial)
    axes, _ = split_params(learner.param_axes(), labels)
    rows = learner.row_shapes(trainable, prompt_state)
    transformation = optimizer.transformation(10, axes, rows)

    def new_state():
        trainable, frozen, prompt_state = initial()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=frozen,
            opt_state=transformation.init(trainable),
            prompt_state=prompt_state,
            skipped=jnp.zeros((), jnp.int32),
        )

    return learner, new_state, make_train_step(learner, transformation, seed=0, **options)


def leaves(tree):
    return {partitioning.leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


ADAM = AdamW(learning_rate=0.1, schedule="constant", weight_decay=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_labelled_moves_and_owns_moments(method):
    learner, new_state, step = build(method, ADAM)
    state = jax.jit(new_state)()
    new, metrics = jax.jit(step)(state, make_batch(0))
    old_leaves, new_leaves = (leaves(merge_params(s.trainable, s.frozen)) for s in (state, new))
    moved = {name for name in old_leaves if not np.array_equal(old_leaves[name], new_leaves[name])}
    labelled = {name for name in old_leaves if METHODS[method][1] == EVERYTHING or name.startswith("prompt/")}
    assert moved == labelled
    moments = {name for name, leaf in leaves(new.opt_state).items() if leaf.size > WIDTH}
    assert all(any(name.endswith(owner) for owner in labelled) for name in moments)
    assert int(new.step) == 1 and np.isfinite(float(metrics["loss"]))


def test_on_one_device_logits_are_never_whole_and_what_is_learned_is_the_same(monkeypatch):
    whole, batch, found = f"f32[{BATCH},7,{VOCAB}]", make_batch(0), {}
    for small in (head_loss.SMALL_LOGITS, 2**10):
        monkeypatch.setattr(head_loss, "SMALL_LOGITS", small)
        for method in ("pool", "finetune"):
            _, new_state, step = build(method, ADAM)
            traced = jax.make_jaxpr(step)(jax.eval_shape(new_state), batch)
            assert (whole in str(traced)) == (small > 2**10), method
        found[small] = jax.jit(step)(jax.jit(new_state)(), batch)  # of finetune
    (one, metrics), (other, others_metrics) = found.values()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], others_metrics[name], rtol=1e-5, err_msg=name)
    one, other = leaves(one.opt_state), leaves(other.opt_state)
    for name in one:  # moments: gradients, where Adam's first step is their signs
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_rows_of_other_tasks_stay_bit_for_bit():
    """T3: keys, prompts, both moments and the step counts of rows that the batch's tasks do not own."""
    _, new_state, step = build("pool", ADAM)
    step = jax.jit(step)
    state, _ = step(jax.jit(new_state)(), make_batch(0, tasks=(0, 1)))
    after = state
    for seed in (1, 2):  # a second step too: momentum and weight decay would move rows that gradients leave alone
        after, _ = step(after, make_batch(seed, tasks=(1,)))
    owned = np.asarray(state.prompt_state["assignment"])[1]
    seen_rows = 0
    for tree in ("trainable", "opt_state"):
        old, new = leaves(getattr(state, tree)), leaves(getattr(after, tree))
        for name in old:
            if name.endswith(("prompt/keys", "prompt/prompts")):
                seen_rows += 1
                assert np.array_equal(old[name][~owned], new[name][~owned]), name
                pairs = zip(old[name][owned], new[name][owned], strict=True)
                assert not any(np.array_equal(before, after) for before, after in pairs), name
    assert seen_rows == 2 * 4  # value, count and two moments of keys and of prompts


def test_a_row_first_touched_late_takes_an_ordinary_first_step():
    """Bias correction counts a row's own steps; with a global count the step would be some three times too large."""
    _, new_state, step = build("pool", AdamW(learning_rate=0.1, schedule="constant"))
    step, state = jax.jit(step), jax.jit(new_state)()
    for seed in range(5):
        state, _ = step(state, make_batch(seed, tasks=(0,)))
    new, _ = step(state, make_batch(9, tasks=(1,)))
    owned = np.asarray(state.prompt_state["assignment"])[1]
    change = np.abs(leaves(new.trainable)["prompt/keys"] - leaves(state.trainable)["prompt/keys"])[owned]
    np.testing.assert_allclose(np.median(change), 0.1, rtol=1e-3)


@pytest.mark.parametrize("method", ["pool", "finetune"])
def test_micro_batches_of_unequal_token_counts_equal_one_batch(method):
    results = []
    for count in (1, 4):
        optimizer = AdamW(learning_rate=0.1, schedule="constant", eps=1.0)
        _, new_state, step = build(method, optimizer, accumulation_steps=count)
        state, metrics = jax.jit(step)(jax.jit(new_state)(), make_batch(0))
        results.append((leaves(state.trainable), float(metrics["loss"]), float(metrics["grad_norm"])))
    (one, loss_one, norm_one), (many, loss_many, norm_many) = results
    np.testing.assert_allclose([loss_one, norm_one], [loss_many, norm_many], rtol=1e-5)
    for name in one:
        np.testing.assert_allclose(one[name], many[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("method", ["pool", "finetune"])
def test_device_counts_agree(method):
    """T7: one device and eight in two arrangements give the same loss, gradient norm and parameters."""
    optimizer = AdamW(learning_rate=0.1, schedule="constant", eps=1.0, clip_norm=1.0)
    results = []
    for sizes, count in ((None, 1), (None, 8), ({"data": 2, "fsdp": 2, "model": 2}, 8)):
        layout = partitioning.make_layout(sizes, devices=jax.devices()[:count])
        learner, new_state, step = build(method, optimizer, constrain=layout.constrain)
        shardings = state_shardings(layout, jax.eval_shape(new_state), learner.param_axes())
        state = partitioning.init_sharded(new_state, shardings)()
        step = jax.jit(step, out_shardings=(shardings, None))
        for seed in range(2):
            state, metrics = step(state, partitioning.put_batch(layout, make_batch(seed)))
        results.append((leaves(state.trainable), float(metrics["loss"]), float(metrics["grad_norm"])))
    for other, loss, norm in results[1:]:
        np.testing.assert_allclose([loss, norm], results[0][1:], rtol=2e-5)
        for name in other:
            np.testing.assert_allclose(other[name], results[0][0][name], atol=2e-5, err_msg=name)


def test_moments_lie_like_their_parameters():
    learner, new_state, _ = build("finetune", ADAM)
    layout = partitioning.make_layout({"fsdp": 4, "model": 2})
    shardings = state_shardings(layout, jax.eval_shape(new_state), learner.param_axes())
    of_params = leaves_of_shardings(shardings.trainable)
    of_moments = leaves_of_shardings(shardings.opt_state)
    cut = {name for name, sharding in of_params.items() if not sharding.is_fully_replicated}
    assert "model/embedding" in cut
    for name in cut:
        matching = [s for moment, s in of_moments.items() if moment.endswith(("mu/" + name, "nu/" + name))]
        assert len(matching) == 2 and all(s == of_params[name] for s in matching)


def leaves_of_shardings(tree):
    return {partitioning.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_step_that_is_not_finite_changes_nothing_but_counters():
    _, new_state, step = build("finetune", ADAM)
    state = jax.jit(new_state)()
    state.trainable["model"]["embedding"] = state.trainable["model"]["embedding"].at[5].set(jnp.nan)
    batch = make_batch(0)
    batch["inputs_BS"][0, 0] = 5
    new, _ = jax.jit(step)(state, batch)
    assert (int(new.step), int(new.skipped)) == (1, 1)
    for tree in ("trainable", "opt_state"):
        old_leaves, new_leaves = leaves(getattr(state, tree)), leaves(getattr(new, tree))
        assert all(np.array_equal(old_leaves[n], new_leaves[n], equal_nan=True) for n in old_leaves)


def test_an_unlabelled_parameter_is_an_error():
    params = {"model": {"a": 1}, "prompt": {"b": 2}}
    with pytest.raises(UserError, match="prompt/b"):
        split_params(params, (("model/.*", "freeze"),))
    with pytest.raises(UserError, match="'maybe'"):
        split_params(params, ((".*", "maybe"),))
    assert split_params(params, PROMPT_ONLY) == ({"prompt": {"b": 2}}, {"model": {"a": 1}})


def test_adam_equals_optax_where_all_rows_are_active():
    params = {"a": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones((4,))}
    rows = jax.tree.map(lambda _: jnp.ones((), bool), params)
    axes = {"a": ("embed", "mlp"), "b": ("embed",)}
    ours = AdamW(learning_rate=0.05, schedule="linear", warmup_steps=0, weight_decay=0.1).transformation(10, axes, rows)
    theirs = optax.adamw(optax.linear_schedule(0.05, 0.0, 10), weight_decay=0.1, mask={"a": True, "b": False})
    state, their_state, other = ours.init(params), theirs.init(params), params
    for i in range(4):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(p * (i + 1)), params)
        updates, state = ours.update(grads, state, params, rows=rows)
        their_updates, their_state = theirs.update(grads, their_state, other)
        params, other = optax.apply_updates(params, updates), optax.apply_updates(other, their_updates)
    for name in params:
        np.testing.assert_allclose(params[name], other[name], rtol=1e-5, atol=1e-7)


def test_adafactor_on_stacked_layers_equals_one_optimizer_per_layer():
    stacked = jax.random.normal(jax.random.key(0), (3, 130, 140)) * jnp.asarray([0.1, 1.0, 10.0])[:, None, None]
    grads = jax.random.normal(jax.random.key(1), stacked.shape) * jnp.asarray([5.0, 0.1, 1.0])[:, None, None]
    rows = {"w": jnp.ones((), bool)}
    optimizer = Adafactor(learning_rate=0.01)
    ours = optimizer.transformation(10, {"w": ("layers", "embed", "mlp")}, rows)
    update, _ = ours.update({"w": grads}, ours.init({"w": stacked}), {"w": stacked}, rows=rows)
    single = optimizer.transformation(10, {"w": ("embed", "mlp")}, rows)
    for layer in range(3):
        one = {"w": stacked[layer]}
        expected, _ = single.update({"w": grads[layer]}, single.init(one), one, rows=rows)
        np.testing.assert_allclose(update["w"][layer], expected["w"], rtol=1e-5)


def test_adafactor_refuses_a_pool():
    with pytest.raises(UserError, match="use AdamW"):
        build("pool", Adafactor(learning_rate=0.01))


def test_rms_scaling_is_per_layer():
    params = {"w": jnp.stack([jnp.full((4, 4), 0.5), jnp.full((4, 4), 5.0)])}
    rows = {"w": jnp.ones((), bool)}
    tx = AdamW(learning_rate=0.1, schedule="constant", scale_by_rms=True).transformation(
        10, {"w": ("layers", "embed", "mlp")}, rows
    )
    updates, _ = tx.update({"w": jnp.ones((2, 4, 4))}, tx.init(params), params, rows=rows)
    np.testing.assert_allclose(updates["w"][:, 0, 0], [-0.05, -0.5], rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("constant", [0.05, 0.1, 0.1, 0.1]), ("linear", [0.05, 0.1, 0.1, 0.05]), ("cosine", [0.05, 0.1, 0.1, 0.05])],
)
def test_schedules_warm_up_and_decay_to_zero(shape, expected):
    rate = schedule(0.1, shape, warmup_steps=2, num_steps=6)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 1, 2, 4)], expected, rtol=1e-5)
    if shape != "constant":
        np.testing.assert_allclose(float(rate(6)), 0.0, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"b1": 1.0}, "b1=1.0"),
        ({"rates": (("x", -1.0),)}, "'x'=-1.0"),
        ({"warmup_steps": -3}, "warmup_steps=-3 is out of range"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        AdamW(**{"learning_rate": 0.1, **change})


def test_a_rate_for_no_parameter_is_refused_with_the_nearest_name():
    axes = {"prompt": {"keys": ("prompt", "query"), "prompts": ("prompt", "prompt_token", "embed")}}
    rows = {"prompt": {"keys": jnp.ones((2, 1), bool), "prompts": jnp.ones((2, 1, 1), bool)}}
    misspelt, right = (AdamW(learning_rate=1.0, rates=((name, 0.1),)) for name in ("prompt/key", "prompt/ke.s"))
    right.transformation(10, axes, rows)
    with pytest.raises(UserError, match="'prompt/key' matches no parameter that trains; the nearest is 'prompt/keys'"):
        misspelt.transformation(10, axes, rows)
    names = ["prompt/keys", "prompt/prompts"]
    assert right.narrowed(names[1:], names).rates == () and right.narrowed(names[:1], names) == right
    with pytest.raises(UserError, match="'prompt/key' matches no parameter"):
        misspelt.narrowed(names[:1], names)


def test_one_file_may_give_a_rate_to_the_weights_and_one_to_the_prompt_of_every_method():
    axes = {"prompt": {"keys": ("prompt", "query"), "prompts": ("prompt", "prompt_token", "embed")}}
    rows = {"prompt": {"keys": jnp.ones((2, 1), bool), "prompts": jnp.ones((2, 1, 1), bool)}}
    AdamW(learning_rate=1.0, rates=(("prompt/.*", 0.1), ("model/.*", 1e-4))).transformation(10, axes, rows)
    with pytest.raises(UserError, match="'model/head.*' matches no parameter that trains"):
        AdamW(learning_rate=1.0, rates=(("model/head.*", 0.1),)).transformation(10, axes, rows)

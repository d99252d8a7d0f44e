"""One hash of all weights and moments on 1, 2, 4 and 8 devices."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import ordered_reduction
from codegen2_jax.training.optimizers import AdamW
from codegen2_jax.training.step import Learner, TrainState, make_train_step, split_params, state_shardings

SIZES = {"vocab_size": 64, "d_model": 24, "d_ff": 40, "num_heads": 4, "head_dim": 6, "dropout_rate": 0.1}
MODELS = {
    "t5": EncoderDecoder(T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=1)),
    "codegen": DecoderOnly(CodeGenConfig(**SIZES, num_layers=2, rotary_dim=4)),
}
PARTS, ROWS = 8, 16


def make_batch(seed, length=11):
    rng = np.random.default_rng(seed)
    tokens = lambda: rng.integers(4, 64, (ROWS, length)).astype(np.int32)  # noqa: E731
    mask = np.arange(length)[None] < rng.integers(3, length + 1, (ROWS, 1))
    return {
        "inputs_BS": tokens(),
        "inputs_mask_BS": mask,
        "decoder_inputs_BT": tokens(),
        "targets_BT": tokens(),
        "loss_mask_BT": mask,
        "task_B": np.zeros(ROWS, np.int32),
    }


def train(name, devices, *, steps=2):
    """(losses as hexadecimal, SHA-256 over the state) after a few steps."""
    layout = partitioning.make_layout(devices=jax.devices()[:devices])
    learner = Learner(model=MODELS[name])
    everything = ((".*", "train"),)
    axes, _ = split_params(learner.param_axes(), everything)
    rows = learner.row_shapes({"model": learner.model.param_shapes}, {})
    optimizer = AdamW(learning_rate=1e-2, clip_norm=1.0).transformation(10, axes, rows)

    def new_state():
        trainable = {"model": learner.model.init_params(jax.random.key(0))}
        zero, empty = jnp.zeros((), jnp.int32), {}
        opt_state = optimizer.init(trainable)
        return TrainState(
            step=zero, trainable=trainable, frozen=empty, opt_state=opt_state, prompt_state=empty, skipped=zero
        )

    shardings = state_shardings(layout, jax.eval_shape(new_state), learner.param_axes())
    in_parts = functools.partial(ordered_reduction.in_order, parts=PARTS, layout=layout)
    step = make_train_step(learner, optimizer, seed=0, dropout=True, in_parts=in_parts)
    step = jax.jit(step, out_shardings=(shardings, partitioning.replicated(layout)))
    state, losses = partitioning.init_sharded(new_state, shardings)(), []
    for number in range(steps):
        state, metrics = step(state, partitioning.put_batch(layout, make_batch(number)))
        losses.append(float(metrics["loss"]).hex())
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return losses, hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


@pytest.mark.parametrize("name, counts", [("codegen", (1, 4)), ("t5", (1, 8))])
def test_one_hash_on_any_number_of_devices(name, counts):
    outcomes = {devices: train(name, devices) for devices in counts}
    assert len(set(map(str, outcomes.values()))) == 1, outcomes


def test_parts_that_do_not_fit_are_the_users_error():
    layout = partitioning.make_layout()
    with pytest.raises(UserError, match="ORDERED_REDUCTION=4 parts must be a multiple of the 8 devices"):
        ordered_reduction.check(4, layout, 16)
    with pytest.raises(UserError, match="divide the 12 rows"):
        ordered_reduction.check(8, layout, 12)
    with pytest.raises(UserError, match="needs whole weights on every device"):
        ordered_reduction.check(8, partitioning.make_layout({"data": 4, "model": 2}), 16)

"""The loop around the step: the device never waits for the host, buffers are taken over, a range of steps is traced."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import NonFiniteError, UserError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import loop, optimizers
from codegen2_jax.training.profiling import Profile
from codegen2_jax.training.step import Learner, TrainState, make_train_step

MODEL = DecoderOnly(
    CodeGenConfig(
        vocab_size=64, d_model=32, d_ff=64, num_layers=2, num_heads=2, head_dim=16, rotary_dim=4, dtype="bfloat16"
    )
)


class Log:
    """Stands for tracker and progress, and keeps what they are told."""

    def __init__(self):
        self.lines, self.updates = [], []

    def metrics(self, step, values, **labels):
        self.lines.append((step, values))

    def update(self, step, **values):
        self.updates.append(step)


def batch_of(number):
    tokens = np.random.default_rng(number).integers(1, 64, (2, 12)).astype(np.int32)
    return {
        "tokens_BT": tokens,
        "targets_BT": np.roll(tokens, -1, axis=1),
        "positions_BT": np.arange(12, dtype=np.int32)[None].repeat(2, 0),
        "segments_BT": np.ones((2, 12), np.int32),
        "loss_mask_BT": np.ones((2, 12), bool),
        "task_B": np.zeros(2, np.int32),
        "record_B": np.zeros(2, np.int32),
    }


def endless():
    return map(batch_of, iter(int, 1))


@functools.cache
def built():
    """(the jitted step, a function that makes its first state)."""
    learner = Learner(model=MODEL)
    axes, shapes = learner.param_axes(), {"model": MODEL.param_shapes}
    rows = jax.tree.map(lambda _: jnp.ones((), bool), shapes)
    transformation = optimizers.AdamW(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0).transformation(
        100, axes, rows
    )

    def new_state():
        params = {"model": MODEL.init_params(jax.random.key(0))}
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            trainable=params,
            frozen={},
            opt_state=transformation.init(params),
            prompt_state={},
            skipped=jnp.zeros((), jnp.int32),
        )

    step = make_train_step(learner, transformation, seed=0)
    return jax.jit(step, donate_argnums=0), jax.jit(new_state)


def run(step, state, batches, *, last, **options):
    layout = partitioning.make_layout(devices=jax.devices()[:1])
    log, clock = Log(), loop.Clock()
    found = loop.run_steps(
        step, state, batches, first=0, last=last, layout=layout, tracker=log, progress=log, clock=clock, **options
    )
    return found, log


def test_no_array_crosses_by_accident(monkeypatch):
    step, new_state = built()
    state = new_state()
    with jax.transfer_guard("disallow"):
        (state, at), log = run(step, state, endless(), last=21)
        assert (at, [number for number, _ in log.lines]) == (21, [10, 20, 21])
        with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):  # the guard is awake
            step(state, batch_of(0))
    assert set(log.lines[0][1]) == {"loss", "accuracy", "pull", "grad_norm", "tokens"}


class Number:
    """A metric that notes when it is read."""

    def __init__(self, value, events, name):
        self.value, self.events, self.name = value, events, name

    def __array__(self, *_, **__):
        self.events.append(self.name)
        return np.asarray(self.value)

    def block_until_ready(self):
        return self


def recorded(events, *, skipped=0):
    """A step and batches that note what happens, in order."""
    count = iter(range(1000))

    def step(state, batch):
        number = next(count)
        events.append(f"step {number}")
        return state, {"loss": Number(1.0, events, f"read {number}"), "skipped": np.int32(skipped)}

    def batches():
        for number in range(1000):
            events.append(f"batch {number}")
            yield {"task_B": np.zeros(2, np.int32)}

    return step, batches()


def test_numbers_are_read_when_the_next_step_is_on_its_way():
    events = []
    step, batches = recorded(events)
    run(step, None, batches, last=15)
    reads = [event for event in events if event.startswith("read")]
    assert reads == ["read 9", "read 14"]
    assert events[events.index("read 9") - 2 : events.index("read 9")] == ["batch 10", "step 10"]
    # What the loop does not train it does not take: the iterator's state is what a checkpoint saves.
    assert [event for event in events if event.startswith("batch")][-1] == "batch 14"


def test_a_lost_run_ends_with_the_step_that_lost_it():
    step, batches = recorded([], skipped=3)
    with pytest.raises(NonFiniteError, match="for 3 steps in a row at step 10"):
        run(step, None, batches, last=15)


def test_the_step_takes_its_state_over_and_masters_stay_float32():
    """By the compiled program: every leaf of the state is an output in place, and products are in bfloat16."""
    step, new_state = built()
    state = jax.eval_shape(new_state)
    lowered = step.lower(state, batch_of(0))
    compiled = lowered.compile()
    leaves = [leaf for leaf in jax.tree.leaves(state)]
    aliased = re.search(r"input_output_alias=\{(.*)\}, entry", compiled.as_text())[1].count("may-alias")
    aliased += re.search(r"input_output_alias=\{(.*)\}, entry", compiled.as_text())[1].count("must-alias")
    assert aliased == len(leaves)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes
    new, _ = jax.eval_shape(step, state, batch_of(0))
    for tree in (new.trainable, new.opt_state):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.ndim} == {jnp.dtype(jnp.float32)}
    products = re.findall(r"stablehlo.dot_general .*: \((.*)\) -> (.*)", lowered.as_text())
    assert len(products) > 20
    # No float32 factor, forward or backward; results may be float32 where sums are.
    assert not [factors for factors, _ in products if "f32" in factors]


def test_a_range_of_steps_is_traced(tmp_path):
    messages = []
    profile = Profile((2, 4), tmp_path, begins=0, ends=10, message=messages.append)
    step, batches = recorded([])
    run(step, None, batches, last=10, profile=profile)
    profile.close()
    (message,) = messages
    assert message.startswith(f"profile of steps 2 to 3 in {tmp_path / 'profile'}") and "xprof" in message
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and list(tmp_path.rglob("perfetto_trace.json.gz"))


def test_what_stands_between_steps_is_in_no_trace(tmp_path):
    """Four steps, an evaluation, four more: a range over both ends where the first end, and goes on behind."""
    messages = []
    profile = Profile((2, 6), tmp_path, begins=0, ends=8, message=messages.append)
    step, batches = recorded([])
    for offset in (0, 4):
        run(step, None, batches, last=4, metric_offset=offset, profile=profile)
        profile.before(99)
        assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == len(messages) == 1 + offset // 4
    profile.close()
    assert [message.split(" in ")[0] for message in messages] == ["profile of steps 2 to 3", "profile of steps 4 to 5"]


def test_a_trace_that_cannot_be_written_is_refused_beforehand_or_costs_no_run(tmp_path, monkeypatch):
    messages = []
    (tmp_path / "profile").write_text("in the way")
    with pytest.raises(UserError, match="profile_steps=1:3: .*profile is no folder that can be written to; remove it"):
        Profile((1, 3), tmp_path, begins=0, ends=8, message=messages.append)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    step, batches = recorded([])
    with Profile((1, 6), tmp_path / "other", begins=0, ends=8, message=messages.append) as profile:
        for offset in (0, 4):
            (_, at), _ = run(step, None, batches, last=4, metric_offset=offset, profile=profile)
            assert at == 4
    (message,) = messages
    assert message.startswith("profile of steps 1 to 3 was lost") and "No space left on device" in message


def test_a_range_that_never_comes_is_said_or_refused(tmp_path):
    messages = []
    options = {"directory": tmp_path, "message": messages.append}
    with pytest.raises(UserError, match="profile_steps=5:11 ends behind the run's last step, 10; choose .* in 0:10"):
        Profile((5, 11), begins=0, ends=10, **options)
    Profile(None, begins=0, ends=10, **options).close()
    Profile((5, 7), begins=0, ends=10, **options).close()  # a task that ended early
    assert messages == ["profile_steps=5:7: the run ended before these steps."]
    with Profile((5, 7), begins=6, ends=10, **options) as profile:  # the same command, after a preemption
        profile.before(6)
    assert messages[1:] == ["profile_steps=5:7: the run continues at step 6; these are not traced."]
    assert not (tmp_path / "profile").exists()


def test_float32_and_bfloat16_share_their_weights():
    """bfloat16 is a matter of the computation: the same float32 parameters, nearly the same loss."""
    params = {"model": jax.jit(MODEL.init_params)(jax.random.key(0))}

    def loss(dtype):
        learner = Learner(model=DecoderOnly(dataclasses.replace(MODEL.config, dtype=dtype)))
        batch = batch_of(0)
        return jax.jit(lambda p: learner.losses(p, {}, batch, batch["loss_mask_BT"], selection="train")[0][0])(params)

    np.testing.assert_allclose(loss("bfloat16"), loss("float32"), rtol=1e-2)

"""What --profile_steps leaves behind: the steps that were traced, however the run ends, or a line that says why not."""

import contextlib
import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from codegen2_jax.continual.run import Run
from codegen2_jax.errors import NonFiniteError, PreemptedError, UserError
from codegen2_jax.training import pretraining, profiling, run_directory
from codegen2_jax.training.profiling import Profile


def some_steps(profile, error):
    """Takes steps 0 to 2 and ends as a run does that is stopped or lost there."""
    for step in range(3):
        profile.before(step)
        profile.after(step + 1, jnp.zeros(()) + 1)
    raise error


def traces(directory):
    return list((directory / "profile").rglob("*.xplane.pb"))


class Stopped(Run):
    """A walk along a stream of one stage whose training is stopped."""

    def __init__(self, directory, messages):
        self.directory, self.num_stages = directory, 1
        self.setup, self.config = SimpleNamespace(steps_per_stage=10), None
        self.tracker = SimpleNamespace(message=messages.append)

    def _restore(self):
        return SimpleNamespace(step=0), None, {"stage": 0, "trained": False}

    def _train(self, state, best, meta):
        some_steps(self.profile, PreemptedError("stopped by a signal"))


def test_a_stream_that_is_stopped_keeps_what_was_traced(tmp_path):
    messages = []
    with pytest.raises(PreemptedError):
        Stopped(tmp_path, messages).learn((1, 5))
    assert len(traces(tmp_path)) == 1
    assert messages[0].startswith(f"profile of the steps that were taken in {tmp_path / 'profile'}: ")


class Tracker:
    """Stands for what a run tells; its messages are kept."""

    def __init__(self, messages):
        self.message = messages.append

    def resume(self, step):
        pass

    def progress(self, *_, **__):
        return contextlib.nullcontext()


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A pretraining run of 10 steps that ends with a gradient that is not finite; no model and no data behind it."""
    messages, loads = [], []
    model = SimpleNamespace(parameters=lambda: 1)
    source = SimpleNamespace(load=lambda: loads.append(1) or SimpleNamespace(model=model), init_from="random")
    streams = SimpleNamespace(train=SimpleNamespace(iterator=lambda: iter(())))
    data = SimpleNamespace(open=lambda *_, **__: streams, examine=lambda *_: None)
    runtime = SimpleNamespace(
        layout=SimpleNamespace(process_rows=lambda size: range(size)),
        restore=lambda *_: (None, 0, {"wall_seconds": 0.0}),
        train_step=None,
    )
    monkeypatch.setattr(pretraining, "_Runtime", lambda *_: runtime)
    monkeypatch.setattr(pretraining, "Checkpointer", contextlib.nullcontext)
    monkeypatch.setattr(pretraining, "Tracker", lambda *_, **__: contextlib.nullcontext(Tracker(messages)))
    lost = NonFiniteError("loss=nan")
    monkeypatch.setattr(pretraining, "run_steps", lambda *_, profile, **__: some_steps(profile, lost))
    job = pretraining.Pretraining(
        model_dir=str(tmp_path / "run"),
        source=source,
        data=data,
        optimizer=None,
        num_steps=10,
        batch_size=2,
        seed=0,
    )
    return SimpleNamespace(run=job.run, directory=tmp_path / "run", messages=messages, loads=loads)


def test_pretraining_that_is_lost_keeps_what_was_traced(job):
    with pytest.raises(NonFiniteError):
        job.run(config_text="", profile_steps=(1, 5))
    assert len(traces(job.directory)) == 1
    assert job.messages[-1].startswith("profile of the steps that were taken in ")


def test_a_range_behind_the_end_is_refused_before_weights_are_read(job):
    with pytest.raises(UserError, match="profile_steps=5:11 ends behind the run's last step, 10"):
        job.run(config_text="", profile_steps=(5, 11))
    assert not job.loads


def test_a_run_that_ends_before_the_range_says_so(job):
    with pytest.raises(NonFiniteError):
        job.run(config_text="", profile_steps=(5, 7))
    assert job.messages[-1] == "profile_steps=5:7: the run ended before these steps." and not traces(job.directory)


def test_a_finished_run_says_that_nothing_was_traced(job, capsys):
    record = {"complete": True, "config_digest": run_directory.config_digest("")}
    job.directory.mkdir()
    (job.directory / run_directory.SCORES_FILE).write_text(json.dumps(record))
    job.run(config_text="", profile_steps=(2, 4))
    out = capsys.readouterr().out
    assert "is finished" in out and out.count("\n") == 1
    assert "profile_steps=2:4: no step is left, so nothing was traced; give another --model_dir." in out
    job.run(config_text="")
    assert "profile_steps" not in capsys.readouterr().out


def test_the_error_that_ends_a_run_is_the_one_that_is_seen(tmp_path):
    messages = []
    with pytest.raises(KeyboardInterrupt), Profile((0, 5), tmp_path, begins=0, ends=9, message=messages.append) as one:
        some_steps(one, KeyboardInterrupt())
    assert len(traces(tmp_path)) == 1 and profiling.FOLDER in messages[0]

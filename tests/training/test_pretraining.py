"""Pretraining: it learns, it exports a model that loads, and going on from a checkpoint changes nothing."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training import head_loss
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.optimizers import AdamW
from codegen2_jax.training.pair_objectives import Objective, PairObjectives
from codegen2_jax.training.pretraining import Pretraining

pytest.importorskip("seqio", reason="caching the tasks needs the extra 'seqio'")

TINY = T5Config(
    vocab_size=6000, d_model=16, d_ff=32, num_encoder_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8
)
SHORT = {"max_source": 32, "max_target": 32}
OBJECTIVES = (
    Objective(name="denoise", kind="denoising", task="toy_windows", rate=2.0, noise=(0.1, 0.3), **SHORT),
    Objective(name="spans", kind="span_corruption", task="toy_windows", rate=1.0, noise=0.2, start_step=4, **SHORT),
    Objective(name="text_to_code", kind="text_to_code", task="toy_pairs", rate=1.0, **SHORT),
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the child imports toy_pretraining_tasks from here
    yield Pretraining(
        model_dir=str(folder / "run"),
        source=ModelSource(init_from="random", vocabulary="nano_t5", config=TINY),
        data=PairObjectives(
            objectives=OBJECTIVES,
            cache_dir=str(folder / "cache"),
            task_modules=("toy_pretraining_tasks",),
        ),
        optimizer=AdamW(learning_rate=2e-2, schedule="cosine", warmup_steps=2, scale_by_rms=True),
        num_steps=12,
        batch_size=8,
        seed=0,
        evaluate_every=6,
        evaluation_batches=1,
        save_every=6,
        export_dtype="float32",
    )
    sys.path.pop(0)


@pytest.fixture(scope="module")
def finished(job):
    job.run(config_text="")
    return Path(job.model_dir)


def test_the_export_loads_and_names_what_it_was_made_of(finished, job):
    config, params = huggingface.load(finished / "export")
    assert (config.d_model, config.vocab_size) == (16, 6000)
    assert np.isfinite(params["embedding"]).all()
    card = json.loads((finished / "export" / "pretraining.json").read_text())
    assert card["steps"] == 12 and set(card["summary"]["valid"]) == {f"loss {o.name}" for o in OBJECTIVES}
    assert json.loads((finished / "scores.json").read_text()) == card
    assert dataclasses.replace(job.source, init_from=str(finished / "export"), config=None, vocabulary=None).load()


def test_the_vocabulary_of_a_device_decides_over_blocks_of_the_head(job, monkeypatch):
    """Eight rows of 32 positions on {fsdp: 2, model: 4}: a device holds an eighth of the logits."""
    sharded = dataclasses.replace(job, mesh={"fsdp": 2, "model": 4})
    share = 4 * 8 * 32 * 6000 // 8
    for limit, is_whole in ((share, True), (share - 1, False)):
        monkeypatch.setattr(head_loss, "LARGEST_LOGITS", limit)
        built = sharded.built_for(jax.devices(), num_heads=4)
        program = built.train_step.lower(built.state, built.batch).as_text()
        assert ("tensor<8x32x6000xf32>" in program) == is_whole


def test_the_loss_falls(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    denoise = [line["denoise"] for line in lines if "denoise" in line]
    assert len(denoise) == 2 and denoise[1] < denoise[0]


def test_going_on_from_a_checkpoint_gives_the_same_weights_byte_for_byte(finished, job, tmp_path):
    shutil.copytree(finished / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    dataclasses.replace(job, model_dir=str(tmp_path)).run(config_text="")
    names = [path / "export" / "model.safetensors" for path in (finished, tmp_path)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_finished_run_says_so_and_does_nothing(finished, job, capsys):
    written = (finished / "export" / "model.safetensors").stat().st_mtime_ns
    job.run(config_text="")
    assert "is finished; its results are in" in capsys.readouterr().out
    assert (finished / "export" / "model.safetensors").stat().st_mtime_ns == written


def test_an_unknown_objective_is_refused(job, tmp_path):
    wrong = dataclasses.replace(OBJECTIVES[0], kind="masking")
    with pytest.raises(UserError, match="'masking' is unknown"):
        data = dataclasses.replace(job.data, objectives=(wrong,))
        dataclasses.replace(job, model_dir=str(tmp_path), data=data).run(config_text="")

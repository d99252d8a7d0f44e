"""The worked examples of docs/ do what the pages say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("seqio", reason="caching the tasks needs the extra 'seqio'")

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--gin_file=models/tiny_t5.gin", "--gin.STEPS_PER_TASK=2", "--gin.EVAL_EXAMPLES=2", "--gin.BATCH_SIZE=4")
# A beam search, or one more shape, costs more to compile than these runs take.
TINY += ("--gin.runner.Decoding.scoring_beams=1", "--gin.stream.ContinualLearning.num_shapes=1")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def train(folder, environment, *flags):
    line = [sys.executable, "-m", "codegen2_jax.train", *flags, *TINY, "--gin.TOP_K=2", "--model_dir=run"]
    done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "scores.json").read_text())


@pytest.fixture
def environment(program_environment, tmp_path):
    kept = {"CODEGEN2_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", "CODEGEN2_JAX_KEEP_ALLOCATOR": "1"}
    python_path = f"{tmp_path}:{program_environment['PYTHONPATH']}"
    return program_environment | kept | {"PYTHONPATH": python_path}


def test_a_method_of_your_own(tmp_path, environment):
    (example,) = blocks("adding_a_method.md", "gin")
    (tmp_path / "norms_er.gin").write_text(example)
    record = train(tmp_path, environment, "--gin_file=norms_er.gin", "--gin_file=streams/tiny_ci.gin")
    assert record["complete"] and record["method"] == "norms_er"
    assert 0 < record["cost"]["trainable_parameters"] < 0.02 * record["cost"]["parameters"]
    assert record["cost"]["buffer_examples"] == {"tiny_copy": 20, "tiny_reverse": 20, "tiny_upper": 20}


def test_a_stream_of_your_own_files(tmp_path, environment):
    (example,) = blocks("adding_a_task.md", "gin")
    assert len(example.splitlines()) < 10
    (tmp_path / "my_stream.gin").write_text(example)
    fields = {"titles": ("text", "title"), "fixes": ("buggy", "fixed")}
    for name, (source, target) in fields.items():
        rows = [{source: f"{name} {number}", target: f"{number}"} for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = train(tmp_path, environment, "--gin_file=my_stream.gin")
    assert record["complete"] and record["stream"] == ["titles", "fixes"]


def test_a_task_module_of_your_own(tmp_path, environment):
    (module,) = blocks("adding_a_task.md", "python")
    (tmp_path / "my_tasks.py").write_text(module)
    flags = ("--gin.STREAM='greetings'", "--gin.stream.ContinualLearning.task_modules=('my_tasks',)")
    flags += ("--gin.EVAL_SPLITS=('valid',)",)  # not that it lacks a test split, but a run may do without
    record = train(tmp_path, environment, "--gin_file=pp_tf.gin", *flags)
    assert record["complete"] and record["stream"] == ["greet", "part"]
    assert set(record["splits"]) == set(record["summary"]) == set(record["baselines"]["copy"]) == {"valid"}

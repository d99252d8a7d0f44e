"""A whole run through its door: it ends with its scores, it says when it is finished, and a SIGKILL changes nothing."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen2_jax.reporting import html_page

pytest.importorskip("seqio", reason="caching the tasks needs the extra 'seqio'")

RUN = ("--gin_file=streams/tiny_ci.gin", "--gin_file=models/tiny_t5.gin", "--gin.TOP_K=2", "--gin.EVAL_EXAMPLES=4")
TIMES = ("wall_seconds",)


def arguments(method, directory, *more):
    return [f"--gin_file={method}.gin", *RUN, f"--model_dir={directory}", *more]


def command(method, directory, *more):
    return [sys.executable, "-m", "codegen2_jax.train", *arguments(method, directory, *more)]


def run(method, directory, environment, *more):
    return subprocess.run(command(method, directory, *more), env=environment, capture_output=True, text=True)


# The door's own main, and what it left imported.
AND_LIST_MODULES = """
import sys
from codegen2_jax import train
code = train.main(["train", *sys.argv[1:]])
print("MODULES", *sorted(name for name in sys.modules if "." not in name))
sys.exit(code)
"""


def scores(directory):
    record = json.loads((directory / "scores.json").read_text())
    for name in TIMES:
        del record["cost"][name]
    return record


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, environment):
    directory = tmp_path_factory.mktemp("unbroken")
    line = [sys.executable, "-c", AND_LIST_MODULES, *arguments("pp_tf", directory)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def test_a_decoder_learns_a_stream_as_a_t5_does(tmp_path, environment):
    """With all its weights; with a pool of prompts, see test_decoder_streams.py."""
    done = run("finetune", tmp_path, environment, "--gin_file=models/tiny_codegen.gin")
    assert done.returncode == 0, done.stderr
    record = scores(tmp_path)
    assert record["complete"] and len(record["splits"]["test"]["bleu"]) == 4
    assert all(len(row) == 3 and None not in row for row in record["splits"]["test"]["bleu"])
    assert record["cost"]["parameters"] > 400_000, "6,000 rows of the embedding and as many of the head, 32 wide"
    assert record["cost"]["trainable_parameters"] == record["cost"]["parameters"]


def test_a_run_ends_with_its_table_and_scores(unbroken):
    directory, output = unbroken
    record = scores(directory)
    assert record["complete"] and record["stream"] == ["tiny_copy", "tiny_reverse", "tiny_upper"]
    for split in ("valid", "test"):
        for metric in ("bleu", "exact_match"):
            matrix = record["splits"][split][metric]
            assert len(matrix) == 4 and all(None not in row and len(row) == 3 for row in matrix)
            assert len(record["baselines"]["copy"][split][metric]) == 3
    assert record["baselines"]["copy"]["test"]["exact_match"][0] == 100.0  # copying solves the first task
    assert record["summary"]["valid"].keys() >= {"forget_paper_bleu", "average_bleu", "fwt_exact_match"}
    assert len(record["diagnostics"]["own_key_recall"]) == 3
    assert [None, None] == record["diagnostics"]["query_plane"][1:], "queries do not change: one stage has their places"
    assert "after 3 tiny_upper" in output and "copy" in output
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert any("valid_loss" in line for line in lines) and any("grad_norm" in line for line in lines)


def test_the_report_draws_every_figure_of_a_pool(unbroken, tmp_path):
    page = html_page.write([unbroken[0]], tmp_path).read_text()
    assert "left out, as" not in page
    figures = {path.stem for path in tmp_path.glob("figures/*.png")}
    pool = {f"pp_tf_seed0_{name}" for name in ("plane", "key_usage", "own_key_recall", "query_cosine")}
    assert figures >= pool | {"forget_paper_bleu_valid", "learning_curves", "score_against_cost"}


def test_every_figure_of_a_run_is_explained(unbroken):
    """No name in scores.json that docs/results.md does not know."""
    record = scores(unbroken[0])
    page = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    metrics = sorted(record["splits"]["test"], key=len, reverse=True)
    figures = {name for summary in record["summary"].values() for name in summary}
    plain = {re.sub(rf"_({'|'.join(metrics)})$", "", name) for name in figures} | set(record["diagnostics"])
    unexplained = [name for name in plain if f"`{name}`" not in page]
    assert not unexplained


def test_a_process_that_trains_imports_neither_tensorflow_nor_seqio_nor_torch(unbroken):
    _, output = unbroken
    modules = next(line for line in output.splitlines() if line.startswith("MODULES")).split()
    assert {"jax", "grain"} <= set(modules)
    assert not set(modules) & {"tensorflow", "seqio", "tensorflow_datasets", "torch", "transformers"}


def test_the_same_command_says_that_the_run_is_finished(unbroken, environment):
    directory, _ = unbroken
    before = (directory / "scores.json").read_bytes()
    done = run("pp_tf", directory, environment)
    assert done.returncode == 0 and "is finished" in done.stdout and "after 3 tiny_upper" in done.stdout
    assert (directory / "scores.json").read_bytes() == before


def test_another_configuration_in_the_same_directory_is_refused(unbroken, environment):
    directory, _ = unbroken
    done = run("pp_tf", directory, environment, "--gin.SEED=3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "another configuration" in done.stderr and "SEED" in done.stderr


def saved(directory):
    return sorted(path.name for path in directory.glob("checkpoints/*"))


def test_sigkill_anywhere_changes_no_score(unbroken, tmp_path, environment):
    directory, _ = unbroken
    rng, kills = random.Random(0), 0
    while kills < 3:
        process = subprocess.Popen(command("pp_tf", tmp_path), env=environment, stdout=subprocess.DEVNULL)
        # Not before the run directory shows life, so that the kills land in training, scoring and saving.
        marks = saved(tmp_path)
        while process.poll() is None and saved(tmp_path) == marks:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3))
        if process.poll() is not None:
            break  # it finished before the blow
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = run("pp_tf", tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert kills >= 1 and scores(tmp_path) == scores(directory)


def test_a_second_process_in_the_same_directory_is_refused(tmp_path, environment):
    first = subprocess.Popen(
        command("pp_tf", tmp_path, "--gin.STEPS_PER_TASK=5000"), env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / ".running").exists() and first.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2)
        second = run("pp_tf", tmp_path, environment, "--gin.STEPS_PER_TASK=5000")
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2, second.stderr
    assert f"is in use by process {first.pid}; wait for it, or choose another MODEL_DIR" in second.stderr


def test_sigterm_saves_and_says_how_to_continue(tmp_path, environment):
    process = subprocess.Popen(
        command("pp_tf", tmp_path, "--gin.STEPS_PER_TASK=5000"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "the same command continues" in errors
    assert any((tmp_path / "checkpoints").iterdir())


# The others run with replay below.
METHODS = ("task_prompts", "individual", "multitask")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method, tmp_path, environment):
    done = run(method, tmp_path, environment, "--gin.STEPS_PER_TASK=2")
    assert done.returncode == 0, done.stderr
    record = scores(tmp_path)
    assert record["complete"] and record["method"] == method
    measured = [[cell is not None for cell in row] for row in record["splits"]["test"]["bleu"]]
    whole, none = [True] * 3, [False] * 3
    if method == "individual":  # a model of its own for each task
        assert measured == [whole, [True, False, False], [False, True, False], [False, False, True]]
    else:  # learning all at once leaves nothing between before and after
        assert measured == ([whole, none, none, whole] if method == "multitask" else [whole] * 4)
    assert record["cost"]["train_examples_seen"] == 3 * 2 * 8


REPLAYED = {"interleaved": 2 * 2 * 8, "epoch_end": (2 + 4 + 6) * 8}


@pytest.mark.parametrize(
    ("method", "schedule"),
    [("finetune_er", "epoch_end"), ("pp_er", "interleaved")],
)
def test_replay_runs(method, schedule, tmp_path, environment):
    """Interleaved: as many old rows as new ones from the second task on. Between epochs: the task's own slots too."""
    options = ["--gin.STEPS_PER_TASK=2", "--gin.REPLAY_SIZE=30", f"--gin.REPLAY_SCHEDULE='{schedule}'"]
    done = run(method, tmp_path, environment, *options)
    assert done.returncode == 0, done.stderr
    record = scores(tmp_path)
    assert record["method"] == method and record["replay"]["schedule"] == schedule
    assert record["cost"]["replayed_examples_seen"] == REPLAYED[schedule]
    assert record["cost"]["buffer_examples"] == {"tiny_copy": 10, "tiny_reverse": 10, "tiny_upper": 10}


def test_sigkill_under_replay_changes_no_score_and_no_byte_of_the_state(tmp_path, environment):
    """Killed inside the last stage: R, keys, prompts, moments, table and buffer are those of the unbroken run."""
    options = ["--gin.REPLAY_SIZE=30", "--gin.STEPS_PER_TASK=40", "--gin.REPLAY_SCHEDULE='epoch_end'"]
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert run("pp_tf_er", unbroken, environment, *options).returncode == 0
    process = subprocess.Popen(command("pp_tf_er", killed, *options), env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(int(name) > 2 * 41 for name in saved(killed) if name.isdigit()):
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before stage 3 could be cut"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run("pp_tf_er", killed, environment, *options).returncode == 0
    assert scores(killed) == scores(unbroken)
    manifests = [last_manifest(directory) for directory in (unbroken, killed)]
    assert manifests[0] == manifests[1]
    assert len(manifests[0]["meta"]["buffer"]["pairs"]) == 30
    assert {"trainable/prompt/keys", "prompt_state/assignment"} <= manifests[0]["leaves"].keys()


def last_manifest(directory):
    """The digests of every array of the last checkpoint, and what stands beside them; times apart."""
    newest = max(saved(directory), key=lambda name: int(name) if name.isdigit() else -1)
    manifest = json.loads((directory / "checkpoints" / newest / "meta" / "metadata").read_text())
    del manifest["meta"]["wall_seconds"]
    return {"leaves": manifest["leaves"], "meta": manifest["meta"]}

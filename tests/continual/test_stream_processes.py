"""PP-TF on two processes: the losses and scores of one process, from one command for each."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COMMAND = ["--gin_file=pp_tf.gin", "--gin_file=streams/tiny_ci.gin", "--gin_file=models/tiny_t5.gin"]
COMMAND += ["--gin.STREAM='tiny_copy'", "--gin.STEPS_PER_TASK=2", "--gin.MESH={'data': 2, 'fsdp': 2, 'model': 1}"]


def start(environment, directory, devices, *flags):
    line = [sys.executable, "-m", "codegen2_jax.train", *COMMAND, f"--model_dir={directory}", *flags]
    environment = environment | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        line, env=environment, cwd=directory.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(directory: Path):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [line[name] for line in lines for name in ("loss", "valid_loss") if name in line]
    return losses, json.loads((directory / "scores.json").read_text())


def test_two_processes_give_the_losses_and_scores_of_one(tmp_path, environment):
    child = start(environment, tmp_path / "one", 4, "--distributed=off")
    _, error = child.communicate(timeout=900)
    assert child.returncode == 0, error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
    flags = [address, "--num_processes=2"]
    children = [start(environment, tmp_path / "two", 2, *flags, f"--process_id={index}") for index in range(2)]
    ends = [child.communicate(timeout=900) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    assert "tiny_copy" in ends[0][0] and "tiny_copy" not in ends[1][0], "process 0 speaks for both"
    (one, scores), (two, found) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert len(one) == len(two) > 1 and two == pytest.approx(one, rel=1e-4)
    assert found["complete"]
    for split, metrics in scores["splits"].items():
        assert {**found["splits"][split], "loss": None} == {**metrics, "loss": None}
        np.testing.assert_allclose(found["splits"][split]["loss"], metrics["loss"], rtol=1e-5)

"""The same run on one, two and four processes over the loopback interface, eight CPU devices in all."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from distributed_program import make_job
from safetensors.numpy import load_file

from codegen2_jax.errors import UserError

PROGRAM = Path(__file__).with_name("distributed_program.py")


def start(environment, processes, devices, *jobs):
    """Runs the jobs on so many processes of so many devices each; (exit code, standard error) of every process."""
    meetings = [None]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        meetings = [(address, processes, index) for index in range(processes)]
    children = []
    for meeting in meetings:
        settings = json.dumps({"devices": devices, "meeting": meeting, "jobs": jobs}, default=str)
        line = [sys.executable, str(PROGRAM), settings]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(line, env=environment, **options))
    try:
        ends = [child.communicate(timeout=900) for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, error) for child, (_, error) in zip(children, ends, strict=True)]


def losses_of(run):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): line[name] for line in lines for name in ("loss", "toy") if name in line}


def weights_of(run):
    return load_file(Path(run, "export", "model.safetensors"))


def digests_of(run, step=6):
    manifest = json.loads(Path(run, "checkpoints", str(step), "meta", "metadata").read_text())
    return {name: leaf["sha256"] for name, leaf in manifest["leaves"].items()}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The plain and the ordered run on eight devices of this process."""
    base = tmp_path_factory.mktemp("one")
    for name, ordered in (("plain", 0), ("ordered", 8)):
        make_job(model_dir=base / name, ordered=ordered).run(config_text="")
    return base


def test_two_processes_give_the_losses_and_weights_of_one_and_in_order_the_same_bits(
    one_process, tmp_path, program_environment
):
    mesh = {"data": 2, "fsdp": 2, "model": 2}
    jobs = [{"model_dir": tmp_path / "plain", "mesh": mesh}, {"model_dir": tmp_path / "ordered", "ordered": 8}]
    ends = start(program_environment, 2, 4, *jobs)
    assert [code for code, _ in ends] == [0, 0], ends
    check_close(one_process / "plain", tmp_path / "plain")
    wanted, found = losses_of(one_process / "ordered"), losses_of(tmp_path / "ordered")
    train = [key for key in wanted if key[1] == "loss"]
    assert len(train) == 3 and all(wanted[key] == found[key] for key in train)
    assert digests_of(tmp_path / "ordered") == digests_of(one_process / "ordered")
    assert digests_of(tmp_path / "plain") != digests_of(one_process / "plain")


def test_four_processes_give_the_losses_and_weights_of_one(one_process, tmp_path, program_environment):
    ends = start(program_environment, 4, 2, {"model_dir": tmp_path / "plain", "mesh": {"fsdp": 8}})
    assert [code for code, _ in ends] == [0] * 4, ends
    check_close(one_process / "plain", tmp_path / "plain")


def check_close(one, other):
    """The tolerance that docs/scale.md states."""
    wanted, found = losses_of(one), losses_of(other)
    assert len(wanted) == 6 and wanted.keys() == found.keys()
    for key, loss in wanted.items():
        assert found[key] == pytest.approx(loss, rel=1e-4), key
    wanted, found = weights_of(one), weights_of(other)
    for name, weight in wanted.items():
        np.testing.assert_allclose(found[name], weight, atol=1e-3, err_msg=name)


def test_a_run_stopped_on_two_processes_goes_on_with_one_and_ends_on_eight_devices(
    one_process, tmp_path, program_environment
):
    """A signal to one process stops both at one step; in order, the end is that of the unbroken run, bit for bit."""
    job = {"model_dir": tmp_path, "ordered": 8}
    ends = start(program_environment, 2, 2, job | {"stop_at": 1, "stopper": 1})
    assert [code for code, _ in ends] == [75, 75], ends
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert steps and max(steps) < 6, "the signal came too late to show anything"
    stopped = max(steps)
    (end,) = start(program_environment, 1, 1, job | {"stop_at": stopped + 1})
    assert end[0] in (0, 75), end
    make_job(**job).run(config_text="")
    assert digests_of(tmp_path) == digests_of(one_process / "ordered")
    assert all((one_process / "ordered" / "export" / name).is_file() for name in ("model.safetensors", "config.json"))


def test_a_batch_that_the_devices_do_not_divide_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="batch_size: 12 rows do not divide by mesh axis 'data' x 'fsdp' of size 8"):
        make_job(model_dir=tmp_path, rows=12).run(config_text="")

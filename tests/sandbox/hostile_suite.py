"""Runs the hostile programs of `hostile/` and looks for traces; a program of its own, so that it runs as any user.

python tests/sandbox/hostile_suite.py WORKERS      prints one JSON object
"""

import json
import os
import re
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox

FOLDER = Path(__file__).parent / "hostile"
LIMITS = Limits(cpu_seconds=0.6, memory_mib=256, wall_seconds=1)
TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(10, -4) == 6
    assert type(candidate(1, 1)) is int
    assert str(candidate(0, 0)) == "0"
"""


class Hostile(NamedTuple):
    number: int  # of the class
    name: str
    outcomes: tuple[str, ...]
    text: str


def load() -> list[Hostile]:
    """All programs, in order."""
    found = []
    for path in sorted(FOLDER.glob("*.txt")):
        parts = re.split(r"^=== (\d+) (\w+) \| (\S+)\n", path.read_text(), flags=re.MULTILINE)[1:]
        for number, name, outcomes, text in zip(*[iter(parts)] * 4, strict=True):
            found.append(Hostile(int(number), name, tuple(outcomes.split("/")), text))
    return found


def run(workers: int) -> dict:
    """{"verdicts": [...], "traces": [...]} of all programs."""
    secret = os.urandom(12).hex()
    os.environ["SECRET_OF_THE_CALLER"] = secret
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        Path(folder, "secret").write_text(secret)
        marker = Path(folder, "marker")
        connections = []
        threading.Thread(target=lambda: connections.append(server.accept()), daemon=True).start()
        values = {"MARKER": marker, "SECRET": secret, "PORT": server.getsockname()[1], "PID": os.getpid()}
        values |= {"FOLDER": folder, "NULL": "\0"}
        before = processes()
        programs = []
        for hostile in load():
            text = re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), hostile.text)
            programs.append(Program(hostile.name, text, TESTS, "add"))
        with Sandbox(workers, LIMITS) as sandbox:
            verdicts = [verdict.record() for verdict in sandbox.judge(programs)]
        traces = [f"a file: {path.name}" for path in Path(folder).iterdir() if path.name != "secret"]
        traces += [f"a process: {line}" for line in sorted(processes() - before)]
        traces += ["the secret has changed"] * (Path(folder, "secret").read_text() != secret)
        traces += ["a connection"] * len(connections)
        traces += [f"the secret, in {v['name']}" for v in verdicts if secret in v["stdout"] + v["stderr"] + v["detail"]]
    return {"uid": os.getuid(), "verdicts": verdicts, "traces": traces}


def processes() -> set[str]:
    """What is left of jails and keepers: processes without a living parent of theirs, by id and command."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        status = path.with_name("status").read_text() if path.with_name("status").exists() else ""
        ours = re.search(rf"^PPid:\s(1|{os.getpid()})$", status, re.MULTILINE)
        if ours and ("codegen2_jax.sandbox import" in line or line.startswith(("sleep 300", "bwrap"))):
            found.add(f"{path.parent.name} {line[:200]}")
    return found


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))

"""Tries the walls before anything is put behind them: what a program must not reach is attempted from inside.

Each attempt runs twice: as every program runs, and without the filter of system calls, since the namespaces have to
hold alone (the filter cannot look at paths and addresses, and one wall is not two).
"""

import functools
import os
import socket
import subprocess
import tempfile
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox.isolation import HINT, Isolation
from codegen2_jax.sandbox.keeper_pipe import KeeperPipe, request
from codegen2_jax.sandbox.programs import Limits, Program

REACHED = "REACHED THE OUTSIDE"
# What each attempt prints on success. {port} listens on this machine, {secret} lies in our environment, {folder} is
# ours.
ATTEMPTS = {
    "connect to this machine": """
import socket
socket.create_connection(("127.0.0.1", {port}), timeout=2)
""",
    "write outside": """
open({folder!r} + "/marker", "w").write("x")
""",
    "read a file of this machine": """
open({folder!r} + "/secret").read()
""",
    "start a process": """
import os
if os.fork() == 0:
    os._exit(0)
""",
    "make a namespace": """
import ctypes
if ctypes.CDLL(None).unshare(0x10000000):
    raise OSError("refused")
""",
    "read another process": """
import glob
found = False
for name in glob.glob("/proc/[0-9]*/environ"):
    try:
        with open(name, "rb") as file:
            found = found or {secret!r}.encode() in file.read()
    except OSError:
        pass
assert found
""",
}
FILTER_ONLY = ("start a process",)


@functools.cache
def require(isolation: Isolation) -> None:
    """UserError where an attempt succeeds or the jail does not start; once per process and arrangement."""
    for name, outcome in run(isolation):
        if outcome != "held":
            raise UserError(f"generated programs are not run, the isolation does not hold ({name}: {outcome}): {HINT}.")


def run(isolation: Isolation) -> list[tuple[str, str]]:
    """[(attempt, "held" or what happened)]."""
    secret = os.urandom(12).hex()
    keeper, results = KeeperPipe(isolation, []), []
    limits = Limits(cpu_seconds=5, wall_seconds=20)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        secret_file = Path(folder, "secret")
        secret_file.write_text(secret)
        secret_file.chmod(0o644)
        environment = {"SECRET": secret}
        neighbour = subprocess.Popen(["sleep", "60"], env=environment)
        try:
            values = {"port": server.getsockname()[1], "folder": folder, "secret": secret}
            for name, text in {"start": "", **ATTEMPTS}.items():
                source = text.format(**values) + f"\nprint({REACHED!r})\n"
                for filtered in (True, False):
                    if not filtered and name in FILTER_ONLY:
                        continue
                    program = Program(name=name, solution=source, style="output")
                    asked = request(program, limits, isolation, [])
                    if not filtered:
                        asked["jail"]["filters"] = {"jail": "", "inside": ""}
                    found = keeper.judge(asked)
                    wall = name if filtered else f"{name}, without the filter of system calls"
                    results.append((wall, _outcome(name, found)))
                    if results[-1][1] != "held" and name == "start":
                        return results
            if Path(folder, "marker").exists():
                results.append(("write outside", "a file was written"))
        finally:
            neighbour.kill()
            neighbour.wait()
            keeper.stop()
    return results


def _outcome(name: str, found: dict) -> str:
    reached = REACHED in found["stdout"]
    if found["outcome"] == "infra" or (name == "start" and not reached):
        return found["detail"] or found["outcome"]
    return REACHED.lower() if reached and name != "start" else "held"

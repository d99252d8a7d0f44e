"""The pipe to a keeper process (keeper.py), and what is asked through it."""

import dataclasses
import json
import math
import os
import subprocess
import time

from codegen2_jax.sandbox import isolation, languages, system_calls
from codegen2_jax.sandbox.isolation import Isolation
from codegen2_jax.sandbox.packages import FOLDER
from codegen2_jax.sandbox.programs import Limits, Program

_GRADER_MEMORY = 2**31


def request(program: Program, limits: Limits, isolated: Isolation, folders: list[str]) -> dict:
    """What a keeper is asked; folders: of `packages.find`."""
    toolchain, execute = None, None
    if program.language != "python":
        toolchain = languages.find(program.language)
        execute = toolchain.start(program.solution, program.tests, limits.memory_mib)
    disk = limits.disk_mib * 2**20
    cpu = math.ceil(limits.cpu_seconds) + 2  # the kernel counts whole seconds; the jail's own clock decides first
    rlimits = {"CPU": cpu, "FSIZE": disk, "CORE": 0, "NOFILE": limits.open_files, "NPROC": limits.threads}
    if toolchain is None:
        rlimits["AS"] = limits.memory_mib * 2**20
    else:  # these reserve addresses by the gigabyte; their heap is limited by an option
        rlimits["NOFILE"] = max(limits.open_files, toolchain.open_files)
        rlimits["NPROC"] = max(limits.threads, toolchain.threads)
    grader_memory = {"RLIMIT_AS": _GRADER_MEMORY} if toolchain is None else {}  # the jail inherits it
    if not isolated.bwrap:
        del rlimits["NPROC"]  # without a namespace it counts all that the user runs
    paths = ([FOLDER] if isolated.bwrap else sorted({os.path.dirname(folder) for folder in folders})) if folders else []
    supported = system_calls.supported()
    options = {"processes": limits.processes > 1, "tries_sockets": bool(toolchain and toolchain.tries_sockets)}
    filters = {"jail": system_calls.program(**options).hex() if supported else ""}
    filters["inside"] = system_calls.without_execute().hex() if supported and not execute else ""
    return {
        "program": dataclasses.asdict(program),
        "execute": execute,
        "line": isolated.jail_line(disk, toolchain, folders),
        "jail": {
            "isolated": bool(isolated.bwrap),
            "limits": {**dataclasses.asdict(limits), "wall": limits.wall},
            "filters": filters,
            "rlimits": rlimits,
            "paths": paths,
        },
        "grader_limits": {"RLIMIT_CPU": 2 * cpu - 2, "RLIMIT_CORE": 0} | grader_memory,
    }


class KeeperPipe:
    """The pipe to one keeper process, which is started when it is first needed."""

    def __init__(self, isolated: Isolation, folders: list[str]):
        self._isolation, self._folders = isolated, folders
        self._process: subprocess.Popen | None = None

    def judge(self, request: dict) -> dict:
        """The verdict on a request; "infra" where the keeper died of it."""
        start = time.monotonic()
        try:
            if self._process is None:
                self._start()
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        said = self.stop()
        detail = f"the keeper ended: {' '.join(said.split())[-300:] or 'without a word'}"
        wall = time.monotonic() - start
        found = {"outcome": "infra", "detail": detail, "cpu_seconds": 0.0, "wall_seconds": wall}
        return {**found, "stdout": "", "stderr": ""}

    def _start(self) -> None:
        pipe, ourselves = subprocess.PIPE, os.pidfd_open(os.getpid())
        try:
            line = self._isolation.keeper_line(languages.present(), self._folders)
            self._process = subprocess.Popen(
                [*line, str(ourselves)], pass_fds=[ourselves],
                stdin=pipe, stdout=pipe, stderr=pipe, env={"PYTHONHASHSEED": "0"}, cwd="/", start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(ourselves)
        settings = {"uid": isolation.UID if self._isolation.as_root and self._isolation.bwrap else None}
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def stop(self) -> str:
        """Ends the process, and by that all below it; returns what it complained of."""
        process, self._process = self._process, None
        if process is None:
            return ""
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        said = process.stderr.read().decode("utf-8", "replace")
        process.stdout.close()
        process.stderr.close()
        return said

"""Judges many programs at a time, each in its own jail, and hands the verdicts back in order."""

import collections
import dataclasses
import json
import logging
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import isolation, languages, self_test, system_calls
from codegen2_jax.sandbox.isolation import Isolation
from codegen2_jax.sandbox.packages import FOLDER, find
from codegen2_jax.sandbox.programs import Limits, Program, Verdict

logger = logging.getLogger(__name__)
_AHEAD = 4  # programs per worker that are read ahead of the verdict that is due
_GRADER_MEMORY = 2**31


class Sandbox:
    """Judges programs by parallel workers. A context manager; nothing is left behind when it is closed or killed.

    Args:
      workers: programs at a time.
      limits: of each program.
      allow_unsafe_execution: run programs without a jail where this machine allows none; verdicts then say so.
      packages: of this interpreter that Python programs may import, such as ("numpy",); none by default.

    Raises:
      UserError: where the isolation is missing or does not hold, and for impossible arguments.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: Limits | None = None,
        allow_unsafe_execution: bool = False,
        packages: Sequence[str] = (),
    ):
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise UserError(f"workers={workers!r} must be a whole number of at least 1.")
        self.workers, self.limits = workers, limits or Limits()
        self._folders = find(tuple(packages))
        self.isolation = _isolation(allow_unsafe_execution)
        self._free: queue.SimpleQueue[_Keeper] = queue.SimpleQueue()
        self._keepers = [_Keeper(self.isolation, self._folders) for _ in range(workers)]
        for keeper in self._keepers:
            self._free.put(keeper)
        self._gate = _Gate()
        self._closed = False

    def judge(self, programs: Iterable[Program]) -> Iterator[Verdict]:
        """One verdict per program, in order, while later programs are running already.

        A verdict "infra" is tried once more with nothing of ours beside it; a program that sleeps then too is a
        "timeout". UserError for a language without a toolchain here.
        """
        assert not self._closed, "the sandbox is closed"
        pending: collections.deque = collections.deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        try:
            for program in programs:
                pending.append(pool.submit(self.judge_one, program))
                if len(pending) >= _AHEAD * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            pool.shutdown(wait=True)

    def judge_one(self, program: Program) -> Verdict:
        """The verdict on one program; may be called by several threads."""
        asked = request(program, self.limits, self.isolation, self._folders)
        keeper = self._free.get()
        try:
            with self._gate.shared():
                found = keeper.judge(asked)
            if found["outcome"] == "infra" and not found["detail"].startswith("tests"):
                with self._gate.alone():
                    found = keeper.judge(asked)
                if found["outcome"] == "infra" and found["detail"].startswith("asleep"):
                    found["outcome"] = "timeout"
        finally:
            self._free.put(keeper)
        return Verdict(name=program.name, isolated=bool(self.isolation.bwrap), **found)

    def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        for keeper in self._keepers:
            keeper.stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


class _Keeper:
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


class _Gate:
    """Many may pass together, or one alone."""

    def __init__(self):
        self._condition = threading.Condition()
        self._inside, self._waiting = 0, 0

    def shared(self):
        return _Passage(self._condition, self._enter, self._leave)

    def alone(self):
        return _Passage(self._condition, self._enter_alone, self._leave)

    def _enter(self):
        while self._inside < 0 or self._waiting:
            self._condition.wait()
        self._inside += 1

    def _enter_alone(self):
        self._waiting += 1
        while self._inside:
            self._condition.wait()
        self._waiting -= 1
        self._inside = -1

    def _leave(self):
        self._inside = max(0, self._inside - 1)


class _Passage:
    def __init__(self, condition, enter, leave):
        self._condition, self._enter, self._leave = condition, enter, leave

    def __enter__(self):
        with self._condition:
            self._enter()

    def __exit__(self, *_):
        with self._condition:
            self._leave()
            self._condition.notify_all()


def _isolation(allow_unsafe_execution: bool) -> Isolation:
    """The isolation of this machine after its self-test, or none where that was allowed."""
    try:
        found = isolation.find()
        self_test.require(found)
        return found
    except UserError as error:
        if not allow_unsafe_execution:
            raise
        logger.warning("programs run WITHOUT isolation: %s", error)
        return isolation.none()

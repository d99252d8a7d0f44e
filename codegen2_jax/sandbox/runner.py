"""Judges many programs at a time, each in its own jail, and hands the verdicts back in order."""

import collections
import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import isolation, self_test
from codegen2_jax.sandbox.isolation import Isolation
from codegen2_jax.sandbox.keeper_pipe import KeeperPipe, request
from codegen2_jax.sandbox.packages import find
from codegen2_jax.sandbox.programs import Limits, Program, Verdict

logger = logging.getLogger(__name__)
_AHEAD = 4  # programs per worker that are read ahead of the verdict that is due


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
        self._free: queue.SimpleQueue[KeeperPipe] = queue.SimpleQueue()
        self._keepers = [KeeperPipe(self.isolation, self._folders) for _ in range(workers)]
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

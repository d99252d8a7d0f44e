"""A trace of a few training steps, for XProf or Perfetto: what --profile_steps=10:15 asks for."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from codegen2_jax.errors import UserError

FOLDER = "profile"


def check(steps: tuple[int, int] | None, *, ends: int) -> None:
    """Raises UserError for steps behind the last of a run of `ends` steps."""
    if steps is not None and steps[1] > ends:
        asked = f"profile_steps={steps[0]}:{steps[1]}"
        raise UserError(f"{asked} ends behind the run's last step, {ends}; choose steps in 0:{ends}.")


def none_left(steps: tuple[int, int] | None) -> str:
    """For the end of what a finished run says: that nothing was traced, where that was asked for."""
    if steps is None:
        return ""
    return f" profile_steps={steps[0]}:{steps[1]}: no step is left, so nothing was traced; give another --model_dir."


class Profile:
    """Traces steps `first` up to, not including, `last` of a run into `directory`/profile; None: no steps.

    Entered around the steps, so that a run that ends among them, whatever the reason, keeps what was traced. Steps
    count from 0 along the whole run. Raises UserError for steps behind the last; where those asked for have begun
    before a run continues, it says so and traces none, so that the same command continues a run that was stopped.

    Args:
        steps: (first, last).
        begins, ends: the step at which the run (or what is left of it) begins, and the number of all its steps.
        message: says where the trace lies.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        directory: str | Path,
        *,
        begins: int,
        ends: int,
        message: Callable[[str], None],
        traces: bool = True,
    ):
        self._steps, self._message, self._running = steps if traces else None, message, False
        self._directory = Path(directory) / FOLDER
        check(steps, ends=ends)
        if self._steps is not None and self._steps[0] < begins:
            first, last = self._steps
            message(f"profile_steps={first}:{last}: the run continues at step {begins}; these are not traced.")
            self._steps = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def before(self, step: int) -> None:
        """Call it before step number `step` begins."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, done: int, result: Any) -> None:
        """Call it when `done` steps were given to the device; result: what the last of them computes."""
        if self._running and done >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop(f"steps {self._steps[0]} to {done - 1}")

    def close(self) -> None:
        """Ends a trace whose last step never came, and says so where its first did not."""
        if self._running:
            self._stop("the steps that were taken")
        elif self._steps is not None:
            self._message(f"profile_steps={self._steps[0]}:{self._steps[1]}: the run ended before these steps.")

    def _stop(self, what: str) -> None:
        jax.profiler.stop_trace()
        self._running, self._steps = False, None
        self._message(
            f"profile of {what} in {self._directory}: pip install xprof && xprof --logdir={self._directory}, or open "
            "its perfetto_trace.json.gz at https://ui.perfetto.dev."
        )

"""A trace of a few training steps, for XProf or Perfetto: what --profile_steps=10:15 asks for."""

import os
import time
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

    Entered around the steps, so that a run that ends among them, whatever the reason, keeps what was traced. Where the
    steps pause, one trace ends and the next begins behind it: an evaluation may be a thousand times as long as a step.
    A trace that cannot be written is lost with a message, and the run goes on.

    Steps count from 0 along the whole run. Raises UserError for steps behind the last, and where something else stands
    in the folder's place; where those asked for have begun before a run continues, it says so and traces none, so that
    the same command continues a run that was stopped.

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
        there = self._directory
        if self._steps is not None and there.exists() and not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(
                f"profile_steps={self._steps[0]}:{self._steps[1]}: {there} is no folder that can be written to; remove "
                "it, or give another --model_dir."
            )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def before(self, step: int) -> None:
        """Call it before step number `step` begins."""
        if self._steps is not None and not self._running and self._steps[0] <= step < self._steps[1]:
            self._steps = step, self._steps[1]
            options = jax.profiler.ProfileOptions()
            # Its folder; by default the second alone, in which another may have ended.
            options.session_id = time.strftime(f"%Y_%m_%d_%H_%M_%S_step_{step}")
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True, profiler_options=options)
            self._running = True

    def after(self, done: int, result: Any) -> None:
        """Call it when `done` steps were given to the device; result: what the last of them computes."""
        if self._running and done >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop(f"steps {self._steps[0]} to {done - 1}")

    def pause(self, done: int, result: Any) -> None:
        """Call it where the steps pause, for an evaluation say, after `done` of them; result: as `after` has it."""
        if self._running:
            jax.block_until_ready(result)
            self._stop(f"steps {self._steps[0]} to {done - 1}", left=(done, self._steps[1]))

    def close(self) -> None:
        """Ends a trace whose last step never came, and says so where its first did not."""
        if self._running:
            self._stop("the steps that were taken")
        elif self._steps is not None:
            self._message(f"profile_steps={self._steps[0]}:{self._steps[1]}: the run ended before these steps.")

    def _stop(self, what: str, left: tuple[int, int] | None = None) -> None:
        self._running, self._steps = False, left
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, ValueError, OSError) as error:  # a full disk, say; JAX begins no other after such a one
            self._steps, reason = None, " ".join(str(error).split())[:200]
            self._message(f"profile of {what} was lost: it cannot be written to {self._directory} ({reason}).")
            return
        self._message(
            f"profile of {what} in {self._directory}: pip install xprof && xprof --logdir={self._directory}, or open "
            "its perfetto_trace.json.gz at https://ui.perfetto.dev."
        )

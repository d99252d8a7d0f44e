"""Ending a run politely: a signal asks, the loop answers at the next step boundary."""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, SIGTERM and SIGINT (Ctrl-C) set a flag instead of ending the process.

    The handler does nothing else: saving from inside it could interrupt a save. A second signal ends the process at
    once with code 128 + its number, for a user who does not want to wait. Outside the main thread, where Python
    allows no handlers, only `request()` sets the flag.

    Where several processes run together, a SIGTERM that any of them gets stops all, at the same step: JAX's service
    notes it and names a step that none has reached yet. SIGINT is passed on as SIGTERM.

        with StopSignal() as stop:
            while step < last and not stop.reached(step):
                ...
            save()
    """

    def __init__(self):
        self._received: int | None = None
        self._previous: dict[int, object] = {}
        self._together = False

    @property
    def requested(self) -> bool:
        """Whether the run should save and end."""
        return self._received is not None

    def reached(self, step: int) -> bool:
        """Whether to stop before this step; the same answer on all processes, each of which asks at every step."""
        if self._together and self._received is None and multihost_utils.reached_preemption_sync_point(step):
            self._received = signal.SIGTERM
        return self.requested

    @property
    def name(self) -> str:
        """What asked, for the log: "SIGTERM", "SIGINT", "request" or ""."""
        if self._received is None:
            return ""
        return signal.Signals(self._received).name if self._received else "request"

    def request(self) -> None:
        """Asks from inside the program, as a signal would."""
        if self._together:
            signal.raise_signal(signal.SIGTERM)
        elif self._received is None:
            self._received = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process
        signal.raise_signal(signal.SIGTERM)

    def __enter__(self) -> "StopSignal":
        self._together = jax.distributed.is_initialized() and jax.process_count() > 1
        if self._together and threading.current_thread() is threading.main_thread():
            self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
        elif threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

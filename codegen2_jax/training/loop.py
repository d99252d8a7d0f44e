"""The loop around the step: fetch a batch, step, note what happened. One function, used by every kind of training."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from codegen2_jax.errors import NonFiniteError, PreemptedError
from codegen2_jax.sharding import partitioning

# One bad batch is skipped by the step itself; this many in a row mean that the run is lost.
MAX_NON_FINITE_STEPS = 3
LOG_EVERY = 10


@dataclasses.dataclass
class Clock:
    """Seconds spent and examples seen in steps, compilation apart, for throughput.

    shapes_seen: the batch shapes that were compiled already; one clock belongs to one jitted step.
    """

    seconds: float = 0.0
    steps: int = 0
    examples: int = 0
    compile_seconds: float = 0.0
    shapes_seen: set = dataclasses.field(default_factory=set)

    @property
    def examples_per_second(self) -> float:
        return self.examples / max(self.seconds, 1e-9)


def run_steps(
    train_step: Callable,
    state: Any,
    batches: Iterator,
    *,
    first: int,
    last: int,
    layout: partitioning.Layout,
    tracker: Any,
    progress: Any,
    clock: Clock,
    stop: Any = None,
    labels: dict | None = None,
    metric_offset: int = 0,
) -> tuple[Any, int]:
    """Runs steps `first` (inclusive) to `last` (exclusive) and returns the state and the step it stands at.

    Metrics are read back only every LOG_EVERY steps, so that the device never waits for the host. Stops early, at a
    step boundary, when `stop.reached`; the caller saves and decides. Raises NonFiniteError after
    MAX_NON_FINITE_STEPS steps in a row without a finite loss and gradient.
    """
    step = first
    pending: list[tuple[int, dict]] = []

    def flush():
        for at, metrics in pending:
            values = {name: float(value) for name, value in metrics.items()}
            tracker.metrics(metric_offset + at, values, **(labels or {}))
        pending.clear()

    while step < last and not (stop is not None and stop.reached(metric_offset + step)):
        batch = next(batches)
        began = time.perf_counter()
        placed = partitioning.put_batch(layout, batch)
        state, metrics = train_step(state, placed)
        step += 1
        shape = tuple(np.shape(batch[name]) for name in sorted(batch))
        if shape not in clock.shapes_seen:  # the first batch of a shape compiles
            jax.block_until_ready(metrics["loss"])
            clock.compile_seconds += time.perf_counter() - began
            clock.shapes_seen.add(shape)
        else:
            clock.seconds += time.perf_counter() - began
            clock.steps += 1
            clock.examples += len(placed["task_B"])
        if step % LOG_EVERY == 0 or step == last:
            began = time.perf_counter()
            loss = float(metrics["loss"])  # waits for the device: its time belongs to the steps
            clock.seconds += time.perf_counter() - began
            if int(state.skipped) >= MAX_NON_FINITE_STEPS:
                raise NonFiniteError(
                    f"loss={loss} or its gradient was not finite for {int(state.skipped)} steps in a row at step "
                    f"{step}; lower the learning rate or set clip_norm."
                )
            pending.append((step, metrics))
            flush()
            progress.update(step, loss=loss, examples_per_second=clock.examples_per_second)
    return state, step


def raise_if_stopped(stop: Any, directory: str) -> None:
    """Raises PreemptedError when a signal asked to stop; call it after the state was saved."""
    if stop is not None and stop.requested:
        raise PreemptedError(f"stopped by a signal; the state is saved in {directory}; the same command continues.")

"""The loop around the step: fetch a batch, step, note what happened. One function, used by every kind of training."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from codegen2_jax.errors import NonFiniteError, PreemptedError
from codegen2_jax.sharding import partitioning
from codegen2_jax.training.profiling import Profile

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
    profile: Profile | None = None,
) -> tuple[Any, int]:
    """Runs steps `first` (inclusive) to `last` (exclusive) and returns the state and the step it stands at.

    Every LOG_EVERY steps the metrics are read back, after the next step was given to the device, which so never waits
    for the host; the loader's threads make the next batches meanwhile. Stops early, at a step boundary, when
    `stop.reached`; the caller saves and decides. Raises NonFiniteError after MAX_NON_FINITE_STEPS steps in a row
    without a finite loss and gradient.
    """
    step = first
    unread: tuple[int, dict] | None = None

    def read(at: int, metrics: dict) -> None:
        began = time.perf_counter()
        # Explicit, so that a transfer guard tells it from an accident. It waits for the device; that is time of steps.
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        clock.seconds += time.perf_counter() - began
        skipped, loss = values.pop("skipped"), values["loss"]
        if skipped >= MAX_NON_FINITE_STEPS:
            raise NonFiniteError(
                f"loss={loss} or its gradient was not finite for {skipped:.0f} steps in a row at step {at}; lower the "
                "learning rate or set clip_norm."
            )
        tracker.metrics(metric_offset + at, values, **(labels or {}))
        progress.update(at, loss=loss, examples_per_second=clock.examples_per_second)

    while step < last and not (stop is not None and stop.reached(metric_offset + step)):
        batch = next(batches)
        if profile is not None:
            profile.before(metric_offset + step)
        began = time.perf_counter()
        placed = partitioning.put_batch(layout, batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=metric_offset + step):
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
        if profile is not None:
            profile.after(metric_offset + step, metrics)
        if unread is not None:
            read(*unread)
        unread = (step, metrics) if step % LOG_EVERY == 0 or step == last else None
    if profile is not None:
        profile.pause(metric_offset + step, state)
    if unread is not None:
        read(*unread)
    return state, step


def raise_if_stopped(stop: Any, directory: str) -> None:
    """Raises PreemptedError when a signal asked to stop; call it after the state was saved."""
    if stop is not None and stop.requested:
        raise PreemptedError(f"stopped by a signal; the state is saved in {directory}; the same command continues.")

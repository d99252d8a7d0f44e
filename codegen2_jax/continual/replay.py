"""Experience replay: which old examples are kept, and when they are seen again (specification, section 4.1).

A buffer is data in the checkpoint: pairs (task, record number), never copies, because the records are in the cache.
Its content is a function of (seed, tasks so far), so it does not depend on how long a task trained, and a resumed run
has the same buffer as one that was never killed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from codegen2_jax.errors import UserError

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """How a stream replays.

    Attributes:
      size: examples in the buffer, over all tasks.
      policy: "ring" gives every task of the stream size // tasks slots, filled once, without replacement, from its
        train split; "reservoir" offers every train example of a task once, when the task enters, and keeps a uniform
        sample of all that were offered (Vitter's algorithm R), so early tasks make room for later ones.
      schedule: "interleaved" joins `batch_size` buffered examples to every batch, one loss over both (Mammoth's ER);
        "epoch_end" walks once through the whole buffer after every epoch of the task, in batches of one task each,
        one optimizer step per batch at the learning rate where the task's schedule stands (as arXiv 2307.02435's code
        does). A last epoch that the stage's end or early stopping cuts short counts as one.
      batch_size: replayed examples a step; None: the task's batch size when interleaved, 8 at an epoch's end. Those at
        an epoch's end are computed at once; only what joins a batch is cut with it into accumulation steps.
      include_current: whether the task that is being learned is in the buffer while it is; None: only for "epoch_end".
    """

    size: int
    policy: Literal["ring", "reservoir"] = "ring"
    schedule: Literal["interleaved", "epoch_end"] = "interleaved"
    batch_size: int | None = None
    include_current: bool | None = None

    def __post_init__(self):
        for name, choices in (("policy", ("ring", "reservoir")), ("schedule", ("interleaved", "epoch_end"))):
            if getattr(self, name) not in choices:
                raise UserError(f"replay {name}={getattr(self, name)!r} is unknown; choose one of {list(choices)}.")
        for name in ("size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"replay {name}={value} is out of range; it must be at least 1.")

    @property
    def with_current(self) -> bool:
        return self.schedule == "epoch_end" if self.include_current is None else self.include_current

    def check(self, num_tasks: int) -> None:
        """Refuses what cannot serve `num_tasks` tasks."""
        if self.policy == "ring" and self.size < num_tasks:
            raise UserError(
                f"replay size={self.size} leaves no slot for each of {num_tasks} tasks; give at least {num_tasks}, "
                "or policy='reservoir'."
            )

    def rows_per_step(self, task_batch_size: int) -> int:
        """Replayed examples in one step."""
        if self.batch_size is not None:
            return self.batch_size
        return task_batch_size if self.schedule == "interleaved" else 8

    def rows_joined(self, task_batch_size: int) -> int:
        """Replayed examples that stand in one batch with the task's own."""
        return self.rows_per_step(task_batch_size) if self.schedule == "interleaved" else 0

    def admit(self, buffer: "Buffer", task: int, num_examples: int, *, num_tasks: int, seed: int) -> "Buffer":
        """The buffer after `task`, with `num_examples` train examples, entered it."""
        rng = np.random.default_rng((seed, 5, task))
        pairs = list(buffer.pairs)
        if self.policy == "ring":
            chosen = rng.choice(num_examples, size=min(self.size // num_tasks, num_examples), replace=False)
            pairs += [(task, int(record)) for record in np.sort(chosen)]
            return Buffer(pairs=tuple(pairs), offered=buffer.offered + num_examples)
        for number, record in enumerate(rng.permutation(num_examples).tolist(), start=buffer.offered):
            if len(pairs) < self.size:
                pairs.append((task, record))
            elif (slot := int(rng.integers(0, number + 1))) < self.size:
                pairs[slot] = (task, record)
        return Buffer(pairs=tuple(pairs), offered=buffer.offered + num_examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """What is kept: (task, record number in the task's train split), and how many examples were offered so far."""

    pairs: tuple[Pair, ...] = ()
    offered: int = 0

    def records_of(self, task: int) -> np.ndarray:
        """int64, the kept records of one task, in the order of their slots."""
        return np.asarray([record for owner, record in self.pairs if owner == task], np.int64)

    @property
    def tasks(self) -> list[int]:
        return sorted({task for task, _ in self.pairs})

    def to_json(self) -> dict:
        return {"pairs": [list(pair) for pair in self.pairs], "offered": self.offered}

    @classmethod
    def from_json(cls, stored: dict) -> "Buffer":
        return cls(pairs=tuple((task, record) for task, record in stored["pairs"]), offered=stored["offered"])


def epoch_end_batches(
    buffer: Buffer, batch_size: int, *, seed: int, stage: int, epoch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(task, int64 [batch_size] record numbers) of one pass over the buffer: whole tasks in random order.

    The last batch of a task wraps around to the task's first records of the pass.
    """
    rng = np.random.default_rng((seed, 6, stage, epoch))
    for task in rng.permutation(buffer.tasks).tolist():
        records = rng.permutation(buffer.records_of(task))
        for start in range(0, len(records), batch_size):
            yield task, np.take(records, np.arange(start, start + batch_size), mode="wrap")

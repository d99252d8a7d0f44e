"""A job with every kind of parameter, for the tests of the command line."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

from codegen2_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """A part that a job may be made of."""

    top_k: int = 20
    kind: Literal["disjoint", "code"] = "disjoint"
    weight: float = 0.1

    def __post_init__(self):
        if self.top_k > 68:
            raise errors.UserError(f"top_k={self.top_k} exceeds pool_size=68; lower TOP_K.")
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} is negative;\nuse 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft:
    """Another part, of which one parameter has no default."""

    num_tokens: int


def linear(*, peak: float = 0.1) -> float:
    """A schedule."""
    return peak


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Prints what it is made of, or ends as it is told."""

    model_dir: str
    part: Pool | Soft | None
    init_from: str | None = None
    names: tuple[str, ...] = ("a",)
    pairs: tuple[tuple[str, float], ...] = ()
    flag: bool = False
    rate: float = 0.5
    limit: int | None = None
    schedule: Callable = linear
    peak: Any = None
    data_dir: str | None = None
    ends_with: str | None = None

    def run(self, *, config_text: str) -> None:
        if self.ends_with == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if self.ends_with:
            raise getattr(errors, self.ends_with)("something\nhappened")
        print(f"{os.getpid()} {os.environ.get('MALLOC_TOP_PAD_')} {self}")
        print(config_text, end="")

    def dry_run(self) -> None:
        print("dry run of", self.part)

    def show_batch(self) -> None:
        print("a batch of", self.part)

"""The model under evaluation, and what every benchmark of one call shares."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax.decoding import sampling
from codegen2_jax.errors import UserError

STEPS = ("all", "generate", "score")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model. name: what results call it. loaded: has model, params, vocabulary and digest."""

    name: str
    loaded: Any

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def vocabulary(self) -> Any:
        return self.loaded.vocabulary

    @functools.cached_property
    def params(self) -> Any:
        """On the device."""
        return jax.tree.map(jnp.asarray, self.loaded.params)

    @functools.cached_property
    def decoder(self) -> Any:
        """The weights as decoding reads them."""
        return sampling.lay_out(self.model, self.params)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What decides its answers, for the head of a file of them."""
        config = self.model.config
        return {
            "model_digest": self.loaded.digest,
            "vocabulary_digest": self.vocabulary.digest,
            "dtype": config.dtype,
            "prefix_lm": bool(getattr(config, "prefix_lm", False)),
        }

    def names_of(self, ids) -> list[str]:
        """Control tokens by name, for people."""
        names = {index: name for name, index in self.vocabulary.control_tokens.items()}
        return [f"{index} {names.get(index, '')}".strip() for index in ids]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """One call of the command.

    Attributes:
      directory: where results go; each benchmark has a folder of its name in it.
      subject: None where nothing is generated.
      step: "generate", "score", or "all".
      tracker: shows progress, messages and tables (`training.tracking.Tracker`).
      workers: programs judged at once.
      allow_unsafe_execution: judge without isolation where there is none.
    """

    directory: Path
    subject: Subject | None
    step: str
    tracker: Any
    workers: int = 2
    allow_unsafe_execution: bool = False

    def __post_init__(self):
        if self.step not in STEPS:
            raise UserError(f"only={self.step!r} is unknown; choose generate or score.")
        if self.step != "score" and self.subject is None:
            raise UserError("no model is given; name one by --model DIR, or score what is there by --only score.")
        if self.workers < 1:
            raise UserError(f"workers={self.workers} is out of range; it must be at least 1.")

    @property
    def generates(self) -> bool:
        return self.step != "score"

    @property
    def scores(self) -> bool:
        return self.step != "generate"

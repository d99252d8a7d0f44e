"""Pretraining data of a decoder: whole documents of several sources, packed into windows (arXiv 2305.02309)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax import processes
from codegen2_jax.data import cache, contamination, documents
from codegen2_jax.data.evaluation_sets import available, evaluation_sets
from codegen2_jax.data.infilling import CausalLM
from codegen2_jax.data.packed_batches import PackedBatches
from codegen2_jax.data.packed_text import describe
from codegen2_jax.data.packing import Objective
from codegen2_jax.errors import UserError
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.training.initialisation import LoadedModel
from codegen2_jax.training.pretraining_streams import Streams

SPLITS = ("train", "valid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A cached task of whole documents.

    Attributes:
      task: the task's name; its records are one document each.
      rate: share of the windows, relative to the other sources'.
    """

    task: str
    rate: float = 1.0

    def __post_init__(self):
        if not self.rate >= 0:
            raise UserError(f"rate={self.rate} of source {self.task!r} is negative; use 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedDocuments:
    """Windows of packed documents under one objective; `Pretraining` opens it.

    Held-out documents are read as plain text (the left-to-right loss of each source), and, where the objective is
    another, once more under it.

    Attributes:
      sources: what is mixed.
      objective: what becomes of a window (data/infilling.py).
      sequence_length: raw tokens of a window.
      packing, overflow, shift, redraw_per_epoch, mixing: see `data.packed_batches.PackedBatches`.
      corpora: a user's own corpora, each a dictionary as data/documents.py describes; sources name them.
      evaluation_sets: arguments of `data.evaluation_sets.evaluation_sets`: what the report that is written before
        training looks for in the corpus, besides the sets that are at hand (`available`); None for no report.
      environment: variables that the task modules read when a cache is made, such as BOOLQ_DIR.
    """

    sources: Sequence[Source]
    objective: Objective = CausalLM()
    sequence_length: int = 2048
    packing: str = "concat"
    overflow: str = "fit"
    shift: str = "drop_last"
    redraw_per_epoch: bool = True
    mixing: str = "windows"
    task_modules: tuple[str, ...] = ("tasks.documents",)
    corpora: Sequence[Mapping[str, Any]] = ()
    evaluation_sets: Mapping[str, Any] | None = dataclasses.field(default_factory=lambda: {"pytask_cl": True})
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache_dir: str | None = None

    def __post_init__(self):
        if self.sequence_length < 2:
            raise UserError(f"sequence_length={self.sequence_length} holds no token and its target; use 2 or more.")

    def open(self, loaded: LoadedModel, *, batch_size: int, seed: int, rows: np.ndarray | None = None) -> Streams:
        """Makes missing caches, and says what the batches are; `rows` of each are this process's, None for all."""
        config = loaded.model.config
        if not isinstance(config, DecoderConfig):
            raise UserError(f"packed documents train a decoder; {type(config).__name__} reads pairs (PairObjectives).")
        if self.sequence_length > config.max_positions:
            raise UserError(
                f"sequence_length={self.sequence_length} exceeds the model's max_positions={config.max_positions}; "
                "shorten SEQUENCE_LENGTH, or give a model that starts from scratch more positions."
            )
        names = [source.task for source in self.sources]
        if len(set(names)) < len(names) or not names:
            raise UserError(f"sources {names} must be at least one, each named once.")
        directory = cache.cache_directory(self.cache_dir)
        ensure_cached = functools.partial(
            cache.ensure_cached,
            tuple(names),
            cache_dir=directory,
            vocabulary_dir=loaded.vocabulary_directory,
            task_modules=self.task_modules,
            environment={**self.environment, **documents.environment(documents.parse_tasks(self.corpora))},
        )
        processes.first_then_others(ensure_cached)
        splits = {split: {name: cache.open_split(directory, name, split) for name in names} for split in SPLITS}
        shared = {
            "vocabulary": loaded.vocabulary,
            "sequence_length": self.sequence_length,
            "batch_size": batch_size,
            "seed": seed,
            "packing": self.packing,
            "overflow": self.overflow,
            "shift": self.shift,
            "attend_across_documents": config.attend_across_documents,
        }
        train = PackedBatches(
            splits["train"],
            objective=self.objective,
            rates={source.task: source.rate for source in self.sources},
            redraw_per_epoch=self.redraw_per_epoch,
            mixing=self.mixing,
            rows=rows,
            **shared,
        )
        valid: dict[str, Any] = {name: PackedBatches({name: splits["valid"][name]}, **shared) for name in names}
        if self.objective != CausalLM():
            for name in names:
                valid[f"{name}, objective"] = PackedBatches(
                    {name: splits["valid"][name]}, objective=self.objective, **shared
                )
        return Streams(train=train, valid=valid, byte_lengths=loaded.vocabulary.byte_lengths, texts=tuple(names))

    def examine(self, directory: Path, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        """Writes contamination.json and .txt into `directory`: which evaluation problems the training documents hold.

        Once for a run; a run that goes on finds them there. `say` gets the table.
        """
        path = directory / "contamination.json"
        processes.first_then_others(lambda: self._examine(path, loaded, say))

    def _examine(self, path: Path, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        if not self.evaluation_sets or path.exists() or not processes.is_first():
            return
        splits = [cache.open_split(cache.cache_directory(self.cache_dir), one.task, "train") for one in self.sources]
        records = (record for split in splits for record in contamination.cached_records(split, loaded.vocabulary))
        found = contamination.report(records, evaluation_sets(**{**available(), **self.evaluation_sets}))
        contamination.write(found, path)
        say(contamination.table(found))

    def describe(self, batch: Mapping[str, np.ndarray], vocabulary: Any) -> str:
        """The first rows of a batch to read, control tokens spelled out."""
        return describe(batch, vocabulary, names=[source.task for source in self.sources])

    @property
    def longest(self) -> int:
        """Positions of a row, of the longest batch."""
        return self.sequence_length - (self.shift == "drop_last")

    def abstract_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch for lowering; its values mean nothing."""
        shape = (batch_size, self.longest)
        tokens, masks = np.zeros(shape, np.int32), np.zeros(shape, bool)
        names = ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")
        batch = dict.fromkeys(names, tokens) | dict.fromkeys(("bidirectional_BT", "loss_mask_BT"), masks)
        return batch | dict.fromkeys(("task_B", "record_B"), tokens[:, 0])

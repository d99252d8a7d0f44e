"""Pretraining data of an encoder-decoder: windows of code and pairs of text and code, one objective a batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax import processes
from codegen2_jax.data import cache, loader, objectives
from codegen2_jax.errors import UserError
from codegen2_jax.training.initialisation import LoadedModel
from codegen2_jax.training.pretraining_streams import Streams

SHOWN = 4  # rows of a batch that are described


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One way to make an example of a record.

    Attributes:
      name: the objective's name in the log.
      kind: "span_corruption", "denoising", "continuation", "text_to_code" or "code_to_text" (data/objectives.py).
      task: the cached task whose records it reads.
      rate: relative share of the batches.
      max_source, max_target: tokens, both special tokens included.
      start_step: the first step whose batch may be of this objective; one objective at least must start at 0.
      noise: for "span_corruption" and "denoising": the share of noise (density, or the (low, high) of a range).
    """

    name: str
    kind: str
    task: str
    rate: float
    max_source: int
    max_target: int
    start_step: int = 0
    noise: float | tuple[float, float] | None = None

    def bind(self, vocabulary: Any):
        """The function (record, rng, *, max_source, max_target) of this objective."""
        facts: dict[str, Any] = {"bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id}
        if self.kind == "span_corruption":
            facts["sentinel_ids"] = vocabulary.sentinel_ids
            if self.noise is not None:
                facts["noise_density"] = self.noise
        elif self.kind == "denoising":
            facts |= {"mask_id": vocabulary.mask_id, "text_ids": vocabulary.text_ids}
            if self.noise is not None:
                facts["noise_range"] = self.noise
        elif self.kind not in ("continuation", "text_to_code", "code_to_text"):
            raise UserError(f"objective kind={self.kind!r} is unknown; codegen2_jax/data/objectives.py has the five.")
        return functools.partial(getattr(objectives, self.kind), **facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairObjectives:
    """Batches of the objectives by their rates; `Pretraining` opens it."""

    objectives: Sequence[Objective]
    task_modules: tuple[str, ...] = ("tasks.pretraining",)
    cache_dir: str | None = None

    def open(self, loaded: LoadedModel, *, batch_size: int, seed: int, rows: np.ndarray | None = None) -> Streams:
        """Makes missing caches, and says what the batches are; `rows` of each are this process's, None for all."""
        bound = {objective.name: objective.bind(loaded.vocabulary) for objective in self.objectives}
        directory = cache.cache_directory(self.cache_dir)
        ensure_cached = functools.partial(
            cache.ensure_cached,
            tuple(dict.fromkeys(objective.task for objective in self.objectives)),
            cache_dir=directory,
            vocabulary_dir=loaded.vocabulary_directory,
            task_modules=self.task_modules,
            environment={},
        )
        processes.first_then_others(ensure_cached)
        streams: dict[str, dict] = {"train": {}, "valid": {}}
        for objective in self.objectives:
            for split, members in streams.items():
                records = cache.open_split(directory, objective.task, split)
                lengths = (objective.max_source, objective.max_target)
                members[objective.name] = (records, bound[objective.name], objective.rate, lengths)
        # The full shape of each objective alone: compiling another costs more than its padding.
        shared = {"start_id": loaded.model.config.decoder_start_token_id, "num_shapes": 0}
        train = loader.PretrainingBatches(
            streams["train"],
            batch_size,
            seed,
            rows=rows,
            starts={objective.name: objective.start_step for objective in self.objectives},
            **shared,
        )
        valid = {
            name: loader.PretrainingBatches({name: stream}, batch_size, seed, **shared)
            for name, stream in streams["valid"].items()
        }
        return Streams(train=train, valid=valid)

    def examine(self, directory: Path, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        """Nothing: the windows and pairs leave the evaluation's files and functions out when they are made."""

    def describe(self, batch: Mapping[str, np.ndarray], vocabulary: Any) -> str:
        """The first rows of a batch to read; control tokens have no text."""
        lines = [f"objective {self.objectives[int(batch['task_B'][0])].name}"]
        for row in range(min(SHOWN, len(batch["task_B"]))):
            for name, mask in (("inputs_BS", "inputs_mask_BS"), ("targets_BT", "loss_mask_BT")):
                lines += [f"--- {name.partition('_')[0]}", vocabulary.decode(batch[name][row][batch[mask][row]])]
        return "\n".join(lines)

    def abstract_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of the first objective's shape, for lowering; its values mean nothing."""
        first = self.objectives[0]
        source, target = np.zeros((batch_size, first.max_source)), np.zeros((batch_size, first.max_target))
        return {
            "inputs_BS": source.astype(np.int32),
            "inputs_mask_BS": source.astype(bool),
            "decoder_inputs_BT": target.astype(np.int32),
            "targets_BT": target.astype(np.int32),
            "loss_mask_BT": target.astype(bool),
            "task_B": np.zeros(batch_size, np.int32),
            "record_B": np.zeros(batch_size, np.int32),
        }

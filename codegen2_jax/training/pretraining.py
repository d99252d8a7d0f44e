"""Pretraining of a small encoder-decoder on windows of code and on pairs of text and code.

Every batch has one objective, drawn by its rate; the weights leave as a Hugging Face directory with their vocabulary.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax.data import cache, loader, objectives
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import initialisation, losses, run_directory
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.loop import Clock, raise_if_stopped, run_steps
from codegen2_jax.training.signals import StopSignal
from codegen2_jax.training.step import Learner, TrainState, make_train_step, merge_params, split_params, state_shardings
from codegen2_jax.training.tracking import Tracker

TRAIN_EVERYTHING = ((".*", "train"),)


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
class Pretraining:
    """A pretraining run: `run()` trains and exports, `dry_run()` describes.

    Attributes:
      objectives: what the batches are made of.
      export_directory: where the finished model goes; None: MODEL_DIR/export.
      evaluate_every, save_every: steps.
      stop_after_seconds: ends the run early, with the schedule cut off, None for never.
    """

    model_dir: str
    source: initialisation.ModelSource
    objectives: Sequence[Objective]
    optimizer: Any
    num_steps: int
    batch_size: int
    seed: int
    task_modules: tuple[str, ...] = ("tasks.pretraining",)
    cache_dir: str | None = None
    mesh_shape: tuple[int, int] | None = None
    evaluate_every: int = 250
    evaluation_batches: int = 8
    save_every: int = 250
    export_directory: str | None = None
    export_dtype: str = "bfloat16"

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "evaluate_every", "save_every", "evaluation_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be at least 1.")

    # --------------------------------------------------------------------------------------------------- running

    def run(self, *, config_text: str) -> None:
        directory = Path(self.model_dir)
        run_directory.check_config(directory, config_text)
        with run_directory.occupied(directory):
            self._run(directory, config_text)

    def _run(self, directory: Path, config_text: str) -> None:
        runtime = _Runtime(self)
        run_directory.write_config(directory, config_text)
        with (
            Tracker(directory, process_index=jax.process_index()) as tracker,
            Checkpointer(directory / "checkpoints") as checkpoints,
            StopSignal() as stop,
        ):
            state, step, iterator, meta = runtime.restore(checkpoints)
            tracker.resume(step)
            tracker.message(
                f"{runtime.loaded.model.parameters():,} parameters; "
                + (f"restored step {step}" if step else "starting from scratch")
                + f"; batch shapes {runtime.batches.shapes}"
            )
            clock, began = Clock(), time.time() - meta["wall_seconds"]
            with tracker.progress("pretraining", self.num_steps, first=step) as progress:
                while step < self.num_steps:
                    until = min(_next(step, self.evaluate_every), _next(step, self.save_every), self.num_steps)
                    state, step = run_steps(
                        runtime.train_step,
                        state,
                        iterator,
                        first=step,
                        last=until,
                        mesh=runtime.mesh,
                        tracker=tracker,
                        progress=progress,
                        clock=clock,
                        stop=stop,
                    )
                    if step % self.evaluate_every == 0 or step == self.num_steps:
                        meta["losses"] = runtime.evaluate(state)
                        tracker.metrics(step, meta["losses"], split="valid")
                        text = ", ".join(f"{name} {value:.3f}" for name, value in meta["losses"].items())
                        tracker.message(f"step {step}: valid {text}; {clock.examples_per_second:.1f} examples/s")
                    meta["wall_seconds"] = time.time() - began
                    checkpoints.save(step, runtime.saved(state), {**meta, "data": iterator.get_state()})
                    raise_if_stopped(stop, self.model_dir)
            self._export(runtime, state, step, meta)
            tracker.message(f"exported to {self._export_path()}")

    def _export_path(self) -> Path:
        return Path(self.export_directory) if self.export_directory else Path(self.model_dir) / "export"

    def _export(self, runtime: "_Runtime", state: TrainState, step: int, meta: dict) -> None:
        target = self._export_path()
        params = jax.tree.map(jax.device_get, merge_params(state.trainable, state.frozen)["model"])
        huggingface.save_t5(target, runtime.loaded.model.config, params, dtype=self.export_dtype)
        for path in Path(runtime.loaded.vocabulary_directory).iterdir():
            if path.suffix in (".json", ".txt") and path.name != "config.json" and path.parent != target:
                shutil.copyfile(path, target / path.name)
        record = {
            "steps": step,
            "batch_size": self.batch_size,
            "parameters": runtime.loaded.model.parameters(),
            "valid_losses_nats_per_token": meta["losses"],
            "wall_seconds": round(meta["wall_seconds"]),
            "objectives": [dataclasses.asdict(objective) for objective in self.objectives],
        }
        (target / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")

    def dry_run(self) -> None:
        """Builds everything, lowers one step, prints what it would take."""
        from codegen2_jax.training.description import describe_step

        runtime = _Runtime(self)
        describe_step(runtime.train_step, runtime.state_shapes, runtime.batches.batch(0))


class _Runtime:
    """What a pretraining run holds in memory."""

    def __init__(self, config: Pretraining):
        self.config = config
        self.loaded = config.source.load()
        self.mesh = partitioning.make_mesh(config.mesh_shape)
        learner = Learner(model=self.loaded.model)
        self.learner = learner
        streams = {"train": {}, "valid": {}}
        directory = cache.cache_directory(config.cache_dir)
        cache.ensure_cached(
            tuple(dict.fromkeys(objective.task for objective in config.objectives)),
            cache_dir=directory,
            vocabulary_dir=self.loaded.vocabulary_directory,
            task_modules=config.task_modules,
            environment={},
        )
        for objective in config.objectives:
            function = objective.bind(self.loaded.vocabulary)
            for split, members in streams.items():
                records = cache.open_split(directory, objective.task, split)
                lengths = (objective.max_source, objective.max_target)
                members[objective.name] = (records, function, objective.rate, lengths)
        start_id = self.loaded.model.config.decoder_start_token_id
        self.batches = loader.PretrainingBatches(
            streams["train"],
            config.batch_size,
            config.seed,
            start_id=start_id,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            starts={objective.name: objective.start_step for objective in config.objectives},
            num_shapes=0,  # the full shape of each objective: compiling another costs more than its padding
        )
        self.valid = {
            name: loader.PretrainingBatches(
                {name: stream}, config.batch_size, config.seed, start_id=start_id, num_shapes=0
            )
            for name, stream in streams["valid"].items()
        }
        axes, _ = split_params(learner.param_axes(), TRAIN_EVERYTHING)
        rows = jax.tree.map(lambda _: jnp.ones((), bool), {"model": self.loaded.model.param_shapes})
        optimizer = config.optimizer.transformation(config.num_steps, axes, rows)

        def new_state(model_params):
            trainable, frozen = split_params({"model": model_params}, TRAIN_EVERYTHING)
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                trainable=trainable,
                frozen=frozen,
                opt_state=optimizer.init(trainable),
                prompt_state={},
                skipped=jnp.zeros((), jnp.int32),
            )

        abstract = jax.eval_shape(new_state, self.loaded.model.param_shapes)
        self.state_shardings = state_shardings(self.mesh, abstract, learner.param_axes())
        self.state_shapes = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            abstract,
            self.state_shardings,
        )
        self._new_state = partitioning.init_sharded(new_state, self.state_shardings)
        dropout = self.loaded.model.config.dropout_rate > 0
        step = make_train_step(learner, optimizer, seed=config.seed, dropout=dropout)
        self.train_step = jax.jit(step, donate_argnums=0, out_shardings=(self.state_shardings, None))

        def loss(params, batch):
            logits_BTV, _ = learner.forward(params, {}, batch, selection="pool")
            return losses.cross_entropy(logits_BTV, batch["targets_BT"], batch["loss_mask_BT"])

        self._loss = jax.jit(loss)

    def saved(self, state: TrainState) -> dict:
        """The part of a state that a checkpoint holds."""
        return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}

    def restore(self, checkpoints: Checkpointer):
        """(state, step, data iterator, meta): from the newest verified checkpoint, else from the model's source."""
        iterator = self.batches.iterator()
        restored = checkpoints.restore_latest(self.saved(self.state_shapes))
        if restored is not None:
            step, saved, meta = restored
            iterator.set_state(meta.pop("data"))
            skipped = jax.device_put(jnp.zeros((), jnp.int32), partitioning.replicated(self.mesh))
            return TrainState(**saved, frozen={}, prompt_state={}, skipped=skipped), step, iterator, meta
        model_shardings = self.state_shardings.trainable["model"]
        params = initialisation.place_params(self.loaded, model_shardings, seed=self.config.seed)
        return self._new_state(params), 0, iterator, {"wall_seconds": 0.0, "losses": {}}

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Token cross-entropy in nats of each objective on a few fixed batches of the held-out files."""
        params = merge_params(state.trainable, state.frozen)
        results = {}
        for name, batches in self.valid.items():
            sums = [
                self._loss(params, partitioning.put_batch(self.mesh, batches.batch(number)))
                for number in range(self.config.evaluation_batches)
            ]
            results[name] = sum(float(s) for s, _ in sums) / max(1.0, sum(float(c) for _, c in sums))
        return results


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every

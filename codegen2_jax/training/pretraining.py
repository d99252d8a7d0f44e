"""Pretraining from scratch or from given weights; these leave as a Hugging Face directory with their vocabulary."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax import json_files, processes
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.sharding import partitioning
from codegen2_jax.sharding.compilation import jit_step
from codegen2_jax.training import attention_choice, initialisation, ordered_reduction, profiling, run_directory
from codegen2_jax.training.ahead_of_time import Built, placed
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.head_loss import check_blocks
from codegen2_jax.training.loop import Clock, raise_if_stopped, run_steps
from codegen2_jax.training.pretraining_streams import Streams
from codegen2_jax.training.profiling import Profile
from codegen2_jax.training.signals import StopSignal
from codegen2_jax.training.step import Learner, TrainState, make_train_step, merge_params, split_params, state_shardings
from codegen2_jax.training.tracking import Tracker

TRAIN_EVERYTHING = ((".*", "train"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretraining run: `run()` trains and exports, `dry_run()` describes.

    Attributes:
      data: what the batches are made of: `pair_objectives.PairObjectives` for an encoder-decoder,
        `packed_documents.PackedDocuments` for a decoder.
      z_loss: weight of the squared logarithm of the softmax's normaliser (losses.py), 0 for none.
      export_directory: where the finished model goes; None: MODEL_DIR/export.
      loss_blocks: blocks that the head and its loss are cut into, of tokens on one device, of the vocabulary where
        logits lie on several; None: as size and memory ask (head_loss.py), 1: none.
      evaluate_every, save_every: steps.
      ordered_reduction: parts whose gradients are added in a fixed order, so that a run is the same bit for bit on any
        number of devices that divides it (ordered_reduction.py); 0: as the compiler likes.
      mesh, axes: where arrays lie, as `partitioning.make_layout` takes them; no part of what is computed.
      compiler_options: of XLA, for the training step (sharding/compilation.py).
    """

    model_dir: str
    source: initialisation.ModelSource
    data: Any
    optimizer: Any
    num_steps: int
    batch_size: int
    seed: int
    accumulation_steps: int = 1
    z_loss: float = 0.0
    ordered_reduction: int = 0
    loss_blocks: int | None = None
    mesh: dict[str, int] | None = None
    axes: dict[str, Any] | None = None
    compiler_options: dict[str, Any] | None = None
    evaluate_every: int = 250
    evaluation_batches: int = 8
    save_every: int = 250
    export_directory: str | None = None
    export_dtype: str = "bfloat16"

    def __post_init__(self):
        least_one = ("num_steps", "batch_size", "evaluate_every", "save_every", "evaluation_batches")
        for name in (*least_one, "accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be at least 1.")
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"accumulation_steps={self.accumulation_steps} does not divide batch_size={self.batch_size}."
            )
        initialisation.check_seed(self.seed)
        check_blocks(self.loss_blocks)
        if not 0 <= self.z_loss < math.inf:
            raise UserError(f"z_loss={self.z_loss} is no finite number from 0; 1e-4 is usual, 0 is none.")
        huggingface.check_dtype(self.export_dtype)

    # --------------------------------------------------------------------------------------------------- running

    def run(self, *, config_text: str, profile_steps: tuple[int, int] | None = None) -> None:
        """Trains and exports from wherever the run directory stands; profile_steps: to trace (`profiling.Profile`)."""
        directory = Path(self.model_dir)
        run_directory.check_config(directory, config_text)
        digest = run_directory.config_digest(config_text)
        with run_directory.occupied(directory):
            if run_directory.finished(directory, digest) is None:
                self._run(directory, config_text, digest, profile_steps)
            else:
                if processes.is_first():
                    where = directory / run_directory.SCORES_FILE
                    print(f"{directory} is finished; its results are in {where}.{profiling.none_left(profile_steps)}")

    def _run(self, directory: Path, config_text: str, digest: str, profile_steps: tuple[int, int] | None) -> None:
        profiling.check(profile_steps, ends=self.num_steps)  # before weights are read
        loaded = self.source.load()
        runtime = _Runtime(self, loaded)
        rows = runtime.layout.process_rows(self.batch_size)
        streams = self.data.open(loaded, batch_size=self.batch_size, seed=self.seed, rows=rows)
        run_directory.write_config(directory, config_text)
        with (
            Tracker(directory, process_index=jax.process_index()) as tracker,
            Checkpointer(directory / "checkpoints") as checkpoints,
            StopSignal() as stop,
        ):
            iterator = streams.train.iterator()
            state, step, meta = runtime.restore(checkpoints, iterator)
            tracker.resume(step)
            tracker.message(
                f"{loaded.model.parameters():,} parameters; "
                + (f"restored step {step}" if step else f"starting from {self.source.init_from}")
            )
            ends = {"begins": step, "ends": self.num_steps, "traces": jax.process_index() == 0}
            profile = Profile(profile_steps, directory, message=tracker.message, **ends)
            self.data.examine(directory, loaded, tracker.message)
            clock, began = Clock(), time.time() - meta["wall_seconds"]
            with profile, tracker.progress("pretraining", self.num_steps, first=step) as progress:
                while step < self.num_steps:
                    until = min(_next(step, self.evaluate_every), _next(step, self.save_every), self.num_steps)
                    state, step = run_steps(
                        runtime.train_step,
                        state,
                        iterator,
                        first=step,
                        last=until,
                        layout=runtime.layout,
                        tracker=tracker,
                        progress=progress,
                        clock=clock,
                        stop=stop,
                        profile=profile,
                    )
                    if step % self.evaluate_every == 0 or step == self.num_steps:
                        meta |= runtime.evaluate(state, streams) | {"seen": streams.seen(step)}
                        tracker.metrics(step, flattened(meta), split="valid")
                        text = ", ".join(f"{name} {value:.3f}" for name, value in meta["losses"].items())
                        tracker.message(f"step {step}: valid {text}; {clock.examples_per_second:.1f} examples/s")
                    meta["wall_seconds"] = time.time() - began
                    checkpoints.save(step, runtime.saved(state), {**meta, "data": iterator.get_state()})
                    raise_if_stopped(stop, self.model_dir)
            record = {"complete": True, "config_digest": digest, **self._record(loaded, step, meta)}
            self._export(loaded, state, record)
            tracker.message(f"exported to {self._export_path()}")
            run_directory.write_scores(directory, record)

    def _export_path(self) -> Path:
        return Path(self.export_directory) if self.export_directory else Path(self.model_dir) / "export"

    def _record(self, loaded: initialisation.LoadedModel, step: int, meta: dict) -> dict[str, Any]:
        """The contents of scores.json; losses are nats per token."""
        figures = {f"loss {name}": value for name, value in meta["losses"].items()}
        figures |= {f"bits_per_byte {name}": value for name, value in meta["bits_per_byte"].items()}
        return {
            "seed": self.seed,
            "init_from": self.source.init_from,
            "steps": step,
            "batch_size": self.batch_size,
            "parameters": loaded.model.parameters(),
            "summary": {"valid": figures},
            "seen": meta["seen"],
            "wall_seconds": round(meta["wall_seconds"]),
            "data": dataclasses.asdict(self.data),
            "versions": run_directory.versions(),
        }

    def _export(self, loaded: initialisation.LoadedModel, state: TrainState, record: dict[str, Any]) -> None:
        target = self._export_path()
        params = jax.tree.map(partitioning.to_host, merge_params(state.trainable, state.frozen)["model"])
        if not processes.is_first():
            return
        config, vocabulary = loaded.model.config, loaded.vocabulary_directory
        huggingface.save(target, config, params, dtype=self.export_dtype, vocabulary=vocabulary)
        json_files.write(target / "pretraining.json", record)

    def built_for(self, devices: Sequence[jax.Device], **changes: Any) -> Built:
        """The step that `run` would run, for these devices; changes: fields of the model's configuration."""
        runtime = _Runtime(self, self.source.without_weights(**changes), devices)
        return Built(
            train_step=runtime.train_step,
            state=runtime.state_shapes,
            batch=placed(self.data.abstract_batch(self.batch_size), runtime.layout),
            layout=runtime.layout,
            learner=runtime.learner,
            accumulation_steps=self.accumulation_steps,
            compiler_options=self.compiler_options,
        )

    def dry_run(self) -> None:
        """Builds everything, lowers one step, prints what it would take."""
        from codegen2_jax.training.description import describe_step

        loaded = self.source.without_weights()
        runtime = _Runtime(self, loaded)
        batch = self.data.abstract_batch(self.batch_size)
        describe_step(runtime.train_step, runtime.layout, runtime.state_shapes, batch)

    def show_batch(self) -> None:
        """Prints the first batch as the model would read it."""
        loaded = self.source.load()
        streams = self.data.open(loaded, batch_size=self.batch_size, seed=self.seed)
        print(self.data.describe(streams.train.batch(0), loaded.vocabulary))


def flattened(meta: dict) -> dict[str, float]:
    """The numbers of a checkpoint's meta that a log shows, one name each."""
    found = dict(meta["losses"])
    found |= {f"{name}, bits per byte": value for name, value in meta["bits_per_byte"].items()}
    for source, facts in meta["seen"].items():
        found |= {f"{source}, {name} seen": value for name, value in facts.items()}
    return found


class _Runtime:
    """The compiled functions of a pretraining run, and the shapes and shardings of its state."""

    def __init__(
        self, config: Pretraining, loaded: initialisation.LoadedModel, devices: Sequence[jax.Device] | None = None
    ):
        """devices: default all that there are; those of a topology are good for lowering alone."""
        self.config, self.loaded = config, loaded
        self.layout = partitioning.make_layout(config.mesh, config.axes, devices)
        self.layout.check_batch(config.batch_size, config.accumulation_steps)
        whole, in_parts = config.ordered_reduction != 0, None
        model = attention_choice.resolved(self.loaded.model, self.layout, length=config.data.longest, cut=not whole)
        if whole:
            ordered_reduction.check(
                config.ordered_reduction, self.layout, config.batch_size // config.accumulation_steps
            )
            in_parts = functools.partial(
                ordered_reduction.in_order, parts=config.ordered_reduction, layout=self.layout
            )
        else:
            model = dataclasses.replace(model, constrain=self.layout.constrain)
        shards = 1 if whole else self.layout.logit_parts
        learner = Learner(model=model, loss_blocks=config.loss_blocks, logit_shards=shards)
        self.learner = learner
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
        self.state_shardings = state_shardings(self.layout, abstract, learner.param_axes())
        self.state_shapes = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            abstract,
            self.state_shardings,
        )
        self._new_state = partitioning.init_sharded(new_state, self.state_shardings)
        dropout = self.loaded.model.config.dropout_rate > 0
        step = make_train_step(
            learner,
            optimizer,
            seed=config.seed,
            accumulation_steps=config.accumulation_steps,
            dropout=dropout,
            z_loss=config.z_loss,
            in_parts=in_parts,
        )
        self.train_step = jit_step(step, self.layout, self.state_shardings, config.compiler_options)

        def loss(params, batch):
            found, _ = learner.losses(params, {}, batch, batch["loss_mask_BT"], selection="pool")
            return found.cross_entropy, found.tokens

        self._loss = jax.jit(loss, out_shardings=partitioning.replicated(self.layout))

    def saved(self, state: TrainState) -> dict:
        """The part of a state that a checkpoint holds."""
        return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}

    def restore(self, checkpoints: Checkpointer, iterator: Any):
        """(state, step, meta): from the newest verified checkpoint, else from the model's source.

        iterator: over the training batches; moved to where the checkpoint stands.
        """
        restored = checkpoints.restore_latest(self.saved(self.state_shapes))
        if restored is not None:
            step, saved, meta = restored
            iterator.set_state(meta.pop("data"))
            skipped = partitioning.put_whole(partitioning.replicated(self.layout), np.zeros((), np.int32))
            return TrainState(**saved, frozen={}, prompt_state={}, skipped=skipped), step, meta
        model_shardings = self.state_shardings.trainable["model"]
        params = initialisation.place_params(self.loaded, model_shardings, seed=self.config.seed)
        return self._new_state(params), 0, {"wall_seconds": 0.0, "losses": {}, "bits_per_byte": {}, "seen": {}}

    def evaluate(self, state: TrainState, streams: Streams) -> dict[str, dict[str, float]]:
        """On a few fixed batches of each held-out stream: {"losses": nats per token, "bits_per_byte": ...} by stream.

        Bits per byte stand where the stream's targets are text whose bytes are known.
        """
        params = merge_params(state.trainable, state.frozen)
        found: dict[str, dict[str, float]] = {"losses": {}, "bits_per_byte": {}}
        for name, batches in streams.valid.items():
            nats, tokens, text_bytes = 0.0, 0.0, 0
            for number in range(self.config.evaluation_batches):
                batch = batches.batch(number)
                loss, count = self._loss(params, partitioning.put_batch(self.layout, batch, whole=True))
                nats, tokens = nats + float(loss), tokens + float(count)
                text_bytes += streams.bytes_of(name, batch)
            found["losses"][name] = nats / max(1.0, tokens)
            if text_bytes:
                found["bits_per_byte"][name] = nats / math.log(2) / text_bytes
        return found


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every

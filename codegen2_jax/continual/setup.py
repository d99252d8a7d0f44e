"""What a continual run holds in memory: the model, the state, the batches, and the compiled functions."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.continual import data_record
from codegen2_jax.continual.queries import QueryStore, mean_embeddings
from codegen2_jax.continual.stream_batches import StreamBatches
from codegen2_jax.continual.stream_tasks import left_out, open_tasks
from codegen2_jax.data import cache, converters, loader
from codegen2_jax.evaluation import runner
from codegen2_jax.sharding import partitioning
from codegen2_jax.sharding.compilation import jit_step
from codegen2_jax.training import attention_choice, initialisation, ordered_reduction
from codegen2_jax.training.step import (
    Learner,
    TrainState,
    make_loss_step,
    make_train_step,
    merge_params,
    split_params,
    state_shardings,
)

# What a dry run lowers when the data is not cached yet: a batch of 128 source and 128 target tokens, of 4 tasks.
ASSUMED_SHAPE, ASSUMED_TASKS = (128, 128), 4
# Positions at which a kernel of attention is tried: no multiple of a tile, as the lengths of pairs are none.
CHECKED_LENGTH = 328


def stages_of(walk: str, num_tasks: int) -> list[tuple[int, ...]]:
    """The tasks that each stage learns: one after another, or all at once ("joint")."""
    return [tuple(range(num_tasks))] if walk == "joint" else [(task,) for task in range(num_tasks)]


class Setup:
    """The runtime of `continual.stream.ContinualLearning`: everything that does not change from step to step."""

    def __init__(
        self,
        config: Any,
        directory: Path,
        *,
        with_data: bool = True,
        devices: Any = None,
        tell: Callable[[str], None] | None = None,
        **changes: Any,
    ):
        """with_data: False opens no caches and assumes one task and one shape, enough to lower a step.

        devices: those of a topology, to lower for them: no weight is read, and fields of the model's configuration may
        be changed. tell: is given lines while queries are computed.
        """
        self.config, self._is_abstract = config, devices is not None
        self.loaded = config.source.without_weights(**changes) if self._is_abstract else config.source.load()
        self.vocabulary = self.loaded.vocabulary
        self.layout = partitioning.make_layout(config.mesh, config.axes, devices)
        if self.needs_query:
            self.loaded.model.check_pooling(config.query_pooling)
        whole = config.ordered_reduction > 0
        self.model = attention_choice.resolved(self.loaded.model, self.layout, length=CHECKED_LENGTH, cut=not whole)
        if not whole:
            self.model = dataclasses.replace(self.model, constrain=self.layout.constrain)
        self.learner = Learner(
            model=self.model,
            prompt=config.prompt,
            loss_blocks=config.loss_blocks,
            logit_shards=1 if whole else self.layout.logit_parts,
        )
        self.put = functools.partial(partitioning.put_batch, self.layout)
        self.put_whole = functools.partial(partitioning.put_batch, self.layout, whole=True)
        self.scored = tuple(config.eval_splits)
        self.tasks, self.shapes = [], [ASSUMED_SHAPE]
        if with_data:
            self.tasks = open_tasks(config, self.loaded.vocabulary_directory, self.vocabulary)
            self.data = data_record.read(
                cache.cache_directory(config.cache_dir),
                [task.name for task in self.tasks],
                splits=("train", *self.scored),
                tags=config.tags != "none",
            )
            self.leave_out = left_out(config, [task.name for task in self.tasks])
            # One set of shapes for all tasks: each shape is compiled once, whichever task it serves.
            splits = [task.split(name) for task in self.tasks for name in ("train", *self.scored)]
            lengths = [loader.record_lengths(split) for split in splits]
            source_N, target_N = (np.concatenate(part) for part in zip(*lengths, strict=True))
            self.shapes = converters.choose_shapes(source_N, target_N, count=config.num_shapes)
        self.stages = stages_of(config.walk, len(self.tasks) or ASSUMED_TASKS)
        # here, and not after an epoch, it is said what does not divide
        self.layout.check_batch(config.batch_size, config.accumulation_steps)
        if config.replay is not None:
            config.replay.check(len(self.stages))
            joined = config.replay.rows_joined(config.batch_size)
            if joined:
                self.layout.check_batch(config.batch_size + joined, config.accumulation_steps)
            else:
                rows = config.replay.rows_per_step(config.batch_size)
                self.layout.check_rows("replay", rows, setting="replay batch_size")
        self._place()
        self._compile()
        queries = None
        if self.needs_query and not self._is_abstract:
            queries = self._query_store(directory / "queries", tell)
        self.batches = StreamBatches(
            config,
            self.layout,
            self.tasks,
            self.stages,
            self.shapes,
            start_id=self.model.config.decoder_start_token_id,
            steps_per_stage=self.steps_per_stage,
            queries=queries,
        )

    @property
    def steps_per_stage(self) -> int:
        """Optimizer steps of a stage that no early stopping ends, replay between epochs apart."""
        return self.config.steps_per_task * len(self.stages[0])

    @property
    def needs_query(self) -> bool:
        return self.config.prompt is not None and self.config.prompt.needs_query

    # ------------------------------------------------------------------------------------------------ parameters

    def _place(self) -> None:
        model_axes = self.model.param_axes()
        if self._is_abstract:
            self._pretrained = self.model.param_shapes
            self._shape_state()
            return
        shardings = partitioning.shardings(self.layout, model_axes, self.model.param_shapes)
        self._pretrained = initialisation.place_params(self.loaded, shardings, seed=self.config.seed)
        self._shape_state()

    def _query_store(self, directory: Path, tell: Callable[[str], None] | None) -> QueryStore:
        return QueryStore(
            directory,
            self.model,
            self._pretrained,
            self._encoder_digest(),
            self.layout,
            pooling=self.config.query_pooling,
            tell=tell,
        )

    def _shape_state(self) -> None:
        abstract = jax.eval_shape(self._new_state, self._pretrained)
        self.state_shardings = state_shardings(self.layout, abstract, self.learner.param_axes())
        self.state_shapes = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            abstract,
            self.state_shardings,
        )

    def _encoder_digest(self) -> str:
        return self.loaded.digest if self.loaded.weights is not None else f"random|{self.config.seed}"

    def _new_params(self, pretrained: Any) -> tuple[dict, Any]:
        params, prompt_state = {"model": pretrained}, {}
        if self.config.prompt is not None:
            key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
            params["prompt"], prompt_state = self.config.prompt.init(
                key,
                num_tasks=len(self.tasks) or ASSUMED_TASKS,
                embedding_VD=pretrained["embedding"],
                query_width=self.model.config.d_model,
            )
        return params, prompt_state

    def transformation(self, trainable: Any, prompt_state: Any) -> Any:
        """The optimizer of one stage, built for the shapes of its parameters."""
        axes, _ = split_params(self.learner.param_axes(), self.config.labels)
        rows = self.learner.row_shapes(trainable, prompt_state)
        return self.config.optimizer.transformation(self.steps_per_stage, axes, rows)

    def _new_state(self, pretrained: Any) -> TrainState:
        params, prompt_state = self._new_params(pretrained)
        trainable, frozen = split_params(params, self.config.labels)
        return self._with_optimizer(trainable, frozen, prompt_state)

    def _with_optimizer(self, trainable, frozen, prompt_state) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=frozen,
            opt_state=self.transformation(trainable, prompt_state).init(trainable),
            prompt_state=prompt_state,
            skipped=jnp.zeros((), jnp.int32),
        )

    def new_state(self) -> TrainState:
        """The state before anything was learned, born sharded."""
        return partitioning.init_sharded(self._new_state, self.state_shardings)(self._pretrained)

    def fresh_optimizer(self, state: TrainState) -> TrainState:
        """The same parameters with a new optimizer at step 0: every task starts with one (specification, 1.5)."""
        init = partitioning.init_sharded(self._with_optimizer, self.state_shardings)
        return init(state.trainable, state.frozen, state.prompt_state)

    def start_task(self, state: TrainState, task: int) -> TrainState:
        """Lets the prompt open a task: initialises its rows from data, marks it as seen."""
        if self.config.prompt is None:
            return state
        embedding_VD = partitioning.to_host(self._pretrained["embedding"])

        def sample(task: int, count: int, rng: np.random.Generator):
            split = self.tasks[task].train
            records = rng.choice(len(split), size=count, replace=count > len(split))
            query_ND = self.batches.queries_of(split, records) if self.needs_query else None
            tokens = [split[int(record)]["inputs"] for record in records]
            return query_ND, mean_embeddings(embedding_VD, tokens)

        params, prompt_state = self.config.prompt.start_task(
            jax.tree.map(partitioning.to_host, state.trainable["prompt"]),
            jax.tree.map(partitioning.to_host, state.prompt_state),
            task=task,
            sample=sample,
            rng=np.random.default_rng((self.config.seed, 3, task)),
        )
        place = lambda new, old: partitioning.put_whole(old.sharding, np.asarray(new))  # noqa: E731
        return state.replace(
            trainable={**state.trainable, "prompt": jax.tree.map(place, params, state.trainable["prompt"])},
            prompt_state=jax.tree.map(place, prompt_state, state.prompt_state),
        )

    # ------------------------------------------------------------------------------------------------- functions

    def _compile(self) -> None:
        config = self.config
        optimizer = self.transformation(self.state_shapes.trainable, self.state_shapes.prompt_state)
        make = functools.partial(
            make_train_step,
            self.learner,
            optimizer,
            seed=config.seed,
            dropout=self.model.config.dropout_rate > 0,
        )
        whole = partitioning.replicated(self.layout)
        count, replayed, joined = config.accumulation_steps, 0, 0
        if config.replay is not None:
            replayed = config.replay.rows_per_step(config.batch_size)
            joined = config.replay.rows_joined(config.batch_size)
        in_parts = self._in_parts(config.batch_size // count, (config.batch_size + joined) // count)
        steps = (
            make(accumulation_steps=count, in_parts=in_parts),
            make(advance=False, in_parts=self._in_parts(replayed or config.batch_size)),
        )
        self.train_step, self.replay_step = (
            jit_step(step, self.layout, self.state_shardings, config.compiler_options) for step in steps
        )
        self.loss_step = jax.jit(make_loss_step(self.learner), out_shardings=whole)
        self._loss_step_without_prompt = self.loss_step
        if config.prompt is not None:  # compiled when it is first called: for the row before training
            without = dataclasses.replace(self.learner, prompt=None)
            self._loss_step_without_prompt = jax.jit(make_loss_step(without), out_shardings=whole)
        self._predicts: dict[tuple, Any] = {}

    def _in_parts(self, *batch_sizes: int) -> Any:
        """How the gradients of batches of these sizes are added, where the configuration fixes it."""
        parts = self.config.ordered_reduction
        if not parts:
            return None
        for batch_size in batch_sizes:
            ordered_reduction.check(parts, self.layout, batch_size)
        return functools.partial(ordered_reduction.in_order, parts=parts, layout=self.layout)

    def loss_step_of(self, selection: str | None):
        """The jitted loss of a batch under the selection of an evaluation, "pool", or without a prompt (None)."""
        assert selection in (None, "pool"), selection
        return self._loss_step_without_prompt if selection is None else self.loss_step

    def predict(self, task: int, *, beams: int, selection: str | None):
        """The jitted decoder for a task's longest target; selection None decodes without a prompt."""
        max_length = self.tasks[task].max_lengths[1]
        if (max_length, beams, selection) not in self._predicts:
            prompt = None
            if selection is not None and self.config.prompt is not None:

                def prompt(params, prompt_state, batch):
                    prompt_BPD, aux = self.config.prompt.prompt(
                        params["prompt"], prompt_state, batch["task_B"], batch.get("query_BD"), selection=selection
                    )
                    return prompt_BPD, aux["selected_BK"]

            self._predicts[max_length, beams, selection] = runner.make_predict(
                self.model,
                prompt,
                max_length=max_length,
                num_beams=beams,
                length_penalty=self.config.decoding.length_penalty,
                out_shardings=partitioning.replicated(self.layout),
            )
        return self._predicts[max_length, beams, selection]

    def params(self, state: TrainState) -> Any:
        return merge_params(state.trainable, state.frozen)

    def abstract_batch(self, lengths: converters.Shape | None = None) -> dict:
        """A batch of these lengths, or of the largest shape, for lowering; its values mean nothing."""
        (source, target), size = lengths or self.shapes[-1], self.config.batch_size
        tokens = {"inputs_BS": source, "decoder_inputs_BT": target, "targets_BT": target}
        masks = {"inputs_mask_BS": source, "loss_mask_BT": target}
        batch = {name: np.zeros((size, length), np.int32) for name, length in tokens.items()}
        batch |= {name: np.ones((size, length), bool) for name, length in masks.items()}
        batch |= {"task_B": np.zeros(size, np.int32), "record_B": np.zeros(size, np.int32)}
        if self.needs_query:
            batch["query_BD"] = np.zeros((size, self.model.config.d_model), np.float32)
        return batch

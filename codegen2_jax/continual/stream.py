"""A stream of tasks, learned one after another: train, score every task, extend R, save.

The loop knows no method by name. A method is what trains (`labels`), what prompt is prepended (`prompt`), with which
optimizer, and how the stream is walked (`walk`); gin_configs/ names the combinations.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from codegen2_jax.continual import results, retrieval, stream_tasks
from codegen2_jax.continual.replay import Replay
from codegen2_jax.continual.run import Run
from codegen2_jax.continual.setup import Setup
from codegen2_jax.continual.stream_tasks import SPLITS, is_cached, open_tasks
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.runner import Decoding
from codegen2_jax.training import profiling, run_directory
from codegen2_jax.training.ahead_of_time import Built, placed
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.head_loss import check_blocks
from codegen2_jax.training.initialisation import ModelSource, check_seed
from codegen2_jax.training.signals import StopSignal
from codegen2_jax.training.step import Labels
from codegen2_jax.training.tracking import Tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinualLearning:
    """A continual-learning run: `run()` learns and scores the stream, `dry_run()` describes it.

    Attributes:
      model_dir: run directory; the same command continues what is in it.
      method: the name under which results are filed.
      stream: a stream that a tasks module registers, or task names joined by commas, in learning order.
      jsonl_tasks: tasks from a user's own files (`data.jsonl.parse`); the stream "jsonl" is all of them.
      task_modules: modules that register tasks with SeqIO.
      labels: ordered (regex over parameter names, "train" | "freeze").
      walk: "sequential": each task goes on from the one before; "individual": each starts from the initial weights;
        "joint": one stage learns all tasks at once, for steps_per_task times the number of tasks.
      joint_exponent: a joint stage draws task t with p_t proportional to n_t ** joint_exponent (specification, 1.5).
      replay: what of earlier tasks is seen again (`continual.replay.Replay`), None for nothing.
      tags: whether every source begins with the tag of its task (data/tags.py), and whether the query sees it too.
      query_pooling: how a pool's query is made of the states of the input: their mean, or that of the first token
        (encoder-decoders), or of the last (decoders, whose first has seen nothing else).
      steps_per_task: optimizer steps of a task, unless early stopping ends it.
      evaluations_per_task: how often a task is validated while it trains; the best state by BLEU + exact match is kept.
      patience: a task ends when both the validation loss and that score did not improve for more than this many
        validations (specification, 1.5).
      eval_splits: splits that are scored: ("valid", "test"), or ("valid",) where test has no targets.
      eval_examples: examples scored of each valid and test split, evenly spaced; None for all.
      leave_out: tasks of the stream whose score carries no signal, averages without each of which are added; None:
        those of the stream that `without_signal` names.
      ceiling: directory of a finished individual or multitask run, or its scores.json, that this run is held against
        (`continual.ceilings`); None for none.
      retrieval_only: train no language model, only the keys of the pool, and say what it selects (`retrieval`).
      num_shapes: padded batch shapes in use; each is compiled once.
      loss_blocks: blocks that the head and its loss are cut into, of tokens on one device, of the vocabulary where
        logits lie on several; None: as size and memory ask (training/head_loss.py), 1: none.
      save_every: steps between checkpoints inside a task.
      ordered_reduction: parts whose gradients are added in a fixed order, so that a run is the same bit for bit on any
        number of devices that divides it (training/ordered_reduction.py); 0: as the compiler likes.
      mesh, axes: where arrays lie, as `partitioning.make_layout` takes them; no part of what is computed.
      compiler_options: of XLA, for the training step (sharding/compilation.py).
    """

    model_dir: str
    method: str
    stream: str
    source: ModelSource
    optimizer: Any
    labels: Labels
    steps_per_task: int
    batch_size: int
    seed: int
    prompt: Any = None
    walk: Literal["sequential", "individual", "joint"] = "sequential"
    joint_exponent: float = 0.7
    replay: Replay | None = None
    tags: Literal["none", "input", "input_and_query"] = "none"
    query_pooling: Literal["mean", "first", "last"] = "mean"
    decoding: Decoding = Decoding()
    accumulation_steps: int = 1
    evaluations_per_task: int = 3
    patience: int = 3
    eval_splits: tuple[str, ...] = SPLITS
    eval_examples: int | None = None
    leave_out: tuple[str, ...] | None = None
    without_signal: tuple[str, ...] = ()
    ceiling: str | None = None
    retrieval_only: bool = False
    num_shapes: int = 4
    loss_blocks: int | None = None
    save_every: int = 50
    task_modules: tuple[str, ...] = ("tasks.pytask_cl", "tasks.codetask_cl")
    cache_dir: str | None = None
    codetask_cl_dir: str | None = None
    jsonl_tasks: Any = None
    ordered_reduction: int = 0
    mesh: dict[str, int] | None = None
    axes: dict[str, Any] | None = None
    compiler_options: dict[str, Any] | None = None

    def __post_init__(self):
        counts = ("steps_per_task", "batch_size", "accumulation_steps", "evaluations_per_task", "num_shapes")
        for name in (*counts, "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be at least 1.")
        check_blocks(self.loss_blocks)
        if self.eval_examples is not None and self.eval_examples < 1:
            raise UserError(f"eval_examples={self.eval_examples} is out of range; give 1 or more, or None for all.")
        if tuple(self.eval_splits) not in (SPLITS, SPLITS[:1]):
            raise UserError(f"EVAL_SPLITS={self.eval_splits!r} is out of range; give ('valid', 'test') or ('valid',).")
        check_seed(self.seed)
        if self.patience < 0:
            raise UserError(f"patience={self.patience} is negative; 0 ends a task where nothing improved.")
        if self.walk not in ("sequential", "individual", "joint"):
            raise UserError(f"walk={self.walk!r} is unknown; choose 'sequential', 'individual' or 'joint'.")
        if self.query_pooling not in ("mean", "first", "last"):
            raise UserError(f"query_pooling={self.query_pooling!r} is unknown; choose 'mean', 'first' or 'last'.")
        if self.tags not in ("none", "input", "input_and_query"):
            raise UserError(f"tags={self.tags!r} is unknown; choose 'none', 'input' or 'input_and_query'.")
        if self.replay is not None and self.walk != "sequential":
            raise UserError(f"walk={self.walk!r} has nothing to replay; use replay with walk='sequential'.")
        joined = 0 if self.replay is None else self.replay.rows_joined(self.batch_size)
        if joined % self.accumulation_steps:
            raise UserError(
                f"{joined} replayed rows a step are no multiple of accumulation_steps={self.accumulation_steps}; "
                "change replay batch_size."
            )
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"batch_size={self.batch_size} is no multiple of accumulation_steps={self.accumulation_steps}; "
                "change either."
            )
        if not self.stream.strip(" ,"):
            raise UserError("stream is empty; set STREAM to a stream such as 'pytask_cl' or to task names.")
        if not all(name.strip() for name in self.stream.split(",")):
            raise UserError(f"stream={self.stream!r} has an empty name beside a comma; join names by one comma each.")

    # --------------------------------------------------------------------------------------------------- running

    def run(self, *, config_text: str, profile_steps: tuple[int, int] | None = None) -> None:
        """Learns the stream from wherever the run directory stands; profile_steps: to trace (`profiling.Profile`)."""
        directory = Path(self.model_dir)
        if self.retrieval_only:
            if profile_steps is not None:
                raise UserError("--profile_steps traces training steps, and RETRIEVAL_ONLY=True takes none; drop one.")
            self._study_retrieval(directory, config_text)
            return
        run_directory.check_config(directory, config_text)
        digest = run_directory.config_digest(config_text)
        with (
            run_directory.occupied(directory),
            Tracker(directory, process_index=jax.process_index()) as tracker,
        ):
            finished = run_directory.finished(directory, digest)
            if finished is not None:
                self.check_finished(finished, directory)
                where = directory / "scores.json"
                nothing = profiling.none_left(profile_steps)
                tracker.message(f"{self.model_dir} is finished; its results are in {where}.{nothing}")
                results.show(tracker, finished)
                return
            with Checkpointer(directory / "checkpoints") as checkpoints, StopSignal() as stop:
                Run(self, directory, digest, config_text, tracker, checkpoints, stop).learn(profile_steps)

    def check_finished(self, record: dict, directory: Path) -> None:
        """Raises UserError when the data has changed since the run in `directory`, whose result `record` is, ended."""
        stream_tasks.check_finished(self, record, directory)

    def _study_retrieval(self, directory: Path, config_text: str) -> None:
        check_data = functools.partial(self.check_finished, directory=directory)
        if retrieval.shows_finished(directory, config_text, check_data):
            return
        setup = Setup(self, directory, tell=functools.partial(print, flush=True))
        header = {
            "method": self.method,
            "init_from": self.source.init_from,
            "weights_digest": setup.loaded.digest,
            "data_digest": results.facts(setup)["data_digest"],
            "data": setup.data,
            "eval_examples": self.eval_examples,
            "tags": self.tags,
            "query_pooling": self.query_pooling,
        }
        retrieval.run(self, config_text, header, setup.batches.query_sets())

    def show_batch(self) -> None:
        """Prints the first two training examples of every task as the model would read them."""
        loaded = self.source.load()
        for task in open_tasks(self, loaded.vocabulary_directory, loaded.vocabulary):
            for number in range(min(2, len(task.train))):
                record = task.train[number]
                for name in ("inputs", "targets"):
                    print(f"--- {task.name}, example {number}, {name}, {len(record[name])} tokens")
                    print(loaded.vocabulary.decode(record[name]))

    def built_for(self, devices: Sequence[Any], *, lengths: tuple[int, int] | None = None, **changes: Any) -> Built:
        """The step that `run` would run, for these devices, on a batch of sources and targets of these lengths.

        changes: fields of the model's configuration. UserError for a study of retrieval, which has no such step.
        """
        if self.retrieval_only:
            raise UserError("RETRIEVAL_ONLY trains keys alone, so there is no step to compile; leave it out.")
        setup = Setup(self, Path(self.model_dir), with_data=False, devices=devices, **changes)
        return Built(
            train_step=setup.train_step,
            state=setup.state_shapes,
            batch=placed(setup.abstract_batch(lengths), setup.layout),
            layout=setup.layout,
            learner=setup.learner,
            prompt_tokens=self.prompt.num_tokens if self.prompt is not None else 0,
            accumulation_steps=self.accumulation_steps,
            compiler_options=self.compiler_options,
        )

    def dry_run(self) -> None:
        """Builds everything, lowers one step, prints what it would take; trains nothing."""
        from codegen2_jax.training.description import describe_step

        cached = is_cached(self, self.source.load().vocabulary_directory)
        setup = Setup(self, Path(self.model_dir), with_data=cached)
        names = " -> ".join(task.name for task in setup.tasks) or f"{self.stream} (not cached yet: lengths are assumed)"
        describe_step(
            setup.train_step,
            setup.layout,
            setup.state_shapes,
            setup.abstract_batch(),
            prompt_tokens=self.prompt.num_tokens if self.prompt is not None else 0,
            note=f"stream              {names}, {self.steps_per_task} steps each",
        )

"""The batches of a continual stream, and the queries of their examples where the method has a prompt pool."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from codegen2_jax.continual.diagnostics import query_separation
from codegen2_jax.continual.queries import QueryStore
from codegen2_jax.continual.replay import Buffer, epoch_end_batches
from codegen2_jax.continual.retrieval import TRAIN_QUERIES, TaskQueries
from codegen2_jax.data import loader
from codegen2_jax.data.converters import Shape
from codegen2_jax.data.plan import Subset, evenly_spaced
from codegen2_jax.data.tags import TaggedSplit
from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning

SEPARATION_QUERIES = 256  # of each task, to see whether queries tell tasks apart at all (specification, 3.2)


class StreamBatches:
    """What is read of a stream: for training, replay and scoring; this process's rows of each batch.

    Args:
      config: a `continual.stream.ContinualLearning`.
      tasks, stages: the opened tasks, and the numbers of those that each stage learns.
      shapes: (source, target) lengths of all batches, cheapest first.
      start_id: the decoder's first token.
      steps_per_stage: most steps that a stage takes.
      queries: None for a method that needs none.
    """

    def __init__(
        self,
        config: Any,
        layout: partitioning.Layout,
        tasks: Sequence[Any],
        stages: Sequence[tuple[int, ...]],
        shapes: Sequence[Shape],
        *,
        start_id: int,
        steps_per_stage: int,
        queries: QueryStore | None,
    ):
        self.config, self.layout, self.tasks, self.stages, self.shapes = config, layout, tasks, stages, list(shapes)
        self.queries, self._start_id, self._steps_per_stage = queries, start_id, steps_per_stage

    def training(self, stage: int, buffer: Buffer) -> loader.TrainingBatches | loader.JoinedBatches:
        """The batches of one stage, joined with replayed rows where the method says so.

        Another seed for each stage, so that no two walk alike. A stage of several tasks draws them in proportion to
        n^joint_exponent.
        """
        config, tasks = self.config, self.stages[stage]
        splits = [self.tasks[task].train for task in tasks]
        rates = [len(split) ** config.joint_exponent for split in splits] if len(tasks) > 1 else None
        seed = config.seed * 1000 + stage
        one = functools.partial(self._batches, splits, tasks, config.batch_size, seed, rates=rates)
        if config.replay is None or config.replay.schedule != "interleaved" or not buffer.pairs:
            return one(rows=self.layout.process_rows(config.batch_size))
        kept = [Subset(self.tasks[task].train, buffer.records_of(task)) for task in buffer.tasks]
        count = config.replay.rows_per_step(config.batch_size)
        rows = self.layout.process_rows(config.batch_size + count)
        old = rows[rows >= config.batch_size] - config.batch_size
        replayed = self._batches(kept, buffer.tasks, count, config.seed * 1000 + 500 + stage, rows=old)
        return loader.JoinedBatches([one(rows=rows[rows < config.batch_size]), replayed], self.shapes)

    def _batches(self, splits, tasks, batch_size, seed, *, rates=None, rows) -> loader.TrainingBatches:
        start = self._start_id
        make = functools.partial(
            loader.TrainingBatches, splits, tasks, batch_size, seed, start, rows=rows, rates=rates, shapes=self.shapes
        )
        batches = make()
        if self.queries is None:
            return batches
        # A short run visits few records of a large split, and with a large encoder queries are most of its time.
        visited = batches.visited(self._steps_per_stage)
        return make(queries=[self._queries_by_record(*pair) for pair in zip(splits, visited, strict=True)])

    def queries_of(self, split: Any, records: Sequence[int]) -> np.ndarray:
        """query_ND of these records of a split; of sources without their tags unless the configuration says so."""
        if isinstance(split, Subset):
            return self.queries_of(split.records, split.indices[records])
        if isinstance(split, TaggedSplit) and self.config.tags != "input_and_query":
            split = split.records
        return self.queries.of(split, records)

    def _queries_by_record(self, split: Any, records: Sequence[int]) -> np.ndarray | None:
        """query_ND with a row for every record of a split, NaN for those not asked for; None where none is needed."""
        if self.queries is None:
            return None
        query_RD = self.queries_of(split, records)
        query_ND = np.full((len(split), query_RD.shape[1]), np.nan, np.float32)
        query_ND[records] = query_RD
        return query_ND

    def query_sets(self) -> list[TaskQueries]:
        """Queries of every task, for a study of retrieval: at most `TRAIN_QUERIES` to learn from, and those scored."""
        if self.queries is None:
            raise UserError(
                "RETRIEVAL_ONLY=True studies a prompt pool, which this method lacks; take pp_tf.gin or pp.gin."
            )

        last = self.config.eval_splits[-1]

        def some(split, limit):
            return self.queries_of(split, evenly_spaced(len(split), limit))

        return [
            TaskQueries(task.name, some(task.train, TRAIN_QUERIES), some(task.split(last), self.config.eval_examples))
            for task in self.tasks
        ]

    def query_separation(self, tasks: Sequence[int]) -> list[str]:
        """How far apart the training queries of these tasks lie, as lines of text, with a warning if not at all."""
        queries = []
        for task in tasks:
            split = self.tasks[task].train
            queries.append(self.queries_of(split, evenly_spaced(len(split), SEPARATION_QUERIES)))
        return query_separation(queries).lines([self.tasks[task].name for task in tasks])

    def replayed(self, stage: int, epoch: int, buffer: Buffer) -> Iterator[loader.Batch]:
        """The batches of one pass over the buffer, after an epoch; this process's rows of each."""
        config, size = self.config, self.config.replay.rows_per_step(self.config.batch_size)
        splits = {task: self.tasks[task].train for task in buffer.tasks}
        queries = {task: self._queries_by_record(split, buffer.records_of(task)) for task, split in splits.items()}
        for task, record_B in epoch_end_batches(buffer, size, seed=config.seed, stage=stage, epoch=epoch):
            yield loader.batch_of(
                splits[task],
                record_B,
                task_id=task,
                shapes=self.shapes,
                queries=queries[task],
                start_id=self._start_id,
                rows=self.layout.process_rows(size),
            )

    @functools.cache  # noqa: B019  one object lives as long as its run
    def evaluation(self, task: int, split_name: str) -> list[dict]:
        """The first `eval_examples` examples of a split, grouped by length."""
        split, limit = self.tasks[task].split(split_name), self.config.eval_examples
        return list(
            loader.evaluation_batches(
                split,
                task_id=task,
                batch_size=self.layout.rounded_up(self.config.decoding.batch_size),
                limit=limit,
                queries=self._queries_by_record(split, evenly_spaced(len(split), limit)),
                start_id=self._start_id,
                shapes=self.shapes,
            )
        )

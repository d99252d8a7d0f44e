"""Batches for training, pretraining and evaluation: pure functions of (seed, batch number), read ahead by Grain.

A batch is planned before it is read: records are grouped by length into a few shapes, each epoch permutes the records
anew, and every batch is full. Because nothing depends on what was read before, the state of an iterator is one number,
resuming is exact, and any number of processes sees the same global batches, of which each reads its own rows.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from codegen2_jax.data import converters
from codegen2_jax.data.converters import Shape
from codegen2_jax.data.plan import Plan, evenly_spaced, fetch, record_lengths, share_out
from codegen2_jax.errors import UserError

Batch = dict[str, np.ndarray]
Transform = Callable[[Mapping, np.random.Generator], Mapping]


class _Batches:
    """What training and pretraining share: checks, process slices and the read-ahead iterator."""

    def __init__(self, batch_size: int, seed: int, rows: np.ndarray | None):
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is out of range; it must be at least 1.")
        if seed < 0:
            raise UserError(f"seed={seed} is negative; use 0 or more.")
        self.batch_size, self.seed = batch_size, seed
        self._own = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        assert np.all((0 <= self._own) & (self._own < batch_size)), (self._own, batch_size)

    def batch(self, number: int) -> Batch:
        """Batch `number` (this process's rows), a pure function of the constructor's arguments."""
        raise NotImplementedError

    def iterator(self, *, num_threads: int = 2, prefetch: int = 4):
        """An endless Grain iterator: `next`, `get_state` (JSON-able), `set_state` (exact), `close`."""
        import grain  # only reading ahead needs it; batches by number are made without

        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        return iter(grain.MapDataset.source(_Endless(self.batch)).to_iter_dataset(options))


class _Endless:
    """Presents a function of the batch number as the random-access source that Grain reads."""

    def __init__(self, batch: Callable[[int], Batch]):
        self._batch = batch

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        return self._batch(int(number))


class TrainingBatches(_Batches):
    """Endless batches over one or more splits.

    Args:
      splits: cached splits, `Subset`s or lists of records with wrapped "inputs" and "targets".
      task_ids: the task of each split (`task_B`).
      batch_size: global.
      rows: which rows of each global batch this process makes, in their order; None for all.
      queries: float32 [N_j, D] for each split, given out as `query_BD`; rows that no batch takes may hold anything.
      transform: `(record, rng) -> record`, rng from (seed, epoch, split, record); must not make a record longer.
      rates: share of each split in an epoch of as many records as there are in all; default: all records once.
      num_shapes: most (S, T) shapes in use (`shapes`).
      shapes: the shapes themselves, in place of num_shapes: several streams that share them share compiled steps too.

    Keys: inputs_BS, inputs_mask_BS, decoder_inputs_BT, targets_BT, loss_mask_BT, task_B, record_B (number in its split)
    and query_BD. With fewer records than a batch holds, an epoch is one batch and takes records more than once.
    """

    def __init__(
        self,
        splits: Sequence,
        task_ids: Sequence[int],
        batch_size: int,
        seed: int,
        start_id: int = 0,
        queries: Sequence[np.ndarray] | None = None,
        rows: np.ndarray | None = None,
        transform: Transform | None = None,
        rates: Sequence[float] | None = None,
        num_shapes: int = 8,
        shapes: Sequence[Shape] | None = None,
    ):
        super().__init__(batch_size, seed, rows)
        assert len(splits) == len(task_ids) > 0, (len(splits), len(task_ids))
        sizes = [len(split) for split in splits]
        if min(sizes) == 0:
            raise UserError(f"split number {sizes.index(0)} of {len(sizes)} has no record; leave it out.")
        if queries is not None:
            assert [len(query_ND) for query_ND in queries] == sizes, ([len(q) for q in queries], sizes)
        self._splits, self._queries, self._transform, self._start_id = splits, queries, transform, start_id
        self._split_N = np.repeat(np.arange(len(sizes)), sizes)
        self._record_N = np.concatenate([np.arange(size) for size in sizes])
        self._task_ids = np.asarray(task_ids, np.int32)
        source_N, target_N = (np.concatenate(x) for x in zip(*map(record_lengths, splits), strict=True))
        self._source_N, self._target_N = source_N, target_N
        self.shapes: list[Shape] = list(shapes or converters.choose_shapes(source_N, target_N, count=num_shapes))
        group_N = converters.smallest_shape(self.shapes, source_N, target_N)
        quotas = sizes if rates is None else share_out(rates, max(sum(sizes), batch_size))
        if sum(quotas) < batch_size:
            quotas = share_out(sizes, batch_size)
        self._plan = Plan(sizes, quotas, group_N, converters.larger_shape(self.shapes), batch_size, (seed, 0))
        self.batches_per_epoch = self._plan.batches_per_epoch

    def visited(self, batches: int) -> list[np.ndarray]:
        """int64 numbers, ascending, of the records of each split that the first `batches` global batches take."""
        taken_N = np.zeros(len(self._split_N), bool)
        for number in range(batches):
            if number % self.batches_per_epoch == 0 and taken_N.all():
                break
            taken_N[self._plan[number][1]] = True
        return [np.sort(self._record_N[taken_N & (self._split_N == j)]) for j in range(len(self._splits))]

    def batch(self, number: int) -> Batch:
        epoch, rows = self._plan[number]
        shape = _fitting(self.shapes, self._source_N[rows], self._target_N[rows])
        rows = rows[self._own]
        split_B, record_B = self._split_N[rows], self._record_N[rows]
        records: list = [None] * len(rows)
        for split in np.unique(split_B):
            at = np.flatnonzero(split_B == split)
            for i, record in zip(at, fetch(self._splits[split], record_B[at]), strict=True):
                records[i] = record
        if self._transform is not None:
            seeds = zip(split_B.tolist(), record_B.tolist(), strict=True)
            records = [
                self._transform(record, np.random.default_rng((self.seed, 0, 2, epoch, *seed)))
                for record, seed in zip(records, seeds, strict=True)
            ]
        batch = _batch(records, shape, self._task_ids[split_B], record_B, self._start_id)
        if self._queries is not None:
            batch["query_BD"] = np.zeros((len(rows), self._queries[0].shape[1]), np.float32)
            for row, (split, record) in enumerate(zip(split_B, record_B, strict=True)):
                batch["query_BD"][row] = self._queries[split][record]
        return batch


class JoinedBatches(_Batches):
    """Every batch holds the rows of one batch of each part, one part after the other, in one shape of `shapes`."""

    def __init__(self, parts: Sequence[TrainingBatches], shapes: Sequence[Shape]):
        self._parts, self.shapes = tuple(parts), list(shapes)
        self.batch_size, self.seed = sum(part.batch_size for part in parts), parts[0].seed

    def batch(self, number: int) -> Batch:
        batches = [part.batch(number) for part in self._parts]
        lengths = [[batch[name].shape[1] for batch in batches] for name in ("inputs_BS", "targets_BT")]
        shape = _fitting(self.shapes, *map(np.asarray, lengths))
        return {name: np.concatenate([_widen(name, batch[name], shape) for batch in batches]) for name in batches[0]}


def _widen(name: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """An entry of a batch, padded to the shape; masks are false there."""
    if value.ndim < 2 or name == "query_BD":
        return value
    width = shape[0] if name in ("inputs_BS", "inputs_mask_BS") else shape[1]
    return np.pad(value, ((0, 0), (0, width - value.shape[1])))


class PretrainingBatches(_Batches):
    """Endless batches of pretraining objectives; each batch has one objective, so that its rows are alike in length.

    Args:
      streams: objective name -> (records, objective, rate, (max_source, max_target)). Records hold raw tokens; the
        objective is called as `objective(record, rng, max_source=..., max_target=...)`, rng from (seed, stream, epoch,
        record). Rates are relative.
      num_shapes: most shapes per stream besides the full one, chosen by running the objective over a sample. With one
        process more than one shape costs nothing; with several each has to make all rows of a batch to know its shape,
        and 0 (the full shape only) avoids that.
      starts: objective name -> the first batch that may be its own, 0 where none is given: a curriculum.

    Keys as in `TrainingBatches`; `task_B` is the number of the stream, in the order given.
    """

    def __init__(
        self,
        streams: Mapping[str, tuple[Sequence, Transform, float, tuple[int, int]]],
        batch_size: int,
        seed: int,
        start_id: int = 0,
        rows: np.ndarray | None = None,
        num_shapes: int = 3,
        starts: Mapping[str, int] | None = None,
    ):
        super().__init__(batch_size, seed, rows)
        rates = np.asarray([rate for _, _, rate, _ in streams.values()], np.float64)
        if not len(rates) or rates.min() < 0 or rates.sum() <= 0:
            raise UserError(f"the rates of {list(streams)} are {rates.tolist()}; give each 0 or more and one above 0.")
        used = [name for name, rate in zip(streams, rates, strict=True) if rate > 0]
        for name in used:
            if not len(streams[name][0]):
                raise UserError(f"pretraining stream {name!r} has no record; give it records or the rate 0.")
        self._start_id, self._rates = start_id, rates
        self._starts = np.asarray([(starts or {}).get(name, 0) for name in streams])
        if not rates[self._starts <= 0].sum() > 0:
            raise UserError(
                f"the starts of {list(streams)} are {self._starts.tolist()}; one of a rate above 0 must be 0."
            )
        self.names = tuple(streams)
        self._streams = {
            number: _Stream(*streams[name], batch_size=batch_size, seed=(seed, 1, number), num_shapes=num_shapes)
            for number, name in enumerate(self.names)
            if name in used
        }
        self.shapes: dict[str, list[Shape]] = {self.names[i]: stream.shapes for i, stream in self._streams.items()}
        self._drawn: list[np.ndarray] = []
        self._before = [np.zeros(len(rates), np.int64)]
        self._lock = threading.Lock()

    def stream_of(self, number: int) -> tuple[int, int]:
        """(stream, how many batches of that stream came before) of batch `number`, drawn in blocks of `_BLOCK`."""
        block, position = divmod(number, _BLOCK)
        with self._lock:
            while len(self._drawn) <= block:
                drawn = self._draw(len(self._drawn))
                self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self.names)))
                self._drawn.append(drawn.astype(np.int16))
        drawn = self._drawn[block]
        stream = int(drawn[position])
        return stream, int(self._before[block][stream] + np.count_nonzero(drawn[:position] == stream))

    def _draw(self, block: int) -> np.ndarray:
        """The stream of each batch of a block, among those that have started."""
        uniform = np.random.default_rng((self.seed, 2, block)).random(_BLOCK)
        number = block * _BLOCK + np.arange(_BLOCK)
        drawn = np.zeros(_BLOCK, np.int64)
        for start in np.unique(self._starts):  # ascending: what starts later overwrites
            rates = np.where(self._starts <= start, self._rates, 0.0)
            now = number >= start
            drawn[now] = np.searchsorted(np.cumsum(rates) / rates.sum(), uniform[now], side="right")
        return drawn

    def batch(self, number: int) -> Batch:
        index, before = self.stream_of(number)
        records, record_B, shape = self._streams[index].rows(before, self._own)
        return _batch(records, shape, np.full(len(records), index, np.int32), record_B, self._start_id)


_BLOCK = 4096


class _Stream:
    """The records of one objective: their plan, and the shapes its examples take."""

    def __init__(self, records, objective, rate, max_lengths: tuple[int, int], *, batch_size, seed, num_shapes):
        del rate
        self.records, self.objective, self.max_lengths, self.seed = records, objective, max_lengths, seed
        lengths_N = np.minimum(np.sum(record_lengths(records), axis=0), sum(max_lengths))
        # Groups of raw length; only their order matters here, the shapes come from what the objective makes of them.
        edges = np.unique(np.quantile(lengths_N, np.linspace(0, 1, 5)[1:], method="higher"))
        group_N = np.searchsorted(edges, lengths_N, side="left")
        following = [min(k + 1, len(edges) - 1) for k in range(len(edges))]
        quotas = [max(len(records), batch_size)]
        self._plan = Plan([len(records)], quotas, group_N, following, batch_size, seed)
        full = (converters.round_up(max_lengths[0], 16), converters.round_up(max_lengths[1], 8))
        self.shapes = [full]
        if num_shapes:
            self.shapes = converters.in_order({*self._sampled_shapes(num_shapes), full})

    def _sampled_shapes(self, count: int, batches: int = 32) -> list[Shape]:
        """Shapes for the longest rows of the first batches, of which there are at most `batches`."""
        longest = []
        for number in range(min(batches, self._plan.batches_per_epoch)):
            made, _ = self._make(number, None)
            longest.append((max(len(x["inputs"]) for x in made), max(len(x["targets"]) for x in made)))
        return converters.choose_shapes(*np.transpose(longest), count=count)

    def _make(self, number: int, rows: np.ndarray | None) -> tuple[list[Mapping], np.ndarray]:
        epoch, record_B = self._plan[number]
        record_B = record_B if rows is None else record_B[rows]
        source, target = self.max_lengths
        made = [
            self.objective(
                record, np.random.default_rng((*self.seed, 2, epoch, index)), max_source=source, max_target=target
            )
            for record, index in zip(fetch(self.records, record_B), record_B.tolist(), strict=True)
        ]
        return made, record_B

    def rows(self, number: int, rows: np.ndarray) -> tuple[list[Mapping], np.ndarray, Shape]:
        """(examples, their record numbers, the batch's shape) of this stream's batch `number`."""
        if len(self.shapes) == 1:
            return *self._make(number, rows), self.shapes[0]
        made, record_B = self._make(number, None)
        lengths = np.asarray([(len(x["inputs"]), len(x["targets"])) for x in made])
        return [made[row] for row in rows], record_B[rows], _fitting(self.shapes, *lengths.T)


class EvaluationBatches(Sequence):
    """Batches over a split for scoring: every record (or `limit` evenly spaced ones) exactly once.

    Keys as in `TrainingBatches`, and `valid_B`: the last batch is filled by repeating its row 0 with `valid_B` false.
    Records of like length stand together; `record_B` tells which is which.
    """

    def __init__(self, split, *, task_id, batch_size, limit, queries, start_id, num_shapes, shapes):
        if batch_size < 1 or (limit is not None and limit < 1):
            raise UserError(f"batch_size={batch_size}, limit={limit}: both must be 1 or more.")
        size = len(split)
        if size == 0:
            raise UserError("the split has no record to evaluate; check its source files.")
        assert queries is None or len(queries) == size, (len(queries), size)
        self._split, self._queries, self._start_id = split, queries, start_id
        self._task_id, self._batch_size = task_id, batch_size
        chosen = np.asarray(evenly_spaced(size, limit))
        source, target = (lengths_N[chosen] for lengths_N in record_lengths(split))
        self.shapes: list[Shape] = list(shapes or converters.choose_shapes(source, target, count=num_shapes))
        group = converters.smallest_shape(self.shapes, source, target)
        self._order = chosen[np.lexsort((chosen, target, source, group))]

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        record_B = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        num_valid = len(record_B)
        record_B = np.concatenate([record_B, np.full(self._batch_size - num_valid, record_B[0])])
        batch = batch_of(
            self._split,
            record_B,
            task_id=self._task_id,
            shapes=self.shapes,
            queries=self._queries,
            start_id=self._start_id,
        )
        batch["valid_B"] = np.arange(self._batch_size) < num_valid
        return batch


def evaluation_batches(
    split,
    *,
    task_id: int,
    batch_size: int,
    limit: int | None = None,
    queries: np.ndarray | None = None,
    start_id: int = 0,
    num_shapes: int = 4,
    shapes: Sequence[Shape] | None = None,
) -> EvaluationBatches:
    """The batches that score `split`; see `EvaluationBatches`."""
    return EvaluationBatches(
        split,
        task_id=task_id,
        batch_size=batch_size,
        limit=limit,
        queries=queries,
        start_id=start_id,
        num_shapes=num_shapes,
        shapes=shapes,
    )


def batch_of(
    split,
    record_B: np.ndarray,
    *,
    task_id: int,
    shapes: Sequence[Shape],
    queries: np.ndarray | None,
    start_id: int,
    rows: np.ndarray | slice = slice(None),
) -> Batch:
    """The given records of one split as a batch, of which this process has `rows`; keys as in `TrainingBatches`."""
    source_N, target_N = record_lengths(split)
    shape = _fitting(shapes, source_N[record_B], target_N[record_B])
    record_B = record_B[rows]
    task_B = np.full(len(record_B), task_id, np.int32)
    batch = _batch(fetch(split, record_B), shape, task_B, record_B, start_id)
    if queries is not None:
        batch["query_BD"] = np.asarray(queries, np.float32)[record_B]
    return batch


def _fitting(shapes: Sequence[Shape], source_lengths_B: np.ndarray, target_lengths_B: np.ndarray) -> Shape:
    """The cheapest shape that holds all rows."""
    return shapes[converters.smallest_shape(shapes, [source_lengths_B.max()], [target_lengths_B.max()])[0]]


def _batch(records, shape: Shape, task_B: np.ndarray, record_B: np.ndarray, start_id: int) -> Batch:
    sources, targets = [record["inputs"] for record in records], [record["targets"] for record in records]
    batch = converters.encoder_decoder_batch(sources, targets, shape, start_id=start_id)
    return batch | {"task_B": task_B, "record_B": record_B.astype(np.int32)}

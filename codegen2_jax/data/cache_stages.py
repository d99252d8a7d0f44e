"""A split of a cache written in stages whose items need nothing of one another: what Apache Beam spreads over machines.

    make    each shard of the source -> a file of its examples, in the work folder
    ids     each file -> (id, position) of its examples; brought together by id they tell which repeat an earlier one
    judge   each file -> counts: kept, rejected, cut
    write   each shard of the cache -> the file itself, out of the stretch of kept examples that belongs to it

Between two stages the driver adds up counts. The cache is the one that `cache_writing` writes alone: the examples stand
in the order of the source's shards, and positions and rejections are numbered through all of them. A stage is a
function of plain data that runs wherever the package, the task modules and the folder of the caches are.
"""

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codegen2_jax.data import cache, cache_writing
from codegen2_jax.data.cache_writing import MAX_REJECTED_LISTED, NO_TARGET, VOCABULARY_VARIABLE, WORK_VARIABLE, Reading
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError

WORKER_VARIABLES = ("CODEGEN2_JAX_", "CODETASK_CL_DIR")
"""The environment variables that workers get, by their beginnings; not all of them, for some are secrets."""


class Split(NamedTuple):
    """What a worker must know of a split; all plain, so that it can be sent."""

    task: str
    name: str
    task_modules: tuple[str, ...]
    environment: dict[str, str]
    files: tuple[str, ...]

    def ready(self) -> "Worker":
        """The task and the vocabulary in this process."""
        os.environ.update(self.environment)
        return _worker(self.task, self.task_modules, self.environment[VOCABULARY_VARIABLE])

    def reading(self) -> Reading:
        """A judge of this split's examples."""
        return Reading(f"{self.task}/{self.name}", self.ready().vocabulary, lambda line: None)


class Worker(NamedTuple):
    """What a process makes once."""

    task: object
    vocabulary: Vocabulary


@functools.lru_cache(maxsize=4)
def _worker(task: str, task_modules: tuple[str, ...], vocabulary: str) -> Worker:
    return Worker(cache_writing.task_of(task, task_modules), Vocabulary.from_directory(vocabulary))


def make(split: Split, number: int) -> int:
    """Stage 1: the number of examples of a shard, whose file is there afterwards."""
    path, worker = Path(split.files[number]), split.ready()  # what is wrong with the worker comes to light here
    if path.is_file():  # a run before this one, stopped later, has made it
        return sum(1 for _ in cache_writing.read_shard(path))
    return cache_writing.make_shard(worker.task, split.name, number, len(split.files), path)


def ids(split: Split, number: int, start: int) -> Iterator[tuple[str, int]]:
    """Stage 2: the id and the position of every example of a shard, whose first has the position `start`."""
    reading = split.reading()
    for position, example in enumerate(cache_writing.read_shard(Path(split.files[number])), start):
        yield reading.record(example, position)["id"], position


def _judged(split: Split, reading: Reading, number: int, start: int, repeated: Sequence[int]) -> Iterator:
    """(position, record, fault, wrapping) of every example of a shard."""
    again = set(repeated)
    for position, example in enumerate(cache_writing.read_shard(Path(split.files[number])), start):
        record = reading.record(example, position)
        yield position, record, *reading.fault(record, position in again)


def judge(split: Split, number: int, start: int, repeated: Sequence[int]) -> dict:
    """Stage 3: the counts of a shard, with its first rejections; `repeated` are positions of repetitions."""
    whole, empty = split.reading(), split.reading()  # what is cut is counted apart, since one of the two is rejected
    counts = {"whole": 0, "empty": 0, "rejected": 0, "first": None, "listed": [], "listed_empty": []}
    for position, record, fault, wrapping in _judged(split, whole, number, start, repeated):
        if not fault:
            counts["whole"] += 1
            counts["first"] = position if counts["first"] is None else counts["first"]
            whole.count_cut(record, wrapping)
        elif fault == NO_TARGET:
            counts["empty"] += 1
            empty.count_cut(record, 2)
            if len(counts["listed_empty"]) < MAX_REJECTED_LISTED:
                counts["listed_empty"].append((position, record["id"], fault))
        else:
            counts["rejected"] += 1
            if len(counts["listed"]) < MAX_REJECTED_LISTED:
                counts["listed"].append((position, record["id"], fault))
    cuts = [(one.truncated, one.tokens_cut) for one in (whole, empty)]
    return counts | {"cuts": cuts, "wrapped": whole.wrapped}


def write(split: Split, part: str, sources: Sequence[tuple], kept_fault: str, skip: int, take: int) -> str:
    """Stage 4: the sha256 of a part that holds `take` kept examples, after `skip` others, of the `sources` in order.

    A source is (number, start, repeated). The lengths lie beside the part. Both appear when they are complete: a runner
    may have a stage done twice, even at once.
    """

    def records():
        passed = 0
        for number, start, repeated in sources:
            for _, record, fault, _ in _judged(split, split.reading(), number, start, repeated):
                if fault == kept_fault:
                    passed += 1
                    if passed > skip:
                        yield record
                if passed == skip + take:
                    return

    own = Path(split.environment[WORK_VARIABLE], f"{Path(part).name}.{uuid.uuid4().hex}")
    lengths = own.with_name(f"{own.name}.npy")
    np.save(lengths, np.asarray(cache.write_part(own, records()), "<i4"))
    digest = cache.file_sha256(own)
    lengths.rename(f"{part}.npy")
    own.rename(part)
    return digest


def write_split(
    task,
    name: str,
    directory: Path,
    work: Path,
    made_from: str,
    progress: Callable[[str], None],
    *,
    task_modules: tuple[str, ...],
    run: Callable[[Callable, Sequence[tuple]], list],
    repetitions: Callable[[Callable, Sequence[tuple]], list[int]],
    records_per_shard: int = cache.RECORDS_PER_SHARD,
) -> tuple[dict, Reading]:
    """Writes a split by stages; returns its entry in `info["splits"]` and a Reading that holds its counts.

    `run(stage, items)` gives the results in the order of the items; `repetitions(ids, items)` the positions whose id
    stands at an earlier position too.
    """
    shards = task.source.list_shards(name)
    work.mkdir(parents=True, exist_ok=True)
    if hasattr(task.source, "shard_identity"):
        files = [cache_writing.shard_path(task, name, number, work, made_from) for number in range(len(shards))]
    else:  # nothing tells whether a file of a run before is still right
        files = [work / f"{name}-{number}.array_record" for number in range(len(shards))]
        for file in files:
            file.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key.startswith(WORKER_VARIABLES)}
    split = Split(task.name, name, task_modules, environment | {WORK_VARIABLE: str(work)}, tuple(map(str, files)))
    numbers = range(len(shards))

    progress(f"{task.name}/{name}: making {len(shards)} shards")
    sizes = run(make, [(split, number) for number in numbers])
    starts = np.cumsum([0, *sizes]).tolist()
    progress(f"{task.name}/{name}: judging {starts[-1]} examples")
    repeated = np.sort(np.asarray(repetitions(ids, [(split, number, starts[number]) for number in numbers]), np.int64))
    bounds = np.searchsorted(repeated, starts)
    sources = [(number, starts[number], repeated[bounds[number] : bounds[number + 1]].tolist()) for number in numbers]
    judged = run(judge, [(split, *source) for source in sources])
    reading = _sum_up(split, judged)

    kept = [counts["whole" if reading.has_targets else "empty"] for counts in judged]
    if not any(kept):
        raise cache.EmptySplitError(name, reading)
    ends, parts, items = np.cumsum([0, *kept]), [], []
    directory.mkdir(parents=True, exist_ok=True)
    for begin in range(0, int(ends[-1]), records_per_shard):
        end = min(begin + records_per_shard, int(ends[-1]))
        first, last = np.searchsorted(ends, begin, "right") - 1, np.searchsorted(ends, end)
        parts.append(directory / f"{name}.part{len(parts)}")
        fault = "" if reading.has_targets else NO_TARGET
        items.append((split, str(parts[-1]), sources[first:last], fault, begin - int(ends[first]), end - begin))
    progress(f"{task.name}/{name}: writing {ends[-1]} examples to {len(parts)} shards")
    digests = run(write, items)
    lengths = [np.load(f"{part}.npy") for part in parts]
    for part in parts:
        Path(f"{part}.npy").unlink()
    return cache.finish_split(directory, name, parts, np.concatenate(lengths), digests), reading


def _sum_up(split: Split, judged: Sequence[dict]) -> Reading:
    """The counts of all shards, as one process would have counted them."""
    reading = split.reading()
    if len({counts["wrapped"] for counts in judged} - {None}) > 1:
        raise UserError(f"some sequences of {reading.name} are wrapped as <s> ... </s>, some are not.")
    reading.has_targets = any(counts["whole"] for counts in judged)
    for counts in judged:
        truncated, tokens_cut = counts["cuts"][0 if reading.has_targets else 1]
        for side in ("inputs", "targets"):
            reading.truncated[side] += truncated[side]
            reading.tokens_cut[side] += tokens_cut[side]
    listed = [(row[0], row) for counts in judged for row in counts["listed"]]
    total = sum(counts["rejected"] for counts in judged)
    if reading.has_targets:
        # One process rejects an early example without a target when it meets the first that has one.
        first = min(counts["first"] for counts in judged if counts["first"] is not None)
        listed += [(max(first, row[0]), row) for counts in judged for row in counts["listed_empty"]]
        total += sum(counts["empty"] for counts in judged)
    rows = [row for _, row in sorted(listed)][:MAX_REJECTED_LISTED]
    reading.rejected = [{"file": where, "line": position, "reason": reason} for position, where, reason in rows]
    reading.num_rejected = total
    return reading

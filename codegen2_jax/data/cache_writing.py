"""The half of caching that needs SeqIO; `codegen2_jax.cache_tasks` runs it in a process of its own."""

import difflib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from codegen2_jax.data import cache
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError

VOCABULARY_VARIABLE = "CODEGEN2_JAX_VOCABULARY"
"""Where task modules look for the directory of the vocabulary."""

WORK_VARIABLE = "CODEGEN2_JAX_CACHE_WORK"
"""Where a task's source finds a folder for what a run that goes on after a killed one need not do again."""

MAX_REJECTED_LISTED = 100
NO_TARGET = "the target is empty"
"""The fault that is none where no example of the split has a target (a test split without references)."""

RECORD_FIELDS = frozenset(
    ["id", "bytes", *(f"{side}{kind}" for side in ("inputs", "targets") for kind in ("", "_text", "_pretokenized"))]
)
"""What a record is made of; whatever else a task's examples hold is not cached."""

_PROGRESS_SECONDS = 5.0
_READ_TOGETHER = 256


def _say(line: str) -> None:
    print(line, flush=True)


def build(
    names: Sequence[str],
    *,
    cache_dir: str | Path,
    vocabulary_dir: str | Path,
    task_modules: Sequence[str],
    progress: Callable[[str], None] = _say,
    write_split: Callable | None = None,
) -> dict[str, dict]:
    """Imports the task modules, caches the tasks behind `names` that have no current cache, returns {task: info}.

    A task module registers its tasks on import; `STREAMS` maps stream names to tuples of task names, and
    `provenance(task, split)`, where there is one, tells sources, licence, settings, counts and the task's tag.
    write_split: see `write_task`.
    """
    cache_dir = Path(cache_dir).absolute()
    cache_dir.mkdir(parents=True, exist_ok=True)
    os.environ[VOCABULARY_VARIABLE] = str(Path(vocabulary_dir).absolute())
    vocabulary = Vocabulary.from_directory(vocabulary_dir)
    streams, homes = _import_tasks(task_modules)
    tasks = [task for name in names for task in streams.get(name, (name,))]
    unknown = [task for task in tasks if task not in homes]
    if unknown:
        meant = difflib.get_close_matches(unknown[0], [*streams, *homes], n=1)
        raise UserError(
            f"no task or stream {', '.join(unknown)} in {', '.join(task_modules)}; "
            + (f"did you mean {meant[0]}? " if meant else "")
            + f"Streams: {sorted(streams)}, tasks: {sorted(homes)}."
        )
    import seqio

    infos = {}
    for name in dict.fromkeys(tasks):
        module = homes[name]
        with _locked(cache_dir / f".{name}.lock"):
            if (cache_dir / name / "info.json").is_file():
                info = cache.read_info(cache_dir, name)
                if not cache.staleness(info, vocabulary_digest=vocabulary.digest, environment=os.environ):
                    infos[name] = info
                    continue
            infos[name] = write_task(
                seqio.TaskRegistry.get(name),
                cache_dir,
                vocabulary=vocabulary,
                provenance=getattr(module, "provenance", None),
                module_sources={module.__file__: cache.file_sha256(Path(module.__file__))},
                progress=progress,
                write_split=write_split,
            )
    with _locked(cache_dir / ".streams.lock"):
        path = cache_dir / cache.STREAMS_FILE
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known |= {name: list(streams[name]) for name in names if name in streams}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    return infos


def _import_tasks(task_modules: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], dict]:
    """({stream: task names}, {task: the module that registered it}) of freshly imported modules."""
    missing = [name for name in task_modules if not _can_be_imported(name)]
    if missing:
        raise UserError(f"task module {', '.join(missing)} cannot be found; check --task_modules and PYTHONPATH.")
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    streams, homes = {}, {}
    for module_name in task_modules:
        before = set(seqio.TaskRegistry.names())
        module = importlib.import_module(module_name)
        streams |= getattr(module, "STREAMS", {})
        # A module imported before has registered its tasks already: its streams still name them.
        named = {task for stream in getattr(module, "STREAMS", {}).values() for task in stream}
        homes |= dict.fromkeys((set(seqio.TaskRegistry.names()) - before) | named, module)
    both = sorted(set(streams) & set(homes))
    if both:
        raise UserError(f"{', '.join(both)} is the name of a stream and of a task; give one of them another name.")
    return streams, homes


def task_of(name: str, task_modules: Sequence[str]):
    """The `seqio.Task` of that name, in a process that has imported none yet."""
    _import_tasks(task_modules)
    import seqio

    return seqio.TaskRegistry.get(name)


def _can_be_imported(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:  # of the package that it should be in
        return False


def write_task(
    task,
    cache_dir: str | Path,
    *,
    vocabulary: Vocabulary,
    provenance: Callable[[str, str], Mapping] | None = None,
    module_sources: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    write_split: Callable | None = None,
) -> dict:
    """Runs a `seqio.Task` once over all its splits, writes its cache directory and returns its info.

    `provenance(task name, split)` is asked after the split was read. `module_sources` {path: sha256} are the files that
    define the task. The directory takes its place by a rename, when it is complete. A source with many shards and a
    `shard_identity(split, number)` is resumed: shards that a killed run has finished are not made again. `write_split`,
    where given, writes a split in place of this process: see `cache_stages.write_split`.
    """
    for name, feature in task.output_features.items():
        if getattr(feature.vocabulary, "digest", None) != vocabulary.digest:
            raise UserError(
                f"feature {name} of task {task.name} does not use the vocabulary {vocabulary.digest[:12]}; take the "
                f"directory from {VOCABULARY_VARIABLE} and wrap it with as_seqio."
            )
    final = Path(cache_dir, task.name)
    temporary = final.with_name(f".{task.name}.writing")  # the lock of `build` keeps it to one process
    shutil.rmtree(temporary, ignore_errors=True)
    work = final.with_name(f".{task.name}.work")
    if hasattr(task.source, "shard_identity"):
        work.mkdir(parents=True, exist_ok=True)
        os.environ[WORK_VARIABLE] = str(work)
    info = _new_info(task, vocabulary, module_sources)
    for split in task.splits:
        made_from = json.dumps([vocabulary.digest, module_sources, split])
        reading = Reading(f"{task.name}/{split}", vocabulary, progress)
        try:
            if write_split is None:
                examples = _examples(task, split, work, made_from, progress)
                entry = cache.write_split(temporary, split, reading.records(examples))
            else:
                entry, reading = write_split(task, split, temporary, work, made_from, progress)
        except cache.EmptySplitError as error:
            raise _empty_split(task.name, split, error.reading or reading, provenance) from None
        facts = provenance(task.name, split) if provenance else {}
        rejected = [*facts.get("rejected", ()), *reading.rejected]
        # A source that leaves out millions lists the first of them and counts the rest.
        num_rejected = facts.get("rejected_count", len(facts.get("rejected", ()))) + reading.num_rejected
        lengths = np.load(temporary / f"{split}-lengths.npy")
        info["splits"][split] = entry | {
            "tokens": lengths.sum(axis=0, dtype=np.int64).tolist(),
            "truncated": reading.truncated,
            "tokens_cut": reading.tokens_cut,
            "rejected": rejected[:MAX_REJECTED_LISTED],
            "rejected_count": num_rejected,
            "counts": facts.get("counts", {}),
        }
        info["has_targets"][split] = reading.has_targets
        limits = facts.get("max_lengths", lengths.max(axis=0))
        info["max_lengths"] = np.maximum(info["max_lengths"], limits).tolist()
        info["sources"] |= facts.get("sources", {})
        info["settings"] |= facts.get("settings", {})
        info["licence"] = facts.get("licence", info["licence"])
        info["tag"] = facts.get("tag", info["tag"])
        info["environment"] |= {name: os.environ.get(name) for name in facts.get("environment", ())}
        progress(
            f"{task.name}/{split}: {entry['examples']} examples, {num_rejected} rejected, truncated "
            f"{reading.truncated['inputs']} inputs and {reading.truncated['targets']} targets"
        )
    info["source_stats"] = {path: cache.file_stamp(path) for path in info["sources"]}
    (temporary / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    shutil.rmtree(work, ignore_errors=True)
    os.environ.pop(WORK_VARIABLE, None)
    return info


def _empty_split(task: str, split: str, reading: "Reading", provenance: Callable | None) -> UserError:
    """What is known of a split without a record: its files, and the first of its rejected rows. No info.json tells."""
    facts = provenance(task, split) if provenance else {}
    files = [path for path in facts.get("sources", ()) if not path.endswith(".py")]
    rejected = [*facts.get("rejected", ()), *reading.rejected]
    count = facts.get("rejected_count", len(facts.get("rejected", ()))) + reading.num_rejected
    first = ", the first is {file} line {line}: {reason}".format(**rejected[0]) if rejected else ""
    place = f" of {', '.join(files[:2])}{' ...' if len(files) > 2 else ''}" if files else ""
    return UserError(
        f"task {task} has no usable record for its split {split!r}: {count} rows{place} were rejected{first}; "
        "correct them, or give the split a source with examples."
    )


def _new_info(task, vocabulary: Vocabulary, module_sources: Mapping[str, str] | None) -> dict:
    """What info.json holds before the first split."""
    return {
        "format": cache.FORMAT,
        "task": task.name,
        "features": {name: {"dtype": "int32", "required": f.required} for name, f in task.output_features.items()},
        "metrics": [metric.__name__ for metric in task.metric_fns],
        "vocabulary": vocabulary.digest,
        "max_lengths": [0, 0],
        "splits": {},
        "has_targets": {},
        "licence": "",
        "tag": f"<{task.name}> ",
        "settings": {},
        "environment": {},
        "sources": dict(module_sources or {}),
    }


def _examples(task, split: str, work: Path, made_from: str, progress: Callable[[str], None]) -> Iterator[Mapping]:
    """The task's examples; those of a source in shards go through a file each, which outlives a killed run."""
    shards = task.source.list_shards(split) if hasattr(task.source, "shard_identity") else ()
    if len(shards) < 2:
        yield from task.get_dataset(sequence_length=None, split=split, shuffle=False).as_numpy_iterator()
        return
    for number in range(len(shards)):
        path = shard_path(task, split, number, work, made_from)
        if path.is_file():
            progress(f"{task.name}/{split}: shard {number + 1} of {len(shards)} was there already")
        else:
            make_shard(task, split, number, len(shards), path)
            progress(f"{task.name}/{split}: shard {number + 1} of {len(shards)} is done")
        yield from read_shard(path)


def shard_path(task, split: str, number: int, work: Path, made_from: str) -> Path:
    """The file that a source's shard goes through; its name stands for all that decides what is in it."""
    identity = f"{made_from} {task.source.shard_identity(split, number)}"
    return work / f"{hashlib.sha256(identity.encode('utf-8')).hexdigest()[:32]}.array_record"


def make_shard(task, split: str, number: int, num_shards: int, path: Path) -> int:
    """Writes the examples of a source's shard to `path`, which appears when it is complete; returns their number."""
    import seqio

    part = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.writing")
    writer, count = array_record_module.ArrayRecordWriter(str(part), "group_size:1,uncompressed"), 0
    info = seqio.ShardInfo(number, num_shards) if num_shards > 1 else None
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, shard_info=info)
    for example in dataset.as_numpy_iterator():
        writer.write(cache.pack({name: _plain(value) for name, value in example.items() if name in RECORD_FIELDS}))
        count += 1
    writer.close()
    part.rename(path)
    return count


def read_shard(path: Path) -> Iterator[dict]:
    """The examples that `make_shard` wrote, in order."""
    reader = array_record_module.ArrayRecordReader(str(path))
    for place in range(0, reader.num_records(), _READ_TOGETHER):
        for data in reader.read(list(range(place, min(place + _READ_TOGETHER, reader.num_records())))):
            yield cache.unpack(data)
    reader.close()


def _plain(value):
    """What `cache.pack` takes: text for bytes, an int for a numpy integer, arrays as they are."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return int(value) if np.ndim(value) == 0 and not isinstance(value, str) else value


def table(infos: Mapping[str, Mapping]) -> str:
    """The counts of every task and split, one line each."""
    rows = [("task", "split", "examples", "rejected", "cut", "source tokens", "target tokens")]
    for task, info in infos.items():
        for split, entry in info["splits"].items():
            cut = sum(entry["truncated"].values())
            rows.append((task, split, *map(str, (entry["examples"], entry["rejected_count"], cut, *entry["tokens"]))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * 2 + [str.rjust] * (len(widths) - 2)
    return "\n".join("  ".join(map(lambda side, cell, w: side(cell, w), sides, row, widths)) for row in rows)


class Reading:
    """Turns a task's examples into records, and counts what was cut and what was rejected."""

    def __init__(self, name: str, vocabulary: Vocabulary, progress: Callable[[str], None]):
        self.name, self.vocabulary, self.progress = name, vocabulary, progress
        self.rejected: list[dict] = []
        self.num_rejected = 0
        self.truncated = {"inputs": 0, "targets": 0}
        self.tokens_cut = {"inputs": 0, "targets": 0}
        self.has_targets = False
        self.wrapped: bool | None = None

    def records(self, examples: Iterable[Mapping]) -> Iterator[dict]:
        """Every example that is neither empty nor a repetition of an id, in order.

        Targets may be empty in all examples (a test split without references) but not in some.
        """
        seen, without_targets = set(), []
        started = reported = time.monotonic()
        for number, example in enumerate(examples):
            record = self.record(example, number)
            fault, wrapping = self.fault(record, record["id"] in seen)
            if not fault:
                if not self.has_targets:
                    self.has_targets = True
                    for early, at in without_targets:
                        self._reject(early, at, NO_TARGET)
                yield self.count_cut(record, wrapping)
            elif fault == NO_TARGET and not self.has_targets:
                without_targets.append((record, number))
            else:
                self._reject(record, number, fault)
            seen.add(record["id"])
            if time.monotonic() - reported > _PROGRESS_SECONDS:
                reported = time.monotonic()
                self.progress(f"{self.name}: {number + 1} examples, {(number + 1) / (reported - started):.0f} a second")
        if not self.has_targets:
            for record, _ in without_targets:
                yield self.count_cut(record, 2)

    def fault(self, record: Mapping, is_repetition: bool) -> tuple[str, int]:
        """(what is wrong with a record, or ""; how many tokens of it are begin and end tokens)."""
        wrapping = 2 if self._is_wrapped(record) else 0
        if is_repetition:
            return "the id occurs twice", wrapping
        if "inputs" in record and len(record["inputs"]) <= wrapping:
            return "the input is empty", wrapping
        return "" if len(record["targets"]) > wrapping else NO_TARGET, wrapping

    def record(self, example: Mapping, number: int) -> dict:
        """What the cache keeps of the task's example `number`."""
        record = {"id": _text(example.get("id", f"{self.name}/{number}"))}
        if "bytes" in example:  # of the text before tokenisation, in UTF-8: for losses in bits per byte
            record["bytes"] = int(example["bytes"])
        for side in ("inputs", "targets"):
            if side in example:
                record[side] = np.asarray(example[side], np.int32)
            for name in (f"{side}_text", f"{side}_pretokenized"):
                if name in example:
                    record[f"{side}_text"] = _text(example[name])
                    break
        return record

    def _is_wrapped(self, record: Mapping) -> bool:
        begin, end = self.vocabulary.bos_id, self.vocabulary.eos_id
        wrapped = []
        for side in ("inputs", "targets"):
            tokens = record.get(side)
            if tokens is not None:
                ends = len(tokens) >= 2 and tokens[0] == begin and tokens[-1] == end
                if ends and (np.count_nonzero(tokens == end) != 1 + (begin == end)):
                    raise UserError(f"{record['id']}: {side} have more than one end token; fix the task.")
                wrapped.append(ends)
        if self.wrapped is None:
            self.wrapped = all(wrapped)
        if wrapped != [self.wrapped] * len(wrapped):
            raise UserError(f"{record['id']}: some sequences of {self.name} are wrapped as <s> ... </s>, some are not.")
        return self.wrapped

    def count_cut(self, record: dict, wrapping: int) -> dict:
        """The task cuts; how much it cut is the length of the whole text's tokens less what is left."""
        for side in ("inputs", "targets"):
            if wrapping and f"{side}_text" in record:
                cut = len(self.vocabulary.encode(record[f"{side}_text"])) + wrapping - len(record[side])
                self.truncated[side] += cut > 0
                self.tokens_cut[side] += max(cut, 0)
        return record

    def _reject(self, record: Mapping, number: int, reason: str) -> None:
        self.rejected.append({"file": record["id"], "line": number, "reason": reason})
        self.num_rejected += 1


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; a second run waits here, then finds the work done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Tasks materialised once as ArrayRecord files: written by SeqIO in a process of its own, read without TensorFlow.

Layout: `<cache_dir>/<task>/info.json` beside `<split>-00000-of-0000N.array_record` and `<split>-lengths.npy` (int32
[N, 2], source and target). A record is a msgpack map; arrays are little-endian int32 bytes. A task's directory appears
by one rename, so a reader never sees half of it.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgpack
import numpy as np

from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError

FORMAT = 1
STREAMS_FILE = "streams.json"
DEFINITION_VARIABLES = ("CODEGEN2_JAX_JSONL_", "CODEGEN2_JAX_DOCUMENTS_")
"""Beginnings of the variables that hold the definition of a task, whose name follows."""

RECORDS_PER_SHARD = 100_000
IN_MEMORY_BYTES = 256 * 2**20
"""Splits up to this size are held in memory as they are on disk, undecoded."""

_WRITER_OPTIONS = "group_size:1,uncompressed"  # one record per read, and no time spent on decompressing it


class EmptySplitError(UserError):
    """No record of a split can be used. reading: the counts, where the one who raises this has them."""

    def __init__(self, split: str, reading=None):
        super().__init__(f"split {split!r} has no usable record; check the task's source and its rejected rows.")
        self.reading = reading


def pack(record: Mapping) -> bytes:
    """Serialises strings, integers and integer arrays."""
    fields = {}
    for name, value in record.items():
        is_array = isinstance(value, (np.ndarray, list, tuple))
        fields[name] = np.asarray(value, "<i4").tobytes() if is_array else value
    return msgpack.packb(fields)


def unpack(data: bytes) -> dict:
    """The inverse of `pack`; arrays are read-only views."""
    fields = msgpack.unpackb(data)
    return {name: np.frombuffer(value, "<i4") if type(value) is bytes else value for name, value in fields.items()}


def write_split(
    directory: Path, split: str, records: Iterable[Mapping], *, records_per_shard: int = RECORDS_PER_SHARD
) -> dict:
    """Writes the records in order and returns the split's entry in `info["splits"]`: examples, shards, sha256.

    Raises EmptySplitError when there is none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    records, parts, lengths = iter(records), [], []
    for first in records:
        parts.append(directory / f"{split}.part{len(parts)}")
        lengths += write_part(parts[-1], itertools.chain([first], itertools.islice(records, records_per_shard - 1)))
    return finish_split(directory, split, parts, lengths)


def write_part(path: Path, records: Iterable[Mapping]) -> list[tuple[int, int]]:
    """Writes one shard under a passing name; returns the source and target length of every record."""
    from array_record.python import array_record_module  # as in CachedSplit

    writer, lengths = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS), []
    for record in records:
        writer.write(pack(record))
        lengths.append((len(record.get("inputs", ())), len(record["targets"])))
    writer.close()
    return lengths


def finish_split(
    directory: Path, split: str, parts: Sequence[Path], lengths: Sequence, digests: Sequence[str] | None = None
) -> dict:
    """Gives the parts of a split, all there and in order, their names; returns the split's entry in `info["splits"]`.

    `lengths` are those of all records, [N, 2]; `digests` the parts' sha256, taken here where they are not given.
    """
    if not parts:
        raise EmptySplitError(split)
    shards = {}
    for number, part in enumerate(parts):
        shard = directory / f"{split}-{number:05d}-of-{len(parts):05d}.array_record"
        part.rename(shard)
        shards[shard.name] = file_sha256(shard) if digests is None else digests[number]
    lengths_file = directory / f"{split}-lengths.npy"
    np.save(lengths_file, np.asarray(lengths, "<i4"))
    shards[lengths_file.name] = file_sha256(lengths_file)
    total = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in shards.items()).encode()).hexdigest()
    return {"examples": len(lengths), "shards": shards, "sha256": total}


def read_info(cache_dir: str | Path, task: str) -> dict:
    """The task's info.json."""
    path = Path(cache_dir, task, "info.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.parent.name for p in Path(cache_dir).glob("*/info.json"))
        raise UserError(f"{path} does not exist; cached tasks there: {known}. Make it with cache_tasks.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} and cache the task again.") from error


def open_split(cache_dir: str | Path, task: str, split: str) -> "CachedSplit":
    """Opens a split after checking every file's sha256 (once per process and state of the file)."""
    info, directory = read_info(cache_dir, task), Path(cache_dir, task)
    if split not in info["splits"]:
        raise UserError(f"task {task!r} has no split {split!r}; it has {sorted(info['splits'])}.")
    for name, expected in info["splits"][split]["shards"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {directory} and cache the task again.")
        if file_sha256(path) != expected:
            raise UserError(f"{path} does not have the sha256 in info.json; delete {directory} and cache it again.")
    return CachedSplit(directory, split, info)


class CachedSplit:
    """Random access to the records of one split.

    `source_lengths_N` and `target_lengths_N` are int32 token counts; `digest` stands for the split's whole content.
    """

    def __init__(self, directory: Path, split: str, info: dict):
        # Imported late: who works on records held in memory imports this module as well, and may lack the library.
        from array_record.python import array_record_module

        entry = info["splits"][split]
        self.task, self.split, self.info, self.digest = info["task"], split, info, entry["sha256"]
        self.has_targets: bool = info["has_targets"][split]
        self.source_lengths_N, self.target_lengths_N = np.load(directory / f"{split}-lengths.npy").astype(np.int32).T
        shards = [directory / name for name in entry["shards"] if name.endswith(".array_record")]
        self._readers = [array_record_module.ArrayRecordReader(str(path)) for path in shards]
        self._starts = np.cumsum([0] + [reader.num_records() for reader in self._readers])
        assert self._starts[-1] == len(self) == entry["examples"], (self._starts, len(self), entry)
        self._packed: list[bytes] | None = None
        if sum(path.stat().st_size for path in shards) <= IN_MEMORY_BYTES:
            self._packed = [data for reader in self._readers for data in reader.read_all()]

    def __len__(self) -> int:
        return len(self.source_lengths_N)

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """The records at `indices`, in one read per shard."""
        if self._packed is not None:
            return [unpack(self._packed[i]) for i in indices]
        indices = np.asarray(indices, np.int64)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        records: list = [None] * len(indices)
        for shard in np.unique(shard_of):
            at = np.flatnonzero(shard_of == shard)
            data = self._readers[shard].read((indices[at] - self._starts[shard]).tolist())
            for i, packed in zip(at, data, strict=True):
                records[i] = unpack(packed)
        return records

    def __repr__(self) -> str:
        return f"CachedSplit({self.task}/{self.split}, {len(self)} records, {self.digest[:12]})"


def staleness(info: Mapping, *, vocabulary_digest: str, environment: Mapping[str, str]) -> str:
    """Why the cache must be made again, or "" when it is current.

    A source file that is not on this machine cannot have changed, nor a variable that is not set: a cache copied to
    another machine stays valid there. Of a file that is here, size and modification time are compared first, and the
    sha256 only when they differ.
    """
    if info.get("format") != FORMAT:
        return f"its format is {info.get('format')}, this version reads {FORMAT}"
    if info["vocabulary"] != vocabulary_digest:
        return "it was made with another vocabulary"
    definition = _definition(info.get("task", ""), environment)
    if definition and info["environment"].get(definition) != environment[definition]:
        return "it was made from another definition of the task"
    for name, value in info["environment"].items():
        if environment.get(name) and environment[name] != value:
            return f"{name} was {value!r} and is {environment[name]!r}"
    for path, expected in info["sources"].items():
        try:
            stamp = file_stamp(path)
        except FileNotFoundError:
            continue
        if stamp != info["source_stats"].get(path) and file_sha256(Path(path)) != expected:
            return f"source {path} has changed"
    return ""


def _definition(task: str, environment: Mapping[str, str]) -> str:
    """The variable of the environment that defines a task, or ""."""
    return next((f"{start}{task}" for start in DEFINITION_VARIABLES if environment.get(f"{start}{task}")), "")


def cache_directory(directory: str | Path | None = None) -> Path:
    """Where caches lie: `directory`, else CODEGEN2_JAX_CACHE, else codegen2_jax in the user's cache folder (XDG)."""
    if directory is not None:
        return Path(directory).absolute()
    chosen = os.environ.get("CODEGEN2_JAX_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen).absolute() if chosen else Path(user_cache, "codegen2_jax")


def ensure_cached(
    names: Sequence[str],
    *,
    cache_dir: str | Path,
    vocabulary_dir: str | Path,
    task_modules: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """The names of the tasks behind `names` (tasks or streams), in order, every one with a current cache.

    Whatever is missing or stale is made by `codegen2_jax.cache_tasks` in a child process, because SeqIO brings
    TensorFlow along. `environment` holds variables that task modules read, such as CODETASK_CL_DIR. An error of the
    child is raised here as a UserError.
    """
    if not names:
        raise UserError("no task or stream is named; name at least one.")
    cache_dir, environment = Path(cache_dir).absolute(), {**os.environ, **(environment or {})}
    reasons = missing(names, cache_dir=cache_dir, vocabulary_dir=vocabulary_dir, environment=environment)
    if reasons:
        for name, reason in reasons.items():
            print(f"Caching {name} in {cache_dir}: {reason}.", flush=True)
        _run_child(tuple(reasons), cache_dir, vocabulary_dir, task_modules, environment)
    tasks = tuple(task for name in names for task in _tasks_of(cache_dir, name, environment))
    repeated = sorted({task for task in tasks if tasks.count(task) > 1})
    if repeated:
        raise UserError(f"{', '.join(repeated)} would be learned more than once; name each task once.")
    return tasks


def missing(
    names: Sequence[str],
    *,
    cache_dir: str | Path,
    vocabulary_dir: str | Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{name: why its cache would have to be made}, for the tasks and streams whose cache is missing or stale."""
    cache_dir, environment = Path(cache_dir).absolute(), {**os.environ, **(environment or {})}
    digest = Vocabulary.from_directory(vocabulary_dir).digest
    reasons = {name: _missing(cache_dir, name, digest, environment) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _tasks_of(cache_dir: Path, name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The tasks of a stream that was cached before, else the name itself."""
    if _definition(name, environment):
        return (name,)
    streams = cache_dir / STREAMS_FILE
    known = json.loads(streams.read_text(encoding="utf-8")) if streams.is_file() else {}
    return tuple(known.get(name, (name,)))


def _missing(cache_dir: Path, name: str, vocabulary_digest: str, environment: Mapping[str, str]) -> str:
    for task in _tasks_of(cache_dir, name, environment):
        if not (cache_dir / task / "info.json").is_file():
            return "there is no cache yet"
        reason = staleness(read_info(cache_dir, task), vocabulary_digest=vocabulary_digest, environment=environment)
        if reason:
            return f"the cache of {task} is out of date, {reason}"
    return ""


def _run_child(names, cache_dir: Path, vocabulary_dir, task_modules, environment) -> None:
    if importlib.util.find_spec("seqio") is None:
        raise UserError(f"caching {', '.join(names)} needs SeqIO; pip install 'codegen2_jax[seqio]'.")
    with tempfile.TemporaryDirectory() as scratch:
        report, noise = Path(scratch, "report.json"), Path(scratch, "stderr")
        command = [sys.executable, "-m", "codegen2_jax.cache_tasks", f"--tasks={','.join(names)}"]
        command += [f"--cache_dir={cache_dir}", f"--vocabulary={vocabulary_dir}", f"--report={report}"]
        command += [f"--task_modules={','.join(task_modules)}"]
        # The child must find what this process found, in a checkout as well as installed.
        python_path = os.pathsep.join([path or os.getcwd() for path in sys.path])
        variables = {**environment, "PYTHONPATH": python_path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        with noise.open("wb") as stderr:
            code = subprocess.run(command, env=variables, stderr=stderr, check=False).returncode
        error = json.loads(report.read_text(encoding="utf-8"))["error"] if report.is_file() else None
        if error:
            raise UserError(error)
        if code != 0 or not report.is_file():
            tail = noise.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-30:]
            raise RuntimeError(f"{' '.join(command)} ended with code {code}:\n" + "\n".join(tail))


def file_stamp(path: str | Path) -> list[int]:
    """[size in bytes, modification time in ns]: equal stamps of one path mean that it need not be read again."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


_hashed: dict[tuple, str] = {}


def file_sha256(path: Path) -> str:
    """sha256 of a file; a file that is as it was is hashed once per process."""
    key = (str(path), *file_stamp(path))
    if key not in _hashed:
        with path.open("rb") as file:
            _hashed[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashed[key]

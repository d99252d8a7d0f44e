"""The tasks of a stream as a continual run needs them: their caches made where missing, opened, tagged and checked."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegen2_jax import processes
from codegen2_jax.continual import data_record
from codegen2_jax.data import cache, jsonl
from codegen2_jax.data.tags import TaggedSplit
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import runner

SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task of the stream: its splits, its scorers, and its longest source and target in tokens.

    test: None where it is not scored (`eval_splits`).
    """

    name: str
    train: Any
    valid: Any
    test: Any
    scorers: tuple[str, ...]
    max_lengths: tuple[int, int]

    def __post_init__(self):
        runner.check_scorers(self.name, self.scorers)

    def split(self, name: str) -> Any:
        return getattr(self, name)


def _cache_of(config: Any, vocabulary_directory: str) -> dict:
    """What `data.cache` needs to know to find or make the caches of the stream."""
    names = tuple(part.strip() for part in config.stream.split(","))
    environment = {"CODETASK_CL_DIR": config.codetask_cl_dir} if config.codetask_cl_dir else {}
    if config.jsonl_tasks is not None:
        tasks = jsonl.parse(config.jsonl_tasks)
        for task in tasks:  # before they are cached
            runner.check_scorers(task.name, task.scorers)
        environment |= jsonl.environment(tasks)
        given = tuple(task.name for task in tasks)
        names = tuple(name for part in names for name in (given if part == "jsonl" else (part,)))
    elif "jsonl" in names:
        raise UserError("STREAM='jsonl' needs JSONL_TASKS; streams/jsonl.gin shows how to give it.")
    return {
        "names": names,
        "cache_dir": cache.cache_directory(config.cache_dir),
        "vocabulary_dir": vocabulary_directory,
        "environment": environment,
    }


def left_out(config: Any, names: Sequence[str]) -> list[str]:
    """The tasks without which averages are added, in learning order; refuses a name that is none of the stream."""
    unknown = [name for name in config.leave_out or () if name not in names]
    if unknown:
        raise UserError(f"leave_out: {unknown[0]!r} is no task of this stream, which has {', '.join(names)}.")
    chosen = config.without_signal if config.leave_out is None else config.leave_out
    return [name for name in names if name in chosen]


def is_cached(config: Any, vocabulary_directory: str) -> bool:
    """Whether `open_tasks` would find everything made."""
    return not cache.missing(**_cache_of(config, vocabulary_directory))


def check_finished(config: Any, record: dict, directory: Path) -> None:
    """Raises UserError when the data has changed since the run in `directory`, whose result `record` is, ended."""
    arguments = _cache_of(config, "")
    del arguments["vocabulary_dir"]
    data_record.check_finished(record.get("data"), str(directory), **arguments)


def task_names(config: Any) -> tuple[str, ...]:
    """The tasks of a run's stream, in order; makes caches that are missing."""
    arguments = _cache_of(config, config.source.load().vocabulary_directory)
    return cache.ensure_cached(**arguments, task_modules=_modules(config))


def _modules(config: Any) -> tuple[str, ...]:
    return config.task_modules + (("tasks.jsonl",) if config.jsonl_tasks is not None else ())


def open_tasks(config: Any, vocabulary_directory: str, vocabulary: Any) -> list[TaskData]:
    """Opens the caches of the stream's tasks, in order; makes the missing ones in a child process."""
    arguments = _cache_of(config, vocabulary_directory)
    directory = arguments["cache_dir"]
    ensure_cached = functools.partial(cache.ensure_cached, **arguments, task_modules=_modules(config))
    names = processes.first_then_others(ensure_cached)
    tasks = []
    for name in names:
        info = cache.read_info(directory, name)
        for split in ("train", *config.eval_splits):
            _check_split(config, info, split)
        splits = {split: cache.open_split(directory, name, split) for split in ("train", *config.eval_splits)}
        if config.tags != "none":
            tag = vocabulary.encode(info["tag"])
            begins = vocabulary.bos_id != vocabulary.eos_id
            splits = {
                split: TaggedSplit(one, tag, info["max_lengths"][0], begins=begins) for split, one in splits.items()
            }
        tasks.append(
            TaskData(
                name=name,
                scorers=tuple(info["metrics"]),
                max_lengths=tuple(info["max_lengths"]),
                **{"test": None, **splits},
            )
        )
    return tasks


def _check_split(config: Any, info: dict, split: str) -> None:
    """Raises UserError for a split without examples, or without the targets that a score or a loss needs."""
    examples = info["splits"].get(split, {}).get("examples", 0)
    if examples and info.get("has_targets", {}).get(split, True):
        return
    fault = f"its split {split!r} has {examples} examples"
    fault += " and no target" if examples else ""
    remedy = f"give it a {split} file with targets"
    if split == "test":
        remedy = f"score the valid split alone, --gin.EVAL_SPLITS='(\"valid\",)', or {remedy}"
    use = "training needs it" if split == "train" else f"EVAL_SPLITS={tuple(config.eval_splits)!r} scores it"
    raise UserError(f"task {info['task']}: {fault}, but {use}; {remedy}.")

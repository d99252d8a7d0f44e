"""On which data a run stands: kept in its checkpoints and in scores.json, and compared before either is used again.

A configuration names tasks, and what they hold may change below it: files are edited, a folder or a JSON file with the
list of tasks gets other contents. A run must then neither go on (its replay buffer holds record numbers, its iterator a
position) nor show its old scores as those of the data that is there now.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.data import cache, jsonl
from codegen2_jax.errors import UserError

FILE_FIELDS = ("train", "valid", "test")  # of a task of JSONL_TASKS
SHAPING = ("source", "target", "max_source", "max_target", "scorers", "tag")


def read(cache_dir: str | Path, names: Sequence[str], *, splits: Sequence[str], tags: bool) -> list[dict[str, Any]]:
    """What the caches of a stream's tasks were made from and came to, from their info.json alone; JSON-able.

    tags: whether sources begin with the tag of their task, so that the tag is part of the data.
    """
    return [_entry(cache.read_info(cache_dir, name), splits, tags) for name in names]


def _entry(info: Mapping, splits: Sequence[str], tags: bool) -> dict[str, Any]:
    return {
        "name": info["task"],
        "vocabulary": info["vocabulary"],
        "max_lengths": list(info["max_lengths"]),
        "metrics": list(info["metrics"]),
        "tag": info["tag"] if tags else None,
        "splits": {split: info["splits"][split]["sha256"] for split in splits},
        # Python files are what makes the examples; whether they make others is seen by the digests of the splits.
        "files": {path: digest for path, digest in info["sources"].items() if not path.endswith(".py")},
        "environment": dict(info["environment"]),
    }


def check_restored(recorded: Sequence[Mapping] | None, found: Sequence[Mapping], model_dir: str) -> None:
    """Raises UserError when the caches hold other data than those that a checkpoint was made with.

    recorded: None of a checkpoint from before it was kept.
    """
    if recorded is not None:
        _refuse(_other_stream(recorded, found) or _first(map(_difference, recorded, found)), model_dir)


def check_finished(
    recorded: Sequence[Mapping] | None,
    model_dir: str,
    *,
    names: Sequence[str],
    cache_dir: str | Path,
    environment: Mapping[str, str],
) -> None:
    """Raises UserError when the data of a finished run has changed since; makes no cache and opens none.

    Definitions and files are compared first. Caches are compared where they are current and of the run's vocabulary:
    otherwise they say nothing of what making them again would give.
    """
    if recorded is None:
        return
    environment = {**os.environ, **environment}
    given = [{"name": name} for name in names if environment.get(jsonl.variable_of(name))]
    own = [one for one in recorded if jsonl.variable_of(one["name"]) in one["environment"]]
    what = _other_stream(own, given) if own or given else ""
    for one in () if what else recorded:
        path = Path(cache_dir, one["name"], "info.json")
        info = cache.read_info(cache_dir, one["name"]) if path.is_file() else {}
        what = what or _changed_source(one, info, environment)
        if what or info.get("vocabulary") != one["vocabulary"]:
            continue
        if not cache.staleness(info, vocabulary_digest=one["vocabulary"], environment=environment):
            what = _difference(one, _entry(info, [*one["splits"]], one["tag"] is not None))
    _refuse(what, model_dir)


def _refuse(what: str, model_dir: str) -> None:
    if what:
        raise UserError(
            f"{model_dir} holds a run on other data ({what}); choose another MODEL_DIR, or put the data back."
        )


def _first(texts) -> str:
    return next((text for text in texts if text), "")


def _other_stream(old: Sequence[Mapping], new: Sequence[Mapping]) -> str:
    before, now = ([one["name"] for one in entries] for entries in (old, new))
    return "" if before == now else f"the tasks were {', '.join(before)} and are {', '.join(now) or 'none'}"


def _difference(old: Mapping, new: Mapping) -> str:
    """What sets two entries of one task apart in what a model reads and is scored by, or ""."""
    for field in ("vocabulary", "max_lengths", "metrics", "tag"):
        if old[field] != new[field]:
            return f"{field} of task {old['name']} was {old[field]} and is {new[field]}"
    for split, digest in old["splits"].items():
        if new["splits"].get(split) != digest:
            changed = [path for path, now in new["files"].items() if old["files"].get(path, now) != now]
            if changed:
                return f"{changed[0]} of task {old['name']} has changed"
            return f"the {split} split of task {old['name']} has other examples"
    return ""


def _changed_source(old: Mapping, info: Mapping, environment: Mapping[str, str]) -> str:
    """What of a task's definition or files is no more as it was, or "". A file that is gone says nothing.

    Files may lie elsewhere now: where the variable or the definition that led to them says so.
    """
    moved = {path: path for path in old["files"]}
    for variable, before in old["environment"].items():
        now = environment.get(variable)
        if not before or not now or now == before:
            continue
        if variable == jsonl.variable_of(old["name"]):
            before, now = json.loads(before), json.loads(now)
            for field in SHAPING:
                if before[field] != now[field] and (field != "tag" or old["tag"] is not None):
                    return f"{field} of task {old['name']} was {before[field]!r} and is {now[field]!r}"
            for field in FILE_FIELDS:
                if (before[field] is None) != (now[field] is None):
                    return f"{field} of task {old['name']} was {before[field]!r} and is {now[field]!r}"
                moved[before[field]] = now[field]
        else:
            moved |= {path: now + path.removeprefix(before) for path in old["files"] if path.startswith(before)}
    for path, digest in old["files"].items():
        if _is_other(moved[path], digest, info):
            return f"{moved[path]} of task {old['name']} has changed"
    return ""


def _is_other(path: str, digest: str, info: Mapping) -> bool:
    if not Path(path).is_file():
        return False
    if info.get("source_stats", {}).get(path) == cache.file_stamp(path):  # read when the cache was made, and not since
        return info["sources"][path] != digest
    return cache.file_sha256(Path(path)) != digest

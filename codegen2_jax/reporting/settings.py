"""What sets runs apart: the settings that scores.json and config.gin name, and how groups are called by them.

Runs are repetitions of one another exactly when they differ in nothing but the seed and the order of their tasks.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Of a result file: what was measured, what names the run, and what follows from other settings.
NO_SETTINGS = {
    *("stream", "complete", "seed", "config_digest", "data_digest", "data", "versions", "deviations_from_the_paper"),
    *("future_data_in_init", "task_id_in_query", "scorers", "leave_out", "splits", "baselines", "summary"),
    *("diagnostics", "cost", "method"),
}
BINDING = re.compile(r"^([^\s#=]+) = (.*(?:\n[ \t]+.*)*)", re.MULTILINE)
REPEATED = ("seed", "stream", "num_tasks")  # in any case, the last part of a binding's name; tasks are compared apart
MOST_NAMED = 3  # differences in a label; beyond, the directory names the group
BUFFER = "replay.size"


def of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result file names, flat: {"replay.size": 500, ...}; seeds are none, at any depth."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, one in value.items():
                if key != "seed":
                    add(f"{name}.{key}", one)
        elif value is not None:  # as a setting that an older file does not name
            found[name] = value

    for name, value in record.items():
        if name not in NO_SETTINGS:
            add(name, value)
    return found


def bindings(config_text: str) -> dict[str, Any]:
    """The bindings of a config.gin but seeds and streams: values where they are literals, else their text."""
    found = {}
    for name, text in BINDING.findall(config_text):
        if name.rpartition(".")[2].lower() not in REPEATED:
            text = " ".join(text.removeprefix("\\").split())
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                found[name] = text
    return {name: value for name, value in found.items() if value is not None}


def without_buffer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings or bindings without the size of the replay buffer."""
    sizes = (BUFFER, "REPLAY_SIZE", "replay.Replay.size")
    return {name: value for name, value in settings.items() if name not in sizes}


def differing(all_settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same everywhere, in the order of first appearance."""
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    return [name for name in names if len({key(settings.get(name)) for settings in all_settings}) > 1]


def differences(groups: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """{name: its value in each group} of whatever differs; groups: (settings, bindings) of each.

    A binding that says the same as a setting or an earlier binding is left out, as is a digest beside its name.
    """
    found: dict[str, list[Any]] = {}
    for part in (0, 1):
        for name in differing([group[part] for group in groups]):
            column = [group[part].get(name) for group in groups]
            if part == 0 or key(column) not in map(key, found.values()):
                found[name if part == 0 else ".".join(name.split(".")[-2:])] = column
    if "init_from" in found:
        found.pop("weights_digest", None)
    return found


def labels(groups: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str] | None:
    """What sets each group apart, "replay.size=500, tags=none"; None where that is nothing, or too much to say."""
    found = differences(groups)
    if not 0 < len(found) <= MOST_NAMED:
        return None
    rows = zip(*found.values(), strict=True)
    texts = [", ".join(f"{name}={short(v)}" for name, v in zip(found, row, strict=True)) for row in rows]
    return texts if len(set(texts)) == len(texts) else None


def short(value: Any) -> str:
    """A value in few characters."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."


def key(value: Any) -> str:
    """Equal for equal values, and usable in a dictionary."""
    return json.dumps(value, sort_keys=True, default=str)


def gathered(members: Iterable[Any], key_of: Any) -> list[list[Any]]:
    """The members with equal keys together, in the order of first appearance."""
    found: dict[str, list[Any]] = {}
    for member in members:
        found.setdefault(key(key_of(member)), []).append(member)
    return list(found.values())

"""Tasks from a user's own JSON-lines files: which fields are source and target, and how rows are split.

A task is described by a plain dictionary (a gin literal, or an entry of a JSON file), so that a stream needs no Python:

    {"name": "titles", "train": "titles.jsonl", "source": "text", "target": "title"}
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.data.sources import Rejected, TextExample, file_digest, read_json_lines, stable_hash
from codegen2_jax.errors import UserError

NAMES_VARIABLE = "CODEGEN2_JAX_JSONL_TASKS"
"""Environment of the caching process: the tasks' names, joined by commas. Each task has a variable of its own."""

SCORERS = ("codet5_bleu", "codet5_smooth_bleu", "exact_match", "codebleu_java", "codebleu_c_sharp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlTask:
    """One task.

    Attributes:
      name: letters, digits and underscores.
      train: a JSON-lines file; a relative path starts in the working directory.
      valid, test: likewise; without one a tenth of the train file serves, the same rows on every machine, chosen by a
        hash of the source, so that equal sources are in one split.
      source, target: fields that hold a string or a list of strings (joined by spaces).
      max_source, max_target: longest source and target in tokens, <s> and </s> included.
      scorers: how outputs are compared, from `SCORERS`; the first decides with exact match which state is best. Two
        of one column, such as both BLEUs, are refused.
      tag: what stands before a source where tags are on; None: "<name> ".
    """

    name: str
    train: str
    source: str
    target: str
    valid: str | None = None
    test: str | None = None
    max_source: int = 256
    max_target: int = 128
    scorers: tuple[str, ...] = ("codet5_bleu", "exact_match")
    tag: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise UserError(f"task name {self.name!r} must be letters, digits and underscores, a letter first.")
        for name in ("max_source", "max_target"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 4:
                raise UserError(f"{name}={getattr(self, name)} of task {self.name} is too small; give at least 4.")
        unknown = [scorer for scorer in self.scorers if scorer not in SCORERS]
        if unknown or not self.scorers:
            raise UserError(f"scorers={list(self.scorers)} of task {self.name}: choose from {list(SCORERS)}.")

    @property
    def variable(self) -> str:
        """The environment variable that carries this task to the caching process."""
        return f"CODEGEN2_JAX_JSONL_{self.name}"


def parse(given: Any) -> tuple[JsonlTask, ...]:
    """The tasks of a stream, in learning order, from dictionaries or from the path of a JSON file with a list of them.

    Paths become absolute: those of a JSON file start in its folder, others in the working directory.
    """
    folder = Path.cwd()
    if isinstance(given, str):
        path = Path(given)
        try:
            folder, given = path.absolute().parent, json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"JSONL_TASKS={str(path)!r} is no file; give the path of a JSON list of tasks.") from None
        except ValueError as error:
            raise UserError(f"JSONL_TASKS={str(path)!r} is not JSON: {error}.") from None
    if not isinstance(given, Sequence) or not given:
        raise UserError(
            f"JSONL_TASKS={given!r} names no task; give a tuple of dictionaries, or the path of a JSON file."
        )
    tasks = tuple(_task(entry, folder) for entry in given)
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"JSONL_TASKS names a task twice: {names}; every task needs a name of its own.")
    return tasks


def _task(entry: Any, folder: Path) -> JsonlTask:
    fields = {field.name: field for field in dataclasses.fields(JsonlTask)}
    if not isinstance(entry, Mapping):
        raise UserError(f"JSONL_TASKS holds {entry!r}; every task is a dictionary with {', '.join(fields)}.")
    unknown = [name for name in entry if name not in fields]
    missing = [name for name, field in fields.items() if name not in entry and field.default is dataclasses.MISSING]
    if unknown or missing:
        fault = f"has no field {unknown[0]!r}" if unknown else f"lacks {', '.join(missing)}"
        raise UserError(
            f"task {entry.get('name', entry)!r} of JSONL_TASKS {fault}; the fields are {', '.join(fields)}."
        )
    values = dict(entry)
    for name in ("train", "valid", "test"):
        if values.get(name) is not None:
            values[name] = str(folder / str(values[name]))
    if "scorers" in values:
        values["scorers"] = (values["scorers"],) if isinstance(values["scorers"], str) else tuple(values["scorers"])
    return JsonlTask(**values)


def environment(tasks: Sequence[JsonlTask]) -> dict[str, str]:
    """What a process that caches these tasks must have in its environment."""
    carried = {task.variable: json.dumps(dataclasses.asdict(task), sort_keys=True) for task in tasks}
    return {NAMES_VARIABLE: ",".join(task.name for task in tasks)} | carried


def from_environment() -> tuple[JsonlTask, ...]:
    """The inverse of `environment`; no tasks where the variable is not set."""
    names = [name for name in os.environ.get(NAMES_VARIABLE, "").split(",") if name]
    stored = [json.loads(os.environ[f"CODEGEN2_JAX_JSONL_{name}"]) for name in names]
    return tuple(JsonlTask(**{**one, "scorers": tuple(one["scorers"])}) for one in stored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRows:
    """A split as read. digests: {path: sha256} of its file; rows: rows of the file that belong to the split."""

    examples: tuple[TextExample, ...]
    rejected: tuple[Rejected, ...]
    digests: dict[str, str]
    rows: int


@functools.lru_cache(maxsize=8)
def read_split(task: JsonlTask, split: str) -> SplitRows:
    """Reads one split. Rows that cannot be used are rejected with file and line; a missing file is a UserError."""
    path = Path(getattr(task, split) or task.train)
    if not path.is_file():
        raise UserError(f"{path} is missing; the field '{split}' of task {task.name} must name a JSON-lines file.")
    has_own_file = split != "train" and getattr(task, split) is not None
    numbered, rejected = read_json_lines(path, (task.source, task.target))
    examples, rows = [], 0
    for number, row in numbered:
        source, target = (_text(row[field]) for field in (task.source, task.target))
        if not has_own_file and _part(task, source) != split:
            continue
        rows += 1
        if not source or not target:
            reason = "empty source" if not source else "empty target"
            rejected.append(Rejected(file=str(path), line=number, reason=reason))
        else:
            examples.append(TextExample(id=f"{task.name}/{split}/{number}", inputs=source, targets=target))
    return SplitRows(
        examples=tuple(examples),
        rejected=tuple(sorted(rejected, key=lambda one: one.line)),
        digests={str(path): file_digest(path)},
        rows=rows,
    )


def _part(task: JsonlTask, source: str) -> str:
    """The split that a row of the train file feeds."""
    position = stable_hash(source) % 10
    if task.valid is None and position == 0:
        return "valid"
    return "test" if task.test is None and position == 1 else "train"


def _text(value: str | Sequence[str]) -> str:
    return (value if isinstance(value, str) else " ".join(value)).strip()

"""Tasks from a user's own JSON-lines files: which fields are source and target, and how rows are split.

A task is described by a plain dictionary (a gin literal, or an entry of a JSON file), so that a stream needs no Python:

    {"name": "titles", "train": "titles.jsonl", "source": "text", "target": "title"}
"""

import collections
import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.data.sources import (
    SPLITS,
    Rejected,
    TextExample,
    file_digest,
    is_unicode,
    read_json_lines,
    stable_hash,
)
from codegen2_jax.errors import UserError

NAMES_VARIABLE = "CODEGEN2_JAX_JSONL_TASKS"
"""Environment of the caching process: the tasks' names, joined by commas. Each task has a variable of its own."""

BUILT_IN = frozenset({
    "jsonl",  # the stream of all tasks given
    "pytask_cl", "pytask_generate", "pytask_translate", "pytask_summarize", "pytask_refine",
    "codetask_cl", "codetask_concode", "codetask_translate", "codetask_summarize", "codetask_refine",
    "tiny_ci", "tiny_copy", "tiny_reverse", "tiny_upper",
    "understanding", "boolq", "defect", "piqa", "poj104_pairs",
    "humaneval", "humaneval_infill_single_line", "humaneval_infill_multi_line", "humaneval_infill_random_span",
    "humaneval_infill_random_span_light", "mbpp", "mbpp_sanitized", "mtpb",
    "pretraining", "pretraining_windows", "pretraining_pairs", "pretraining_javascript", "pretraining_abstracted",
    "documents", "documents_python", "documents_text", "documents_codetask_java", "documents_codetask_c_sharp",
    "documents_codetask_ruby",
})  # fmt: skip
"""Names of tasks and streams that have data already."""

SCORERS = ("codet5_bleu", "codet5_smooth_bleu", "exact_match", "codebleu_java", "codebleu_c_sharp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlTask:
    """One task.

    Attributes:
      name: letters, digits and underscores; none that another task or stream has.
      train: a JSON-lines file; a relative path starts in the working directory.
      valid, test: likewise; without one a tenth of the train file serves, the same rows on every machine, chosen by a
        hash of the source, so that equal sources are in one split. Three different sources are enough for a row each.
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
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", self.name):
            raise UserError(
                f"task name {self.name!r} must be letters, digits and underscores, a letter first, at most 100 of them."
            )
        if self.name in BUILT_IN:
            raise UserError(
                f"task name {self.name!r} of JSONL_TASKS is taken by a task or stream that has data of its own; choose "
                f"another, such as 'my_{self.name}'."
            )
        for name in ("train", "valid", "test", "source", "target", "tag"):
            value, optional = getattr(self, name), name in ("valid", "test", "tag")
            if not (optional and value is None) and not (isinstance(value, str) and is_unicode(value)):
                raise UserError(f"{name}={value!r} of task {self.name} is no text; give a string.")
        for name in ("max_source", "max_target"):
            value = getattr(self, name)
            if type(value) is not int or value < 4:
                fault = "too small" if type(value) is int else "no whole number"
                raise UserError(f"{name}={value!r} of task {self.name} is {fault}; give at least 4.")
        unknown = [scorer for scorer in self.scorers if scorer not in SCORERS]
        if unknown or not self.scorers:
            raise UserError(f"scorers={list(self.scorers)} of task {self.name}: choose from {list(SCORERS)}.")

    @property
    def variable(self) -> str:
        """The environment variable that carries this task to the caching process."""
        return variable_of(self.name)


def variable_of(name: str) -> str:
    """The environment variable of the task of that name."""
    return f"CODEGEN2_JAX_JSONL_{name}"


def parse(given: Any) -> tuple[JsonlTask, ...]:
    """The tasks of a stream, in learning order, from dictionaries or from the path of a JSON file with a list of them.

    Paths become absolute: those of a JSON file start in its folder, others in the working directory.
    """
    folder = Path.cwd()
    if isinstance(given, str):
        path = Path(given)
        try:
            folder, given = path.absolute().parent, json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError:
            raise UserError(f"JSONL_TASKS={str(path)!r} is no file; give the path of a JSON list of tasks.") from None
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise UserError(f"JSONL_TASKS={str(path)!r} is not JSON: {reason}.") from None
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
        if isinstance(values.get(name), str):
            values[name] = str(folder / values[name])
    scorers = values.get("scorers", JsonlTask.scorers)
    if not isinstance(scorers, str | Sequence):
        raise UserError(f"scorers={scorers!r} of task {values['name']} is no list; choose from {list(SCORERS)}.")
    return JsonlTask(**values | {"scorers": (scorers,) if isinstance(scorers, str) else tuple(scorers)})


def environment(tasks: Sequence[JsonlTask]) -> dict[str, str]:
    """What a process that caches these tasks must have in its environment."""
    carried = {task.variable: json.dumps(dataclasses.asdict(task), sort_keys=True) for task in tasks}
    return {NAMES_VARIABLE: ",".join(task.name for task in tasks)} | carried


def from_environment() -> tuple[JsonlTask, ...]:
    """The inverse of `environment`; no tasks where the variable is not set."""
    names = [name for name in os.environ.get(NAMES_VARIABLE, "").split(",") if name]
    stored = [json.loads(os.environ[variable_of(name)]) for name in names]
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
    """Reads one split. Rows that cannot be used are rejected with file and line.

    Raises UserError for a missing file, and where no row is left for the split.
    """
    path = Path(getattr(task, split) or task.train)
    if not path.is_file():
        raise UserError(f"{path} is missing; the field '{split}' of task {task.name} must name a JSON-lines file.")
    has_own_file = split != "train" and getattr(task, split) is not None
    numbered, rejected = read_json_lines(path, (task.source, task.target))
    texts = [(number, _text(row[task.source]), _text(row[task.target])) for number, row in numbered]
    parts = {} if has_own_file else _parts(task, [source for _, source, target in texts if source and target])
    examples, rows = [], 0
    for number, source, target in texts:
        if not has_own_file and (parts.get(source) or _part(task, source)) != split:
            continue
        rows += 1
        if not source or not target:
            reason = "empty source" if not source else "empty target"
            rejected.append(Rejected(file=str(path), line=number, reason=reason))
        else:
            examples.append(TextExample(id=f"{task.name}/{split}/{number}", inputs=source, targets=target))
    rejected.sort(key=lambda one: one.line)
    if not examples:
        raise UserError(_nothing_left(task, split, path, texts, rejected))
    return SplitRows(
        examples=tuple(examples), rejected=tuple(rejected), digests={str(path): file_digest(path)}, rows=rows
    )


def _part(task: JsonlTask, source: str) -> str:
    """The split that a row of the train file feeds, by the hash of its source."""
    position = stable_hash(source) % 10
    if task.valid is None and position == 0:
        return "valid"
    return "test" if task.test is None and position == 1 else "train"


def _parts(task: JsonlTask, sources: Sequence[str]) -> dict[str, str]:
    """{source: split} of the usable rows of the train file.

    Of a few rows the hash may leave a split without any. It then gets the source with the lowest hash of the split that
    has most, as long as there are enough different ones.
    """
    parts = {source: _part(task, source) for source in sources}
    fed = [split for split in SPLITS if split == "train" or getattr(task, split) is None]
    if len(parts) < len(fed):
        return parts
    for split in fed:
        sizes = collections.Counter(parts.values())
        if not sizes[split]:
            giver = max(fed, key=lambda name: sizes[name])
            parts[min((one for one in parts if parts[one] == giver), key=stable_hash)] = split
    return parts


def _nothing_left(
    task: JsonlTask, split: str, path: Path, texts: Sequence[tuple[int, str, str]], rejected: Sequence[Rejected]
) -> str:
    """What to say where no row of a file feeds the split."""
    usable = [source for _, source, target in texts if source and target]
    counts = f"{len(usable)} usable rows with {len(set(usable))} different sources"
    if rejected:
        first = rejected[0]
        counts += f", {len(rejected)} rejected rows, the first in line {first.line}: {first.reason}"
    remedy = "correct its rows, or the fields 'source' and 'target'"
    if usable:  # too few for every split that this one file feeds
        shared = [name for name in ("valid", "test") if getattr(task, name) is None]
        files = " and ".join(f"'{name}'" for name in shared)
        remedy = f"give {files} files, or a train file with at least {len(shared) + 1} different sources"
    return f"task {task.name} has no row for its split {split!r}: {path} has {counts}; {remedy}."


def _text(value: str | Sequence[str]) -> str:
    return (value if isinstance(value, str) else " ".join(value)).strip()

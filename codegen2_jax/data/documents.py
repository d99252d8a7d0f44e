"""Whole documents for pretraining decoders: where they come from, which of them stay, and which are held out.

A document is a file, or a row that holds one, as text with line ends as "\\n". A corpus is described by a plain
dictionary (a gin literal), so that it needs no Python:

    {"name": "my_code", "kind": "directory", "path": "src", "extensions": ("py", "rb"), "licences": "permissive"}

Every source is a list of shards, read in order with one document in memory at a time, in three passes: one judges
every document (unreadable, size, licence, evaluation problems, the same text twice) and takes its MinHash keys; one
looks again at the few that share a key; one for each split gives out what stays. data/document_selection.py tells what
judging takes of memory; giving out takes 2 bytes a document.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from codegen2_jax.data import codetask_cl, known_corpora, licences, near_duplicates, sources
from codegen2_jax.data.cache import file_sha256, file_stamp
from codegen2_jax.data.contamination import Index
from codegen2_jax.data.document_selection import Selection, select
from codegen2_jax.data.document_sources import (
    Document,
    RowFields,
    Shard,
    file_document,
    find_files,
    hub_file,
    hub_files,
    json_documents,
    parquet_documents,
    too_long,
)
from codegen2_jax.data.evaluation_sets import evaluation_sets
from codegen2_jax.data.token_windows import family_of
from codegen2_jax.errors import UserError

NAMES_VARIABLE = "CODEGEN2_JAX_DOCUMENT_TASKS"
"""Environment of the caching process: names of the tasks given, joined by commas; each has a variable of its own."""

KINDS = ("python", "text", "codetask", "directory", "jsonl", "parquet")
EXTENSIONS = tuple("py java cs rb js ts go c h cc cpp hpp rs php kt scala swift sh sql".split())
FILES_PER_SHARD = 500
MAX_SOURCES_LISTED = 20_000
EVALUATION_NAMES = ("pytask_cl", "codetask_cl", "humaneval", "humaneval_infilling", "mbpp", "mtpb", "boolq")
_FILTERED_KINDS = ("verbatim", "reformatted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentTask:
    """One corpus.

    Attributes:
      name: letters, digits and underscores.
      kind: "python" (the standard library without tests and without PyTask-CL's valid and test files), "text" (pydoc
        topics, long docstrings, READMEs of the library, BoolQ's train passages where BOOLQ_DIR is set), "codetask"
        (training code of CodeTask-CL, CODETASK_CL_DIR), "directory", "jsonl" or "parquet".
      path: the directory; or a file or glob pattern of .jsonl, .jsonl.gz, .jsonl.zst or .parquet files.
      extensions: of the files that a directory gives.
      repo, revision, files: instead of path, parquet files of a Hub data set whose names match `files`.
      language: of "codetask": "java", "c_sharp" or "ruby".
      text_field, id_field, licence_field: of rows; without id_field a row is named by file and number.
      min_bytes, max_bytes: UTF-8 length of a document; shorter and longer ones are left out and counted.
      near_duplicates: Jaccard similarity from which a later document is left out; None: only equal texts are.
      licences: None, "permissive" or SPDX identifiers; what a row's field or the head of a file states must be among
        them. keep_unknown: whether a document that states nothing stays.
      evaluation: {name: folder} as evaluation_sets takes them, {"pytask_cl": True} too; documents with
        one of their problems, verbatim or reformatted, are left out.
      valid_per_mille: share of the documents, by a hash of their ids, that is the valid split.
    """

    name: str
    kind: str
    path: str | None = None
    extensions: tuple[str, ...] = EXTENSIONS
    repo: str | None = None
    revision: str = "main"
    files: str = "*.parquet"
    language: str | None = None
    text_field: str = "content"
    id_field: str | None = None
    licence_field: str | None = None
    min_bytes: int = 1
    max_bytes: int = 1_000_000
    near_duplicates: float | None = near_duplicates.THRESHOLD
    licences: str | tuple[str, ...] | None = None
    keep_unknown: bool = True
    evaluation: tuple[tuple[str, str | bool], ...] = ()
    valid_per_mille: int = 20

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise UserError(f"task name {self.name!r} must be letters, digits and underscores, a letter first.")
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r} of task {self.name}: choose from {list(KINDS)}.")
        if self.kind in ("directory", "jsonl") and not self.path:
            raise UserError(f"task {self.name} of kind {self.kind} has no path; give the folder or the files.")
        if self.kind == "parquet" and bool(self.path) == bool(self.repo):
            raise UserError(f"task {self.name}: give either path or repo, so that it is clear where the parquet is.")
        if self.kind == "codetask" and self.language not in known_corpora.CODETASK_FILES:
            known = list(known_corpora.CODETASK_FILES)
            raise UserError(f"language={self.language!r} of task {self.name}: choose from {known}.")
        if not 1 <= self.valid_per_mille <= 500:
            raise UserError(f"valid_per_mille={self.valid_per_mille} of task {self.name} is outside 1..500.")
        if not 1 <= self.min_bytes <= self.max_bytes:
            raise UserError(f"min_bytes={self.min_bytes} and max_bytes={self.max_bytes} of task {self.name}: need 1 <= "
                            f"min_bytes <= max_bytes.")  # fmt: skip
        unknown = [name for name, _ in self.evaluation if name not in EVALUATION_NAMES]
        if unknown:
            raise UserError(f"evaluation of task {self.name} has no set {unknown[0]}: choose from {EVALUATION_NAMES}.")
        if self.near_duplicates is not None:
            near_duplicates.choose_bands(self.near_duplicates)
        licences.allow_list(self.licences)

    @property
    def variable(self) -> str:
        """The environment variable that carries this task to the caching process."""
        return f"CODEGEN2_JAX_DOCUMENTS_{self.name}"


def parse_tasks(given: Sequence[Mapping]) -> tuple[DocumentTask, ...]:
    """Tasks from dictionaries; relative paths start in the working directory. Faults are UserErrors."""
    fields = {field.name: field for field in dataclasses.fields(DocumentTask)}
    tasks = []
    for entry in given:
        if not isinstance(entry, Mapping):
            raise UserError(f"{entry!r} is no task; every corpus is a dictionary with {', '.join(fields)}.")
        unknown = [name for name in entry if name not in fields]
        missing = [name for name, field in fields.items() if name not in entry and field.default is dataclasses.MISSING]
        if unknown or missing:
            fault = f"has no field {unknown[0]!r}" if unknown else f"lacks {', '.join(missing)}"
            raise UserError(f"corpus {entry.get('name', entry)!r} {fault}; the fields are {', '.join(fields)}.")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
        if values.get("path"):
            values["path"] = str(Path.cwd() / values["path"])
        if isinstance(values.get("evaluation"), Mapping):
            folders = sorted(values["evaluation"].items())
            values["evaluation"] = tuple((name, str(Path.cwd() / at) if at is not True else at) for name, at in folders)
        tasks.append(DocumentTask(**values))
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"a corpus is named twice: {names}; every one needs a name of its own.")
    return tuple(tasks)


def environment(tasks: Sequence[DocumentTask]) -> dict[str, str]:
    """What a process that caches these tasks must have in its environment."""
    carried = {task.variable: _as_json(task) for task in tasks}
    return {NAMES_VARIABLE: ",".join(task.name for task in tasks)} | carried


def from_environment() -> tuple[DocumentTask, ...]:
    """The inverse of `environment`; no tasks where the variable is not set."""
    names = [name for name in os.environ.get(NAMES_VARIABLE, "").split(",") if name]
    return parse_tasks([json.loads(os.environ[f"CODEGEN2_JAX_DOCUMENTS_{name}"]) for name in names])


def _as_json(task: DocumentTask) -> str:
    return json.dumps(dataclasses.asdict(task) | {"evaluation": dict(task.evaluation)}, sort_keys=True)


def shards(task: DocumentTask) -> tuple[Shard, ...]:
    """The shards of a task's source, in order. UserError where nothing is there."""
    if task.kind == "directory":
        paths = tuple(sorted(find_files(Path(task.path), task.extensions)))  # of equal documents the first path stays
        if not paths:
            raise UserError(f"no file of {task.path} ends in {', '.join(task.extensions)}; check path and extensions.")
        groups = (paths[start : start + FILES_PER_SHARD] for start in range(0, len(paths), FILES_PER_SHARD))
        return tuple(Shard(name=os.path.relpath(group[0], task.path), paths=group) for group in groups)
    if task.kind in ("jsonl", "parquet") and task.path:
        paths = sorted(path for path in glob.glob(task.path, recursive=True) if os.path.isfile(path))
        if not paths:
            raise UserError(f"no file {task.path}; path of task {task.name} must be a file or a pattern like d/*.gz.")
        return tuple(Shard(name=os.path.basename(path), paths=(path,)) for path in paths)
    if task.kind == "parquet":
        return tuple(Shard(name=name) for name in hub_files(task.repo, task.revision, task.files)[1])
    if task.kind == "codetask":
        names = {name for name, _ in known_corpora.CODETASK_FILES[task.language]}
        folder = os.environ.get(codetask_cl.DIRECTORY_VARIABLE)
        paths = (sources.require_file(folder, name, setting=codetask_cl.DIRECTORY_VARIABLE) for name in sorted(names))
        return (Shard(name=task.language, paths=tuple(map(str, paths))),)
    paths = [*map(str, sources.standard_library_paths(optional=True))]
    if task.kind == "text":
        paths += map(str, known_corpora.library_readmes())
        paths += map(str, known_corpora.boolq_files())
    return (Shard(name=task.kind, paths=tuple(paths)),)


def read(task: DocumentTask, shard: Shard) -> Iterator[Document]:
    """The documents of a shard, in order; what cannot be read is one too, with a fault and without text."""
    if task.kind == "directory":
        return (file_document(path, task.path, task.max_bytes) for path in shard.paths)
    fields = RowFields(text=task.text_field, id=task.id_field, licence=task.licence_field)
    if task.kind == "jsonl":
        return json_documents(shard.paths[0], fields)
    if task.kind == "parquet":
        path = shard.paths[0] if shard.paths else hub_file(task.repo, task.revision, task.files, shard.name)
        return parquet_documents(path, shard.name, fields)
    if task.kind == "codetask":
        return known_corpora.codetask_documents(task.language, shard.paths)
    if task.kind == "python":
        return iter(known_corpora.python_documents())
    return itertools.chain(known_corpora.library_texts(), known_corpora.boolq_documents())


def fault_of(task: DocumentTask, document: Document, index: Index | None = None) -> str:
    """Why a document is left out whatever the others are; "" when it may stay. index: of task.evaluation's problems."""
    size = len(document.text) if document.text.isascii() else len(document.text.encode("utf-8"))
    if document.fault:
        return document.fault
    if not document.text.strip():
        return "empty"
    if size < task.min_bytes:
        return f"shorter than {task.min_bytes} bytes"
    if size > task.max_bytes:
        return too_long(task.max_bytes)
    allowed = licences.allow_list(task.licences)
    fault = licences.fault(document.text, document.licence, allowed=allowed, keep_unknown=task.keep_unknown)
    if not fault and index is not None:
        family = family_of(document.id, document.text)
        problem = index.first_problem(document.text, family)
        fault = problem and f"contains an evaluation problem: {problem}"
    return fault


def _evaluation_index(task: DocumentTask) -> Index | None:
    """Of the problems that no document may have; for CodeTask-CL's code those of its own valid and test rows."""
    wanted = dict(task.evaluation)
    if task.kind == "codetask":
        wanted.setdefault("codetask_cl", os.environ.get(codetask_cl.DIRECTORY_VARIABLE))
    return Index(evaluation_sets(**wanted), kinds=_FILTERED_KINDS) if wanted else None


class Corpus:
    """The documents of a task that stay. The source is listed when this is made and judged when first asked about."""

    def __init__(self, task: DocumentTask):
        self.task, self.shards = task, shards(task)

    @functools.cached_property
    def selection(self) -> Selection:
        """The verdict on every document; reads the whole source."""
        task, index = self.task, _evaluation_index(self.task)
        return select(
            task.name,
            self.shards,
            read=functools.partial(read, task),
            fault_of=lambda document: fault_of(task, document, index),
            identity=functools.partial(_identity, task),
            threshold=task.near_duplicates,
            valid_per_mille=task.valid_per_mille,
        )

    def documents(self, split: str, shard: int | None = None) -> Iterator[Document]:
        """The documents of a split that stay, in order; of one shard where its number is given."""
        selection = self.selection
        for number in range(len(self.shards)) if shard is None else (shard,):
            for place, document in enumerate(read(self.task, self.shards[number]), start=selection.starts[number]):
                if selection.kept_N[place] and selection.valid_N[place] == (split == "valid"):
                    yield document

    def shard_identity(self, shard: int) -> str:
        """What decides the documents that a shard gives: task, files and the decisions about all documents."""
        return f"{self.selection.digest} {_identity(self.task, self.shards[shard])}"

    def provenance(self, split: str) -> dict:
        """What info.json tells of a split: counts with reasons, digests of the files, licence, settings."""
        selection, task = self.selection, self.task
        paths = [path for shard in self.shards for path in shard.paths]
        listed = paths if len(paths) <= MAX_SOURCES_LISTED else []
        settings = {"corpus_sha256": selection.digest, "definition": json.loads(_as_json(task))}
        if task.repo:
            settings["commit"] = hub_files(task.repo, task.revision, task.files)[0]
        return {
            "sources": {path: file_sha256(Path(path)) for path in listed if os.path.isfile(path)},
            "licence": known_corpora.LICENCES.get(task.kind, "as the documents state"),
            "settings": settings,
            "environment": [task.variable, *known_corpora.VARIABLES.get(task.kind, ())],
            "rejected": list(selection.rejected[split]),
            "rejected_count": selection.counts[split]["rejected"],
            "counts": selection.counts[split],
        }


def _identity(task: DocumentTask, shard: Shard) -> str:
    stamps = [[path, *file_stamp(path)] for path in shard.paths if os.path.exists(path)]
    commit = hub_files(task.repo, task.revision, task.files)[0] if task.repo else ""
    return hashlib.sha256(json.dumps([_as_json(task), shard.name, commit, stamps]).encode("utf-8")).hexdigest()

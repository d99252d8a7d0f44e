"""The four CodeTask-CL tasks from the publishers' official files (arXiv 2307.02435, section 4; CodeXGLUE's layout).

| task | files below the directory | source | target |
|---|---|---|---|
| codetask_concode | concode/{train,dev,test}.json | nl | code |
| codetask_translate | translate/{train,valid,test}.java-cs.txt.{java,cs} | a line of Java | the same line of C# |
| codetask_summarize | summarize/ruby/{train,valid,test}.jsonl | code_tokens | docstring_tokens |
| codetask_refine | refine/small/{train,valid,test}.buggy-fixed.{buggy,fixed} | a buggy line | the fixed line |

Texts are prepared as CodeT5 does it. A row that cannot be used is rejected with its file and line; files that do not
belong together are an error.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from codegen2_jax.data.sources import (
    Rejected,
    TextExample,
    file_digest,
    read_json_lines,
    read_parallel,
    require_file,
)

TASKS = ("codetask_concode", "codetask_translate", "codetask_summarize", "codetask_refine")
DIRECTORY_VARIABLE = "CODETASK_CL_DIR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a task's files are: patterns with {split}. fields: the JSON fields, or () for two parallel text files."""

    files: tuple[str, ...]
    fields: tuple[str, ...] = ()
    valid_name: str = "valid"

    def names(self, split: str) -> tuple[str, ...]:
        """The official file names of a split."""
        return tuple(pattern.format(split=self.valid_name if split == "valid" else split) for pattern in self.files)


LAYOUTS = {
    "codetask_concode": Layout(files=("concode/{split}.json",), fields=("nl", "code"), valid_name="dev"),
    "codetask_translate": Layout(
        files=("translate/{split}.java-cs.txt.java", "translate/{split}.java-cs.txt.cs"),
    ),
    "codetask_summarize": Layout(
        files=("summarize/ruby/{split}.jsonl",), fields=("code_tokens", "docstring_tokens")
    ),
    "codetask_refine": Layout(
        files=("refine/small/{split}.buggy-fixed.buggy", "refine/small/{split}.buggy-fixed.fixed"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitExamples:
    """A split as read. digests: {path: sha256} of its files; rows: how many rows the files have, blank ones apart."""

    examples: tuple[TextExample, ...]
    rejected: tuple[Rejected, ...]
    digests: dict[str, str]
    rows: int
    has_targets: bool


def read_split(task: str, split: str, directory: str | os.PathLike | None = None) -> SplitExamples:
    """Reads one split from `directory`, by default the environment variable CODETASK_CL_DIR.

    Raises UserError for a directory that is not given, a missing file, text that is not UTF-8, and parallel files of
    different lengths. The same unchanged files are read once.
    """
    directory = directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE)
    names = LAYOUTS[task].names(split)
    paths = [require_file(directory, name, setting=DIRECTORY_VARIABLE) for name in names]
    stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return _read_split(task, split, tuple(paths), stamps)


@functools.lru_cache(maxsize=4)
def _read_split(task: str, split: str, paths: tuple[Path, ...], stamps: tuple) -> SplitExamples:
    fields = LAYOUTS[task].fields
    if fields:
        numbered, rejected = read_json_lines(paths[0], fields)
        rows = [(number, *_texts(task, row)) for number, row in numbered]
    else:
        pairs = enumerate(read_parallel(*paths), start=1)
        rows, rejected = [(number, source.strip(), target.strip()) for number, (source, target) in pairs], []
    total = len(rows) + len(rejected)
    has_targets = any(target for _, _, target in rows)
    examples = []
    for number, source, target in rows:
        if not source:
            rejected.append(Rejected(file=str(paths[0]), line=number, reason="empty source"))
        elif has_targets and not target:
            # In a split whose targets are all withheld, empty is not a fault of the row.
            rejected.append(Rejected(file=str(paths[-1]), line=number, reason="empty target"))
        else:
            name = task.removeprefix("codetask_")
            examples.append(TextExample(id=f"{name}/{split}/{number}", inputs=source, targets=target))
    return SplitExamples(
        examples=tuple(examples),
        rejected=tuple(sorted(rejected, key=lambda one: (one.file, one.line))),
        digests={str(path): file_digest(path) for path in paths},
        rows=total,
        has_targets=has_targets,
    )


def _texts(task: str, row: dict) -> tuple[str, str]:
    if task == "codetask_summarize":
        source = _joined(row["code_tokens"]).replace("\n", " ")
        # CodeT5 takes line ends out of the docstring without a space; so do the published scores.
        target = _joined(row["docstring_tokens"]).replace("\n", "")
        return " ".join(source.split()), " ".join(target.split())
    return _joined(row["nl"]).strip(), _joined(row["code"]).strip()


def _joined(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)

"""Tasks from a user's own JSON-lines files (codegen2_jax/data/jsonl.py); this process's environment names them."""

import functools
from collections.abc import Sequence

import seqio

from codegen2_jax.data import jsonl
from codegen2_jax.data.sources import TextExample
from codegen2_jax.errors import UserError
from tasks import sequences

_TASKS = {task.name: task for task in jsonl.from_environment()}
STREAMS = {}


def _read(task: str, split: str) -> Sequence[TextExample]:
    return jsonl.read_split(_TASKS[task], split).examples


def provenance(task: str, split: str) -> dict:
    """The digest of the split's file, and every row that was not used."""
    definition, read = _TASKS[task], jsonl.read_split(_TASKS[task], split)
    return {
        "sources": dict(read.digests),
        "licence": "the user's",
        "settings": {},
        "environment": [definition.variable],
        "max_lengths": [definition.max_source, definition.max_target],
        "tag": f"<{task}> " if definition.tag is None else definition.tag,
        "rejected": [{"file": one.file, "line": one.line, "reason": one.reason} for one in read.rejected],
        "counts": {"rows": read.rows, "examples": len(read.examples), "rejected": len(read.rejected)},
    }


for _name, _task in _TASKS.items():
    if _name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        raise UserError(f"task name {_name!r} of JSONL_TASKS is taken by another task or stream; choose another.")
    sequences.register(
        _name,
        functools.partial(_read, _name),
        max_lengths=(_task.max_source, _task.max_target),
        metric_fns=tuple(getattr(sequences, scorer) for scorer in _task.scorers),
    )

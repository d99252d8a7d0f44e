"""Benchmarks as SeqIO tasks: what a model is asked and the reference, for other tools and for continual streams.

Two kinds. The execution benchmarks (HumanEval, HumanEval-Infill, MBPP, MTPB) have one split, "test": `inputs` is the
prompt, for a hole with <mask_1> in its place, `targets` the reference; their score is pass@k, which the evaluate
command computes and no metric function can. The questions (BoolQ, Devign, PIQA, pairs of POJ-104) are text to text with
one-word targets: exact match is accuracy. The environment names their folders.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from codegen2_jax.data import execution_problems, mtpb, sources, understanding
from codegen2_jax.data.sources import TextExample
from tasks import sequences

HOLE = "<mask_1>"
# Longest source and target of a question in tokens; of a longer source the end is cut off.
MAX_LENGTHS = (512, 8)
# BoolQ, defect detection and clone detection: the understanding tasks with public answers.
STREAMS = {"understanding": ("boolq", "defect", "poj104_pairs")}
INFILL_TASKS = {f"humaneval_infill_{name}": name for name in execution_problems.INFILL_SETS}


def code_problems(task: str) -> tuple[execution_problems.CodeProblem, ...]:
    """The problems of an execution benchmark, from the folder that the environment names."""
    if task == "humaneval":
        return execution_problems.human_eval(os.environ.get("HUMANEVAL_FILE") or None)
    if task in INFILL_TASKS:
        directory = sources.require_folder("HUMANEVAL_INFILLING_DIR")
        return execution_problems.human_eval_infill(directory, INFILL_TASKS[task])
    return execution_problems.mbpp(sources.require_folder("MBPP_DIR"), sanitized=task == "mbpp_sanitized")


def _read_code(task: str, split: str) -> Sequence[TextExample]:
    del split  # there is one
    return tuple(
        TextExample(
            id=one.id, inputs=one.prompt + (HOLE + one.suffix if task in INFILL_TASKS else ""), targets=one.reference
        )
        for one in code_problems(task)
    )


def _read_turns(split: str) -> Sequence[TextExample]:
    """The turns of every case, one a line, and the value that is to be printed."""
    del split
    found = mtpb.conversations(sources.require_folder("MTPB_DIR"))
    return tuple(TextExample(id=one.id, inputs="\n".join(one.turns), targets=repr(one.expected)) for one in found)


def _read_questions(task: str, split: str) -> Sequence[TextExample]:
    folder = sources.require_folder(understanding.directory_variable(task))
    return tuple(
        TextExample(id=one.id, inputs=one.text, targets=one.choices[one.label].strip())
        for one in understanding.questions(task, folder, split)
    )


def provenance(task: str, split: str) -> dict:
    """Digests of the files in the folder of a task, its licence and its tag."""
    del split
    if task in understanding.QUESTIONS:
        variable, licence = understanding.directory_variable(task), understanding.LICENCES[task]
        facts = {"max_lengths": list(MAX_LENGTHS), "tag": f"<{task}> "}
    else:
        prefix = "HUMANEVAL_INFILLING" if task in INFILL_TASKS else task.removesuffix("_sanitized").upper()
        variable = "HUMANEVAL_FILE" if task == "humaneval" else f"{prefix}_DIR"
        licence, facts = {"MBPP": "CC-BY-4.0", "MTPB": "Apache-2.0"}.get(prefix, "MIT"), {}
    place = Path(os.environ.get(variable) or ".") if os.environ.get(variable) else None
    paths = [] if place is None else [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    return {
        "sources": {str(path): sources.file_digest(path) for path in paths},
        "licence": licence,
        "settings": {},
        "environment": [variable],
        "rejected": [],
        **facts,
    }


for _name in ("humaneval", *INFILL_TASKS, "mbpp", "mbpp_sanitized"):
    _read = functools.partial(_read_code, _name)
    sequences.register_raw(_name, _read, features=("inputs", "targets"), splits=("test",))
sequences.register_raw("mtpb", _read_turns, features=("inputs", "targets"), splits=("test",))
for _name in understanding.QUESTIONS:
    sequences.register(
        _name,
        functools.partial(_read_questions, _name),
        max_lengths=MAX_LENGTHS,
        metric_fns=(sequences.codet5_smooth_bleu, sequences.exact_match),  # of single words both are accuracy
    )
sequences.register_stream("understanding", STREAMS["understanding"])

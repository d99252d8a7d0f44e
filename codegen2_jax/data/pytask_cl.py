"""PyTask-CL: four text-to-text tasks made from the interpreter's own standard library.

| task | input | target |
|---|---|---|
| pytask_generate | first docstring sentences, signature | body |
| pytask_translate | function | the same in JavaScript |
| pytask_summarize | function | first docstring sentence |
| pytask_refine | function with a bug, names abstracted | the function without it |

Everything follows from the library's text: the same interpreter version gives the same examples. A file feeds one
split only (sources.split_of), and a function that occurs twice, whatever its name, is used once: in test, else in
valid, else in train.
"""

import collections
import dataclasses
import functools
import os
import platform
from collections.abc import Callable, Iterable

from codegen2_jax.data.bug_injection import refinement
from codegen2_jax.data.javascript.from_python import to_javascript
from codegen2_jax.data.javascript.syntax import Unsupported
from codegen2_jax.data.python_functions import (
    Limits,
    PythonFunction,
    first_sentences,
    functions_of,
    generation_prompt,
    is_short,
    is_trivial,
)
from codegen2_jax.data.sources import SPLITS, SourceFile, TextExample, split_of, stable_hash, standard_library

TASKS = ("pytask_generate", "pytask_translate", "pytask_summarize", "pytask_refine")
LIMITS = Limits(body_lines=12, body_characters=300, signature_characters=90)
PROMPT_CHARACTERS = 240
JAVASCRIPT_CHARACTERS = 340


class _LeftOut(Exception):
    """A function that a task does not use; the message is the reason that is counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskExamples:
    """examples[split] in an order that is arbitrary but fixed; counts[split] says what became of every function."""

    examples: dict[str, tuple[TextExample, ...]]
    counts: dict[str, dict[str, int]]


def _generate(function: PythonFunction) -> tuple[str, str]:
    prompt = generation_prompt(function)
    if not first_sentences(function.docstring, 2):
        raise _LeftOut("no docstring in prose")
    if len(prompt) > PROMPT_CHARACTERS:
        raise _LeftOut("too long")
    return prompt, function.body


def _translate(function: PythonFunction) -> tuple[str, str]:
    try:
        text = to_javascript(function.node, in_class=function.in_class)
    except Unsupported as error:
        raise _LeftOut(f"no JavaScript for: {error}") from error
    if len(text) > JAVASCRIPT_CHARACTERS:
        raise _LeftOut("too long")
    return function.text, text


def _summarize(function: PythonFunction) -> tuple[str, str]:
    sentence = function.sentence
    if not sentence:
        raise _LeftOut("no docstring in prose")
    return function.text, sentence


def _refine(function: PythonFunction) -> tuple[str, str]:
    pair = refinement(function.node)
    if pair is None:
        raise _LeftOut("no bug fits")
    return pair.buggy, pair.fixed


_MAKERS: dict[str, Callable[[PythonFunction], tuple[str, str]]] = {
    "pytask_generate": _generate,
    "pytask_translate": _translate,
    "pytask_summarize": _summarize,
    "pytask_refine": _refine,
}


@functools.lru_cache(maxsize=2)
def library(root: str | os.PathLike | None = None) -> tuple[SourceFile, ...]:
    """The files that the tasks are made from; root is another interpreter's library folder."""
    return standard_library(root)


@functools.lru_cache(maxsize=2)
def _functions(root: str | os.PathLike | None) -> dict[str, tuple[PythonFunction, ...]]:
    found = {split: [] for split in SPLITS}
    for file in library(root):
        found[split_of(file.path)] += functions_of(file)
    return {split: tuple(functions) for split, functions in found.items()}


@functools.lru_cache(maxsize=8)
def examples_of(task: str, root: str | os.PathLike | None = None) -> TaskExamples:
    """All splits of a task. Takes seconds; the result is kept."""
    functions, seen = _functions(root), set()
    examples, counts = {}, {}
    for split in reversed(SPLITS):  # a duplicate stays where it is scarcest
        counts[split] = collections.Counter(functions=len(functions[split]))
        made = list(_examples(_MAKERS[task], functions[split], seen, counts[split]))
        examples[split] = tuple(sorted(made, key=lambda example: stable_hash(example.id)))
        counts[split]["examples"] = len(made)
    return TaskExamples(examples=examples, counts={split: dict(counted) for split, counted in counts.items()})


def _examples(make, functions: Iterable[PythonFunction], seen: set, counts: collections.Counter):
    for function in functions:
        if is_trivial(function):
            counts["trivial"] += 1
        elif not is_short(function, LIMITS):
            counts["too long"] += 1
        else:
            try:
                inputs, targets = make(function)
            except _LeftOut as reason:
                counts[str(reason)] += 1
                continue
            keys = {function.fingerprint, inputs, targets if make is _refine else inputs}
            if keys & seen:
                counts["duplicate"] += 1
                continue
            seen |= keys
            yield TextExample(id=function.name, inputs=inputs, targets=targets)


def interpreter() -> str:
    """What decides the examples: the Python version."""
    return f"{platform.python_implementation()} {platform.python_version()}"

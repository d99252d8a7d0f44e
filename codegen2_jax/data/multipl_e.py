"""MultiPL-E (Cassano et al. 2022, arXiv 2208.08227): HumanEval in other languages, from JSON lines in its form.

A row has `name`, `language`, `prompt`, `tests` and `stop_tokens`. An answer ends before the first of its stop tokens,
and the program is prompt, answer and tests: in Java and C# the tests begin with the brace that closes the function.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegen2_jax.data.evaluation_sets import rows_of
from codegen2_jax.data.execution_problems import CodeProblem
from codegen2_jax.errors import UserError

LANGUAGES = {"java": "java", "js": "javascript", "rb": "ruby", "cs": "csharp"}
"""What can be run here: MultiPL-E's name of a language, and the sandbox's."""

_FIELDS = {"name": str, "language": str, "prompt": str, "tests": str, "stop_tokens": list}
# Every Java prompt imports it. It is no part of a JDK, and few problems use it.
JAVATUPLES = "import org.javatuples.*;\n"
_TUPLES = re.compile(r"\b(?:Unit|Pair|Triplet|Quartet|Quintet|Sextet|Septet|Octet|Ennead|Decade)\b")


def multipl_e(path: str | Path, language: str | None = None) -> tuple[CodeProblem, ...]:
    """The problems of a file in one language; None: the only one that is there.

    Their `stop` is their stop tokens. Raises UserError for a file that is not of this form, and for a language that
    is not in it or that cannot be run.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is no file; MULTIPL_E_FILE must name problems of MultiPL-E as JSON lines.")
    rows = [_checked(row, f"{path} row {number}") for number, row in rows_of(Path(path))]
    there = sorted({row["language"] for row in rows})
    if language is None and len(there) != 1:
        raise UserError(f"{path} has problems in {', '.join(there) or 'no language'}; set MULTIPL_E_LANGUAGE to one.")
    language = there[0] if language is None else language
    if language not in LANGUAGES:
        raise UserError(f"problems in {language!r} cannot be run here; choose one of {', '.join(LANGUAGES)}.")
    found: dict[str, CodeProblem] = {}
    for row in rows:
        if row["language"] != language:
            continue
        if row["name"] in found:
            raise UserError(f"{path} has {row['name']} twice in {language}; take the published file.")
        found[row["name"]] = CodeProblem(
            id=row["name"],
            prompt=row["prompt"],
            head=_head(row["prompt"], row["tests"]),
            reference="",
            tests=row["tests"],
            entry_point="",
            language=LANGUAGES[language],
            stop=tuple(token for token in row["stop_tokens"] if token),
        )
    if not found:
        raise UserError(f"{path} has no problem in {language}, only in {', '.join(there)}; set MULTIPL_E_LANGUAGE.")
    return tuple(found.values())


def needs_javatuples(problem: CodeProblem) -> bool:
    """Whether its program needs the package org.javatuples."""
    return problem.language == "java" and JAVATUPLES in problem.head


def _head(prompt: str, tests: str) -> str:
    """The prompt, without an import of tuples where neither the function nor its tests have any."""
    return prompt if _TUPLES.search(prompt + tests) else prompt.replace(JAVATUPLES, "")


def _checked(row: Any, where: str) -> Mapping[str, Any]:
    for name, kind in _FIELDS.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise UserError(f"{where} has no field {name} of type {kind.__name__}; take a file of MultiPL-E.")
    return row

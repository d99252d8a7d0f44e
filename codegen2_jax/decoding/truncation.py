"""Where a completion of a function ends: rules on strings, of which result files name the one that was used.

A base model writes on behind the function that it was asked for. A rule sees the completion, without its prompt.
"""

import re
from collections.abc import Callable

from codegen2_jax.errors import UserError

_SECOND_ONE_ENDS = (re.compile(r"^print", re.MULTILINE), re.compile(r"^def", re.MULTILINE))
_FIRST_ONE_ENDS = re.compile(r"^#|<\|endoftext\|>|^'''|^\"\"\"|\n\n\n", re.MULTILINE)
_CODEX_ENDS = re.compile(r"\n(?:class|def|#|if|print)")


def codegen1(text: str) -> str:
    """CodeGen's rule for HumanEval (salesforce/CodeGen `codegen1/jaxformer/hf/sample.py`).

    Before the second line that begins with `print`; of that before the second line that begins with `def`; of that
    before the first comment or string at the beginning of a line, `<|endoftext|>`, or two empty lines.
    """
    for pattern in _SECOND_ONE_ENDS:
        starts = [match.start() for match in pattern.finditer(text)]
        text = text[: starts[1]] if len(starts) > 1 else text
    return _before(_FIRST_ONE_ENDS, text)


def codex(text: str) -> str:
    """Before the first line that begins with class, def, #, if or print (Chen et al. 2021, section 2.1)."""
    return _before(_CODEX_ENDS, text)


def none(text: str) -> str:
    """The text as it is."""
    return text


RULES: dict[str, Callable[[str], str]] = {"codegen1": codegen1, "codex": codex, "none": none}


def rule(name: str) -> Callable[[str], str]:
    """The rule of this name; UserError for an unknown one."""
    if name not in RULES:
        raise UserError(f"truncation {name!r} is unknown; choose one of {', '.join(RULES)}.")
    return RULES[name]


def _before(pattern: re.Pattern, text: str) -> str:
    match = pattern.search(text)
    return text if match is None else text[: match.start()]

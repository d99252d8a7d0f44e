"""MTPB: programs asked for in several turns (Nijkamp et al. 2022, arXiv 2203.13474; salesforce/CodeGen `benchmark`)."""

import dataclasses
from pathlib import Path
from typing import Any

from codegen2_jax.data.evaluation_sets import problem_files, rows_of
from codegen2_jax.errors import UserError

BEGINNING = "# Import libraries.\n\nimport numpy as np\n\n"
DEFAULT_LENGTH = 256  # where a problem names no `max_gen_length`
CASES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """One test case of a problem: its turns with the case's inputs filled in, and the value to be printed.

    Attributes:
      id: "problem/case"; the case counts from 0.
      problem: id of the problem, whose cases are scored together.
      turns: what is asked, in order.
      expected: None, bool, int, float, str, list or dict.
      max_new_tokens: of each turn.
    """

    id: str
    problem: str
    turns: tuple[str, ...]
    expected: Any
    max_new_tokens: int


def conversations(directory: str | Path) -> tuple[Conversation, ...]:
    """All cases of mtpb.jsonl, problem by problem. Raises UserError for a missing or damaged file."""
    (path,) = problem_files(directory, "mtpb.jsonl", "MTPB_DIR")
    found = []
    for number, row in rows_of(path):
        missing = [name for name in ("id", "prompts", "inputs", "outputs") if name not in row]
        if missing:
            raise UserError(f"{path} row {number} has no field {missing[0]}; take the published file.")
        try:
            found += _cases(row)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} row {number}: a turn takes no inputs ({reason}); fetch it again.") from None
    return tuple(found)


def _cases(row: dict[str, Any]) -> list[Conversation]:
    length = row.get("max_gen_length") or DEFAULT_LENGTH
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"max_gen_length is {length!r}")
    # One problem lists an output more than inputs: pairs count.
    return [
        Conversation(
            id=f"{row['id']}/{case}",
            problem=str(row["id"]),
            turns=tuple(prompt.format(**inputs) for prompt in row["prompts"]),
            expected=output,
            max_new_tokens=length,
        )
        for case, (inputs, output) in enumerate(zip(row["inputs"], row["outputs"], strict=False))
    ]


def asked(text: str, turn: str) -> str:
    """The prompt of a turn: the program so far, and what is asked as a comment."""
    return f"{text}# {turn}\n"


def answered(prompt: str, completion: str) -> str:
    """The program behind a turn."""
    return f"{prompt}{completion}\n\n"

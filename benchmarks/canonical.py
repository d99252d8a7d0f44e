"""Whether every benchmark's own solutions pass through the sandbox, and broken ones fail.

    python -m benchmarks.canonical --humaneval_infilling DIR --mbpp DIR --mtpb DIR

With --broken each program of HumanEval and MBPP is judged too with `return None` and with `pass` as the body of its
entry point; those that pass all the same are named: their tests cannot tell. --every 10 takes each tenth program.
"""

import argparse
import ast
import json
import time
import warnings
from pathlib import Path

from codegen2_jax.data import execution_problems, mtpb
from codegen2_jax.metrics import printed_values
from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox

BROKEN = {"return None": ast.Return(ast.Constant(None)), "pass": ast.Pass()}


def broken(program: str, entry_point: str, body: ast.stmt) -> str:
    """The program with another body of its entry point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(program)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            node.body = [body]
    return ast.unparse(ast.fix_missing_locations(tree))


def code_programs(problems, body: ast.stmt | None = None) -> list[Program]:
    """The reference of each problem as a program, its entry point's body replaced where one is given."""
    found = []
    for one in problems:
        text = one.program(one.reference)
        found.append(
            Program(
                name=one.id,
                solution=text if body is None else broken(text, one.entry_point, body),
                tests=one.tests,
                entry_point=one.entry_point,
                trusted_prelude=one.prelude,
            )
        )
    return found


def sets(given) -> dict[str, list]:
    """The problems of every set whose folder is given, by name."""
    found = {"humaneval": execution_problems.human_eval(given.humaneval)}
    if given.humaneval_infilling:
        for name in execution_problems.INFILL_SETS:
            problems = execution_problems.human_eval_infill(given.humaneval_infilling, name)
            found[f"humaneval_infill_{name}"] = problems
    if given.mbpp:
        found["mbpp"] = execution_problems.mbpp(given.mbpp, split="all")
        found["mbpp_challenge"] = execution_problems.mbpp(given.mbpp, split="all", challenge=True)
        found["mbpp_sanitized"] = execution_problems.mbpp(given.mbpp, split="all", sanitized=True)
    return {name: problems for name, problems in found.items() if not given.only or name in given.only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("humaneval", "humaneval_infilling", "mbpp", "mtpb"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--broken", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpu_seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results = {}

    def judge(name, programs, passes=lambda number, verdict: verdict.passed):
        start, failed, cpu = time.perf_counter(), [], 0.0
        for number, verdict in enumerate(sandbox.judge(programs)):
            cpu += verdict.cpu_seconds
            if not passes(number, verdict):
                failed.append([verdict.name, verdict.outcome, verdict.detail])
        seconds = time.perf_counter() - start
        results[name] = {"programs": len(programs), "passed": len(programs) - len(failed), "failed": failed[:200],
                         "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}  # fmt: skip
        print(f"{name:<34}{len(programs) - len(failed):>6} of {len(programs):<6}{seconds:8.1f} s", flush=True)
        for row in failed[:20] if "with body" not in name else []:
            print("   ", *row, flush=True)

    with Sandbox(workers=given.workers, limits=Limits(cpu_seconds=given.cpu_seconds, memory_mib=2048)) as sandbox:
        for name, problems in sets(given).items():
            judge(name, code_programs(problems)[:: given.every])
            for label, body in BROKEN.items() if given.broken and "infill" not in name else ():
                judge(f"{name}, with body {label!r}", code_programs(problems, body)[:: given.every])
        if given.mtpb and (not given.only or "mtpb" in given.only):
            cases = mtpb.conversations(given.mtpb)[:: given.every]
            programs = [
                Program(name=one.id, style="output", solution=printed_values.instrumented(f"print({one.expected!r})\n"))
                for one in cases
            ]  # fmt: skip
            for published in (False, True):

                def same(number, verdict, published=published):
                    value = printed_values.printed(verdict.stdout)
                    return verdict.passed and printed_values.same(value, cases[number].expected, published=published)

                judge("mtpb, published comparison" if published else "mtpb", programs, same)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

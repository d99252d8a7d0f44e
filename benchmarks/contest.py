"""Runs contenders against each other on the same work: one process each, taking turns, the order reversed every round.

A contender is a function `(work: Path) -> round`, where `work` holds what the driver prepared and `round()` does the
whole work once and returns a dictionary with "seconds" and the "examples" done: fewer than given where the contender
ran into its time limit. Its process stays alive between rounds, so that compilation and warm-up happen once and all
contenders meet the machine in the same state. While one works the others wait.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from codegen2_jax.cli import ALLOCATOR


def serve(round_: Callable[[], dict], ready: dict) -> None:
    """The contender's side: say what was prepared, then one round for every line that comes in."""
    print("\n" + json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print("\n" + json.dumps(round_()), flush=True)


class Contender:
    """The driver's side: `script --contender=name --work=directory` in a process of its own."""

    def __init__(self, script: str, name: str, work: Path, threads: int) -> dict[str, dict]:
        self.name = name
        # The allocator's settings that the package's commands give themselves; torch gains from them as well.
        environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        command = [sys.executable, script, f"--contender={name}", f"--work={work}", f"--threads={threads}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self._reply()

    def _reply(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"contender {self.name} ended with code {self._process.wait()}; see its message above.")

    def round(self) -> dict:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def pin(threads: int) -> None:
    """Keep this process, and the thread pools it is about to start, on `threads` cores."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:threads])


def compete(script: str, names: list[str], work: Path, *, amount: int, rounds: int, threads: int) -> dict[str, dict]:
    """{name: {"ready": ..., "rounds": [...]}}; contenders start one after the other, then take turns.

    amount: the examples of a whole round.
    """
    contenders, results = [], {}
    try:
        for name in names:
            start = time.perf_counter()
            contenders.append(Contender(script, name, work, threads))
            results[name] = {"ready": contenders[-1].ready, "rounds": []}
            print(f"  {name}: ready after {time.perf_counter() - start:.0f} s {contenders[-1].ready}", flush=True)
        racing = list(contenders)
        for number in range(rounds):
            for contender in racing if number % 2 == 0 else racing[::-1]:
                outcome = contender.round()
                results[contender.name]["rounds"].append(outcome)
                done = f"{outcome['examples']} examples in {outcome['seconds']:.2f} s"
                print(f"  round {number + 1}: {contender.name} {done}", flush=True)
            # Who ran into the time limit is out of the race, whatever the second round would say.
            racing = [one for one in racing if results[one.name]["rounds"][-1]["examples"] == amount]
    finally:
        for contender in contenders:
            contender.close()
    return results


def table(results: dict[str, dict], *, amount: int, against: str) -> tuple[list[dict], str]:
    """Rows (for the JSON file) and the same as text: median rate, spread over rounds, and the ratio to `against`.

    amount: the examples of a whole round; a contender that did fewer has their number in its row.
    """
    rates = {name: sorted(r["examples"] / r["seconds"] for r in result["rounds"]) for name, result in results.items()}
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    rows = []
    for name, rate in rates.items():
        row = {"contender": name, "examples_per_second": round(median[name], 3)}
        row |= {"slowest": round(rate[0], 3), "fastest": round(rate[-1], 3)}
        row |= {f"times_{against}": round(median[name] / median[against], 3)}
        row |= {"examples": [r["examples"] for r in results[name]["rounds"]]}
        row |= {"seconds": [round(r["seconds"], 3) for r in results[name]["rounds"]]}
        rows.append(row)
    lines = [f"| contender | examples/s | slowest - fastest | x {against} |", "|---|---|---|---|"]
    for row in rows:
        part = "" if min(row["examples"]) == amount else f" ({min(row['examples'])} of {amount} examples)"
        rate, ratio = row["examples_per_second"], row[f"times_{against}"]
        spread = f"{row['slowest']:.2f} - {row['fastest']:.2f}"
        lines.append(f"| {row['contender']}{part} | {rate:.2f} | {spread} | {ratio:.2f} |")
    return rows, "\n".join(lines)


def machine(threads: int) -> dict:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: metadata.version(name) for name in ("jax", "flax", "torch", "transformers", "numpy")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")

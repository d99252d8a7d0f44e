"""Runs contenders against each other on the same work: one process each, taking turns, the order reversed every round.

A contender is a function `(work: Path) -> round`, where `work` holds what the driver prepared and `round()` does the
whole work once and returns a dictionary with "seconds". Its process stays alive between rounds, so that compilation
and warm-up happen once and all contenders meet the machine in the same state. While one works the others wait.
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

    def __init__(self, script: str, name: str, work: Path, threads: int):
        self.name = name
        # The allocator's settings that the package's commands give themselves; torch gains from them as well.
        # As the package's commands set it for themselves; torch gains from it too.
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


def compete(script: str, names: list[str], work: Path, *, rounds: int, threads: int) -> dict[str, dict]:
    """{name: {"ready": ..., "rounds": [...]}}; contenders start one after the other, then take turns."""
    contenders, results = [], {}
    try:
        for name in names:
            start = time.perf_counter()
            contenders.append(Contender(script, name, work, threads))
            results[name] = {"ready": contenders[-1].ready, "rounds": []}
            print(f"  {name}: ready after {time.perf_counter() - start:.0f} s {contenders[-1].ready}", flush=True)
        for number in range(rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                outcome = contender.round()
                results[contender.name]["rounds"].append(outcome)
                print(f"  round {number + 1}: {contender.name} {outcome['seconds']:.2f} s", flush=True)
    finally:
        for contender in contenders:
            contender.close()
    return results


def table(results: dict[str, dict], *, amount: int, unit: str, against: str) -> tuple[list[dict], str]:
    """Rows (for the JSON file) and the same as text: median rate, spread over rounds, and the ratio to `against`."""
    median = {name: statistics.median(r["seconds"] for r in result["rounds"]) for name, result in results.items()}
    rows = []
    for name, result in results.items():
        seconds = sorted(r["seconds"] for r in result["rounds"])
        rows.append(
            {
                "contender": name,
                f"{unit}_per_second": round(amount / median[name], 3),
                "slowest": round(amount / seconds[-1], 3),
                "fastest": round(amount / seconds[0], 3),
                f"times_{against}": round(median[against] / median[name], 2),
                "seconds": [round(s, 3) for s in seconds],
            }
        )
    lines = [f"| contender | {unit}/s | slowest - fastest | x {against} |", "|---|---|---|---|"]
    for row in rows:
        rate, ratio = row[f"{unit}_per_second"], row[f"times_{against}"]
        lines.append(f"| {row['contender']} | {rate:.2f} | {row['slowest']:.2f} - {row['fastest']:.2f} | {ratio:.2f} |")
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

"""Runs contenders against each other on the same work: one process each, taking turns, the order reversed every round.

A contender is a function `(work: Path) -> round`, where `work` holds what the driver prepared and `round()` does the
whole work once and returns a dictionary with "seconds" and the "examples" done: fewer than given where the contender
ran into its time limit. Its process stays alive between rounds, so that compilation and warm-up happen once and all
contenders meet the machine in the same state. While one works the others wait.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from codegen2_jax import json_files
from codegen2_jax.start_up import ALLOCATOR


def serve(round_: Callable[[], dict], ready: dict) -> None:
    """The contender's side: say what was prepared, then one round for every line that comes in."""
    print("\n" + json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print("\n" + json.dumps(round_() | {"peak_gib": peak_gib()}), flush=True)


def peak_gib() -> float:
    """The most memory that this process ever held, preparation included; 0 where the system does not tell.

    Not getrusage, whose figure begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def scalars(ready: dict) -> dict:
    """What a contender prepared without the lists in it, which are for comparing and not for reading."""
    return {name: value for name, value in ready.items() if not isinstance(value, list)}


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


def compete(
    script: str,
    names: list[str],
    work: Path,
    *,
    amount: int,
    rounds: int,
    threads: int,
    check: Callable[[dict], None] = lambda ready: None,
) -> dict[str, dict]:
    """{name: {"ready": ..., "rounds": [...]}}; contenders start one after the other, then take turns.

    amount: the examples of a whole round. check: is given {name: what it prepared} before the first round.
    """
    contenders, results = [], {}
    try:
        for name in names:
            start = time.perf_counter()
            contenders.append(Contender(script, name, work, threads))
            results[name] = {"ready": contenders[-1].ready, "rounds": []}
            facts = scalars(contenders[-1].ready)
            print(f"  {name}: ready after {time.perf_counter() - start:.0f} s {facts}", flush=True)
        check({name: result["ready"] for name, result in results.items()})
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


def table(
    results: dict[str, dict], *, amount: int, against: str, tokens_each: int | None = None
) -> tuple[list[dict], str]:
    """Rows (for the JSON file) and the same as text: median rate, ratio to `against`, both with spread, peak memory.

    amount: the examples of a whole round; a contender that did fewer has their number in its row. tokens_each: of an
    example, where all have as many. A ratio is one of medians; its spread is over the rounds, each against the same
    round of `against`.
    """
    in_turn = {name: [r["examples"] / r["seconds"] for r in result["rounds"]] for name, result in results.items()}
    median = {name: statistics.median(rate) for name, rate in in_turn.items()}
    rows = []
    for name, rate in in_turn.items():
        # Who left the race early has fewer rounds.
        ratios = [own / other for own, other in zip(rate, in_turn[against], strict=False)]
        row = {"contender": name, "examples_per_second": round(median[name], 3)}
        row |= {"slowest": round(min(rate), 3), "fastest": round(max(rate), 3)}
        if tokens_each:
            row |= {"tokens_per_second": round(median[name] * tokens_each, 1)}
        row |= {f"times_{against}": round(median[name] / median[against], 3)}
        row |= {"lowest_ratio": round(min(ratios), 3), "highest_ratio": round(max(ratios), 3)}
        row |= {"peak_gib": round(results[name]["rounds"][-1]["peak_gib"], 2)}
        row |= {"examples": [r["examples"] for r in results[name]["rounds"]]}
        row |= {"seconds": [round(r["seconds"], 3) for r in results[name]["rounds"]]}
        rows.append(row)
    names = ["contender", "examples/s", "slowest - fastest", *(["tokens/s"] if tokens_each else [])]
    names += [f"x {against}", "in single rounds", "peak GiB"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        part = "" if min(row["examples"]) == amount else f" ({min(row['examples'])} of {amount} examples)"
        cells = [f"{row['contender']}{part}", f"{row['examples_per_second']:.2f}"]
        cells += [f"{row['slowest']:.2f} - {row['fastest']:.2f}"]
        cells += [f"{row['tokens_per_second']:.0f}"] if tokens_each else []
        cells += [f"{row[f'times_{against}']:.2f}", f"{row['lowest_ratio']:.2f} - {row['highest_ratio']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak_gib']:.2f}"]) + " |")
    return rows, "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Options of a benchmark, whose description is printed as it stands; a wrong one ends the program by `fail`."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        fail(f"{message}; --help says what there is.")


def count(text: str) -> int:
    """An option's type: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")
    return int(text)


def folder(text: str) -> str:
    """An option's type: a directory that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return text


def check_folders(**folders: str) -> None:
    """Ends the program where a directory that an option of this name gives is not there."""
    for name, text in folders.items():
        if not Path(text).is_dir():
            fail(f"--{name}={text} is no directory.")


def counts(option: str, text: str) -> list[int]:
    """The whole numbers in a comma-separated option."""
    try:
        return [count(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        fail(f"argument --{option}: {error}; --help says what there is.")


def members(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in a comma-separated option, each of which must be known; ends the program where one is not."""
    known, names = list(known), [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        fail(f"--{option} names {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")
    if not names:
        fail(f"--{option} names nothing; there are {', '.join(known)}.")
    return names


def fail(message: str) -> None:
    """Ends a program as a wrong option does: one line, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def version_of(package: str) -> str | None:
    """None where it is not installed: a contest without its peer still has figures."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine(threads: int) -> dict:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: version_of(name) for name in ("jax", "flax", "torch", "transformers", "numpy")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": threads,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def write(path: Path, content: dict) -> None:
    json_files.write(path, content)
    print(f"wrote {path}")

"""How long a user waits: importing the package, --help, and the first step of a run, cold and warm.

  python benchmarks/startup.py                          # about three minutes on two cores

  import    `import codegen2_jax`, and of the modules behind `train`
  help      `python -m codegen2_jax.train --help`
  cold      from the start of the command to the first training step of a prompt pool on a small stream, with nothing
            compiled before; the stream is cached and its queries are stored beforehand
  warm      the same in a fresh run directory, with what the cold run compiled

A run scores its stream before it trains (two examples of each split here), so that is in both. Wall and processor
seconds, medians of --rounds; cold and warm take turns.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, "-m", "codegen2_jax.train"]
RUN = ["--gin.STEPS_PER_TASK=1", "--gin.EVAL_EXAMPLES=2", "--gin.BATCH_SIZE=4"]
PARTS = ("import", "help", "first_step")
AIMS = {"help": 1.0, "warm": 15.0}  # seconds


def clocked(command: list[str], environment: dict) -> dict[str, float]:
    """Wall and processor seconds of a command, all its processes included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": used}


def first_step(arguments: argparse.Namespace, environment: dict, model_dir: Path) -> dict[str, float]:
    """Seconds until the first line of metrics.jsonl with a loss; processor seconds are those of the whole command."""
    start = time.time()
    files = [f"--gin_file={name}" for name in arguments.gin_files.split(",")]
    whole = clocked([*TRAIN, *files, *RUN, f"--model_dir={model_dir}"], environment)
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return {"seconds": next(line["time"] for line in lines if "loss" in line) - start} | {
        "whole_seconds": whole["seconds"],
        "cpu_seconds": whole["cpu_seconds"],
    }


def main() -> None:
    options = contest.Parser(__doc__)
    options.add_argument("--gin_files", default="pp_tf.gin,streams/tiny_ci.gin")
    options.add_argument("--rounds", type=contest.count, default=3)
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--out", default="benchmarks/results/startup.json")
    arguments = options.parse_args()
    parts, rows = contest.members("parts", arguments.parts, PARTS), {}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        environment |= {"XDG_CACHE_HOME": f"{scratch}/cache", "JAX_COMPILATION_CACHE_DIR": f"{scratch}/programs"}
        commands = {}
        if "import" in parts:
            commands["import codegen2_jax"] = [sys.executable, "-c", "import codegen2_jax"]
            behind = "import codegen2_jax.continual.stream, codegen2_jax.training.pretraining"
            commands["import all that train needs"] = [sys.executable, "-c", behind]
        if "help" in parts:
            commands["help"] = [*TRAIN, "--help"]
        for name, command in commands.items():
            rows[name] = [clocked(command, environment) for _ in range(arguments.rounds)]
        if "first_step" in parts:
            first_step(arguments, environment, Path(scratch, "prepares"))
            rows |= {"cold": [], "warm": []}
            for number in range(arguments.rounds):
                shutil.rmtree(environment["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
                for name in ("cold", "warm"):
                    rows[name].append(first_step(arguments, environment, Path(scratch, f"{name}_{number}")))
    print("| | seconds | slowest - fastest | CPU seconds | aim |\n|---|---|---|---|---|")
    for name, found in rows.items():
        seconds = [one["seconds"] for one in found]
        used = statistics.median(one["cpu_seconds"] for one in found)
        spread = f"{max(seconds):.2f} - {min(seconds):.2f}"
        aim = f"< {AIMS[name]:.0f}" if name in AIMS else ""
        print(f"| {name} | {statistics.median(seconds):.2f} | {spread} | {used:.2f} | {aim} |")
    contest.write(Path(arguments.out), {"machine": contest.machine(2), "gin_files": arguments.gin_files, "rows": rows})


if __name__ == "__main__":
    main()

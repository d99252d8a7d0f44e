"""The pool's ablation without a language model: pooling x initialisation x teacher, and the assignment strategies.

    python benchmarks/pools.py --stream=pytask_cl --seeds=0,1,2
    CODETASK_CL_DIR=DIR python benchmarks/pools.py --stream=codetask_cl --seeds=0,1,2

Each cell is a gin file of gin_configs/ablations/ run with RETRIEVAL_ONLY, about 15 seconds of one core; a finished cell
is not run again. Writes benchmarks/results/pools_<stream>.{md,json}. All other flags go to codegen2_jax.train.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import contest

from codegen2_jax.reporting.tables import estimate

ROOT = Path(__file__).resolve().parent.parent
# Heading -> the diagnostic whose last row, over the tasks, is averaged.
COLUMNS = {"retrieval top-1": "retrieval_top1", "own-key recall": "own_key_recall", "keys in use": "effective_keys"}


def cells() -> list[str]:
    """The ablation's files by name, the made-up stream apart."""
    folder = ROOT / "gin_configs" / "ablations"
    return sorted(path.stem for path in folder.glob("*.gin") if path.stem.split("_")[0] in ("pool", "assignment"))


def run(cell: str, place: Path, stream: str, seed: int, more: list[str]) -> dict:
    """retrieval.json of one cell and seed, after running it if it is not there."""
    directory = place / f"{cell}-seed{seed}"
    result = ROOT / directory / "retrieval.json"
    if not result.is_file():
        command = [sys.executable, "-m", "codegen2_jax.train", f"--gin_file=ablations/{cell}.gin"]
        command += [f"--gin_file=streams/{stream}.gin", "--gin.RETRIEVAL_ONLY=True", f"--gin.SEED={seed}"]
        done = subprocess.run([*command, f"--model_dir={directory}", *more], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(result.read_text(encoding="utf-8"))


def mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def cell_text(values: list[float | None]) -> str:
    """Mean and 95 % interval over the seeds; "-" for a figure that the cell does not have."""
    if None in values:
        return "-"
    both = estimate(values)
    return f"{both.mean:.3f}" if both.half_width is None else f"{both.mean:.3f} ± {both.half_width:.3f}"


def overlap(record: dict) -> float | None:
    """Largest intersection over union of the keys that two tasks select, at the end."""
    table = record["diagnostics"]["selection_overlap"][-1]
    pairs = [table[i][j] for i in range(len(table)) for j in range(i) if table[i][j] is not None]
    return max(pairs, default=None)


def table(found: dict[str, list[dict]]) -> list[str]:
    head = ["cell", *COLUMNS, "largest overlap of two tasks"]
    rows = []
    for cell, records in found.items():
        ends = {name: [r["diagnostics"].get(name, [[]])[-1] for r in records] for name in COLUMNS.values()}
        cells = [cell_text([mean(end) for end in ends[name]]) for name in COLUMNS.values()]
        rows.append([cell, *cells, cell_text([overlap(record) for record in records])])
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="pytask_cl")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cells", default=",".join(cells()))
    parser.add_argument("--runs", type=Path)
    arguments, more = parser.parse_known_args()
    place = arguments.runs or Path("runs", f"pools_{arguments.stream}")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found: dict[str, list[dict]] = {}
    names = arguments.cells.split(",")
    for index, cell in enumerate(names):
        found[cell] = [run(cell, place, arguments.stream, seed, more) for seed in seeds]
        print(f"[{index + 1}/{len(names)}] {cell}", flush=True)
    lines, machine = table(found), contest.machine(os.cpu_count())
    note = (
        f"Test split after the last task, mean over the tasks, seeds {arguments.seeds}, no language model trained "
        f"({' '.join(more) or 'no further flags'}); {machine['cores']} cores, {machine['cpu']}, {machine['date']}."
    )
    results = ROOT / "benchmarks" / "results"
    name = f"pools_{arguments.stream}"
    (results / f"{name}.md").write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")
    small = {
        cell: [{k: v for k, v in r["diagnostics"].items() if not k.endswith("plane")} for r in records]
        for cell, records in found.items()
    }
    (results / f"{name}.json").write_text(json.dumps({"machine": machine, "cells": small}) + "\n", encoding="utf-8")
    print("\n".join([*lines, "", note]))


if __name__ == "__main__":
    main()

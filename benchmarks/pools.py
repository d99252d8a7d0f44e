"""The pool's ablation without a language model: pooling x initialisation x teacher, and the assignment strategies.

    python benchmarks/pools.py --stream=pytask_cl --seeds=0,1,2
    CODETASK_CL_DIR=DIR python benchmarks/pools.py --stream=codetask_cl --seeds=0,1,2

Each cell is a gin file of gin_configs/ablations/ run with RETRIEVAL_ONLY, about 15 seconds of one core, as a sweep
below --runs: what is finished with these very flags is not run again. Writes results/pools_<stream>.{md,json}. All
other flags go to codegen2_jax.train.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import contest

from codegen2_jax import json_files
from codegen2_jax.continual import pool_diagnostics
from codegen2_jax.reporting.tables import estimate

ROOT = Path(__file__).resolve().parent.parent
# Heading -> the figure of the summary.
COLUMNS = {
    "retrieval top-1": "retrieval_top1",
    "own-key recall": "own_key_recall",
    "keys in use": "effective_keys",
    "largest overlap of two tasks": "largest_selection_overlap",
}


def cells() -> list[str]:
    """The ablation's files by name, the made-up stream apart."""
    folder = ROOT / "gin_configs" / "ablations"
    return sorted(path.stem for path in folder.glob("*.gin") if path.stem.split("_")[0] in ("pool", "assignment"))


def run(cell: str, place: Path, stream: str, seeds: str, more: list[str]) -> list[dict]:
    """retrieval.json of every seed of a cell, after running what is not there yet."""
    command = [sys.executable, "-m", "codegen2_jax.sweep", f"--gin_file=ablations/{cell}.gin"]
    command += [f"--gin_file=streams/{stream}.gin", "--gin.RETRIEVAL_ONLY=True", f"--seeds={seeds}"]
    done = subprocess.run([*command, f"--sweep_dir={place / cell}", *more], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()[-1:]), "no message").removeprefix("error: ")
        print(f"error: {cell} ended with {done.returncode}: {said}", file=sys.stderr)
        raise SystemExit(done.returncode)
    wanted = json.loads((ROOT / place / cell / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [json.loads((ROOT / one["directory"] / "retrieval.json").read_text(encoding="utf-8")) for one in wanted]


def cell_text(values: list[float | None]) -> str:
    """Mean and 95 % interval over the seeds; "-" for a figure that the cell does not have."""
    if None in values:
        return "-"
    both = estimate(values)
    return f"{both.mean:.3f}" if both.half_width is None else f"{both.mean:.3f} ± {both.half_width:.3f}"


def table(found: dict[str, list[dict]]) -> list[str]:
    rows = []
    for cell, records in found.items():
        summaries = [record["summary"]["test"] for record in records]
        rows.append([cell, *(cell_text([one.get(name) for one in summaries]) for name in COLUMNS.values())])
    head = ["cell", *COLUMNS]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def ends(records: list[dict]) -> list[dict]:
    """The last stage of every seed, without what is as large as the pool; all of it is in the runs' retrieval.json."""
    figures = (*pool_diagnostics.PER_TASK, *pool_diagnostics.OVERALL, "selection_overlap")
    return [{k: v[-1] for k, v in record["diagnostics"].items() if k in figures} for record in records]


def main() -> None:
    parser = contest.Parser(__doc__)
    parser.add_argument("--stream", default="pytask_cl")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cells", default=",".join(cells()))
    parser.add_argument("--runs", type=Path)
    arguments, more = parser.parse_known_args()
    place = arguments.runs or Path("runs", f"pools_{arguments.stream}")
    found: dict[str, list[dict]] = {}
    names = contest.members("cells", arguments.cells, cells())
    for index, cell in enumerate(names):
        found[cell] = run(cell, place, arguments.stream, arguments.seeds, more)
        print(f"[{index + 1}/{len(names)}] {cell}", flush=True)
    lines, machine = table(found), contest.machine(os.cpu_count())
    note = (
        f"Test split after the last task, mean over the tasks, seeds {arguments.seeds}, no language model trained "
        f"({' '.join(more) or 'no further flags'}); {machine['cores']} cores, {machine['cpu']}, {machine['date']}."
    )
    results = ROOT / "benchmarks" / "results"
    name = f"pools_{arguments.stream}"
    (results / f"{name}.md").write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")
    json_files.write(results / f"{name}.json", {"machine": machine, "cells": {c: ends(r) for c, r in found.items()}})
    print("\n".join([*lines, "", note]))


if __name__ == "__main__":
    main()

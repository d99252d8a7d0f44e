"""CodeGen2 on TPU pods, by compilation: what fits, how fast the compiler thinks it is, where tensor parallelism pays.

  python benchmarks/pods.py                              # every row that is missing; hours, so stop it when you like
  python benchmarks/pods.py --models 7b --topologies v5p:4x4x4 --tensor 1
  python benchmarks/pods.py --jobs 2                     # two compilations at once, about 4 GiB each
  python benchmarks/pods.py --list

A row is a size of the model, a slice and a mesh, at 2,048 tokens with AdamW. Each runs `python -m
codegen2_jax.precompile` in a process of its own, with fewer rows a chip until it fits, and is written to
results/pods.json at once; started again, the program goes on. results/pods.md is the table of all rows that are there.
"""

import argparse
import concurrent.futures
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"1b": "CodeGen2-1B", "3_7b": "CodeGen2-3.7B", "7b": "CodeGen2-7B", "16b": "CodeGen2-16B"}
TOPOLOGIES = (
    *("v4:2x2x4", "v4:4x4x4", "v4:4x4x8", "v4:8x8x8"),
    *("v5e:4x4", "v5e:8x8", "v5e:16x16"),
    *("v5p:2x2x4", "v5p:4x4x4", "v5p:4x4x8", "v5p:8x8x8"),
    *("v6e:4x4", "v6e:8x8", "v6e:16x16"),
)
TENSOR = (1, 4)  # sizes of the mesh's "model" axis; "fsdp" takes the rest
ROWS = (8, 4, 2, 1)  # rows of 2,048 tokens for each part of the batch, tried from the left
# These first, the pairs that gin_configs/scale/ names: a run that is stopped has the rows that matter most.
FIRST = (
    *(("7b", "v5p:4x4x4", 1), ("16b", "v4:4x4x8", 1), ("16b", "v5p:4x4x8", 1), ("7b", "v6e:8x8", 1)),
    *(("16b", "v6e:16x16", 1), ("1b", "v5e:4x4", 1), ("7b", "v4:4x4x4", 1), ("3_7b", "v5e:8x8", 1)),
    *(("7b", "v5e:16x16", 1), ("3_7b", "v6e:4x4", 1), ("16b", "v5p:8x8x8", 1), ("1b", "v4:2x2x4", 1)),
    ("3_7b", "v5p:2x2x4", 1),
)
MISFIT = 8  # exit code of precompile


def rows_of(models, topologies, tensor):
    """(model, topology, tensor) in the order in which they run."""
    found = list(itertools.product(models, topologies, tensor))
    return [row for row in FIRST if row in found] + [row for row in found if row not in FIRST]


def measure(model: str, topology: str, tensor: int, limit: float) -> dict:
    """The record of the largest batch that fits, or what the compiler said of the smallest; see ROWS."""
    chips = _chips(topology)
    began, found = time.time(), {}
    for rows in ROWS:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "record.json"
            line = [sys.executable, "-m", "codegen2_jax.precompile", f"--topology={topology}", f"--out={out}"]
            line += [f"--gin_file=pretraining/codegen2_{model}.gin", f"--gin.BATCH_SIZE={rows * chips // tensor}"]
            line += [f"--gin.MESH={{'data': 1, 'fsdp': -1, 'model': {tensor}}}"]
            done = subprocess.run(line, stdout=subprocess.DEVNULL, timeout=limit)
            found = json.loads(out.read_text()) if out.exists() else {"error": done.returncode}
        if done.returncode != MISFIT or _needs_too_much_without_rows(found):
            break
    return {"rows_a_part": rows, "wall_seconds": round(time.time() - began), **found}


def _needs_too_much_without_rows(found: dict) -> bool:
    """Whether parameters, their gradients and the optimizer alone exceed a chip: fewer rows are no help then."""
    state = found["state_bytes_per_chip"]
    return 2 * state["parameters"] + state["optimizer"] > found["chip"]["hbm_bytes"]


def _chips(topology: str) -> int:
    total = 1
    for side in topology.partition(":")[2].split("x"):
        total *= int(side)
    return total


def table(results: dict, rows: list) -> str:
    """Markdown: the rows that were compiled, and how many were not."""
    compiled = [row for row in rows if _name(row) in results]
    lines = [
        "# CodeGen2 on TPU pods, by compilation",
        "",
        "Written by `python benchmarks/pods.py`; docs/precompile.md says what the columns hold.",
        "Rows of 2,048 tokens, AdamW in float32, computed in bfloat16, full rematerialisation. No chip was involved.",
        "\"Compiled in\" is wall time: about two minutes alone, longer for rows that were compiled beside other work.",
        "",
        "| model | slice | chips | fsdp x model | batch | GiB of a chip | bound by | step | waiting | tokens/s |"
        " utilisation | if all overlaps | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in compiled:
        model, topology, tensor = row
        found, chips = results[_name(row)], _chips(topology)
        start = f"| {MODELS[model]} | {topology} | {chips} | {chips // tensor} x {tensor} |"
        if not found.get("fits"):
            used = found.get("memory", {}).get("total", 0) / 2**30
            what = f"does not fit ({used:.1f} GiB)" if used else found.get("compiler", f"failed: {found.get('error')}")
            lines.append(f"{start} {what} | | | | | | | | |")
        else:
            seconds, memory = found["seconds"], found["memory"]
            used = f"{memory['total'] / 2**30:.1f} of {memory['chip'] / 2**30:.0f}"
            lines.append(
                f"{start} {found['rows']} | {used} | {seconds['bound']} | {seconds['step']:.2f} s |"
                f" {seconds['collectives_waited_for']:.2f} s | {found['tokens_per_second']:,.0f} |"
                f" {seconds['utilisation']:.1%} | {seconds['utilisation_if_all_overlaps']:.1%} |"
                f" {found['wall_seconds']} s |"
            )
    if len(compiled) < len(rows):
        lines += ["", f"{len(rows) - len(compiled)} of {len(rows)} rows are not compiled yet; the same command does."]
    return "\n".join(lines) + "\n"


def _name(row: tuple) -> str:
    return "{} {} {}".format(*row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--tensor", nargs="+", type=int, default=list(TENSOR))
    parser.add_argument("--limit_s", type=float, default=3600, help="for one compilation of a row")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are compiled at once")
    parser.add_argument("--list", action="store_true", help="write the table of what is there and stop")
    given = parser.parse_args()
    path = RESULTS / "pods.json"
    stored = json.loads(path.read_text()) if path.exists() else {"machine": platform.platform(), "rows": {}}
    everything = rows_of(MODELS, TOPOLOGIES, TENSOR)
    rows = [] if given.list else rows_of(given.models, given.topologies, given.tensor)
    missing = [row for row in rows if _name(row) not in stored["rows"]]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        asked = {pool.submit(measure, *row, given.limit_s): _name(row) for row in missing}
        try:
            for number, future in enumerate(concurrent.futures.as_completed(asked), start=1):
                name = asked[future]
                try:
                    stored["rows"][name] = future.result()
                except subprocess.TimeoutExpired:
                    print(f"{name}: longer than {given.limit_s:.0f} s", file=sys.stderr)
                    continue
                print(f"{number} of {len(missing)}: {name}", file=sys.stderr, flush=True)
                path.write_text(json.dumps(stored, indent=1) + "\n")
                (RESULTS / "pods.md").write_text(table(stored["rows"], everything))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a key press ends the whole, not the rows under way alone
    (RESULTS / "pods.md").write_text(table(stored["rows"], everything))
    print(table(stored["rows"], everything))


if __name__ == "__main__":
    main()

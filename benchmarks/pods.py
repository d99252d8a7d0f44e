"""CodeGen2 on TPU pods, by compilation: what fits, how fast the compiler thinks it is, where tensor parallelism pays.

  python benchmarks/pods.py                              # every row that is missing; hours, so stop it when you like
  python benchmarks/pods.py --models 7b --topologies v5p:4x4x4
  python benchmarks/pods.py --jobs 2                     # two compilations at once, about 4 GiB each
  python benchmarks/pods.py --list

A row is a size of the model and a slice, at 2,048 tokens with AdamW: weights cut over all chips, with fewer rows a
chip until it fits. `TENSOR_MODELS` on `TENSOR_TOPOLOGIES` are compiled twice more, with as many rows as chips, with and
without tensor parallelism; all on `KEEPING_TOPOLOGIES` once more with matrix products kept (REMAT="dots"). Each row
runs `python -m codegen2_jax.precompile` in a process of its own and is written to results/pods.json at once; started
again, the program goes on. results/pods.md holds all rows that are there.
"""

import argparse
import concurrent.futures
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"1b": "CodeGen2-1B", "3_7b": "CodeGen2-3.7B", "7b": "CodeGen2-7B", "16b": "CodeGen2-16B"}
TOPOLOGIES = (
    *("v4:2x2x4", "v4:4x4x4", "v4:4x4x8", "v4:8x8x8"),
    *("v5e:4x4", "v5e:8x8", "v5e:16x16"),
    *("v5p:2x2x4", "v5p:4x4x4", "v5p:4x4x8", "v5p:8x8x8"),
    *("v6e:4x4", "v6e:8x8", "v6e:16x16"),
)
TENSOR_MODELS, TENSOR_TOPOLOGIES = ("1b", "7b", "16b"), ("v5p:8x8x8", "v6e:16x16")
TENSOR = 4  # chips that share a layer's heads, MLP columns and vocabulary there; "fsdp" takes the rest
KEEPING_TOPOLOGIES = ("v5p:4x4x4", "v6e:8x8", "v4:4x4x4")  # 64 chips, of kinds that have the memory
ROWS = (8, 4, 2, 1)  # rows of 2,048 tokens a chip, tried from the left
# These first, the pairs that gin_configs/scale/ names: a run that is stopped has the rows that matter most.
FIRST = (
    *(("7b", "v5p:4x4x4"), ("16b", "v4:4x4x8"), ("16b", "v5p:4x4x8"), ("7b", "v6e:8x8"), ("16b", "v6e:16x16")),
    *(("1b", "v5e:4x4"), ("7b", "v4:4x4x4"), ("3_7b", "v5e:8x8"), ("7b", "v5e:16x16"), ("3_7b", "v6e:4x4")),
    *(("16b", "v5p:8x8x8"), ("1b", "v4:2x2x4"), ("3_7b", "v5p:2x2x4")),
)
MISFIT = 8  # exit code of precompile
# Gathers stay gathers (docs/precompile.md); matters over 16 chips alone.
OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


class Row(NamedTuple):
    """What is compiled. tensor: size of the mesh's "model" axis. rows: of a batch for each chip; 0: what fits."""

    model: str
    topology: str
    tensor: int = 1
    rows: int = 0
    remat: str = "full"

    @property
    def name(self) -> str:
        if self.remat != "full":
            return f"{self.model} {self.topology} {self.remat}"
        return f"{self.model} {self.topology}" + (f" tensor {self.tensor} rows {self.rows}" if self.rows else "")

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.partition(":")[2].split("x")))


def rows_of(models, topologies) -> list[Row]:
    """All rows of these, in the order in which they run."""
    sizes = [Row(model, topology) for topology in topologies for model in models]
    first = [Row(*pair) for pair in FIRST]
    pairs = [
        Row(model, topology, tensor, 1)
        for topology in TENSOR_TOPOLOGIES
        for model in TENSOR_MODELS
        for tensor in (1, TENSOR)
        if model in models and topology in topologies
    ]
    keeping = [
        Row(model, topology, rows=ROWS[0], remat="dots")
        for topology in KEEPING_TOPOLOGIES
        for model in models
        if topology in topologies
    ]
    return [row for row in first if row in sizes] + pairs + [row for row in sizes if row not in first] + keeping


def measure(row: Row, limit: float) -> dict:
    """The record of the largest batch that fits, or what the compiler said of the smallest; see ROWS."""
    began, found = time.time(), {}
    for rows in [row.rows] if row.rows else ROWS:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "record.json"
            line = [sys.executable, "-m", "codegen2_jax.precompile", f"--topology={row.topology}", f"--out={out}"]
            line += [f"--gin_file=pretraining/codegen2_{row.model}.gin", f"--gin.BATCH_SIZE={rows * row.chips}"]
            line += [f"--gin.MESH={{'data': 1, 'fsdp': -1, 'model': {row.tensor}}}"]
            line += [f"--gin.COMPILER_OPTIONS={OPTIONS}", f"--gin.REMAT={row.remat!r}"]
            done = subprocess.run(line, stdout=subprocess.DEVNULL, timeout=limit)
            found = json.loads(out.read_text()) if out.exists() else {"error": done.returncode}
        if done.returncode != MISFIT or _needs_too_much_without_rows(found):
            break
    return {"rows_a_chip": rows, "wall_seconds": round(time.time() - began), **found}


def _needs_too_much_without_rows(found: dict) -> bool:
    """Whether parameters, their gradients and the optimizer alone exceed a chip: fewer rows are no help then."""
    state = found["state_bytes_per_chip"]
    return 2 * state["parameters"] + state["optimizer"] > found["chip"]["hbm_bytes"]


def table(results: dict) -> str:
    """Markdown: the rows that were compiled, and how many were not."""
    rows = sorted(rows_of(MODELS, TOPOLOGIES), key=lambda row: (list(MODELS).index(row.model), _place(row.topology)))
    compiled = [row for row in rows if row.name in results]
    by_shape = sum(results[row.name].get("kernels_by_shape", False) for row in compiled)
    heads = (
        *("model", "slice", "chips", "fsdp x model", "batch", "GiB of a chip", "bound by", "step", "waiting"),
        *("tokens/s", "utilisation", "if all overlaps", "compiled in"),
    )
    head = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines = [
        "# CodeGen2 on TPU pods, by compilation",
        "",
        "Written by `python benchmarks/pods.py`; docs/precompile.md says what the columns hold.",
        "Rows of 2,048 tokens, AdamW in float32, computed in bfloat16. No chip was involved. Full rematerialisation:",
        "every layer is computed again in the backward pass. Attention's kernel is counted at the chip's peak;",
        f"{by_shape} of the rows were compiled before it was, and have its part by their shapes.",
        '"Compiled in" is wall time: about two minutes alone, longer for rows that were compiled beside other work',
        "or halted meanwhile.",
        "",
        *head,
        *(_line(row, results[row.name]) for row in compiled if not row.rows),
        "",
        "As many rows as chips, the fewest that weights cut over all chips allow, with and without tensor parallelism:",
        "",
        *head,
        *(_line(row, results[row.name]) for row in compiled if row.rows == 1),
        "",
        'Matrix products kept, not computed again (`REMAT="dots"`), 8 rows a chip:',
        "",
        *head,
        *(_line(row, results[row.name]) for row in compiled if row.remat != "full"),
    ]
    if len(compiled) < len(rows):
        lines += ["", f"{len(rows) - len(compiled)} of {len(rows)} rows are not compiled yet; the same command does."]
    return "\n".join(lines) + "\n"


def _place(topology: str) -> int:
    return TOPOLOGIES.index(topology)


def _line(row: Row, found: dict) -> str:
    mesh = f"{row.chips // row.tensor} x {row.tensor}"
    start = f"| {MODELS[row.model]} | {row.topology} | {row.chips} | {mesh} |"
    if not found.get("fits"):
        used = found.get("memory", {}).get("total", 0) / 2**30
        what = f"does not fit ({used:.1f} GiB)" if used else f"failed: {found.get('error')}"
        if "compiler" in found:  # which gave up and wrote no program
            what = f"does not fit: {found['compiler'].rpartition('HBM, ')[2]}"
        return f"{start} {what} | | | | | | | | |"
    seconds, memory = found["seconds"], found["memory"]
    used = f"{memory['total'] / 2**30:.1f} of {memory['chip'] / 2**30:.0f}"
    return (
        f"{start} {found['rows']} | {used} | {seconds['bound']} | {seconds['step']:.2f} s |"
        f" {seconds['collectives_waited_for']:.2f} s | {found['tokens_per_second']:,.0f} |"
        f" {seconds['utilisation']:.1%} | {seconds['utilisation_if_all_overlaps']:.1%} | {found['wall_seconds']} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--limit_s", type=float, default=3600, help="for one compilation of a row")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are compiled at once")
    parser.add_argument("--list", action="store_true", help="write the table of what is there and stop")
    given = parser.parse_args()
    path = RESULTS / "pods.json"
    stored = json.loads(path.read_text()) if path.exists() else {"machine": platform.platform(), "rows": {}}
    rows = [] if given.list else rows_of(given.models, given.topologies)
    missing = [row for row in rows if row.name not in stored["rows"]]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        asked = {pool.submit(measure, row, given.limit_s): row.name for row in missing}
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
                (RESULTS / "pods.md").write_text(table(stored["rows"]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a key press ends the whole, not the rows under way alone
    (RESULTS / "pods.md").write_text(table(stored["rows"]))
    print(table(stored["rows"]))


if __name__ == "__main__":
    main()

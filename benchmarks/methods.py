"""Every method on one stream, several seeds: runs what is missing, then writes one table beside the paper's order.

    python benchmarks/methods.py --stream=pytask_cl --seeds=0
    python benchmarks/methods.py --stream=pytask_cl --seeds=0,1,2 --methods=pp_tf,pp,finetune
    CODETASK_CL_DIR=DIR python benchmarks/methods.py --stream=codetask_cl --seeds=0

Runs are sweeps below --runs (default runs/methods_<stream>), so a finished run is not run again and a killed one
continues. Writes benchmarks/results/methods_<stream>.{md,json}. All other flags go to codegen2_jax.train.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import contest
from scipy.stats import spearmanr

from codegen2_jax.reporting.paper_table import ROWS
from codegen2_jax.reporting.tables import estimate

ROOT = Path(__file__).resolve().parent.parent
# Our gin file of each row of the paper's Table 1; PP-TF + ER is not in the paper.
PAPER_ROWS = {
    "finetune": "Sequential FT",
    "multitask": "MTL",
    "individual": "Individual FT",
    "shared_prompts": "Shared Prompts (SP)",
    "shared_prompts_er": "SP + ER",
    "task_prompts": "Task-Specific Prompts (TSPT)",
    "pp": "Prompt Pooling (PP)",
    "pp_er": "PP + ER",
    "pp_tf": "PP + Teacher Forcing (PP-TF)",
    "finetune_er": "CodeT5 + ER",
    "pp_tf_er": None,
}
AVERAGE_COLUMN = 6  # of a row of the paper's table: mean test BLEU


def run(method: str, place: Path, stream: str, seeds: str, more: list[str]) -> list[dict]:
    """scores.json of every seed of a method, after running what is not there yet."""
    command = [sys.executable, "-m", "codegen2_jax.sweep", f"--gin_file={method}.gin"]
    command += [f"--gin_file=streams/{stream}.gin", f"--seeds={seeds}", f"--sweep_dir={place / method}", *more]
    if code := subprocess.run(command, cwd=ROOT).returncode:  # the sweep has said why
        raise SystemExit(code)
    wanted = json.loads((place / method / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [json.loads((ROOT / one["directory"] / "scores.json").read_text(encoding="utf-8")) for one in wanted]


def final(record: dict, metric: str, split: str = "test") -> list[float]:
    """Scores at the end; of the individual walk the diagonal, since each of its models knows one task."""
    matrix = record["splits"][split][metric]
    if record["walk"] == "individual":
        return [matrix[task + 1][task] for task in range(len(record["stream"]))]
    return matrix[-1]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cell(values: list[float]) -> str:
    both = estimate(values)
    return f"{both.mean:.1f}" if both.half_width is None else f"{both.mean:.1f} ± {both.half_width:.1f}"


def line(name: str, records: list[dict]) -> list[str]:
    """One row of the table: means over the seeds, BLEU and exact match by task."""
    bleu, exact = ([final(record, metric) for record in records] for metric in ("bleu", "exact_match"))
    left_out = records[0]["leave_out"]
    kept = [j for j, task in enumerate(records[0]["stream"]) if task not in left_out]
    cells = [
        f"{cell(list(b))} ({mean(e):.1f})"
        for b, e in zip(zip(*bleu, strict=True), zip(*exact, strict=True), strict=True)
    ]
    averages = [cell([mean(row) for row in bleu]), cell([mean([row[j] for j in kept]) for row in bleu])]
    averages.append(cell([mean(row) for row in exact]))
    forget = [record["summary"]["valid"].get("forget_paper_bleu") for record in records]
    sequential = records[0]["walk"] == "sequential"
    minutes = mean([record["cost"]["wall_seconds"] / 60 for record in records])
    return [name, *cells, *averages, cell(forget) if sequential else "-", f"{minutes:.1f}"]


def reference(name: str, record: dict, bleu: list[float], exact: list[float]) -> list[str]:
    """A row that no method earned: a baseline, or the model before training."""
    kept = [b for task, b in zip(record["stream"], bleu, strict=True) if task not in record["leave_out"]]
    cells = [f"{b:.1f} ({e:.1f})" for b, e in zip(bleu, exact, strict=True)]
    return [name, *cells, f"{mean(bleu):.1f}", f"{mean(kept):.1f}", f"{mean(exact):.1f}", "-", "-"]


def table(found: dict[str, list[dict]]) -> list[str]:
    first = next(iter(found.values()))[0]
    rows = [line(method, records) for method, records in found.items()]
    for name in ("copy", "constant"):
        rows.append(reference(name, first, *(first["baselines"][name]["test"][m] for m in ("bleu", "exact_match"))))
    rows.append(reference("before training", first, *(first["splits"]["test"][m][0] for m in ("bleu", "exact_match"))))
    head = [
        "method",
        *first["stream"],
        "average",
        "without refine",
        "exact match",
        "forget_paper_bleu, valid",
        "minutes",
    ]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def order(found: dict[str, list[dict]]) -> dict:
    """Spearman's rank correlation of the methods' mean test BLEU with the paper's, over the rows that both have."""
    paper = {row[0]: row[AVERAGE_COLUMN] for row in ROWS}
    both = [method for method in found if PAPER_ROWS[method]]
    if len(both) < 3:
        return {}
    ours = [mean([mean(final(record, "bleu")) for record in found[method]]) for method in both]
    theirs = [paper[PAPER_ROWS[method]] for method in both]
    correlation = spearmanr(ours, theirs)
    return {"methods": both, "spearman": float(correlation.statistic), "p_value": float(correlation.pvalue)}


def main() -> None:
    parser = contest.Parser(__doc__)
    parser.add_argument("--stream", default="pytask_cl")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default=",".join(PAPER_ROWS))
    parser.add_argument("--runs", type=Path)
    arguments, more = parser.parse_known_args()
    place = arguments.runs or Path("runs", f"methods_{arguments.stream}")
    methods = contest.members("methods", arguments.methods, PAPER_ROWS)
    found = {method: run(method, place, arguments.stream, arguments.seeds, more) for method in methods}
    lines, ranks, machine = table(found), order(found), contest.machine(os.cpu_count())
    note = (
        f"Test BLEU (exact match) after the last task, seeds {arguments.seeds}, nano-t5 unless flags say otherwise "
        f"({' '.join(more) or 'no further flags'}); {machine['cores']} cores, {machine['cpu']}, {machine['date']}."
    )
    if ranks:
        note += (
            f" Rank correlation with the paper's order: {ranks['spearman']:.2f} over {len(ranks['methods'])} methods."
        )
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    name = f"methods_{arguments.stream}"
    (results / f"{name}.md").write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")
    small = {method: [slim(record) for record in records] for method, records in found.items()}
    (results / f"{name}.json").write_text(
        json.dumps({"machine": machine, "order": ranks, "methods": small}, indent=1) + "\n", encoding="utf-8"
    )
    print("\n".join([*lines, "", note]))


def slim(record: dict) -> dict:
    """A record without the points and tables that only figures need."""
    big = ("key_plane", "query_plane", "key_usage", "assignment")
    return record | {"diagnostics": {k: v for k, v in record["diagnostics"].items() if k not in big}}


if __name__ == "__main__":
    main()

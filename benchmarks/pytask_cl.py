"""PyTask-CL with nano-t5, every method: runs what is missing, then writes one table.

    python benchmarks/pytask_cl.py [--runs runs] [--seed 0]

Writes benchmarks/results/pytask_cl.md and .json. A finished run is not run again, a killed one continues.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("pp_tf", "pp", "task_prompts", "finetune", "individual")
BASELINES = ("copy", "constant")


def run(method: str, directory: Path, seed: int) -> dict:
    """The scores.json of a method, after running whatever is not there yet."""
    command = [sys.executable, "-m", "codegen2_jax.train", f"--gin_file={method}.gin", f"--model_dir={directory}"]
    subprocess.run([*command, f"--gin.SEED={seed}"], check=True, cwd=ROOT)
    return json.loads((directory / "scores.json").read_text(encoding="utf-8"))


def final_row(record: dict, metric: str) -> list[float]:
    """Test scores at the end; of the individual walk the diagonal, since each of its models knows one task."""
    matrix = record["splits"]["test"][metric]
    if record["walk"] == "individual":
        return [matrix[task + 1][task] for task in range(len(record["stream"]))]
    return matrix[-1]


def line(name: str, bleu: list[float], exact: list[float], forget: float | None, minutes: float | None) -> list[str]:
    cells = [f"{b:.1f} ({e:.1f})" for b, e in zip(bleu, exact, strict=True)]
    average = f"{sum(bleu) / len(bleu):.1f} ({sum(exact) / len(exact):.1f})"
    rest = ["-" if value is None else f"{value:.1f}" for value in (forget, minutes)]
    return [name, *cells, average, *rest]


def table(records: dict[str, dict]) -> list[str]:
    """Markdown: one row per method and baseline, BLEU (exact match) on the test split."""
    first = next(iter(records.values()))
    rows = []
    for method, record in records.items():
        forget = None if record["walk"] == "individual" else record["summary"]["valid"].get("forget_paper_bleu")
        scores = (final_row(record, "bleu"), final_row(record, "exact_match"))
        rows.append(line(method, *scores, forget, record["cost"]["wall_seconds"] / 60))
    for name in BASELINES:
        scores = (first["baselines"][name]["test"][metric] for metric in ("bleu", "exact_match"))
        rows.append(line(name, *scores, None, None))
    rows.append(line("before training", *(first["splits"]["test"][m][0] for m in ("bleu", "exact_match")), None, None))
    head = ["method", *first["stream"], "average", "forget_paper_bleu (valid)", "minutes"]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seed = arguments.seed
    records = {method: run(method, arguments.runs / f"{method}-seed{seed}", seed) for method in METHODS}
    lines = table(records)
    note = (
        f"Test BLEU (exact match) after the last task, seed {seed}, {os.cpu_count()} cores "
        f"({platform.machine()}), {time.strftime('%Y-%m-%d')}."
    )
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "pytask_cl.md").write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")
    (results / "pytask_cl.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*lines, "", note]))


if __name__ == "__main__":
    main()

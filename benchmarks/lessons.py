"""CodeGen2's lessons at a small scale: runs what is missing of the ablation's cells, measures them, draws verdicts.

    python benchmarks/lessons.py --seeds=0,1,2
    python benchmarks/lessons.py --cells=causal-clm-pl-e1,causal-psm-pl-e1 --seeds=0

Runs are sweeps below --runs (default runs/lessons), so a finished run is not run again and a killed one continues.
Writes benchmarks/results/lessons.{md,json}. All other flags go to codegen2_jax.train.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import contest
import numpy as np

from codegen2_jax.data import cache
from codegen2_jax.data.plan import fetch
from codegen2_jax.evaluation import intrinsic
from codegen2_jax.evaluation.comparison import Interval, Measured, by_file, compare
from codegen2_jax.reporting.tables import estimate
from codegen2_jax.training.initialisation import ModelSource

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("causal-clm-pl-e1", "causal-span-pl-e1", "causal-mix-pl-e1", "causal-psm-pl-e1")
DOMAINS = {"code": "documents_python", "text": "documents_text"}
FORMS = {"clm": "left_to_right", "span": "infill", "mix": "infill", "mixwin": "infill", "psm": "middle"}
FORMS |= {"ul2": "infill", "ul2fixed": "infill"}
HOLES_PER_FILE, MOST_LINES, GENERATED, MAX_CONTEXT = 8, 3, 64, 224
# Lesson, what the paper found, (domain or "holes"), the cells' objectives, the figure that must be negative.
CLAIMS = [
    ("2", "infilling costs left-to-right quality: bpb(clm) - bpb(psm) < 0", "code", ("clm", "psm"),
     lambda b: b["clm"] - b["psm"]),
    ("2", "and buys infilling: infill bpb(psm) - infill bpb(clm) < 0", "holes", ("clm", "psm"),
     lambda b: b["psm"] - b["clm"]),
    ("3", "a mixture keeps half of what span corruption loses: bpb(mix) - (bpb(clm) + bpb(span)) / 2 < 0", "code",
     ("clm", "span", "mix"), lambda b: b["mix"] - (b["clm"] + b["span"]) / 2),
    ("3", "and has half of what it gains: infill bpb(mix) - (infill bpb(clm) + infill bpb(span)) / 2 < 0", "holes",
     ("clm", "span", "mix"), lambda b: b["mix"] - (b["clm"] + b["span"]) / 2),
]  # fmt: skip


def train(cell: str, place: Path, seeds: str, more: list[str]) -> list[Path]:
    """The run directories of every seed of a cell, after running what is not there yet."""
    command = [sys.executable, "-m", "codegen2_jax.sweep", f"--gin_file=ablation/{cell}.gin", f"--seeds={seeds}"]
    subprocess.run([*command, f"--sweep_dir={place / cell}", *more], check=True, cwd=ROOT)
    wanted = json.loads((ROOT / place / cell / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [ROOT / one["directory"] for one in wanted]


def held_out(vocabulary) -> dict[str, list[np.ndarray]]:
    """{domain: raw ids of every held-out document}, from the caches that training made."""
    directory = cache.cache_directory(None)
    found = {}
    for domain, task in DOMAINS.items():
        if (directory / task / "info.json").is_file():
            split = cache.open_split(directory, task, "valid")
            records = fetch(split, np.arange(len(split)))
            found[domain] = [np.asarray(record["targets"], np.int32) for record in records]
    return found


def measure(run: Path, objective: str) -> dict[str, dict]:
    """What evaluation.json beside a run holds: costs of every held-out file, by domain and for holes in code."""
    path = run / "evaluation.json"
    settings = {"holes_per_file": HOLES_PER_FILE, "most_lines": MOST_LINES, "max_context": MAX_CONTEXT}
    settings |= {"generated": GENERATED, "form": FORMS[objective]}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored
    loaded = ModelSource(init_from=str(run / "export")).load()
    model, params, vocabulary = loaded.model, loaded.params, loaded.vocabulary
    documents, found = held_out(vocabulary), {"settings": settings}
    for domain, texts in documents.items():
        costs = intrinsic.left_to_right(model, params, texts, vocabulary, length=255)
        found[domain] = in_files(costs, len(texts))
    texts = [vocabulary.decode(tokens) for tokens in documents["code"]]
    holes = intrinsic.holes(texts, per_file=HOLES_PER_FILE, seed=0, most_lines=MOST_LINES)
    shared = {"form": FORMS[objective], "max_context": MAX_CONTEXT}
    found["holes"] = in_files(intrinsic.in_holes(model, params, holes, vocabulary, **shared), len(texts))
    single = intrinsic.holes(texts, per_file=HOLES_PER_FILE, seed=1)
    if shared["form"] != "left_to_right":  # which writes no end mark, so nothing it writes is exact
        costs = intrinsic.in_holes(model, params, single, vocabulary, **shared, generated=GENERATED)
        found["exact"] = {"asked": int(np.isfinite(costs.exact).sum()), "right": int(np.nansum(costs.exact))}
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def in_files(costs: intrinsic.Costs, files: int) -> dict[str, list[float]]:
    return {name: by_file(costs.file, getattr(costs, name), files).tolist() for name in ("nats", "bytes")}


def measured(records: list[dict], part: str) -> Measured:
    sizes = np.asarray(records[0][part]["bytes"])
    return Measured(np.asarray([record[part]["nats"] for record in records]), sizes)


def cell_text(values: list[float]) -> str:
    both = estimate(values)
    return f"{both.mean:.3f}" if both.half_width is None else f"{both.mean:.3f} ± {both.half_width:.3f}"


def table(found: dict[str, list[dict]]) -> list[str]:
    head = ["cell", *(f"{part}, bits per byte" for part in ("code", "text", "holes")), "lines, exact", "asked as"]
    rows = []
    for cell, records in found.items():
        cells = [cell]
        for part in ("code", "text", "holes"):
            each = [measured([record], part).bits_per_byte for record in records] if part in records[0] else []
            cells.append(cell_text(each) if each else "-")
        exact = [100 * r["exact"]["right"] / r["exact"]["asked"] for r in records if "exact" in r]
        rows.append([*cells, f"{sum(exact) / len(exact):.1f} %" if exact else "-", records[0]["settings"]["form"]])
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def verdicts(found: dict[str, list[dict]]) -> list[dict]:
    """One entry for each claim whose cells (causal attention, code, one epoch) are there."""
    entries = []
    for lesson, claim, part, objectives, figure in CLAIMS:
        cells = {objective: f"causal-{objective}-pl-e1" for objective in objectives}
        if not all(cell in found for cell in cells.values()):
            continue
        interval: Interval = compare({name: measured(found[cell], part) for name, cell in cells.items()}, figure)
        entries.append(
            {
                "lesson": lesson,
                "claim": claim,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "verdict": interval.verdict(negative=True),
            }
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs", "lessons"))
    arguments, more = parser.parse_known_args()
    found = {}
    for cell in arguments.cells.split(","):
        runs = train(cell, arguments.runs, arguments.seeds, more)
        found[cell] = [measure(run, cell.split("-")[1]) for run in runs]
    said, machine = verdicts(found), contest.machine(os.cpu_count())
    lines = [*table(found), ""]
    for one in said:
        interval = f"{one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
        lines.append(f"- Lesson {one['lesson']}: {one['claim']}: {interval}, {one['verdict']}")
    lines += [
        "",
        f"Seeds {arguments.seeds}, {' '.join(more) or 'no further flags'}; {machine['cores']} cores, {machine['cpu']}, "
        f"{machine['date']}. Intervals: 95 %, of the mean over seeds in the table, paired bootstrap over files and "
        "seeds in the verdicts.",
    ]
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "lessons.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"machine": machine, "verdicts": said, "cells": found}
    (results / "lessons.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

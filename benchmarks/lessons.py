"""CodeGen2's lessons at a small scale: runs what is missing of the ablation's cells, measures them, draws verdicts.

    python benchmarks/lessons.py --seeds=0,1,2
    python benchmarks/lessons.py --cells=causal-clm-pl-e1,causal-psm-pl-e1 --seeds=0
    python benchmarks/lessons.py --seeds=0,1,2 --gin.NUM_STEPS=100 --runs=runs/short --out=runs/short/lessons

Runs are sweeps below --runs (default runs/lessons), so a finished run is not run again and a killed one continues;
what was measured of a run lies beside it. Writes OUT.md and OUT.json (default benchmarks/results/lessons), anew after
every cell. All other flags go to codegen2_jax.train.
"""

import json
import os
import resource
import subprocess
import sys
import time
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
NO_VERDICT = "no verdict: fewer than three seeds"
LEAST_SEEDS = 3  # for a verdict; with fewer the figure and its interval stand alone
HOLES_PER_FILE, MOST_LINES, GENERATED, MAX_CONTEXT = 8, 3, 64, 224
# What is measured of each file, as a heading. "holes" is the infilling of the claims; behind it stands what it is made
# of: the same without end marks, and the holes as the continuation of a prefix of as many tokens and of a quarter.
PARTS = {"code": "code", "text": "text", "holes": "holes", "middles": "holes without end marks"}
PARTS |= {"continued": "holes from the prefix alone", "near": "from a quarter of it"}
# Lesson, what the paper found, the part it is told of, the cells' objectives, the figure that must be negative.
CLAIMS = [
    ("2", "infilling costs left-to-right quality: bpb(clm) - bpb(psm) < 0", "code", ("clm", "psm"),
     lambda b: b["clm"] - b["psm"]),
    ("2", "and buys infilling: infill bpb(psm) - infill bpb(clm) < 0", "holes", ("clm", "psm"),
     lambda b: b["psm"] - b["clm"]),
    ("2", "the same without end marks, which clm does not write", "middles", ("clm", "psm"),
     lambda b: b["psm"] - b["clm"]),
    ("3", "a mixture keeps half of what span corruption loses: bpb(mix) - (bpb(clm) + bpb(span)) / 2 < 0", "code",
     ("clm", "span", "mix"), lambda b: b["mix"] - (b["clm"] + b["span"]) / 2),
    ("3", "and has half of what it gains: infill bpb(mix) - (infill bpb(clm) + infill bpb(span)) / 2 < 0", "holes",
     ("clm", "span", "mix"), lambda b: b["mix"] - (b["clm"] + b["span"]) / 2),
    ("3", "the same without end marks", "middles", ("clm", "span", "mix"),
     lambda b: b["mix"] - (b["clm"] + b["span"]) / 2),
]  # fmt: skip


def train(cell: str, place: Path, seeds: str, more: list[str]) -> list[Path]:
    """The run directories of every seed of a cell, after running what is not there yet."""
    command = [sys.executable, "-m", "codegen2_jax.sweep", f"--gin_file=ablation/{cell}.gin", f"--seeds={seeds}"]
    # A sweep that fails has said why.
    if code := subprocess.run([*command, f"--sweep_dir={place / cell}", *more], cwd=ROOT).returncode:
        raise SystemExit(code)
    wanted = json.loads((ROOT / place / cell / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [ROOT / one["directory"] for one in wanted]


def held_out(loaded) -> dict[str, list[np.ndarray]]:
    """{domain: raw ids of every held-out document}; a domain that no cell has trained on is cached here."""
    directory = cache.cache_directory(None)
    place = {"cache_dir": directory, "vocabulary_dir": loaded.vocabulary_directory}
    cache.ensure_cached(tuple(DOMAINS.values()), **place, task_modules=("tasks.documents",))
    found = {}
    for domain, task in DOMAINS.items():
        split = cache.open_split(directory, task, "valid")
        records = fetch(split, np.arange(len(split)))
        found[domain] = [np.asarray(record["targets"], np.int32) for record in records]
    return found


def measure(run: Path, objective: str) -> dict[str, dict]:
    """What evaluation.json beside a run holds: costs of every held-out file, for each of PARTS."""
    path = run / "evaluation.json"
    settings = {"holes_per_file": HOLES_PER_FILE, "most_lines": MOST_LINES, "max_context": MAX_CONTEXT}
    settings |= {"generated": GENERATED, "form": FORMS[objective], "parts": list(PARTS)}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored
    loaded = ModelSource(init_from=str(run / "export")).load()
    model, params, vocabulary = loaded.model, loaded.params, loaded.vocabulary
    documents, found = held_out(loaded), {"settings": settings}
    for domain, texts in documents.items():
        costs = intrinsic.left_to_right(model, params, texts, vocabulary, length=255)
        found[domain] = in_files(costs, len(texts))
    texts = [vocabulary.decode(tokens) for tokens in documents["code"]]
    holes = intrinsic.holes(texts, per_file=HOLES_PER_FILE, seed=0, most_lines=MOST_LINES)
    shared = {"form": FORMS[objective], "max_context": MAX_CONTEXT}
    continued = {"form": "left_to_right", "max_context": MAX_CONTEXT}
    asked = {"holes": shared, "middles": {**shared, "ended": False}, "continued": continued}
    asked["near"] = {**continued, "max_context": MAX_CONTEXT // 4}
    for part, how in asked.items():
        found[part] = in_files(intrinsic.in_holes(model, params, holes, vocabulary, **how), len(texts))
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
    head = ["cell", *PARTS.values(), "lines, exact", "asked as"]
    rows = []
    for cell, records in found.items():
        cells = [cell]
        for part in PARTS:
            each = [measured([record], part).bits_per_byte for record in records] if part in records[0] else []
            cells.append(cell_text(each) if each else "-")
        exact = [100 * r["exact"]["right"] / r["exact"]["asked"] for r in records if "exact" in r]
        rows.append([*cells, f"{sum(exact) / len(exact):.1f} %" if exact else "-", records[0]["settings"]["form"]])
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def verdicts(found: dict[str, list[dict]]) -> list[dict]:
    """One entry for each claim whose cells (causal attention, code, one epoch) are there, under as many seeds."""
    entries = []
    for lesson, claim, part, objectives, figure in CLAIMS:
        cells = {objective: f"causal-{objective}-pl-e1" for objective in objectives}
        if not all(cell in found for cell in cells.values()):
            continue
        seeds = len(found[cells[objectives[0]]])
        interval: Interval = compare({name: measured(found[cell], part) for name, cell in cells.items()}, figure)
        entries.append(
            {
                "lesson": lesson,
                "claim": claim,
                "part": part,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "seeds": seeds,
                "verdict": interval.verdict(negative=True) if seeds >= LEAST_SEEDS else NO_VERDICT,
            }
        )
    return entries


def report(found: dict[str, list[dict]], seeds: str, more: list[str], out: Path) -> str:
    """Writes what is known so far, and returns it as text."""
    said, machine = verdicts(found), contest.machine(os.cpu_count())
    lines = [*table(found), ""]
    for one in said:
        interval = f"{one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
        lines.append(f"- Lesson {one['lesson']}: {one['claim']}: {interval}, {one['verdict']}")
    lines += [
        "",
        f"Seeds {seeds}, {' '.join(more) or 'no further flags'}; {machine['cores']} cores, {machine['cpu']}, "
        f"{machine['date']}. Bits per byte. Intervals: 95 %, of the mean over seeds in the table, paired bootstrap "
        "over files and seeds in the verdicts.",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"machine": machine, "seeds": seeds, "flags": more, "verdicts": said, "cells": found}
    out.with_name(out.name + ".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return "\n".join(lines)


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = contest.Parser(__doc__)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs", "lessons"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "lessons")
    arguments, more = parser.parse_known_args()
    found, cells, began, text = {}, arguments.cells.split(","), time.monotonic(), ""
    unknown = [cell for cell in cells if not (ROOT / "gin_configs" / "ablation" / f"{cell}.gin").is_file()]
    if unknown or any(cell.count("-") != 3 for cell in cells):
        parser.error(f"{unknown or cells}: a cell is a file of gin_configs/ablation, such as {CELLS[0]}")
    for number, cell in enumerate(cells):
        left = (time.monotonic() - began) / number * (len(cells) - number) / 60 if number else None
        ends = f", about {left:.0f} min left" if left is not None else ""
        print(f"cell {number + 1} of {len(cells)}: {cell}{ends}", flush=True)
        start, used = time.monotonic(), cpu_seconds()
        runs = train(cell, arguments.runs, arguments.seeds, more)
        found[cell] = []
        for run in runs:
            print(f"  measuring {run.name}", flush=True)
            found[cell].append(measure(run, cell.split("-")[1]))
        text = report(found, arguments.seeds, more, arguments.out)
        minutes = (time.monotonic() - start) / 60
        print(f"  {minutes:.1f} minutes, {(cpu_seconds() - used) / 60:.1f} of the processor", flush=True)
    print(text)


if __name__ == "__main__":
    main()

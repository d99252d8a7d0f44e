"""What a report of pretraining runs says: loss and bits per byte while training, what was read, how fast; overlaid.

A run keeps its colour through all figures. Each held-out stream and each source has a panel of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codegen2_jax.reporting.drawing import Drawing, colour_of, dashes_of, grid, legend_above, marker_of
from codegen2_jax.reporting.exhibits import Exhibit, Report, Section
from codegen2_jax.reporting.pretraining_runs import QUANTITIES, Curve, PretrainingRun
from codegen2_jax.reporting.tables import Column, Table

Panels = Mapping[str, Sequence[Curve]]
"""{title: one curve per run, empty where it has none}."""
MOST_MARKERS = 40  # points of a curve that are marked each
TRAINING = "training batches"


def make_report(runs: Sequence[PretrainingRun]) -> Report:
    """The page's content."""
    models = sorted({_size(run) for run in runs} - {""})
    unfinished = [run.name for run in runs if not run.is_finished]
    facts = {
        "Runs": ", ".join(run.name for run in runs),
        "Parameters": ", ".join(models) or "not stored",
        "Initial weights": ", ".join(sorted({str(run.record.get("init_from", "not stored")) for run in runs})),
    }
    if unfinished:
        facts["Under way, curves so far"] = ", ".join(unfinished)
    sections = [_results(runs), _losses(runs), _bits(runs), _seen(runs), _speed(runs), _provenance(runs)]
    return Report(
        title="Pretraining" if len(runs) == 1 else f"Pretraining: {len(runs)} runs",
        names=[run.name for run in runs],
        lead="Pretraining of code language models: how the loss falls on what is learned and on what is held out, what "
        "was read, and how fast.",
        facts=facts,
        findings=_findings(runs),
        sections=[section for section in sections if section.parts],
    )


# ------------------------------------------------------------------------------------------------------------- sections


def _results(runs: Sequence[PretrainingRun]) -> Section:
    losses = _names(run.losses for run in runs)
    bits = _names(run.bits_per_byte for run in runs)
    columns = [Column("run"), Column("parameters"), Column("steps"), Column("sequences", "in a batch")]
    columns += [Column(name, "bits per byte", digits=3) for name in bits]
    columns += [Column(name, "nats per token", digits=3) for name in losses]
    columns += [Column("tokens per second", "median", digits=0), Column("minutes", digits=1)]
    rows = []
    for run in runs:
        speeds = sorted(value for _, value in run.tokens_per_second)
        seconds = run.record.get("wall_seconds")
        rows.append(
            [run.name, run.record.get("parameters"), run.last_step, run.record.get("batch_size")]
            + [_last(run.bits_per_byte.get(name)) for name in bits]
            + [_last(run.losses.get(name)) for name in losses]
            + [speeds[len(speeds) // 2] if speeds else None, None if seconds is None else seconds / 60]
        )
    caption = "Held-out figures of the last evaluation. Bits per byte are told of plain text only; they compare runs "
    caption += "of different vocabularies, which nats per token do not."
    table = Table(columns, rows)
    return Section(
        name="results",
        title="At the end",
        parts=[Exhibit(name="pretraining_results", title="Held-out results", caption=caption, table=table)],
    )


def _losses(runs: Sequence[PretrainingRun]) -> Section:
    panels = {TRAINING: [run.training_loss for run in runs]} | _panels(runs, lambda run: run.losses)
    caption = "Cross-entropy in nats per token. Training batches are single batches, each with whatever the objective "
    caption += "made of it; the others are the same held-out batches at every evaluation."
    return _section(runs, "losses", "Loss", "pretraining_loss", panels, "nats per token", caption)


def _bits(runs: Sequence[PretrainingRun]) -> Section:
    panels = _panels(runs, lambda run: run.bits_per_byte)
    caption = "Cross-entropy of held-out text, left to right, in bits per UTF-8 byte."
    return _section(runs, "bits", "Bits per byte", "pretraining_bits_per_byte", panels, "bits per byte", caption)


def _seen(runs: Sequence[PretrainingRun]) -> Section:
    panels: dict[str, Sequence[Curve]] = {}
    if any("tokens" in run.seen for run in runs):
        panels = _panels(runs, lambda run: run.seen.get("tokens", {}))
    sources = _names(run.seen.get("tokens", {}) for run in runs)
    columns = [Column("run"), Column("source"), *(Column(name, digits=2) for name in QUANTITIES)]
    rows = [
        [run.name, source, *(_count(name, _last(run.seen.get(name, {}).get(source))) for name in QUANTITIES)]
        for run in runs
        for source in sources
    ]
    section = _section(
        runs, "seen", "What was read", "pretraining_tokens_seen", panels, "tokens", "Tokens of each source so far."
    )
    if not rows:
        return section
    exhibit = Exhibit(
        name="pretraining_seen", title="Read of each source", caption="Up to the last evaluation; an epoch is the "
        "source once. Bytes are estimated from those of a sample of documents.", table=Table(columns, rows),
    )  # fmt: skip
    return Section(name=section.name, title=section.title, parts=[*section.parts, exhibit])


def _speed(runs: Sequence[PretrainingRun]) -> Section:
    panels = {"training": [run.tokens_per_second for run in runs]}
    caption = "Tokens with loss per second of wall time, evaluations and pauses left out, on whatever machine it was."
    return _section(runs, "speed", "Throughput", "pretraining_speed", panels, "tokens per second", caption, floor=True)


def _provenance(runs: Sequence[PretrainingRun]) -> Section:
    columns = [Column("run"), Column("directory"), Column("seed"), Column("state"), Column("config digest")]
    columns.append(Column("versions"))
    rows = []
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.record.get("versions", {}).items())
        state = "finished" if run.is_finished else "under way"
        digest = str(run.record.get("config_digest", ""))[:12]
        rows.append([run.name, run.directory.resolve().name, run.record.get("seed"), state, digest, versions])
    table = Table(columns, rows)
    exhibit = Exhibit(name="runs", title="Where the numbers come from", caption="As scores.json has it.", table=table)
    return Section(name="runs", title="Runs", parts=[exhibit])


def _findings(runs: Sequence[PretrainingRun]) -> list[str]:
    found = []
    for name in _names(run.bits_per_byte for run in runs):
        ends = {run.name: run.bits_per_byte[name] for run in runs if name in run.bits_per_byte}
        best = min(ends, key=lambda run: ends[run][-1][1])
        (first_step, first), (last_step, last) = ends[best][0], ends[best][-1]
        text = f"{name}: {last:.3f} bits per byte after {last_step:,} steps"
        if first_step != last_step:
            text += f", {first:.3f} after {first_step:,}"
        found.append(f"{text}{f', the lowest of {len(ends)} runs, by {best}' if len(ends) > 1 else ''}.")
    return found


# -------------------------------------------------------------------------------------------------------------- figures


def _section(runs, name, title, file, panels: Panels, label: str, caption: str, *, floor: bool = False) -> Section:
    """A section of one figure, without parts where there is nothing to draw."""
    panels = {panel: curves for panel, curves in panels.items() if any(curves)}
    if not panels:
        return Section(name=name, title=title, parts=[])
    drawing, table = _figure([run.name for run in runs], panels, label, floor=floor)
    alt = f"Curves of {label} over steps: {', '.join(panels)}; a line for each of {len(runs)} runs."
    exhibit = Exhibit(
        name=file, title=f"{title} over the steps", caption=f"From metrics.jsonl. {caption}", table=table,
        drawing=drawing, alt=alt,
    )  # fmt: skip
    return Section(name=name, title=title, parts=[exhibit])


def _figure(names: Sequence[str], panels: Panels, label: str, *, floor: bool) -> tuple[Drawing, Table]:
    steps: dict[tuple[str, int], dict[str, float]] = {}
    for panel, curves in panels.items():
        for name, curve in zip(names, curves, strict=True):
            for step, value in curve:
                steps.setdefault((name, step), {})[panel] = value
    order = {name: number for number, name in enumerate(names)}
    keys = sorted(steps, key=lambda key: (order[key[0]], key[1]))
    columns = [Column("run"), Column("step"), *(Column(panel, label, digits=3) for panel in panels)]
    table = Table(columns, [[*key, *(steps[key].get(panel) for panel in panels)] for key in keys])
    wide = min(2, len(panels))
    high = math.ceil(len(panels) / wide)

    def draw(figure):
        grids = figure.subplots(high, wide, sharex=True, squeeze=False)
        places = [axes for row in grids for axes in row]
        for axes, (title, curves) in zip(places, panels.items(), strict=False):
            for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
                if curve:
                    marker = marker_of(number) if len(curve) <= MOST_MARKERS else None
                    axes.plot(
                        *zip(*curve, strict=True), color=colour_of(number), linestyle=dashes_of(number), linewidth=1.2,
                        marker=marker, markersize=3.5, label=name,
                    )  # fmt: skip
            axes.set_title(title)
            if floor:
                axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}")
            grid(axes)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        for row in grids:
            row[0].set_ylabel(label)
        for number, axes in enumerate(places[: len(panels)]):
            if number + wide >= len(panels):
                axes.set_xlabel("step")
                axes.tick_params(labelbottom=True)
        if len(names) > 1:
            fullest = max(zip(places, panels.values(), strict=False), key=lambda pair: sum(map(bool, pair[1])))[0]
            legend_above(figure, fullest)

    return Drawing(draw, 9.0, 0.6 + 2.2 * high), table


def _panels(runs: Sequence[PretrainingRun], curves: Callable[[PretrainingRun], Mapping[str, Curve]]) -> Panels:
    return {name: [curves(run).get(name, []) for run in runs] for name in _names(map(curves, runs))}


def _names(found: Any) -> list[str]:
    """The names of all dictionaries, in the order of first appearance."""
    return list(dict.fromkeys(name for one in found for name in one))


def _last(curve: Curve | None) -> float | None:
    return curve[-1][1] if curve else None


def _count(quantity: str, value: float | None) -> float | int | None:
    return value if value is None or quantity == "epochs" else round(value)


def _size(run: PretrainingRun) -> str:
    parameters = run.record.get("parameters")
    return f"{parameters:,}" if isinstance(parameters, int) else ""

"""The figures of a report that every method has: scores by stage, what is lost, learning curves, cost.

Each function takes tables or runs and gives a `Drawing`, or None where there is nothing to draw.
"""

import math
from collections.abc import Sequence

import numpy as np

from codegen2_jax.reporting.drawing import (
    EMPTY,
    LINE,
    MUTED,
    Drawing,
    colour_of,
    dashes_of,
    grid,
    heat_map,
    legend_above,
    marker_of,
)
from codegen2_jax.reporting.finished_runs import TITLES, Group, Run, short_names
from codegen2_jax.reporting.tables import Column, Estimate, Table

MOST_LABELLED = 5  # methods whose bars have room for a number each
LEAST_SCALE = 10.0  # points: a column whose scores are all near 0 stays pale


def matrix(table: Table) -> Drawing:
    """The heat map of a table of R: shades are relative to each column's largest value, numbers stand in the cells."""
    numbers_RC = np.array([[math.nan if cell is None else cell for cell in row[1:]] for row in table.rows], np.float64)
    largest_C = np.array([max([LEAST_SCALE, *column[np.isfinite(column)]]) for column in numbers_RC.T])
    cells = [
        [(shade, EMPTY if math.isnan(value) else f"{value:.1f}") for shade, value in zip(shades, values, strict=True)]
        for shades, values in zip(numbers_RC / largest_C, numbers_RC, strict=True)
    ]
    labels, headings = [str(row[0]) for row in table.rows], [column.heading for column in table.columns[1:]]

    def draw(figure):
        axes = figure.add_subplot()
        heat_map(axes, cells, rows=labels, columns=headings)
        first = min(table.reference, default=len(labels))
        axes.axhline(first - 0.5, color=MUTED, linewidth=0.8)
        axes.axvline(len(headings) - 1.5, color=MUTED, linewidth=0.8)

    return Drawing(draw, max(4.0, 1.5 + 0.7 * len(headings)), 0.45 + 0.28 * len(labels))


def forget_bars(table: Table) -> Drawing | None:
    """Bars of `tables.forget_by_task`: a cluster per task and for the mean, a bar per method, 95 % intervals."""
    if not table.rows or len(table.columns) < 3:
        return None
    headings = [column.heading for column in table.columns[1:]]
    width = 0.8 / len(table.rows)

    def draw(figure):
        axes = figure.add_subplot()
        for number, (name, *cells) in enumerate(table.rows):
            left = np.arange(len(cells)) - 0.4 + width * (number + 0.5)
            means = [math.nan if cell is None else cell.mean for cell in cells]
            halves = [0.0 if cell is None or cell.half_width is None else cell.half_width for cell in cells]
            bars = axes.bar(left, means, width * 0.9, color=colour_of(number), label=name)
            if any(halves):
                axes.errorbar(left, means, yerr=halves, fmt="none", ecolor=MUTED, capsize=2.5, linewidth=1.0)
            elif len(table.rows) <= MOST_LABELLED:
                texts = ["" if math.isnan(mean) else f"{mean:.1f}".replace("-0.0", "0.0") for mean in means]
                axes.bar_label(bars, texts, padding=2, color=MUTED, fontsize=8)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xticks(range(len(headings)), headings)
        axes.set_ylabel("forget_paper, points, valid")
        grid(axes)
        legend_above(figure, axes)

    return Drawing(draw, 9.0, 3.2)


def curves(groups: Sequence[Group]) -> tuple[Drawing | None, Table]:
    """Training loss, validation loss and validation score over the steps of the whole run, and their numbers."""
    metric = groups[0].metric
    names = {"loss": "training loss", "valid_loss": "validation loss"}
    names[f"valid_{metric}"] = f"validation {TITLES[metric]}"
    rows = []
    for group in groups:
        for run in group.runs:
            for record in run.metrics:
                values = [_finite(record.get(name)) for name in names]
                if any(value is not None for value in values):
                    rows.append([run.name, str(record.get("task", "")), record["step"], *values])
    columns = [Column("run"), Column("task"), Column("step"), *(Column(text, digits=3) for text in names.values())]
    table = Table(columns, rows)
    shown = [name for name, index in zip(names, (3, 4, 5), strict=True) if any(row[index] is not None for row in rows)]
    if not shown:
        return None, table

    def draw(figure):
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, shown, strict=True):
            for number, group in enumerate(groups):
                for run in group.runs:
                    _curve(axes, run, name, number, label=group.name if run is group.runs[0] else None)
            axes.set_ylabel(names[name])
            grid(axes)
            for boundary, _ in _boundaries(groups):
                axes.axvline(boundary, color=LINE, linewidth=1.0)
        for start, task in _starts(groups):
            panels[0].annotate(
                task, (start, 1.0), (3, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                color=MUTED, va="bottom", fontsize=8,
            )  # fmt: skip
        panels[-1].set_xlabel("step of the whole run")
        legend_above(figure, panels[0])

    return Drawing(draw, 9.0, 0.6 + 1.9 * len(shown)), table


def cost(table: Table) -> Drawing | None:
    """The average score against wall minutes and against trained parameters, from `tables.cost_against_score`."""
    points = [row for number, row in enumerate(table.rows) if number not in table.reference and row[1] is not None]
    copied = [row[1] for number, row in enumerate(table.rows) if number in table.reference and row[1] is not None]
    if not points:
        return None

    def draw(figure):
        panels = figure.subplots(1, 2, sharey=True)
        for axes, index, label in zip(panels, (2, 3), ("wall minutes", "trained parameters"), strict=True):
            for number, row in enumerate(points):
                x, y = _mean(row[index]), row[1]
                if x is None:
                    continue
                axes.errorbar(
                    x, y.mean, yerr=y.half_width, fmt=marker_of(number), markersize=7, color=colour_of(number),
                    capsize=2.5, label=row[0], linestyle="none",
                )  # fmt: skip
            for value in copied:
                axes.axhline(value, color=MUTED, linewidth=1.2, linestyle="--", label="copy")
            axes.set_xlabel(label)
            grid(axes, "both")
        for axes, edge in (
            (panels[0].set_xlim, panels[0].get_xlim()[1]),
            (panels[0].set_ylim, panels[0].get_ylim()[1]),
        ):
            axes(0, 1.06 * edge)
        if all((_mean(row[3]) or 0) > 0 for row in points):
            panels[1].set_xscale("log")
            panels[1].minorticks_off()
            panels[1].margins(x=0.15)
        panels[0].set_ylabel(f"average {table.columns[1].detail}")
        legend_above(figure, panels[0])

    return Drawing(draw, 9.0, 3.4)


def against_number(table: Table, *, xlabel: str) -> Drawing:
    """Figures against a number, with intervals, a panel per column that holds estimates; a line per method.

    table: columns of the method, the number, and then figures.
    """
    names = list(dict.fromkeys(row[0] for row in table.rows))
    numbers = [row[1] for row in table.rows]
    places = range(2, len(table.columns))
    shown = [index for index in places if any(isinstance(row[index], Estimate) for row in table.rows)]
    wide = min(2, len(shown))

    def draw(figure):
        panels = figure.subplots(-(-len(shown) // wide), wide, squeeze=False).flat
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, index in zip(panels, shown, strict=False):
            for number, name in enumerate(names):
                rows = [row for row in table.rows if row[0] == name and row[index] is not None]
                if rows:
                    cells = [row[index] for row in rows]
                    style = {"color": colour_of(number), "linestyle": dashes_of(number), "marker": marker_of(number)}
                    axes.errorbar(
                        [row[1] for row in rows], [cell.mean for cell in cells],
                        yerr=[cell.half_width or 0.0 for cell in cells], capsize=2.5, markersize=5, label=name, **style,
                    )  # fmt: skip
            axes.set_xlabel(xlabel)
            axes.set_ylabel(f"{table.columns[index].heading}, {table.columns[index].detail}")
            if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
                axes.set_xscale("log")
                axes.minorticks_off()
            ticks = sorted(set(numbers))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            grid(axes, "both")
        legend_above(figure, panels[0])

    return Drawing(draw, 4.6 * wide, 3.2 * -(-len(shown) // wide))


def _curve(axes, run: Run, name: str, number: int, *, label: str | None) -> None:
    """One line per task: a line across a boundary would join scores of different tasks."""
    by_task: dict[str, list[tuple[int, float]]] = {}
    for record in run.metrics:
        value = _finite(record.get(name))
        if value is not None:
            by_task.setdefault(str(record.get("task", "")), []).append((record["step"], value))
    marker = "o" if name.startswith("valid") else None
    for points in by_task.values():
        style = {"color": colour_of(number), "linestyle": dashes_of(number), "marker": marker, "markersize": 3.5}
        axes.plot(*zip(*points, strict=True), linewidth=1.3, label=label, **style)
        label = None


def _spans(run: Run) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    for record in run.metrics:
        if "task" in record:
            first, last = spans.get(record["task"], (record["step"], record["step"]))
            spans[record["task"]] = (min(first, record["step"]), max(last, record["step"]))
    return spans


def _boundaries(groups: Sequence[Group]) -> list[tuple[float, str]]:
    """(step, the task that begins there), where all runs agree on it; runs of different lengths have no common one."""
    runs = [run for group in groups for run in group.runs if run.metrics]
    tasks = list(runs[0].scores.tasks) if runs else []
    all_spans = [_spans(run) for run in runs]
    if any(task not in spans for task in tasks for spans in all_spans):
        return []
    found = []
    for before, after in zip(tasks, tasks[1:], strict=False):
        last, first = max(spans[before][1] for spans in all_spans), min(spans[after][0] for spans in all_spans)
        if last >= first:
            return []
        found.append((float(last), after))
    return found


def _starts(groups: Sequence[Group]) -> list[tuple[float, str]]:
    boundaries = _boundaries(groups)
    if not boundaries:
        return []
    tasks = groups[0].runs[0].scores.tasks
    return list(zip([0.0, *(step for step, _ in boundaries)], short_names(tasks), strict=True))


def _finite(value: object) -> float | None:
    """Numbers that JSON lacks are null in metrics.jsonl, once strings; a curve has no place for them."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mean(cell: object) -> float | None:
    return cell.mean if isinstance(cell, Estimate) else cell

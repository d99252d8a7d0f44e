"""The figures of a prompt pool: where keys and queries lie, who uses which key, what is found again.

Each function takes one run and gives (drawing, table), or None where the run's diagnostics lack what it draws.
J tasks, M keys; diagnostics hold one value per stage, the first being that after task 1.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Rectangle

from codegen2_jax.reporting.drawing import (
    EMPTY,
    LINE,
    MARKERS,
    MUTED,
    SHADE,
    Drawing,
    colour_of,
    grid,
    heat_map,
    legend_above,
    marker_of,
    shaded,
)
from codegen2_jax.reporting.finished_runs import Group, Run, by_stream, short_names
from codegen2_jax.reporting.tables import Column, Estimate, Table, estimate

Found = tuple[Drawing, Table]

KEY_MARKER = "D"
MOST_TASKS = 12  # beyond, lines and numbers in cells are too many to read
QUERY_MARKERS = tuple(marker for marker in MARKERS if marker != KEY_MARKER)


def plane(run: Run) -> Found | None:
    """Queries and keys on the two principal axes of the queries, a panel per stage."""
    keys, queries, assignment = (run.diagnostic(name) for name in ("key_plane", "query_plane", "assignment"))
    if keys is None or queries is None or queries[0] is None:
        return None
    tasks = short_names(run.tasks)
    query_B2, task_B = np.array(queries[0]["points"], np.float64), np.array(queries[0]["task"], int)
    stages = [number for number, points in enumerate(keys) if points is not None]
    owners = {stage: _owners(assignment, stage, len(keys[stage])) for stage in stages}
    rows = [
        ["query", "all", tasks[task], *map(float, point)] for task, point in zip(task_B, query_B2, strict=True)
    ]  # fmt: skip
    for stage in stages:
        for number, (point, owner) in enumerate(zip(keys[stage], owners[stage], strict=True)):
            whose = EMPTY if owner is None else ("shared" if owner < 0 else tasks[owner])
            rows.append([f"key {number}", f"after {stage + 1} {tasks[stage]}", whose, *map(float, point)])
    columns = [Column("point"), Column("stage"), Column("task"), *(Column(f"axis {n}", digits=3) for n in (1, 2))]
    explained = [100 * float(share) for share in queries[0]["explained"]]

    def draw(figure):
        width = min(2, len(stages))
        panels = figure.subplots(math.ceil(len(stages) / width), width, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(stages) :]:
            axes.set_visible(False)
        for axes, stage in zip(panels.flat, stages, strict=False):
            for task in range(len(tasks)):
                mine = task_B == task
                axes.plot(
                    *query_B2[mine].T, QUERY_MARKERS[task % len(QUERY_MARKERS)], markersize=3.2, markeredgewidth=0,
                    alpha=0.6, color=colour_of(task), linestyle="none",
                )  # fmt: skip
            key_M2 = np.array(keys[stage], np.float64)
            # Large, so that keys that share a place with queries are seen; hollow while their task has not begun.
            for owner in (*range(len(tasks)), -1, None):
                chosen = np.array([found == owner for found in owners[stage]])
                if chosen.any():
                    colour = colour_of(owner) if owner is not None and owner >= 0 else MUTED
                    hollow = owner is not None and owner > stage
                    face = "none" if hollow else colour
                    axes.plot(
                        *key_M2[chosen].T, KEY_MARKER, markersize=5, markerfacecolor=face, markeredgecolor=colour,
                        markeredgewidth=0.8, alpha=0.9,
                    )  # fmt: skip
            axes.set_title(f"after {stage + 1} {tasks[stage]}")
            axes.grid(visible=True)
            axes.tick_params(length=0)
        for axes in panels[-1]:
            axes.set_xlabel(f"axis 1 ({explained[0]:.0f} % of the queries' variance)")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"axis 2 ({explained[1]:.0f} %)")
        for task, name in enumerate(tasks):  # for the legend: the points themselves are small and pale
            marker = QUERY_MARKERS[task % len(QUERY_MARKERS)]
            style = {"marker": marker, "markersize": 5, "linestyle": "none", "color": colour_of(task)}
            panels[0, 0].plot([], [], label=f"queries of {name}", **style)
        panels[0, 0].plot([], [], KEY_MARKER, markersize=5, color=MUTED, label="keys")
        legend_above(figure, panels[0, 0], columns=5)

    return Drawing(draw, 9.0, 0.6 + 3.1 * math.ceil(len(stages) / 2)), Table(columns, rows)


def usage(run: Run) -> Found | None:
    """Which share of a task's selections falls on each key, a panel per stage; owned keys are underlined."""
    counts, assignment = run.diagnostic("key_usage"), run.diagnostic("assignment")
    if counts is None:
        return None
    tasks = short_names(run.tasks)
    stages = [number for number, usage_JM in enumerate(counts) if usage_JM is not None]
    if len(tasks) > MOST_TASKS:
        return _usage_at_the_end(counts[stages[-1]], _at(assignment, stages[-1]), tasks)
    num_keys = len(counts[stages[0]][0])
    shares, rows = {}, []
    for stage in stages:
        usage_JM = np.array(counts[stage], np.float64)
        shares[stage] = usage_JM / np.maximum(usage_JM.sum(axis=1, keepdims=True), 1.0)
        for task, name in enumerate(tasks):
            rows.append(
                [f"after {stage + 1} {tasks[stage]}", name, "share of selections", *map(float, shares[stage][task])]
            )
            if assignment is not None and assignment[stage] is not None:
                rows.append([f"after {stage + 1} {tasks[stage]}", name, "owned", *map(int, assignment[stage][task])])
    columns = [Column("stage"), Column("task"), Column("figure")]
    columns += [Column(str(number), "", f"key {number}", digits=3) for number in range(num_keys)]
    largest = max(float(share_JM.max()) for share_JM in shares.values()) or 1.0

    def draw(figure):
        panels = figure.subplots(len(stages), 1, sharex=True, squeeze=False)[:, 0]
        for axes, stage in zip(panels, stages, strict=True):
            for task in range(len(tasks)):
                for key in np.flatnonzero(shares[stage][task]):
                    alpha = min(0.08 + 0.92 * shares[stage][task, key] / largest, 1.0)
                    axes.add_patch(Rectangle((key - 0.5, task - 0.45), 1, 0.8, color=SHADE, alpha=alpha, linewidth=0))
                if assignment is not None and assignment[stage] is not None:
                    for first, last in _stretches(np.array(assignment[stage][task]) > 0):
                        axes.plot([first - 0.5, last + 0.5], [task + 0.42] * 2, color=colour_of(1), linewidth=1.6)
            axes.set_xlim(-0.5, num_keys - 0.5)
            axes.set_ylim(len(tasks) - 0.4, -0.6)
            axes.set_yticks(range(len(tasks)), tasks)
            axes.tick_params(length=0)
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.set_title(f"after {stage + 1} {tasks[stage]}")
        panels[-1].set_xlabel("key")

    return Drawing(draw, 9.0, 0.4 + (0.5 + 0.22 * len(tasks)) * len(stages)), Table(columns, rows)


def _usage_at_the_end(usage: list, assignment: list | None, tasks: list[str]) -> Found:
    """After the last stage alone, as one picture; the table holds the keys that a task selected or owns."""
    usage_JM = np.array(usage, np.float64)
    share_JM = usage_JM / np.maximum(usage_JM.sum(axis=1, keepdims=True), 1.0)
    owned_JM = np.zeros(share_JM.shape, bool) if assignment is None else np.array(assignment) > 0
    rows = [
        [tasks[task], int(key), float(share_JM[task, key]), int(owned_JM[task, key])]
        for task, key in np.argwhere((share_JM > 0) | owned_JM)
    ]
    columns = [Column("task"), Column("key"), Column("share of selections", digits=3), Column("owned")]

    def draw(figure):
        axes = figure.add_subplot()
        keys = [str(key) for key in range(share_JM.shape[1])]
        shaded(axes, share_JM / (share_JM.max() or 1.0), rows=list(tasks), columns=keys)
        for task, owned_M in enumerate(owned_JM):
            for first, last in _stretches(owned_M):
                axes.plot([first - 0.5, last + 0.5], [task + 0.42] * 2, color=colour_of(1), linewidth=1.0)
        axes.set_xlabel("key")
        axes.set_title(f"after {len(tasks)} {tasks[-1]}")

    return Drawing(draw, 9.0, min(0.8 + 0.09 * len(tasks), 9.0)), Table(columns, rows)


def recall_by_task(groups: Sequence[Group]) -> Found | None:
    """Own-key recall of each task after the last stage, over seeds, and what is left of it by shared keys.

    A line per group; tasks stand in the order in which each run learned them.
    """
    shown = [group for group in groups if all(run.diagnostic("own_key_recall") for run in group.runs)]
    if not shown:
        return None
    columns = [Column("study"), Column("tasks"), Column("task number"), Column("own_key_recall", "test", digits=3)]
    rows, lines = [], {}
    for group in shown:
        ends = {
            name: [_estimate(values) for values in zip(*(run.diagnostic(name)[-1] for run in group.runs), strict=True)]
            for name in ("own_key_recall", "own_key_limit")
            if all(run.diagnostic(name) for run in group.runs)
        }
        limits = ends.get("own_key_limit") or [None] * len(group.tasks)
        named = len(shown) > len({other.name for other in shown}) or len(by_stream(shown)) > 1
        lines[f"{group.name}, {len(group.tasks)} tasks" if named else group.name] = (ends["own_key_recall"], limits)
        for number, (found, limit) in enumerate(zip(ends["own_key_recall"], limits, strict=True), start=1):
            rows.append([group.name, len(group.tasks), number, found, limit and limit.mean])
    columns.append(Column("own_key_limit", digits=3))

    def draw(figure):
        axes = figure.add_subplot()
        for number, (name, (found, limits)) in enumerate(lines.items()):
            for cells, style in (
                (found, {"linewidth": 1.2, "marker": marker_of(number), "markersize": 4, "label": name}),
                (limits, {"linestyle": ":", "linewidth": 1.2}),
            ):
                points = [(task, cell) for task, cell in enumerate(cells, start=1) if cell is not None]
                if points:
                    half = [cell.half_width or 0.0 for _, cell in points]
                    axes.errorbar(
                        [task for task, _ in points], [cell.mean for _, cell in points],
                        yerr=half if any(half) else None, capsize=2, color=colour_of(number), **style,
                    )  # fmt: skip
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("task, in the order of learning")
        axes.set_ylabel("own-key recall, test")
        axes.xaxis.get_major_locator().set_params(integer=True)
        grid(axes)
        legend_above(figure, axes, columns=2)

    return Drawing(draw, 9.0, 3.4), Table(columns, rows)


def recall(run: Run) -> Found | None:
    """Own-key recall of each task after each stage, and what is left when later owners take the shared keys."""
    values, limits = run.diagnostic("own_key_recall"), run.diagnostic("own_key_limit")
    if values is None:
        return None
    names, tasks = run.tasks, short_names(run.tasks)
    columns = [Column("stage"), Column("figure")]
    columns += [Column(short, "", name) for short, name in zip(tasks, names, strict=True)]
    rows, recall_SJ = [], np.full((len(tasks), len(tasks)), np.nan)
    limit_SJ = recall_SJ.copy()
    for stage, row in enumerate(values):
        for name, source, target_SJ in (("own_key_recall", row, recall_SJ), ("limit", _at(limits, stage), limit_SJ)):
            if source is not None:
                cells = [_finite(value) for value in source] + [None] * (len(tasks) - len(source))
                target_SJ[stage] = [math.nan if cell is None else cell for cell in cells]
                rows.append([f"after {stage + 1} {tasks[stage]}", name, *cells])
    has_limit = bool((limit_SJ < 1.0).any())
    if len(tasks) > MOST_TASKS:

        def draw_all(figure):
            axes = figure.add_subplot()
            numbers = [str(number) for number in range(1, len(tasks) + 1)]
            shaded(axes, recall_SJ, rows=numbers, columns=numbers)
            axes.set_xlabel("task, the stronger the more of its keys are found")
            axes.set_ylabel("after stage")

        return Drawing(draw_all, 5.4, 4.2), Table(columns, rows)

    def draw(figure):
        axes = figure.add_subplot()
        stage_S = np.arange(1, len(tasks) + 1)
        for task, name in enumerate(tasks):
            style = {"color": colour_of(task), "marker": marker_of(task), "markersize": 6}
            axes.plot(stage_S, recall_SJ[:, task], label=name, **style)
            if has_limit:
                axes.plot(stage_S, limit_SJ[:, task], color=colour_of(task), linestyle=":", linewidth=1.2)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlim(0.8, len(tasks) + 0.2)
        axes.set_xticks(stage_S, [f"{number} {name}" for number, name in zip(stage_S, tasks, strict=True)])
        axes.set_xlabel("after stage")
        axes.set_ylabel("own-key recall, test")
        grid(axes)
        legend_above(figure, axes)

    return Drawing(draw, 5.4, 3.3), Table(columns, rows)


def separation(run: Run) -> Found | None:
    """Mean cosine of pairs of queries, within and between tasks."""
    cosines = run.diagnostic("query_cosine")
    if cosines is None:
        return None
    names, tasks = run.tasks, short_names(run.tasks)
    cosine_JJ = [[_finite(value) for value in row] for row in cosines[-1]]
    columns = [Column("task"), *(Column(short, "", name, digits=3) for short, name in zip(tasks, names, strict=True))]
    cells = [[(math.nan, EMPTY) if v is None else (v, f"{v:.2f}") for v in row] for row in cosine_JJ]

    def draw_all(figure):
        axes = figure.add_subplot()
        number_JJ = np.array(cosine_JJ, np.float64)
        largest = max(float(np.nanmax(number_JJ)), 1e-6)
        shaded(axes, number_JJ / largest, rows=list(tasks), columns=list(tasks))
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_xlabel(f"the strongest shade is a cosine of {largest:.2f}")

    def draw(figure):
        axes = figure.add_subplot()
        heat_map(axes, cells, rows=list(tasks), columns=list(tasks))
        axes.add_patch(Rectangle((-0.5, -0.5), len(tasks), len(tasks), facecolor="none", edgecolor=LINE, linewidth=0.8))

    table = Table(columns, [[name, *row] for name, row in zip(tasks, cosine_JJ, strict=True)])
    if len(tasks) > MOST_TASKS:
        return Drawing(draw_all, 5.4, 4.6), table
    return Drawing(draw, max(3.6, 1.2 + 0.85 * len(tasks)), 0.5 + 0.4 * len(tasks)), table


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    return None if None in values else estimate(values)


def _owners(assignment: list | None, stage: int, num_keys: int) -> list[int | None]:
    """The task that owns each key; -1 for several, None for none or unknown."""
    if _at(assignment, stage) is None:
        return [None] * num_keys
    owned_MJ = np.array(assignment[stage], np.float64).T > 0
    return [int(row.argmax()) if row.sum() == 1 else (-1 if row.any() else None) for row in owned_MJ]


def _stretches(chosen_M: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen_M, [False]]).astype(int)))
    return [(int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _at(values: list | None, stage: int) -> list | None:
    return None if values is None or stage >= len(values) else values[stage]


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

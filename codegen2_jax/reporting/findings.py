"""The few sentences at the head of a report: what the numbers say by themselves."""

from collections.abc import Sequence

import numpy as np

from codegen2_jax.reporting import tables
from codegen2_jax.reporting.finished_runs import TITLES, Group, baseline, scored_split, short_names
from codegen2_jax.reporting.tables import Estimate


def main_findings(groups: Sequence[Group]) -> list[str]:
    """Who scores highest, whether that is above trivial outputs, and what is lost; no sentence without its numbers."""
    return [*_best(groups), *_not_above_trivial(groups), *_lost(groups)]


def _best(groups: Sequence[Group]) -> list[str]:
    shown = [group for group in groups if not group.is_individual] or groups  # individual finetuning is a ceiling
    split = scored_split(groups)
    averages = {group.name: tables.final_average(group, split) for group in shown}
    known = {name: value for name, value in averages.items() if value is not None}
    if not known:
        return []
    best = max(known, key=lambda name: known[name].mean)
    among = " of one model for all tasks" if len(shown) < len(groups) else ""
    metric = groups[0].metric
    found = [f"Highest average {split} {TITLES[metric]}{among}: {best} with {_text(known[best])}."]
    copied = baseline(groups[0].runs[0], "copy", split, metric)
    if copied is not None and np.isfinite(copied).all():
        floor = float(copied.mean())
        above = [name for name, value in known.items() if value.mean > floor]
        which = f"above it: {', '.join(above)}" if above else "no method is above it"
        found.append(f"Copying the input to the output averages {floor:.2f}; {which}.")
    return found


def _not_above_trivial(groups: Sequence[Group]) -> list[str]:
    run, split = groups[0].runs[0], scored_split(groups)
    rows = [baseline(run, name, split, run.metric) for name in ("copy", "constant")]
    trivial = [row for row in rows if row is not None]
    if not trivial:
        return []
    best_J = np.max([one.final(split, run.metric, run.tasks) for group in groups for one in group.runs], axis=0)
    names = short_names(run.scores.tasks)
    below = [name for name, is_below in zip(names, best_J <= np.max(trivial, axis=0), strict=True) if is_below]
    if not below:
        return []
    return [f"No run beats both trivial outputs (copying the input, one constant) on {', '.join(below)}."]


def _lost(groups: Sequence[Group]) -> list[str]:
    lost = {row[0]: row[-1] for row in tables.forget_by_task(groups).rows if row[-1] is not None}
    if not lost:
        return []
    ordered = sorted(lost, key=lambda name: lost[name].mean)
    each = ", ".join(f"{name} {_text(lost[name])}" for name in ordered)
    return [f"forget_paper_{groups[0].metric} on valid, least first: {each}."]


def _text(value: Estimate) -> str:
    half = "" if value.half_width is None else f" \N{PLUS-MINUS SIGN} {value.half_width:.2f}"
    return f"{value.mean:.2f}{half}"

"""Runs held against the individual and multitask runs among them: intransigence and copy-normalised scores."""

from collections.abc import Sequence
from typing import Any

from codegen2_jax.continual import ceilings
from codegen2_jax.continual.scores import Scores
from codegen2_jax.reporting.tables import Column, Table

FIGURES = ("intransigence", "copy_normalised")


def table(names: Sequence[str], records: Sequence[dict[str, Any]]) -> tuple[Table, str] | None:
    """(table, caption) of the runs called `names` against every ceiling among them; None where there is nothing to say.

    records: the contents of each scores.json. A run is held against the ceilings that scored the same examples alike.
    """
    summaries = [(name, _summary(record, records)) for name, record in zip(names, records, strict=True)]
    shown = [(name, found) for name, found in summaries if found]
    keys = list(dict.fromkeys(key for _, found in shown for key in found if not key[1].startswith("no_headroom")))
    if not keys:
        return None
    columns = [Column("run"), *(Column(name, split, f"{name} ({split})") for split, name in keys)]
    flat = dict.fromkeys(
        f"{name.removeprefix('no_headroom_')} ({split}): {', '.join(tasks)}"
        for _, found in shown
        for (split, name), tasks in found.items()
        if name.startswith("no_headroom")
    )
    caption = (
        "intransigence: mean over tasks of the ceiling's score minus the score just after learning the task. "
        "copy_normalised: 0 is copying the input, 1 the ceiling, at the end; mean over tasks."
    )
    if flat:
        caption += f" Left out of it, the ceiling being less than a point above copying: {'; '.join(flat)}."
    return Table(columns, [[name, *(found.get(key) for key in keys)] for name, found in shown]), caption


def _summary(record: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """{(split, figure): value} of one run; nothing for a run that is an individual ceiling itself."""
    if record.get("walk") == "individual":
        return {}
    scores = Scores.from_dict(record)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for other in records:
        name = ceilings.name_of(other)
        if name is not None and other is not record and ceilings.difference(record, other) is None:
            by_name.setdefault(name, []).append(other)
    for name, found in by_name.items():
        for split, metrics in ceilings.rows_of(found).items():
            for metric, row in metrics.items():
                scores.record_baseline(name, split, metric, row)
    return {
        (split, name): value
        for split, figures in scores.summary().items()
        for name, value in figures.items()
        if name.startswith((*FIGURES, "no_headroom")) and "_per_task_" not in name
    }

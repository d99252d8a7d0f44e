"""The sections of what was varied: curves of the score over the buffer's size, and over the number of tasks."""

from collections.abc import Sequence

from codegen2_jax.reporting import figures, paper_table, series
from codegen2_jax.reporting.exhibits import Exhibit, Section
from codegen2_jax.reporting.finished_runs import TITLES, Group


def buffers(groups: Sequence[Group]) -> Section:
    found, parts = series.by_buffer(groups), []
    if found:
        table = series.table(found, "buffer examples")
        exhibit = Exhibit(
            name="score_against_buffer",
            title=f"{_figures(groups[0].metric)} against buffer size",
            caption="Examples kept of all tasks together; everything else is the same along a line. Bars are 95 % "
            "intervals over seeds, where there are several.",
            table=table,
            drawing=figures.against_number(table, xlabel="examples in the replay buffer"),
            alt=f"Curves of {_figures(groups[0].metric)} over the size of the buffer, a line per method.",
        )
        parts = [exhibit]
        if paper_table.belongs(groups):
            caption = "CodeT5-small with replay between epochs, single runs, one order of tasks."
            title, paper = "The paper's numbers by buffer size (its Table 3)", paper_table.buffer_table()
            parts += [
                paper_table.verdict([group for one in found for _, group in one.points]),
                Exhibit(name="paper_table_3", title=title, caption=caption, table=paper),
            ]
    return Section(name="buffers", title="Score against buffer size", parts=parts)


def lengths(groups: Sequence[Group]) -> Section:
    """An exhibit per metric: streams of one word are read by exact match, of text by BLEU; none without a curve."""
    parts: list = []
    for metric in dict.fromkeys(group.metric for group in groups):
        found = series.by_tasks([group for group in groups if group.metric == metric])
        if not found:
            continue
        table = series.table(found, "tasks")
        parts.append(
            Exhibit(
                name="score_against_tasks" if not parts else f"score_against_tasks_{metric}",
                title=f"{_figures(metric)} against the number of tasks",
                caption="Averages are over the tasks of each stream, so they speak of different tasks; everything else "
                "is the same along a line. Bars are 95 % intervals over seeds, where there are several.",
                table=table,
                drawing=figures.against_number(table, xlabel="tasks in the stream"),
                alt=f"Curves of {_figures(metric)} over the number of tasks, a line per method.",
            )
        )
    return Section(name="lengths", title="Score against number of tasks", parts=parts)


def _figures(metric: str) -> str:
    return f"Average {TITLES[metric]} and forget_paper_{metric}"

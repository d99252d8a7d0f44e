"""What a report says, in order: sections with their words, figures and tables. No HTML here, see `html_page`."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from codegen2_jax.reporting import ceilings, figures, paper_table, series, series_sections, settings, tables
from codegen2_jax.reporting.exhibits import Exhibit, Report, Section
from codegen2_jax.reporting.findings import main_findings
from codegen2_jax.reporting.finished_runs import (
    SPLITS,
    TITLES,
    Group,
    Run,
    by_stream,
    ceiling,
    scored_split,
    short_names,
    slug,
)
from codegen2_jax.reporting.pool_sections import pools
from codegen2_jax.reporting.tables import Column, Table


def make_report(groups: Sequence[Group]) -> Report:
    """The page of continual runs."""
    runs, streams = [run for group in groups for run in group.runs], by_stream(groups)
    tasks = streams[0][0].tasks
    lengths = sorted({len(alike[0].tasks) for alike in streams})
    count = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else len(tasks)
    findings = [main_findings(alike) for alike in streams]
    if len(streams) > 1:
        names = map(_stream_name, streams)
        findings = [[f"{name}: {text}" for text in found] for name, found in zip(names, findings, strict=True)]
    models = sorted({str(run.record.get("init_from", "not stored")) for run in runs})
    decodings = sorted({str(run.record.get("decoding", "not stored")) for run in runs})
    examples = runs[0].record.get("eval_examples")
    return Report(
        title=f"Learning {count} tasks one after another" if len(tasks) > 1 else f"Learning {tasks[0]}",
        names=[group.name for group in groups],
        lead="Continual learning of code language models: what each method knows after the last task, what it lost on "
        "the way, and what it cost.",
        facts={
            "Tasks, in order": "; ".join(" \N{RIGHTWARDS ARROW} ".join(alike[0].tasks) for alike in streams),
            "Methods": ", ".join(dict.fromkeys(group.name for group in groups)),
            "Runs": str(len(runs)),
            "Initial weights": ", ".join(models),
            "Decoding": ", ".join(decodings),
            "Scored of each split": "all examples" if examples is None else f"{examples} examples",
        },
        findings=[text for found in findings for text in found],
        sections=make_sections(groups),
    )


def make_sections(groups: Sequence[Group]) -> list[Section]:
    """All sections; the paper's table only where the runs learned its stream, curves only where something varies.

    Where the runs learned different tasks, each set of tasks has its own tables and figures.
    """
    runs, streams = [run for group in groups for run in group.runs], by_stream(groups)
    paper = [_paper(alike) for alike in streams if paper_table.belongs(alike)]
    buffers = [_each(series_sections.buffers, streams)] if any(map(series.by_buffer, streams)) else []
    lengths = [section for section in [series_sections.lengths(groups)] if section.parts]
    parts = [_each(build, streams) for build in (_matrices, _forget, _curves, _cost)]
    return [_each(_methods, streams), *paper, *_ceilings(runs), *buffers, *lengths, *parts, pools(runs), _runs(groups)]


def _each(build: Callable[[Sequence[Group]], Section], streams: Sequence[Sequence[Group]]) -> Section:
    """The section of every set of tasks, as one section."""
    sections = [build(alike) for alike in streams]
    if len(sections) == 1:
        return sections[0]
    parts: list = []
    for number, (alike, section) in enumerate(zip(streams, sections, strict=True), start=1):
        if section.parts:
            parts.append(f"# {_stream_name(alike)}")
        for part in section.parts:
            is_exhibit = isinstance(part, Exhibit)
            parts.append(dataclasses.replace(part, name=f"stream{number}_{part.name}") if is_exhibit else part)
    return dataclasses.replace(sections[0], parts=parts)


def _stream_name(groups: Sequence[Group]) -> str:
    tasks = groups[0].tasks
    return f"{len(tasks)} task{'s' * (len(tasks) > 1)} ({', '.join(short_names(tasks))})"


def _methods(groups: Sequence[Group]) -> Section:
    first, split = groups[0].runs[0], scored_split(groups)
    table, metric, title = tables.methods(groups), first.metric, TITLES[first.metric]
    words = [
        "Scores after the last task. Read every row against copy (the input given back as the output) and constant "
        "(the most frequent target of each task): a method that is not above them has learned nothing that "
        f"{TITLES[first.metric]} shows.",
    ]
    if any(len(group.runs) > 1 for group in groups):
        orders = len({run.tasks for group in groups for run in group.runs})
        several = "Several seeds" if orders == 1 else f"Several seeds and {orders} orders of the tasks"
        words.append(f"{several}: the mean, and after \N{PLUS-MINUS SIGN} half the 95 % interval by Student's t.")
    notes = [
        f"{title[:1].upper()}{title[1:]}: {tables.scorers_text(first, metric)}.",
        f"forget_paper_{metric}: mean over all but the last task of its best valid score from the stage that learned "
        "it to the last but one, minus its final score; below 0, tasks ended better than ever before.",
    ]
    removed = [name for name, task in zip(short_names(first.scores.tasks), first.scores.tasks, strict=True)
               if task in first.scores.leave_out]  # fmt: skip
    if removed:
        notes.append(f"A second average leaves out {', '.join(removed)}, where {title} says little beside copying.")
    top = ceiling(groups, split, metric)
    if top is None:
        notes.append(
            f"copy_normalised_{metric} needs the scores of individual finetuning as its ceiling: give such a run too."
        )
    else:
        flat = tables.without_headroom(first, top, split)
        notes.append(
            f"copy_normalised_{metric}: 0 is copying, 1 is individual finetuning, mean over tasks"
            + (f"; without headroom, and so left out: {', '.join(flat)}." if flat else ".")
        )
    exhibit = Exhibit(name="methods", title="Scores after the last task", caption=" ".join(notes), table=table)
    return Section(name="methods", title="Methods", parts=[*words, exhibit])


def _ceilings(runs: Sequence[Run]) -> list[Section]:
    """One section where an individual or a multitask run is among the runs, else none."""
    found = ceilings.table([run.name for run in runs], [run.record for run in runs])
    if found is None:
        return []
    title = "Against the ceilings"
    exhibit = Exhibit(name="ceilings", title=title, caption=found[1], table=found[0])
    return [Section(name="ceilings", title=title, parts=[exhibit])]


def _paper(groups: Sequence[Group]) -> Section:
    exhibit = Exhibit(
        name="paper_table_1",
        title="Numbers of the paper",
        caption="CodeT5-small, single runs, one order of tasks; rows with replay hold 5,000 examples. The columns "
        "named derived are computed from the others, with copy 0.02 / 18.72 / 2.00 on the first three tasks.",
        table=paper_table.table(),
    )
    link = ("Table 1 of arXiv 2307.02435, Exploring Continual Learning for Code Generation Models", paper_table.SOURCE)
    return Section(name="paper", title="The paper's Table 1", parts=[paper_table.verdict(groups), link, exhibit])


def _matrices(groups: Sequence[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    parts: list = [
        "Rows are stages, from before training to after the last task; columns are tasks. Shades are relative to the "
        f"largest value of a column, at least {figures.LEAST_SCALE:g} points; \N{EN DASH} marks a cell that was not "
        "measured. The row before training is decoded without a prompt."
    ]
    for run in runs:
        parts.append(f"# {run.name}")
        for metric, title in TITLES.items():
            for split in SPLITS:
                if metric not in run.scores.splits.get(split, {}):
                    continue
                table = tables.matrix(run, groups, split=split, metric=metric)
                parts.append(
                    Exhibit(
                        name=f"{slug(run, runs)}_{split}_{metric}",
                        title=f"{title}, {split}",
                        caption=f"{run.name}; {tables.scorers_text(run, metric)}.",
                        table=table,
                        drawing=figures.matrix(table),
                        alt=f"Heat map of {title} on the {split} split for {run.name}: stages by tasks.",
                    )
                )
    return Section(name="stages", title="Scores by stage", parts=parts)


def _forget(groups: Sequence[Group]) -> Section:
    table = tables.forget_by_task(groups)
    drawing = figures.forget_bars(table)
    title = "What is lost of each task"
    if drawing is None:
        reason = "Left out: it takes two tasks and a method that learns them in sequence."
        return Section(name="lost", title=title, parts=[reason])
    metric = groups[0].metric
    scorers = tables.scorers_text(groups[0].runs[0], metric)
    exhibit = Exhibit(
        name=f"forget_paper_{metric}_valid",
        title=f"forget_paper_{metric} by task, valid",
        caption=f"Best score from the stage that learned the task to the last but one, minus the final score, on valid "
        f"({scorers}). The last task has none; the mean is forget_paper_{metric}.",
        table=table,
        drawing=drawing,
        alt=f"Bars of forget_paper_{metric} on the valid split, by task and method.",
    )
    return Section(name="lost", title=title, parts=[exhibit])


def _curves(groups: Sequence[Group]) -> Section:
    drawing, table = figures.curves(groups)
    parts: list = []
    without = [run.name for group in groups for run in group.runs if not run.metrics]
    if without:
        parts.append(f"No metrics.jsonl beside the scores of {'; '.join(without)}: no curves of them.")
    if drawing is not None:
        parts.append(
            Exhibit(
                name="learning_curves",
                title="Loss and validation scores while training",
                caption="From metrics.jsonl. Validation is that of the task being learned, decoded greedily unless the "
                "configuration says otherwise; vertical lines are where the next task begins.",
                table=table,
                drawing=drawing,
                alt="Curves of training and validation loss and of the validation score, a line per run and task.",
            )
        )
    return Section(name="curves", title="Learning curves", parts=parts)


def _cost(groups: Sequence[Group]) -> Section:
    table = tables.cost_against_score(groups)
    drawing, title = figures.cost(table), TITLES[groups[0].metric]
    exhibit = Exhibit(
        name="score_against_cost",
        title=f"Average {scored_split(groups)} {title} against cost",
        caption="Wall time is the whole run's, scoring included, on whatever machine it had; the dashed line is copy.",
        table=table,
        drawing=drawing,
        alt=f"Two scatter plots: average {title} against wall minutes and against trained parameters.",
    )
    return Section(name="cost", title="Score against cost", parts=[exhibit])


def _runs(groups: Sequence[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    names = {
        "seed": "seed",
        "walk": "walk",
        "init_from": "initial weights",
        "decoding": "decoding",
        "eval_examples": "examples scored of a split",
        "future_data_in_init": "later tasks' data in the initial pool",
        "task_id_in_query": "task in the query",
    }
    columns = [Column("run"), Column("directory"), *map(Column, names.values()), Column("config digest")]
    rows = []
    for run in runs:
        values = [run.record.get(name) for name in names]
        if values[4] is None:
            values[4] = "all"
        shown = [("yes" if value else "no") if isinstance(value, bool) else value for value in values]
        digest = str(run.record.get("config_digest", ""))[:12]
        rows.append([run.label or run.method, run.directory.resolve().name, *shown, digest])
    versions = sorted({_versions(run) for run in runs} - {""})
    data = dict.fromkeys(str(run.record.get("data_digest", "not stored"))[:12] for run in runs)
    same = ", the same for all runs" if len(data) == 1 else " of the streams and orders"
    words = [f"Data digest {', '.join(data)}{same}."]
    words += [f"Versions: {text}." for text in versions]
    caption = "As scores.json has it."
    return Section(
        name="runs",
        title="Runs",
        parts=[
            *words,
            Exhibit(name="runs", title="Where the numbers come from", caption=caption, table=Table(columns, rows)),
            *_settings(groups),
        ],
    )


def _settings(groups: Sequence[Group]) -> list[Exhibit]:
    """All differences between the groups of a method, where a method has several on one stream."""
    exhibits = []
    for alike in settings.gathered(groups, lambda group: [group.method, sorted(group.tasks)]):
        found = settings.differences([group.settings for group in alike])
        if found:
            columns = zip(*found.values(), strict=True)
            rows = [[group.name, *map(settings.short, row)] for group, row in zip(alike, columns, strict=True)]
            name = re.sub(r"[^a-z0-9]+", "_", f"settings_{alike[0].method}_{len(exhibits) + 1}".lower())
            table = Table([Column("run"), *map(Column, found)], rows)
            title = f"In what the runs of {alike[0].method} differ"
            caption = "As scores.json and config.gin have it; seeds and orders of tasks apart."
            exhibits.append(Exhibit(name=name, title=title, caption=caption, table=table))
    return exhibits


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.record.get("versions", {}).items())

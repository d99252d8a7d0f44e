"""What a report says, in order: sections with their words, figures and tables. No HTML here, see `report_page`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from codegen2_jax.reporting import ceilings, figures, paper_table, pool_figures, tables
from codegen2_jax.reporting.drawing import Drawing
from codegen2_jax.reporting.findings import main_findings
from codegen2_jax.reporting.finished_runs import SPLITS, Group, Run, ceiling, short_names
from codegen2_jax.reporting.tables import Column, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A figure with its numbers, or a table that stands alone (`drawing` None). `name` is also its file's."""

    name: str
    title: str
    caption: str
    table: Table
    drawing: Drawing | None = None
    alt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """`parts`: paragraphs (str), links (text, address), headings ("#" first) and exhibits, in order."""

    name: str
    title: str
    parts: Sequence[str | tuple[str, str] | Exhibit]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page: names are those of what it compares, facts stand under its title, findings before its sections.

    source: the files that it was drawn from.
    """

    title: str
    names: Sequence[str]
    lead: str
    facts: Mapping[str, str]
    findings: Sequence[str]
    sections: Sequence[Section]
    source: str = "scores.json and metrics.jsonl"


def make_report(runs: Sequence[Run], groups: Sequence[Group]) -> Report:
    """The page of continual runs."""
    tasks = runs[0].scores.tasks
    models = sorted({str(run.record.get("init_from", "not stored")) for run in runs})
    decodings = sorted({str(run.record.get("decoding", "not stored")) for run in runs})
    examples = runs[0].record.get("eval_examples")
    return Report(
        title=f"Learning {len(tasks)} tasks one after another" if len(tasks) > 1 else f"Learning {tasks[0]}",
        names=[group.name for group in groups],
        lead="Continual learning of code language models: what each method knows after the last task, what it lost on "
        "the way, and what it cost.",
        facts={
            "Tasks, in order": " \N{RIGHTWARDS ARROW} ".join(tasks),
            "Methods": ", ".join(group.name for group in groups),
            "Runs": str(len(runs)),
            "Initial weights": ", ".join(models),
            "Decoding": ", ".join(decodings),
            "Scored of each split": "all examples" if examples is None else f"{examples} examples",
        },
        findings=main_findings(groups),
        sections=make_sections(runs, groups),
    )


def make_sections(runs: Sequence[Run], groups: Sequence[Group]) -> list[Section]:
    """All sections; the paper's table only where the runs learned its stream."""
    paper = [_paper(groups)] if paper_table.belongs(groups) else []
    return [_methods(groups), *paper, *_ceilings(runs), _matrices(runs, groups), _forget(groups)] + [
        _curves(groups),
        _cost(groups),
        _pools(runs),
        _runs(runs),
    ]


def _methods(groups: Sequence[Group]) -> Section:
    first = groups[0].runs[0]
    table = tables.methods(groups)
    words = [
        "Scores after the last task. Read every row against copy (the input given back as the output) and constant "
        "(the most frequent target of each task): a method that is not above them has learned nothing that BLEU shows.",
    ]
    if any(len(group.runs) > 1 for group in groups):
        words.append("Several seeds: the mean, and after \N{PLUS-MINUS SIGN} half the 95 % interval by Student's t.")
    notes = [
        f"BLEU: {tables.scorers_text(first, 'bleu')}.",
        "forget_paper_bleu: mean over all but the last task of its best valid score from the stage that learned it to "
        "the last but one, minus its final score; below 0, tasks ended better than ever before.",
    ]
    removed = [name for name, task in zip(short_names(first.scores.tasks), first.scores.tasks, strict=True)
               if task in first.scores.leave_out]  # fmt: skip
    if removed:
        notes.append(f"A second average leaves out {', '.join(removed)}, where BLEU says little beside copying.")
    top = ceiling(groups, first.last_split, "bleu")
    if top is None:
        notes.append(
            "copy_normalised_bleu needs the scores of individual finetuning as its ceiling: give such a run too."
        )
    else:
        flat = tables.without_headroom(first, top)
        notes.append(
            "copy_normalised_bleu: 0 is copying, 1 is individual finetuning, mean over tasks"
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
    differences = paper_table.differences(groups)
    if differences:
        verdict = f"Not comparable with the rows above: {'; '.join(differences)}."
    else:
        verdict = (
            "Copying the input scores the same here as on the paper's files, all examples were scored and the beam is "
            "the paper's: nothing in the result files speaks against a comparison. Models may still differ."
        )
    exhibit = Exhibit(
        name="paper_table_1",
        title="Numbers of the paper",
        caption="CodeT5-small, single runs, one order of tasks; rows with replay hold 5,000 examples. The columns "
        "named derived are computed from the others, with copy 0.02 / 18.72 / 2.00 on the first three tasks.",
        table=paper_table.table(),
    )
    link = ("Table 1 of arXiv 2307.02435, Exploring Continual Learning for Code Generation Models", paper_table.SOURCE)
    return Section(name="paper", title="The paper's Table 1", parts=[verdict, link, exhibit])


def _matrices(runs: Sequence[Run], groups: Sequence[Group]) -> Section:
    parts: list = [
        "Rows are stages, from before training to after the last task; columns are tasks. Shades are relative to the "
        f"largest value of a column, at least {figures.LEAST_SCALE:g} points; \N{EN DASH} marks a cell that was not "
        "measured. The row before training is decoded without a prompt."
    ]
    for run in runs:
        parts.append(f"# {run.name}")
        for metric, title in (("bleu", "BLEU"), ("exact_match", "exact match")):
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
    scorers = tables.scorers_text(groups[0].runs[0], "bleu")
    exhibit = Exhibit(
        name="forget_paper_bleu_valid",
        title="forget_paper_bleu by task, valid",
        caption=f"Best score from the stage that learned the task to the last but one, minus the final score, on valid "
        f"({scorers}). The last task has none; the mean is forget_paper_bleu.",
        table=table,
        drawing=drawing,
        alt="Bars of forget_paper_bleu on the valid split, by task and method.",
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
                alt="Curves of training loss, validation loss and validation BLEU over steps, a line per run and task.",
            )
        )
    return Section(name="curves", title="Learning curves", parts=parts)


def _cost(groups: Sequence[Group]) -> Section:
    table = tables.cost_against_score(groups)
    drawing = figures.cost(table)
    exhibit = Exhibit(
        name="score_against_cost",
        title=f"Average {groups[0].runs[0].last_split} BLEU against cost",
        caption="Wall time is the whole run's, scoring included, on whatever machine it had; the dashed line is copy.",
        table=table,
        drawing=drawing,
        alt="Two scatter plots: average BLEU against wall minutes and against trained parameters.",
    )
    return Section(name="cost", title="Score against cost", parts=[exhibit])


def _pools(runs: Sequence[Run]) -> Section:
    parts: list = []
    pools = [run for run in runs if run.diagnostic("key_usage") is not None]
    others = [run.name for run in runs if run not in pools]
    if others:
        parts.append(f"No prompt pool, and so nothing here, in {'; '.join(others)}.")
    for run in pools:
        parts.append(f"# {run.name}")
        for name, (draw, title, caption, alt, reason) in POOL.items():
            found = draw(run)
            if found is None:
                parts.append(f"{title}: left out, {reason}.")
                continue
            drawing, table = found
            if name == "query_cosine":
                caption += _nearest_mean(run)
            parts.append(
                Exhibit(
                    name=f"{slug(run, runs)}_{name}", title=title, caption=caption, table=table, drawing=drawing,
                    alt=f"{alt} {run.name}.",
                )
            )  # fmt: skip
    return Section(name="pool", title="The prompt pool", parts=parts)


POOL = {
    "plane": (
        pool_figures.plane,
        "Keys and queries in a plane",
        "Small points are queries of scored inputs; diamonds are keys, in the colour of the task that owns them, grey "
        "when several or none do, hollow until that task begins. The axes are the principal axes of the queries, "
        "fitted once.",
        "Scatter plot of queries and keys after each stage of",
        "as the scores.json of this run holds no key_plane and query_plane; runs of this version write them",
    ),
    "key_usage": (
        pool_figures.usage,
        "Who uses which key",
        "Share of each task's selections (scored inputs, task unknown) that falls on each key, after each stage: the "
        "stronger, the more. A line under a cell says that the task owns the key.",
        "Heat map of keys by tasks after each stage of",
        "as there is no key_usage",
    ),
    "own_key_recall": (
        pool_figures.recall,
        "Own keys found again",
        "own_key_recall: the share of a task's keys (of k, if it owns more) among those that its inputs "
        "choose. Dotted, where it is below 1: what is left when later owners take every shared key.",
        "Lines of own-key recall by stage for each task of",
        "as every key belongs to every task, so that none can be found again",
    ),
    "query_cosine": (
        pool_figures.separation,
        "How far apart the queries lie",
        "Mean cosine of pairs of queries, within a task on the diagonal and between tasks off it.",
        "Matrix of mean cosines between queries of tasks of",
        "as there is no query_cosine",
    ),
}


def _nearest_mean(run: Run) -> str:
    values = run.diagnostic("nearest_mean_accuracy")
    if values is None or values[-1] is None:
        return ""
    return f" The nearest task mean is the right one for {100 * values[-1]:.0f} % of the queries."


def _runs(runs: Sequence[Run]) -> Section:
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
        rows.append([run.method, run.directory.resolve().name, *shown, str(run.record.get("config_digest", ""))[:12]])
    versions = sorted({_versions(run) for run in runs} - {""})
    words = [f"Data digest {str(runs[0].record.get('data_digest', 'not stored'))[:12]}, the same for all runs."]
    words += [f"Versions: {text}." for text in versions]
    caption = "As scores.json has it."
    return Section(
        name="runs",
        title="Runs",
        parts=[
            *words,
            Exhibit(name="runs", title="Where the numbers come from", caption=caption, table=Table(columns, rows)),
        ],
    )


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.record.get("versions", {}).items())


def slug(run: Run, runs: Sequence[Run]) -> str:
    """A file name for a run: method and seed, with a number where another run has the same."""

    def plain(other: Run) -> str:
        return re.sub(r"[^a-z0-9]+", "_", f"{other.method}_seed{other.seed}".lower()).strip("_")

    same = [other for other in runs if plain(other) == plain(run)]
    return (
        plain(run) if len(same) == 1 else f"{plain(run)}_{1 + next(n for n, other in enumerate(same) if other is run)}"
    )

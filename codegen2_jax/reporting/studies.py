"""Studies of retrieval, which train no language model: what their retrieval.json says, as a page or beside runs."""

import json
from collections.abc import Sequence
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.reporting import finished_runs, pool_figures, settings
from codegen2_jax.reporting.exhibits import Exhibit, Report, Section
from codegen2_jax.reporting.figures import against_number
from codegen2_jax.reporting.finished_runs import Group, Run
from codegen2_jax.reporting.pool_sections import pools
from codegen2_jax.reporting.series import by_tasks
from codegen2_jax.reporting.tables import Cell, Column, Table, estimate

RESULT_FILE = "retrieval.json"
# Of the summary, most telling first.
FIGURES = ("retrieval_top1", "own_key_recall", "own_key_limit", "nearest_mean_accuracy", "retrieval_majority")
FIGURES += ("usage_entropy", "effective_keys", "largest_selection_overlap", "key_drift")


def is_study(directory: Path) -> bool:
    """Whether a directory holds a study, and no run of a language model."""
    return (directory / RESULT_FILE).is_file() and not (directory / finished_runs.SCORES_FILE).is_file()


def load(directories: Sequence[Path]) -> list[Group]:
    """The studies in these directories, in groups; UserError for a file that cannot be read."""
    finished_runs.check_once(directories)
    runs = []
    for directory in directories:
        path, config = directory / RESULT_FILE, directory / finished_runs.CONFIG_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            complete = record.get("complete") and record["stream"] and record["diagnostics"] and record["summary"]
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}); delete it and run the command again.") from error
        if not complete:
            raise UserError(f"{path} is of an older version; delete it and start its training command again.")
        bindings = settings.bindings(config.read_text(encoding="utf-8")) if config.is_file() else {}
        runs.append(Run(directory=directory, record=record, metrics=(), config=bindings))
    return finished_runs.gather(runs)


def make_report(groups: Sequence[Group]) -> Report:
    """The page of studies alone."""
    lengths = sorted({len(group.tasks) for group in groups})
    return Report(
        title="What a prompt pool finds again",
        names=[group.name for group in groups],
        lead="Retrieval alone: the keys of a prompt pool were trained on fixed queries, and no language model was.",
        facts={
            "Tasks": ", ".join(map(str, lengths)),
            "Studies": ", ".join(dict.fromkeys(group.name for group in groups)),
            "Runs": str(sum(len(group.runs) for group in groups)),
        },
        findings=[],
        sections=sections(groups),
        source=RESULT_FILE,
    )


def sections(groups: Sequence[Group]) -> list[Section]:
    """Figures at the end, own-key recall by task, and the pool of every run."""
    runs = [run for group in groups for run in group.runs]
    parts: list = [
        "No language model was trained here: shares of test inputs whose own keys the pool finds, after the last task.",
        Exhibit(
            name="retrieval",
            title="Retrieval at the end",
            caption="Means over the tasks, on test; after \N{PLUS-MINUS SIGN} half the 95 % interval over seeds, where "
            "there are several. nearest_mean_accuracy is what the queries allow, whatever the keys.",
            table=_figures(groups),
        ),
    ]
    found = pool_figures.recall_by_task(groups)
    if found is not None:
        drawing, table = found
        parts.append(
            Exhibit(
                name="retrieval_by_task",
                title="Own-key recall by task, at the end",
                caption="own_key_recall on test after the last task. Dotted: what is left when later owners take every "
                "shared key, (k - s (T - t)) / k where a task t of T owns k keys and shares s with each later one.",
                table=table,
                drawing=drawing,
                alt="Lines of own-key recall over the number of the task, with the limit of shared keys dotted.",
            )
        )
    series = by_tasks(groups)
    if series:
        columns = [Column("method"), Column("tasks"), *(Column(name, "test", digits=3) for name in FIGURES[:4])]
        rows = [[one.name, number, *_cells(group)[:4]] for one in series for number, group in one.points]
        table = Table(columns, rows)
        parts.append(
            Exhibit(
                name="retrieval_against_tasks",
                title="Retrieval against the number of tasks",
                caption="Everything else is the same along a line.",
                table=table,
                drawing=against_number(table, xlabel="tasks in the stream"),
                alt="Curves of retrieval figures over the number of tasks, a line per method.",
            )
        )
    first = Section(name="retrieval", title="Retrieval without a language model", parts=parts)
    return [first, pools(runs, prefix="retrieval_", without=("plane",))]


def _figures(groups: Sequence[Group]) -> Table:
    columns = [Column("study"), Column("tasks"), *(Column(name, "test", digits=3) for name in FIGURES), Column("runs")]
    return Table(columns, [[group.name, len(group.tasks), *_cells(group), len(group.runs)] for group in groups])


def _cells(group: Group) -> list[Cell]:
    """The figures of the summary over the runs; None for one that a run does not have."""
    summaries = [run.record["summary"].get("test", {}) for run in group.runs]
    values = {name: [summary.get(name) for summary in summaries] for name in FIGURES}
    return [None if None in found else estimate(found) for found in values.values()]

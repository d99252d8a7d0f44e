"""What `python -m codegen2_jax.evaluate` measured, as sections of a report: read from evaluation.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.errors import UserError
from codegen2_jax.reporting.exhibits import Exhibit, Report, Section
from codegen2_jax.reporting.tables import Column, Table

EVALUATION_FILE = "evaluation.json"
_SETTINGS = ("temperature", "top_p", "top_k", "n", "max_new_tokens", "truncation", "seed", "dtype")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's results: what evaluation.json holds."""

    directory: Path
    record: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.record.get("model") or self.directory.name)

    @property
    def benchmarks(self) -> dict[str, dict[str, Any]]:
        return self.record["benchmarks"]


def load(directories: Sequence[Path]) -> list[Evaluation]:
    """The evaluations among these directories; UserError for a file that cannot be read."""
    found = []
    for directory in directories:
        path = directory / EVALUATION_FILE
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            metrics = [result["metrics"] for result in record["benchmarks"].values()]
            assert all("value" in figure for of in metrics for figure in of.values())
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(f"{path} cannot be read ({error!r}); score again by --only score.") from error
        if not metrics:
            raise UserError(f"{path} has no result yet; start the evaluation again, which continues it.")
        found.append(Evaluation(directory, record))
    return found


def make_report(evaluations: Sequence[Evaluation]) -> Report:
    """The page of evaluations alone."""
    models = ", ".join(dict.fromkeys(one.model for one in evaluations))
    names = dict.fromkeys(name for one in evaluations for name in one.benchmarks)
    return Report(
        title="Evaluation",
        names=[models],
        lead="What a code language model scores, how sure that is, and with which settings it was measured.",
        facts={"Models": models, "Benchmarks": ", ".join(names)},
        findings=[],
        sections=sections(evaluations),
        source=EVALUATION_FILE,
    )


def sections(evaluations: Sequence[Evaluation]) -> list[Section]:
    """Scores, how they were made, and what became of programs and questions; [] without an evaluation."""
    if not evaluations:
        return []
    words = (
        "Percentages with 95 % intervals of a bootstrap over problems: how far another draw of problems would move the "
        "figure. Majority, first_sentence and same_class are what an answer without a model scores."
    )
    return [
        Section(name="evaluation", title="Benchmarks", parts=[words, _scores(evaluations), *_warnings(evaluations)]),
        Section(name="evaluation_settings", title="How the benchmarks were run", parts=_how(evaluations)),
    ]


def _scores(evaluations) -> Exhibit:
    columns = [Column("Model"), Column("Benchmark"), Column("Figure"), Column("Value"), Column("Low"), Column("High"),
               Column("Problems"), Column("Of"), Column("Note")]  # fmt: skip
    rows = []
    for one in evaluations:
        for name, result in one.benchmarks.items():
            for metric, figure in result["metrics"].items():
                note = f"temperature {figure['temperature']}" if "temperature" in figure else ""
                numbers = [figure.get(key) for key in ("value", "low", "high")]
                numbers = [None if number is None else float(number) for number in numbers]
                rows.append([one.model, name, metric, *numbers, result["problems"], result["of"], note])
    caption = "Low and High bound the interval. Problems below Of: only some were asked, evenly spaced."
    return Exhibit(name="evaluation", title="Scores", caption=caption, table=Table(columns, rows))


def _warnings(evaluations) -> list[str]:
    return [
        f"Warning, {one.model}, {name}: {warning}."
        for one in evaluations
        for name, result in one.benchmarks.items()
        for warning in result.get("warnings", ())
    ]


def _how(evaluations) -> list[Exhibit]:
    settings, outcomes, answers = [], [], []
    for one in evaluations:
        for name, result in one.benchmarks.items():
            runs = result.get("temperatures") or {"": result}
            for run in runs.values():
                made, speed = run.get("generation") or {}, run.get("throughput") or {}
                stops = ", ".join(map(str, made.get("stop_ids", ())))
                values = [None if made.get(key) is None else str(made[key]) for key in _SETTINGS]
                settings.append([one.model, name, *values, stops, speed.get("tokens_per_second")])
                for outcome, count in run.get("outcomes", {}).items():
                    outcomes.append([one.model, name, str(made.get("temperature", "")), outcome, count])
            for answer in sorted({*result.get("predicted", {}), *result.get("references", {})}):
                counts = [result[side].get(answer, 0) for side in ("predicted", "references")]
                answers.append([one.model, name, answer, *counts])
    names = [Column("Model"), Column("Benchmark")]
    tables = [
        ("evaluation_settings", "Settings", settings,
         [*names, *(Column(key) for key in _SETTINGS), Column("Stop ids"), Column("Tokens/s", digits=0)],
         "Tokens per second count compilation."),
        ("evaluation_outcomes", "What became of the programs", outcomes,
         [*names, Column("Temperature"), Column("Outcome"), Column("Samples")],
         "Only passed counts. violation: the program tried what its jail forbids."),
        ("evaluation_answers", "How often each answer was given", answers,
         [*names, Column("Answer"), Column("Given"), Column("Right")],
         "One answer to everything is a constant predictor, whatever its accuracy."),
    ]  # fmt: skip
    return [
        Exhibit(name=name, title=title, caption=caption, table=Table(columns, rows))
        for name, title, rows, columns, caption in tables
        if rows
    ]

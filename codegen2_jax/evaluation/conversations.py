"""MTPB: a program written in turns, each turn's answer part of the next one's prompt."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from codegen2_jax.data import mtpb
from codegen2_jax.data.mtpb import Conversation
from codegen2_jax.decoding import text, truncation
from codegen2_jax.evaluation import prompting, records
from codegen2_jax.evaluation.execution import CodeGeneration, header
from codegen2_jax.metrics import printed_values
from codegen2_jax.sandbox.programs import Program

MOST_TURNS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class MTPB(CodeGeneration):
    """The multi-turn benchmark of CodeGen (Nijkamp et al. 2022). A problem is one test case of the 115 published ones.

    Attributes:
      max_new_tokens: the most of a turn; each problem has a limit of its own, see `data.mtpb`.
      published_comparison: compare values as the publishers' program does, which takes no dictionary and no None.
    """

    directory: str
    truncation: str = "codegen1"
    published_comparison: bool = False
    cpu_seconds: float = 20.0
    packages: tuple[str, ...] = ("numpy",)  # which the beginning of every program imports

    @property
    def name(self) -> str:
        return "mtpb"

    def problems(self) -> Sequence[Conversation]:
        return mtpb.conversations(self.directory)

    def work(self, subject, chosen, settings):
        cases, groups = list(chosen.items()), []
        for _, group in itertools.groupby(cases, lambda item: item[1].max_new_tokens):
            size = max(1, settings.batch_size // settings.n)
            groups += [list(part) for part in _parts(list(group), size)]
        truncate = truncation.rule(self.truncation)
        stops = subject.names_of([subject.vocabulary.eos_id])

        def make(number: int) -> list[dict[str, Any]]:
            rows = [(place, case, k) for place, case in groups[number] for k in range(settings.n)]
            programs, raw = [mtpb.BEGINNING] * len(rows), [[] for _ in rows]
            tokens = [0] * len(rows)
            for turn in range(max(len(case.turns) for _, case, _ in rows)):
                active = [i for i, (_, case, _) in enumerate(rows) if turn < len(case.turns)]
                asked = {i: mtpb.asked(programs[i], rows[i][1].turns[turn]) for i in active}
                most = min(rows[0][1].max_new_tokens, settings.max_new_tokens)
                prompts = prompting.continuations(subject.model, subject.vocabulary, list(asked.values()), most)
                how = dataclasses.replace(
                    settings,
                    n=1,
                    seed=(settings.seed * MOST_TURNS + turn) % 2**32,
                    max_new_tokens=prompts.max_new_tokens,
                )
                found = text.run(
                    subject.model,
                    subject.params,
                    subject.vocabulary,
                    prompts.requests,
                    how,
                    prompts.stop_ids,
                    places=[rows[i][0] * settings.n + rows[i][2] for i in active],
                    decoder=subject.decoder,
                )
                for i, (one,) in zip(active, found, strict=True):
                    raw[i].append(one.text)
                    tokens[i] += len(one.ids)
                    programs[i] = mtpb.answered(asked[i], truncate(one.text))
            return [
                {"task_id": case.id, "sample": k, "completion": programs[i], "turns": raw[i], "tokens": tokens[i]}
                for i, (_, case, k) in enumerate(rows)
            ]

        texts = [subject.vocabulary.encode("\n".join(case.turns)) for _, case in cases]
        places = [place for place, _ in cases]
        return records.Work(
            chunks=[[(case.id, k) for _, case in group for k in range(settings.n)] for group in groups],
            make=make,
            header=header(self, subject, settings, texts, places) | {"truncation": self.truncation},
            facts={"stop_ids": stops, "asked_max_new_tokens": settings.max_new_tokens},
        )

    def program(self, problem, row):
        return Program(
            name=f"{problem.id}#{row.get('sample', 0)}",
            solution=printed_values.instrumented(row["completion"]),
            tests="",
            entry_point="",
            style="output",
        )

    def group(self, id):
        """The five cases of a problem ask for one program."""
        return id.rpartition("/")[0]

    def passes(self, problem, verdict):
        value = printed_values.printed(verdict.stdout)
        return super().passes(problem, verdict) and printed_values.same(
            value, problem.expected, published=self.published_comparison
        )


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

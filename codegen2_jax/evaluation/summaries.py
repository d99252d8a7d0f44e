"""XSum in one shot: a summary after one example, scored by ROUGE."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from codegen2_jax.data import understanding as files
from codegen2_jax.data.plan import evenly_spaced
from codegen2_jax.decoding import text
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import prompting, records
from codegen2_jax.evaluation.execution import header, interval
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.evaluation.understanding import by_id, write_lines
from codegen2_jax.metrics.rouge import rouge_of_each


@dataclasses.dataclass(frozen=True, kw_only=True)
class XSum:
    """One-shot summaries, greedy, ended by a line end (Narayan et al. 2018).

    Prompt: `Article: {document}`, line end, `Summary: {summary}`, an empty line, and the article in question in the
    same form up to `Summary:`. Documents lose their ends so that all fits `context` tokens with the summary.

    Attributes:
      example: which row of the train split is the example.
      context: tokens of prompt and summary, at most the model's.
    """

    directory: str
    split: str = "test"
    example: int = 0
    context: int = 2048
    max_new_tokens: int = 64
    batch_size: int = 16
    limit: int | None = None

    @property
    def name(self) -> str:
        return "xsum" if self.split == "test" else f"xsum_{self.split}"

    def problems(self) -> Sequence[files.Article]:
        """All articles of the split."""
        return files.xsum(self.directory, self.split)

    def run(self, call: Call) -> dict[str, Any] | None:
        """Generates, scores, or both."""
        articles = self.problems()
        chosen = {place: articles[place] for place in evenly_spaced(len(articles), self.limit)}
        path = call.directory / self.name / "samples.jsonl"
        if call.generates:
            records.collect(path, self._work(call.subject, chosen), call.tracker)
        if not call.scores:
            return None
        rows = by_id(records.read(path), [one.id for one in chosen.values()], path, completion=str)
        references = [one.summary for one in chosen.values()]
        found = rouge_of_each([rows[one.id]["completion"] for one in chosen.values()], references)
        first = rouge_of_each([first_sentence(one.document) for one in chosen.values()], references)
        write_lines(path.with_name("problems.jsonl"), [
            {"task_id": one.id, **{kind: values[i] for kind, values in found.items()}}
            for i, one in enumerate(chosen.values())
        ])  # fmt: skip
        metrics = {kind: interval(values, scale=1.0) for kind, values in found.items()}
        metrics |= {f"first_sentence_{kind}": {"value": sum(v) / len(v)} for kind, v in first.items()}
        empty = sum(not rows[one.id]["completion"].strip() for one in chosen.values())
        return {
            "kind": "summaries",
            "problems": len(chosen),
            "of": len(articles),
            "metrics": metrics,
            "generation": records.settings_of(path) or None,
            "throughput": records.throughput(path),
            "warnings": [f"{empty} summaries are empty"] if empty else [],
        }

    def _work(self, subject: Subject, chosen) -> records.Work:
        vocabulary = subject.vocabulary
        train = files.xsum(self.directory, "train")
        if not 0 <= self.example < len(train):
            raise UserError(f"example={self.example} is none of the {len(train)} rows of train; choose another.")
        shot = train[self.example]
        limit = int(min(self.context, prompting.positions(subject.model)))
        most = min(self.max_new_tokens, max(1, limit // 2))
        frame = f"Article: \nSummary: {shot.summary}\n\nArticle: \nSummary:"
        room = limit - most - len(vocabulary.encode(frame)) - 8
        prompts, cut = [], 0
        for one in chosen.values():
            example, document = (list(vocabulary.encode(text)) for text in (shot.document, one.document))
            # Half for each document; what one does not need the other gets.
            mine = min(len(document), max(room // 2, room - len(example), 0))
            theirs = max(0, min(len(example), room - mine))
            cut += mine < len(document) or theirs < len(example)
            shown = shot.document if theirs == len(example) else vocabulary.decode(example[:theirs])
            asked = one.document if mine == len(document) else vocabulary.decode(document[:mine])
            prompts.append(f"Article: {shown}\nSummary: {shot.summary}\n\nArticle: {asked}\nSummary:")
        made = prompting.continuations(subject.model, vocabulary, prompts, most)
        settings = Generation(
            temperature=0.0, max_new_tokens=made.max_new_tokens, stop=("\n",), batch_size=self.batch_size
        )
        chunks = prompting.chunks(made.requests, self.batch_size, prompting.positions(subject.model))
        articles, places = list(chosen.values()), list(chosen)

        def make(number: int) -> list[dict[str, Any]]:
            numbers = chunks[number]
            found = text.run(
                subject.model,
                subject.params,
                vocabulary,
                [made.requests[i] for i in numbers],
                settings,
                made.stop_ids,
                places=[places[i] for i in numbers],
                decoder=subject.decoder,
            )
            return [
                {"task_id": articles[i].id, "sample": 0, "completion": one.text.strip(), "finish": one.finish,
                 "tokens": len(one.ids)}
                for i, (one,) in zip(numbers, found, strict=True)
            ]  # fmt: skip

        return records.Work(
            chunks=[[(articles[i].id, 0) for i in numbers] for numbers in chunks],
            make=make,
            header=header(self, subject, settings, [r.ids for r in made.requests], places),
            facts={"stop_ids": subject.names_of(made.stop_ids), "cut_prompts": cut},
        )


def first_sentence(document: str) -> str:
    """Up to the first full stop, question mark or exclamation mark before a blank; the baseline to beat."""
    return re.split(r"(?<=[.!?])\s", document.strip(), maxsplit=1)[0]

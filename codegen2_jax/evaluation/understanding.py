"""Benchmarks answered by likelihood or by vectors: questions with given answers, last words, programs told apart.

Accuracy is never told alone: what a constant answer scores and how often each answer was given stand beside it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codegen2_jax import json_files
from codegen2_jax.data import converters
from codegen2_jax.data import understanding as files
from codegen2_jax.data.plan import evenly_spaced
from codegen2_jax.data.understanding import Question
from codegen2_jax.decoding.text import padded_length, requests_of
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import records
from codegen2_jax.evaluation.execution import interval
from codegen2_jax.evaluation.likelihood import Scorer
from codegen2_jax.evaluation.prompting import positions
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.metrics import classification

MARGIN = 8  # tokens that a text cut and put together again may have more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Questions whose answer is the likeliest of a few ("verbaliser"), after `shots` answered ones.

    Attributes:
      benchmark: boolq, defect, piqa or poj104_pairs.
      directory: of the publishers' files.
      split: "test" is what is usually reported; see `data.understanding`.
      shots: answered questions of the train split that stand before each, as many of every answer as can be.
      limit: how many questions, evenly spaced; None for all.
    """

    benchmark: str
    directory: str | None
    split: str = "test"
    shots: int = 0
    seed: int = 0
    batch_size: int = 16
    limit: int | None = None

    def __post_init__(self):
        if self.benchmark not in files.QUESTIONS:
            raise UserError(f"benchmark={self.benchmark!r} is unknown; choose one of {', '.join(files.QUESTIONS)}.")
        if self.shots < 0 or self.batch_size < 1:
            raise UserError(f"shots={self.shots}, batch_size={self.batch_size}: give 0 or more, and 1 or more.")

    @property
    def name(self) -> str:
        parts = [self.benchmark] + [self.split] * (self.split != "test") + [f"{self.shots}_shot"] * (self.shots > 0)
        return "_".join(parts)

    def problems(self) -> Sequence[Question]:
        """All questions of the split."""
        return files.questions(self.benchmark, self.directory, self.split)

    def run(self, call: Call) -> dict[str, Any] | None:
        """Answers, scores, or both."""
        questions = self.problems()
        chosen = [questions[place] for place in evenly_spaced(len(questions), self.limit)]
        path = call.directory / self.name / "answers.jsonl"
        if call.generates:
            records.collect(path, self._work(call.subject, chosen), call.tracker)
        if not call.scores:
            return None
        rows = by_id(records.read(path), [one.id for one in chosen], path, log_probabilities=list)
        for one in chosen:
            scores = rows[one.id]["log_probabilities"]
            if len(scores) != len(one.choices) or not all(isinstance(score, int | float) for score in scores):
                raise UserError(f"{path}: {one.id} needs {len(one.choices)} log_probabilities, not {str(scores)[:60]}.")
        return self._result(path, chosen, rows) | {"problems": len(chosen), "of": len(questions)}

    def _work(self, subject: Subject, chosen: Sequence[Question]) -> records.Work:
        scorer = Scorer(subject.model, subject.vocabulary)
        examples = self._examples()
        prompts, cut = [], 0
        for one in chosen:
            longest = max(len(scorer.pair(one.cue, choice)[1]) for choice in one.choices)
            prompt, was_cut = _fitting(subject.vocabulary, examples, one, scorer.room(longest) - MARGIN)
            prompts.append(prompt)
            cut += was_cut
        pairs = [
            [scorer.fitted(scorer.pair(prompt, choice)) for choice in one.choices]
            for prompt, one in zip(prompts, chosen, strict=True)
        ]
        lengths = [max(len(prompt) + len(target) for prompt, target in of_one) for of_one in pairs]
        groups = by_length(lengths, max(1, self.batch_size // 2), positions(subject.model))

        def make(number: int) -> list[dict[str, Any]]:
            flat = [pair for i in groups[number] for pair in pairs[i]]
            log_prob_B, _ = scorer(subject.params, flat)
            found, place = [], 0
            for i in groups[number]:
                of_one = log_prob_B[place : place + len(pairs[i])].tolist()
                place += len(of_one)
                tokens = sum(len(prompt) + len(target) for prompt, target in pairs[i])
                scores = [round(value, 5) for value in of_one]
                found.append({"task_id": chosen[i].id, "sample": 0, "log_probabilities": scores, "tokens": tokens})
            return found

        return records.Work(
            chunks=[[(chosen[i].id, 0) for i in group] for group in groups],
            make=make,
            header={"benchmark": self.name, **subject.facts, **_settings(self), "pairs_sha256": _digest(pairs)},
            facts={"cut_prompts": cut, "choices": sorted({c for one in chosen[:100] for c in one.choices})[:4]},
        )

    def _examples(self) -> list[str]:
        """The answered questions, the answers taking turns."""
        if not self.shots:
            return []
        questions = files.questions(self.benchmark, self.directory, "train")
        order = np.random.default_rng(self.seed).permutation(len(questions)).tolist()
        waiting: dict[int, list[Question]] = {}
        for place in order:
            waiting.setdefault(questions[place].label, []).append(questions[place])
        turns = [group for group in zip(*(waiting[label] for label in sorted(waiting)), strict=False)]
        picked = [one for group in turns for one in group][: self.shots]
        return [f"{one.text}{one.cue}{one.choices[one.label]}\n\n" for one in picked]

    def _result(self, path: Path, chosen: Sequence[Question], rows: Mapping[str, dict]) -> dict[str, Any]:
        likeliest, per_byte, lines = [], [], []
        for one in chosen:
            scores = np.asarray(rows[one.id]["log_probabilities"])
            likeliest.append(int(scores.argmax()))
            per_byte.append(int((scores / [max(1, len(choice.strip().encode())) for choice in one.choices]).argmax()))
            answer = one.choices[likeliest[-1]].strip()
            lines.append({"task_id": one.id, "answer": answer, "expected": one.choices[one.label].strip(),
                          "correct": likeliest[-1] == one.label})  # fmt: skip
        write_lines(path.with_name("problems.jsonl"), lines)
        labels = [one.label for one in chosen]
        same_choices = len({one.choices for one in chosen}) == 1
        names = [text.strip() if same_choices else f"choice {n}" for n, text in enumerate(chosen[0].choices, start=1)]
        found = classification.summary([names[one] for one in likeliest], [names[one] for one in labels])
        metrics = {"accuracy": interval([float(a == b) for a, b in zip(likeliest, labels, strict=True)])}
        if not same_choices:
            metrics["accuracy_per_byte"] = interval([float(a == b) for a, b in zip(per_byte, labels, strict=True)])
        metrics |= {"majority": {"value": found["majority"]}, "macro_f1": {"value": found["macro_f1"]}}
        warnings = [f"the model answers {next(iter(found['predicted']))!r} to everything"] if found["constant"] else []
        return {
            "kind": "choices",
            "metrics": metrics,
            "method": "verbaliser",
            "predicted": found["predicted"],
            "references": found["references"],
            "generation": records.settings_of(path) or None,
            "throughput": records.throughput(path),
            "warnings": warnings,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastWords:
    """LAMBADA: whether the model's likeliest tokens are the last word of a passage, and the word's perplexity."""

    directory: str
    split: str = "test"
    batch_size: int = 16
    limit: int | None = None

    @property
    def name(self) -> str:
        return "lambada" if self.split == "test" else f"lambada_{self.split}"

    def problems(self) -> Sequence[tuple[str, str, str]]:
        """All passages of the split, see `data.understanding.lambada`."""
        return files.lambada(self.directory, self.split)

    def run(self, call: Call) -> dict[str, Any] | None:
        """Reads, scores, or both."""
        rows = self.problems()
        chosen = [rows[place] for place in evenly_spaced(len(rows), self.limit)]
        path = call.directory / self.name / "answers.jsonl"
        if call.generates:
            records.collect(path, self._work(call.subject, chosen), call.tracker)
        if not call.scores:
            return None
        found = by_id(records.read(path), [id for id, _, _ in chosen], path, greedy=bool, log_probability=float)
        write_lines(path.with_name("problems.jsonl"), [
            {"task_id": id, "expected": word.strip(), "correct": found[id]["greedy"]} for id, _, word in chosen
        ])  # fmt: skip
        nats = [-found[id]["log_probability"] for id, _, _ in chosen]
        return {
            "kind": "last_words",
            "problems": len(chosen),
            "of": len(rows),
            "metrics": {
                "accuracy": interval([float(found[id]["greedy"]) for id, _, _ in chosen]),
                "perplexity": {"value": float(np.exp(np.mean(nats)))},
            },
            "generation": records.settings_of(path) or None,
            "throughput": records.throughput(path),
            "warnings": [],
        }

    def _work(self, subject: Subject, chosen) -> records.Work:
        scorer = Scorer(subject.model, subject.vocabulary)
        pairs = [scorer.fitted(scorer.pair(head, word)) for _, head, word in chosen]
        lengths = [len(prompt) + len(target) for prompt, target in pairs]
        groups = by_length(lengths, self.batch_size, positions(subject.model))

        def make(number: int) -> list[dict[str, Any]]:
            log_prob_B, greedy_B = scorer(subject.params, [pairs[i] for i in groups[number]])
            return [
                {"task_id": chosen[i][0], "sample": 0, "log_probability": round(float(log_prob), 5),
                 "greedy": bool(greedy), "tokens": sum(map(len, pairs[i]))}
                for i, log_prob, greedy in zip(groups[number], log_prob_B, greedy_B, strict=True)
            ]  # fmt: skip

        return records.Work(
            chunks=[[(chosen[i][0], 0) for i in group] for group in groups],
            make=make,
            header={"benchmark": self.name, **subject.facts, **_settings(self), "pairs_sha256": _digest(pairs)},
            facts={},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloneRetrieval:
    """POJ-104: for every program, the others by the cosine of their vectors; MAP@R is CodeXGLUE's score.

    A vector is the mean of the model's last states over the program, nothing trained (`LanguageModel.query`).

    Attributes:
      split: "test" (24 classes), "valid", "train", or "all" 104 classes.
      max_tokens: of a program; the rest is cut off.
      limit: how many programs at most, in whole classes; None for all.
    """

    directory: str
    split: str = "test"
    max_tokens: int = 400
    batch_size: int = 16
    limit: int | None = None

    @property
    def name(self) -> str:
        return "poj104" if self.split == "test" else f"poj104_{self.split}"

    def problems(self) -> Sequence[files.Labelled]:
        """All programs of the split."""
        return files.poj104(self.directory, self.split)

    def run(self, call: Call) -> dict[str, Any] | None:
        """Computes vectors, scores them, or both."""
        programs = self.problems()
        chosen = _whole_classes(programs, self.limit)
        path = call.directory / self.name / "vectors.npy"
        if call.generates:
            self._compute(call, path, [one.code for one in chosen])
        if not call.scores:
            return None
        if not path.is_file():
            raise UserError(f"{path} is missing, so there is nothing to score; leave --only score out first.")
        labels = [one.label for one in chosen]
        vectors_ND = _read_vectors(path, len(labels))
        scores_N = classification.average_precision_at_r(vectors_ND, labels)
        write_lines(path.with_name("problems.jsonl"), [
            {"task_id": f"{one.label}/{one.id}", "average_precision_at_r": None if np.isnan(score) else float(score)}
            for one, score in zip(chosen, scores_N, strict=True)
        ])  # fmt: skip
        counts = np.unique(labels, return_counts=True)[1]
        chance = float(np.sum(counts * (counts - 1)) / len(labels) / (len(labels) - 1))
        return {
            "kind": "retrieval",
            "problems": len(chosen),
            "of": len(programs),
            "metrics": {
                "map_at_r": interval(scores_N[~np.isnan(scores_N)].tolist()),
                "same_class": {"value": 100.0 * chance},
            },
            "classes": len(counts),
            "generation": records.settings_of(path) or None,
            "throughput": None,
            "warnings": [],
        }

    def _compute(self, call: Call, path: Path, codes: Sequence[str]) -> None:
        """Writes the vectors; what a killed call left beside them is gone on from."""
        partial, settings = path.with_name("vectors.partial.npy"), path.with_name("vectors.settings.json")
        header = {"benchmark": self.name, **call.subject.facts, **_settings(self), "programs_sha256": _digest(codes)}
        if path.is_file() or partial.is_file():
            records.check_settings(path, header)
        if path.is_file():
            call.tracker.message(f"{path}: all {len(codes)} vectors are there.")
            return
        records.write_json(settings, {"header": header, "facts": {}})
        self._fill(call, partial, codes)
        partial.replace(path)

    def _fill(self, call: Call, path: Path, codes: Sequence[str]) -> None:
        """Computes the rows [N, D] of a file that are not there yet, which are NaN in it."""
        subject, limit = call.subject, positions(call.subject.model)
        most = int(min(self.max_tokens, limit))
        ids = [request.ids[:most] for request in requests_of(subject.model, subject.vocabulary, list(codes))]
        query = jax.jit(lambda params, tokens_BS, mask_BS: subject.model.query(params, tokens_BS, mask_BS))
        vectors_ND, done = None, set()
        if path.is_file():
            vectors_ND = _read_vectors(path, len(ids), "r+")
            done = set(np.flatnonzero(np.isfinite(vectors_ND).all(axis=1)).tolist())
        with call.tracker.progress(self.name, len(ids), first=len(done)) as progress:
            for group in by_length(list(map(len, ids)), self.batch_size, most):
                if done.issuperset(group):
                    continue
                length = padded_length(max(len(ids[i]) for i in group), most)
                rows = [np.asarray(ids[i], np.int32) for i in group]
                rows += [rows[-1]] * (self.batch_size - len(rows))
                vectors_BD = np.asarray(query(subject.params, *converters.pad(rows, length, 0)))
                if vectors_ND is None:
                    new = path.with_name("vectors.new.npy")  # under its name only when all of it is NaN
                    np.save(new, np.full((len(ids), vectors_BD.shape[1]), np.nan, vectors_BD.dtype))
                    new.replace(path)
                    vectors_ND = np.load(path, mmap_mode="r+")
                vectors_ND[group] = vectors_BD[: len(group)]
                vectors_ND.flush()
                done.update(group)
                progress.update(len(done))


def _read_vectors(path: Path, rows: int, mmap_mode: str | None = None) -> np.ndarray:
    try:
        vectors_ND = np.load(path, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and compute the vectors again.") from None
    if vectors_ND.ndim != 2 or len(vectors_ND) != rows:
        raise UserError(f"{path} holds {vectors_ND.shape}, not {rows} vectors; compute them again.")
    return vectors_ND


def _whole_classes(programs: Sequence[files.Labelled], limit: int | None) -> list[files.Labelled]:
    """The programs of the first classes that fit the limit, at least two classes."""
    kept: dict[str, list[files.Labelled]] = {}
    for one in programs:
        kept.setdefault(one.label, []).append(one)
    found: list[files.Labelled] = []
    for number, members in enumerate(kept.values()):
        if limit is None or number < 2 or len(found) + len(members) <= limit:
            found += members
    return found


def by_length(lengths: Sequence[int], rows: int, limit: float) -> list[list[int]]:
    """Numbers in groups of at most `rows` of one padded length, the longest first."""
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(padded_length(length, limit), []).append(number)
    found = []
    for length in sorted(groups, reverse=True):
        members = sorted(groups[length], key=lambda number: -lengths[number])
        found += [members[start : start + rows] for start in range(0, len(members), rows)]
    return found


def by_id(rows: Sequence[dict], ids: Sequence[str], path: Path, **fields: type) -> dict[str, dict]:
    """The records by problem; UserError where one is missing, or has a field of another type than `fields` says."""
    found = {row["task_id"]: row for row in rows}
    missing = [id for id in ids if id not in found]
    if missing:
        raise UserError(f"{path} has no answer to {len(missing)} problems, the first {missing[0]}; answer them first.")
    for id in ids:
        for name, kind in fields.items():
            value = found[id].get(name)
            if not isinstance(value, (int, float) if kind is float else kind):
                raise UserError(f"{path}: {name} of {id} is {str(value)[:60]!r}, no {kind.__name__}; answer it again.")
    return found


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """One JSON line each."""
    path.write_text("".join(json_files.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _fitting(vocabulary: Any, examples: Sequence[str], one: Question, room: float) -> tuple[str, bool]:
    """(examples, text and cue that fit, whether something is missing): examples go first, then the text's end."""
    count: Callable[[str], int] = lambda text: len(vocabulary.encode(text))  # noqa: E731
    kept, cue = list(examples), count(one.cue)
    sizes = [count(text) for text in kept]
    ids = list(vocabulary.encode(one.text))
    while kept and sum(sizes) + len(ids) + cue > room:
        kept.pop()
        sizes.pop()
    if len(ids) + cue <= room:
        return "".join(kept) + one.text + one.cue, len(kept) < len(examples)
    return vocabulary.decode(ids[: max(0, int(room) - cue)]) + one.cue, True


def _settings(benchmark: Any) -> dict[str, Any]:
    """The fields that decide answers: not where the files lie."""
    return {name: value for name, value in dataclasses.asdict(benchmark).items() if name != "directory"}


def _digest(pairs: Any) -> str:
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()

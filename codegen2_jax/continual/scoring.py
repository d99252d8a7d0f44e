"""Scores of the tasks of a stream at one moment: rows of R, baselines, and what the prompt selected."""

import collections
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from codegen2_jax.continual.setup import Setup
from codegen2_jax.evaluation import runner
from codegen2_jax.training.step import TrainState

BASELINES = ("copy", "constant")


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """Scores of one task's split by column, and the prompts that were selected for each scored example."""

    scores: dict[str, float | None]
    selected_NK: np.ndarray
    records_N: np.ndarray


def scorer_of(task: Any, column: str) -> str | None:
    """The scorer that fills a column of R for this task, None for none."""
    return next((name for name in task.scorers if runner.SCORERS[name][0] == column), None)


def columns(setup: Setup) -> list[str]:
    """The columns of R: what any task of the stream is scored by. A task without a scorer for one has None there."""
    return list(dict.fromkeys(runner.SCORERS[name][0] for task in setup.tasks for name in task.scorers))


def score_task(
    setup: Setup, state: TrainState, task: int, split: str, *, beams: int, selection: str | None
) -> TaskScores:
    """Decodes the scored examples of a task's split and compares them with the references.

    selection: "pool" (the task's identity is not used to choose from a pool), "oracle", or None for no prompt.
    """
    data = setup.tasks[task]
    texts, selected = runner.decode_split(
        setup.predict(task, beams=beams, selection=selection),
        setup.params(state),
        state.prompt_state,
        setup.batches.evaluation(task, split),
        setup.vocabulary,
        put=setup.put_whole,
    )
    records = sorted(texts)
    references = [data.split(split)[record]["targets_text"] for record in records]
    return TaskScores(
        scores=runner.score([texts[record] for record in records], references, data.scorers),
        selected_NK=np.stack([selected[record] for record in records]),
        records_N=np.asarray(records),
    )


def selection_score(scorers: tuple[str, ...], scores: dict[str, float | None]) -> float:
    """What early stopping maximises: the first scorer + exact match, BLEU alone for summaries (specification, 1.5)."""
    first, _ = runner.SCORERS[scorers[0]]
    if scorers[0] == "codet5_smooth_bleu":
        return scores[first]
    return round(scores[first], 2) + (scores.get("exact_match", 0.0) if first != "exact_match" else 0.0)


def score_row(setup: Setup, state: TrainState, *, selection: str | None, progress: Any) -> tuple[dict, dict]:
    """One row of R for every split and column, and the TaskScores by (split, task).

    Beside the scorers' columns stands "loss", but for "oracle".

    Returns ({split: {column: [score of each task]}}, {(split, task): TaskScores}).
    """
    row: dict = {split: collections.defaultdict(list) for split in setup.scored}
    details = {}
    for split in setup.scored:
        for task in range(len(setup.tasks)):
            beams = setup.config.decoding.scoring_beams
            details[split, task] = score_task(setup, state, task, split, beams=beams, selection=selection)
            for column in columns(setup):
                row[split][column].append(details[split, task].scores.get(column))
            if selection != "oracle":
                row[split]["loss"].append(_loss(setup, state, task, split, selection=selection))
            progress.update(len(details))
    return {split: dict(columns) for split, columns in row.items()}, details


def _loss(setup: Setup, state: TrainState, task: int, split: str, *, selection: str | None) -> float | None:
    """Token cross-entropy of the scored examples, teacher-forced, the pull term apart; None where it is not finite."""
    batches = setup.batches.evaluation(task, split)
    loss = runner.mean_loss(setup.loss_step_of(selection), state, batches, put=setup.put_whole)
    return loss if math.isfinite(loss) else None


def constant_output(texts: list[str]) -> str:
    """The most frequent target of a train split; among equals the shortest, then the first in order."""
    counts = collections.Counter(texts)
    return min(counts, key=lambda text: (-counts[text], len(text), text))


@functools.lru_cache(maxsize=1)  # a run asks after every stage, and they do not change
def baselines(setup: Setup) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Scores of copying the source and of one constant output: {name: {split: {column: [score of each task]}}}."""
    result = {name: {split: collections.defaultdict(list) for split in setup.scored} for name in BASELINES}
    for task, data in enumerate(setup.tasks):
        constant = constant_output([data.train[i]["targets_text"] for i in range(len(data.train))])
        for split in setup.scored:
            batches = setup.batches.evaluation(task, split)
            records = sorted(int(r) for batch in batches for r in batch["record_B"][batch["valid_B"]])
            examples = [data.split(split)[record] for record in records]
            references = [example["targets_text"] for example in examples]
            outputs = {"copy": [example["inputs_text"] for example in examples], "constant": [constant] * len(examples)}
            for name in BASELINES:
                scores = runner.score(outputs[name], references, data.scorers)
                for column in columns(setup):
                    result[name][split][column].append(scores.get(column))
    return {name: {split: dict(columns) for split, columns in splits.items()} for name, splits in result.items()}

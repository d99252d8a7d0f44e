"""Decodes the examples of a task's split and scores them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from codegen2_jax.decoding.generate import generate
from codegen2_jax.decoding.settings import check_length_penalty
from codegen2_jax.errors import UserError
from codegen2_jax.metrics.bleu import codet5_bleu, codet5_smooth_bleu
from codegen2_jax.metrics.codebleu import codebleu_c_sharp, codebleu_java
from codegen2_jax.metrics.exact_match import exact_match

# The scorers that a task may name: what its column of R holds, and the function (hypotheses, references) -> 0..100, or
# None where a package that it needs is not installed.
SCORERS: dict[str, tuple[str, Callable[[Sequence[str], Sequence[str]], float | None]]] = {
    "codet5_bleu": ("bleu", codet5_bleu),
    "codet5_smooth_bleu": ("bleu", codet5_smooth_bleu),
    "exact_match": ("exact_match", exact_match),
    "codebleu_java": ("codebleu", codebleu_java),
    "codebleu_c_sharp": ("codebleu", codebleu_c_sharp),
}


def check_scorers(task: str, scorers: Sequence[str]) -> None:
    """Refuses what could not be scored, or what one column of R cannot hold, before anything was trained.

    The first scorer is the one that decides which state is best, so it has to be there on this machine.
    """
    unknown = [name for name in scorers if name not in SCORERS]
    if unknown or not scorers:
        raise UserError(f"scorers={list(scorers)} of task {task}: choose from {sorted(SCORERS)}.")
    by_column: dict[str, str] = {}
    for name in scorers:
        column, _ = SCORERS[name]
        if column in by_column:
            raise UserError(
                f"scorers={list(scorers)} of task {task}: {by_column[column]} and {name} both fill the column "
                f"{column!r}; keep one of them."
            )
        by_column[column] = name
    if SCORERS[scorers[0]][1]([""], [""]) is None:
        raise UserError(
            f"scorers={list(scorers)} of task {task}: {scorers[0]} comes first and so decides which state is best, but "
            "a package that it needs is not installed (pip install 'codegen2_jax[eval]'); install it, or put "
            "another scorer first."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How predictions are made.

    Attributes:
      selection_beams: beams while training, for early stopping. 1 is greedy.
      scoring_beams: beams for every score of the matrix R.
      length_penalty: exponent of the length that divides a finished hypothesis's log-probability.
      batch_size: examples decoded at once, in the whole job.
    """

    selection_beams: int = 1
    scoring_beams: int = 5
    length_penalty: float = 1.0
    batch_size: int = 32

    def __post_init__(self):
        for name in ("selection_beams", "scoring_beams", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}={value} is out of range; it must be at least 1.")
        check_length_penalty(self.length_penalty)

    def identifier(self, beams: int) -> str:
        """What is stored beside every score that was decoded so."""
        return "greedy" if beams == 1 else f"beam_{beams}_length_penalty_{self.length_penalty:g}"


def score(hypotheses: Sequence[str], references: Sequence[str], scorers: Iterable[str]) -> dict[str, float | None]:
    """Scores by the names of R's columns ("bleu", "exact_match"), each 0 to 100, or None for "not computed".

    UserError for an unknown scorer.
    """
    scores = {}
    for name in scorers:
        if name not in SCORERS:
            raise UserError(f"scorer {name!r} is unknown; the known ones are {sorted(SCORERS)}.")
        column, function = SCORERS[name]
        scores[column] = function(hypotheses, references)
    return scores


def make_predict(
    model: Any,
    prompt: Callable | None,
    *,
    max_length: int,
    num_beams: int,
    length_penalty: float,
    out_shardings: Any = None,
):
    """Builds the jitted `predict(params, prompt_state, batch) -> (tokens_BT, selected_BK)`.

    prompt: `(params, prompt_state, batch) -> (prompt_BPD, selected_BK)`, or None to decode without a prompt. It must
    not read the targets. selected_BK has K = 0 without a prompt. out_shardings: where the results lie; with several
    processes each has to read them.
    """

    def predict(params, prompt_state, batch):
        prompt_BPD, selected_BK = None, np.zeros((batch["inputs_BS"].shape[0], 0), np.int32)
        if prompt is not None:
            prompt_BPD, selected_BK = prompt(params, prompt_state, batch)
        tokens_BT = generate(
            model,
            params["model"],
            batch,
            prompt_BPD,
            max_length=max_length,
            num_beams=num_beams,
            length_penalty=length_penalty,
        )
        return tokens_BT, selected_BK

    return jax.jit(predict, out_shardings=out_shardings)


def decode_split(
    predict: Callable, params: Any, prompt_state: Any, batches: Iterable[dict], vocabulary: Any, *, put: Callable
) -> tuple[dict[int, str], dict[int, np.ndarray]]:
    """Predictions and selected prompts by record number; texts are stripped, special tokens dropped.

    put: host batch -> device batch. Rows whose `valid_B` is false are padding and are dropped.
    """
    # Dispatch everything first: the device works on the next batch while the host turns tokens into text.
    pending = [(batch, predict(params, prompt_state, put(_without_targets(batch)))) for batch in batches]
    texts, selected = {}, {}
    for batch, (tokens_BT, selected_BK) in pending:
        tokens_BT, selected_BK = np.asarray(tokens_BT), np.asarray(selected_BK)
        for row in np.flatnonzero(batch["valid_B"]):
            record = int(batch["record_B"][row])
            texts[record] = vocabulary.decode([int(token) for token in tokens_BT[row]]).strip()
            selected[record] = selected_BK[row]
    return texts, selected


def _without_targets(batch: dict) -> dict:
    """Decoding never sees a target; leaving them out also lets batches of one source length share one program."""
    return {name: batch[name] for name in ("inputs_BS", "inputs_mask_BS", "task_B", "query_BD") if name in batch}


def mean_loss(loss_step: Callable, state: Any, batches: Iterable[dict], *, put: Callable) -> float:
    """Token cross-entropy in nats over all true tokens of the batches; NaN when there are none."""
    sums = [loss_step(state, put(batch)) for batch in batches]
    tokens = sum(float(count) for _, count in sums)
    return sum(float(total) for total, _ in sums) / tokens if tokens else math.nan

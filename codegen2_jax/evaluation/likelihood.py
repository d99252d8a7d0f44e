"""What a model gives a target behind a prompt, in nats: the score of answers to choose from.

Shapes: B batch, S prompt length, T target length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from codegen2_jax.data import converters
from codegen2_jax.decoding.text import requests_of
from codegen2_jax.evaluation.prompting import positions

SHAPE_MULTIPLE = 64
TARGET_MULTIPLE = 8
MODEL_READS = ("inputs_BS", "inputs_mask_BS", "decoder_inputs_BT", "targets_BT", "loss_mask_BT")

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt, and of a target behind it."""


class Scorer:
    """Log-probabilities of targets, with the programs compiled so far."""

    def __init__(self, model: Any, vocabulary: Any):
        self.model, self.vocabulary = model, vocabulary
        self.is_decoder = hasattr(model, "prefill")

        def score(params, batch):
            logits_BTV, targets_BT = model.logits(params, batch), batch["targets_BT"]
            log_probs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
            chosen_BT1 = jax.numpy.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1)
            greedy_BT = (logits_BTV.argmax(axis=-1) == targets_BT) | ~batch["loss_mask_BT"]
            return (chosen_BT1[..., 0] * batch["loss_mask_BT"]).sum(axis=1), greedy_BT.all(axis=1)

        self._score = jax.jit(score)

    def room(self, target: int) -> float:
        """The longest prompt before a target of so many tokens."""
        return positions(self.model) - target - 1

    def __call__(self, params: Any, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """(log_prob_B, greedy_B) of (prompt ids, target ids) pairs; greedy: every token is the likeliest one.

        A decoder's prompt must have a token, behind which the target is predicted; an encoder-decoder answers behind
        its start token.
        """
        starts = [prompt[-1] for prompt, _ in pairs] if self.is_decoder else None
        start = np.asarray(starts, np.int32) if starts else self.model.config.decoder_start_token_id
        sources = [np.asarray(prompt[:-1] if self.is_decoder else prompt, np.int32) for prompt, _ in pairs]
        targets = [np.asarray(target, np.int32) for _, target in pairs]
        shape = (
            converters.round_up(max(1, *map(len, sources)), SHAPE_MULTIPLE),
            converters.round_up(max(1, *map(len, targets)), TARGET_MULTIPLE),
        )
        limit = positions(self.model)
        shape = (int(min(shape[0], max(limit - shape[1], max(map(len, sources))))), shape[1])
        batch = converters.encoder_decoder_batch(sources, targets, shape, start_id=start)
        batch = {name: batch[name] for name in MODEL_READS}
        log_prob_B, greedy_B = self._score(params, batch)
        return np.asarray(log_prob_B, np.float64), np.asarray(greedy_B)

    def pair(self, prompt: str, target: str) -> Pair:
        """The ids of a prompt and of a text that goes on behind it.

        A target is what the whole text has more tokens than its prompt, so it is written as the model saw such texts.
        An encoder-decoder reads the prompt as a source, and its target ends.
        """
        (request,) = requests_of(self.model, self.vocabulary, [prompt])
        if not self.is_decoder:
            begin, end = self.vocabulary.bos_id, self.vocabulary.eos_id
            around = [] if begin == end else [begin]
            return request.ids, (*around, *self.vocabulary.encode(target.strip()), end)
        (whole,) = requests_of(self.model, self.vocabulary, [prompt + target])
        if len(whole.ids) > len(request.ids) and whole.ids[: len(request.ids)] == request.ids:
            return request.ids, whole.ids[len(request.ids) :]
        return request.ids, tuple(self.vocabulary.encode(target))

    def fitted(self, pair: Pair) -> Pair:
        """The pair with its prompt's beginning cut off where the model has no room for it."""
        prompt, target = pair
        room = self.room(len(target))
        return (prompt if len(prompt) <= room else prompt[len(prompt) - int(room) :]), target

"""What a model gives a target behind a prompt, in nats: the score of answers to choose from.

Shapes: B batch, S prompt length, T target length.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.data import converters
from codegen2_jax.decoding.text import Request, requests_of
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.prompting import last_tokens, positions

SHAPE_MULTIPLE = 64
TARGET_MULTIPLE = 8

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt, and of a target behind it."""


@functools.partial(jax.jit, static_argnames="model")
def _score(model, params, batch, places_BT, targets_BT, mask_BT):
    """(log-probability of each row's targets, whether all of them are the likeliest)."""
    x_BTD = model.last_states(params, batch)
    # Only what predicts a target meets the head: a prompt's logits would take more memory than all else.
    logits_BTV = model.logits_of(params, jnp.take_along_axis(x_BTD, places_BT[..., None], axis=1))
    log_probs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    chosen_BT1 = jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1)
    greedy_BT = (logits_BTV.argmax(axis=-1) == targets_BT) | ~mask_BT
    return (chosen_BT1[..., 0] * mask_BT).sum(axis=1), greedy_BT.all(axis=1)


class Scorer:
    """Log-probabilities of targets under a model."""

    def __init__(self, model: Any, vocabulary: Any):
        self.model, self.vocabulary = model, vocabulary
        self.is_decoder = hasattr(model, "prefill")

    def room(self, target: int) -> float:
        """The longest prompt before a target of so many tokens."""
        return positions(self.model) - target - 1

    def __call__(self, params: Any, pairs: Sequence[Pair], openers: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(log_prob_B, greedy_B) of (prompt ids, target ids) pairs; greedy: every token is the likeliest one.

        A decoder's prompt must have a token, behind which the target is predicted; an encoder-decoder answers behind
        its start token. A prefix-LM sees a prompt in both directions, as in training and when it is continued, but for
        its last `openers` tokens: the mask that opens an answer stands behind the prefix.
        """
        targets = [np.asarray(target, np.int32) for _, target in pairs]
        length = converters.round_up(max(map(len, targets)), TARGET_MULTIPLE)
        targets_BT, mask_BT = converters.pad(targets, length, 0)
        made = self._sequences(pairs, openers, targets_BT) if self.is_decoder else self._sources(pairs, targets_BT)
        log_prob_B, greedy_B = _score(self.model, params, *made, targets_BT, mask_BT)
        return np.asarray(log_prob_B, np.float64), np.asarray(greedy_B)

    def _sequences(self, pairs: Sequence[Pair], openers: int, targets_BT):
        """(each prompt and target as a document of its own, places_BT whose states predict the target)."""
        rows = [np.asarray([*prompt, *target[:-1]], np.int32) for prompt, target in pairs]
        longest = max(map(len, rows))
        length = int(max(longest, min(converters.round_up(longest, SHAPE_MULTIPLE), positions(self.model))))
        tokens_BT, valid_BT = converters.pad(rows, length, 0)
        place_BT = np.broadcast_to(np.arange(length, dtype=np.int32)[None], tokens_BT.shape)
        prompt_B1 = np.asarray([[len(prompt)] for prompt, _ in pairs])
        batch = {"tokens_BT": tokens_BT, "positions_BT": place_BT, "segments_BT": valid_BT.astype(np.int32)}
        batch["bidirectional_BT"] = place_BT < prompt_B1 - openers
        return batch, np.minimum(prompt_B1 - 1 + np.arange(targets_BT.shape[1])[None], length - 1)

    def _sources(self, pairs: Sequence[Pair], targets_BT):
        """The same for an encoder-decoder: (sources and targets, places_BT)."""
        sources = [np.asarray(prompt, np.int32) for prompt, _ in pairs]
        shape = (converters.round_up(max(map(len, sources)), SHAPE_MULTIPLE), targets_BT.shape[1])
        start_id = self.model.config.decoder_start_token_id
        batch = converters.encoder_decoder_batch(sources, [target for _, target in pairs], shape, start_id=start_id)
        read = {name: batch[name] for name in ("inputs_BS", "inputs_mask_BS", "decoder_inputs_BT")}
        return read, np.broadcast_to(np.arange(shape[1])[None], targets_BT.shape)

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
        """The pair with its prompt's beginning cut off where the model has no room for it; a start token stays.

        Raises UserError for a target that is longer than the model.
        """
        prompt, target = pair
        if len(target) > positions(self.model):
            raise UserError(
                f"an answer of {len(target)} tokens exceeds the model's {positions(self.model)} positions; take a "
                "model that has more."
            )
        return last_tokens(Request(tuple(prompt)), max(1, self.room(len(target))), self.vocabulary).ids, target

"""From prompts as texts to completions as texts.

Prompts are batched by length in a few padded shapes; what a sample is depends on the seed, on its prompt's place in the
list and on its own number, not on the batch. The texts are watched on the host, see `streams.py`.

Shapes: B batch, K samples, S prompt length, T target length, J answers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from codegen2_jax.decoding import beams, sampling
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.streams import Stream
from codegen2_jax.errors import UserError

SHORTEST_SHAPE = 64  # prompts are padded to this length, or to a power of two above it
SHARING = 16  # samples that share a prompt's cache at once: attention reads the slots of all and masks the others'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One continuation.

    Attributes:
      text: without the prompt, the end token and a stop string.
      ids: its tokens, led by the start token of an encoder-decoder; with a stop string those up to its end.
      finish: "stop_id" (the model ended it), "stop_string" or "length".
      stop_id: the token with which the model ended it, or None.
      log_probability: sum over the tokens drawn, the end token included, of the model's own distribution.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    stop_id: int | None
    log_probability: float


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt as ids, and the tokens that open its answers (none: the completion goes on where the prompt ends)."""

    ids: tuple[int, ...]
    openers: tuple[int, ...] = ()


def complete(
    model: Any,
    params: Any,
    vocabulary: Any,
    prompts: Sequence[str | Sequence[int]],
    settings: Generation | None = None,
    *,
    decoder: Any = None,
    on_text: Callable[[int, int, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """The n completions of every prompt, in the order of the prompts.

    A decoder continues the prompt; an encoder-decoder reads it, wrapped as in training, and writes its answer. A prompt
    given as ids is taken as it is.

    decoder: `sampling.lay_out(model, params)`, for a caller that completes again and again; None: laid out here.
    on_text(prompt, sample, text) is given each new piece of a completion's text. progress(done, total) counts samples.
    Raises UserError for a prompt that is too long for the model.
    """
    if isinstance(prompts, str):
        raise UserError("complete takes a list of prompts; put the one text into brackets.")
    settings = settings or Generation()
    requests = requests_of(model, vocabulary, prompts)
    stop_ids = (vocabulary.eos_id,)
    if settings.num_beams == 1:
        options = {"decoder": decoder, "on_text": on_text, "progress": progress}
        return run(model, params, vocabulary, requests, settings, stop_ids, **options)
    return _search(model, params, vocabulary, requests, settings, decoder, on_text, progress)


def requests_of(model: Any, vocabulary: Any, prompts: Sequence[str | Sequence[int]]) -> list[Request]:
    """Texts wrapped as in training, ids as they are."""
    openers = () if hasattr(model, "prefill") else (model.config.decoder_start_token_id,)
    encoded = iter(vocabulary.encode_batch([prompt for prompt in prompts if isinstance(prompt, str)]))
    wrapped = lambda prompt: _wrapped(model, vocabulary, next(encoded)) if isinstance(prompt, str) else prompt  # noqa: E731
    return [Request(tuple(wrapped(prompt)), openers) for prompt in prompts]


def _wrapped(model, vocabulary, ids: Sequence[int]) -> Sequence[int]:
    """The ids of a text with what stands around a text of this model.

    A start token only where the vocabulary has one that is not its end token too (T5, Llama). In GPT-2's vocabularies
    nothing stands in front, but a text without any token begins behind the end of another.
    """
    end = [] if hasattr(model, "prefill") else [vocabulary.eos_id]
    begins = vocabulary.bos_id != vocabulary.eos_id or not ids
    return [*([vocabulary.bos_id] if begins else []), *ids, *end]


def run(
    model: Any,
    params: Any,
    vocabulary: Any,
    requests: Sequence[Request],
    settings: Generation,
    stop_ids: Sequence[int],
    separator: int | None = None,
    *,
    on_text: Callable[[int, int, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    places: Sequence[int] | None = None,
    decoder: Any = None,
) -> list[list[Completion]]:
    """Samples every request; see `complete`, and `sampling.Rules` for the separator.

    places: what a sample's chance comes from besides the seed and its own number; None: the requests' numbers here. So
    a part of a longer list is sampled as in the whole. decoder: `sampling.lay_out(model, params)`, for a caller who
    comes more than once.
    """
    streams = [_streams(vocabulary, settings, number, on_text) for number in range(len(requests))]
    num_samples = _even(settings.n, min(SHARING, settings.batch_size))
    rows = min(prompts_at_once(settings), len(requests))
    if requests and decoder is None:
        decoder = sampling.lay_out(model, params)
    place_N = np.arange(len(requests)) if places is None else np.asarray(places)
    done = 0
    for chosen, tokens_BS, mask_BS in _batches(model, requests, rows, settings.max_new_tokens):
        prefix = sampling.read(model, params, tokens_BS, mask_BS)
        rules = sampling.Rules(
            jnp.asarray(stop_ids, jnp.int32),
            jnp.int32(sampling.NOTHING if separator is None else separator),
            jnp.asarray(_padded([requests[number].openers for number in chosen], rows)),
            jnp.int32(settings.max_new_tokens),
        )
        for first in range(0, settings.n, num_samples):
            sample_K = np.arange(first, first + num_samples)
            how = sampling.draws(
                np.resize(place_N[chosen], rows),
                sample_K,
                seed=settings.seed,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )
            idle_BK = (np.arange(rows) >= len(chosen))[:, None] | (sample_K >= settings.n)[None]
            places = zip(*np.nonzero(~idle_BK), strict=True)
            watched = {(row, k): (streams[chosen[row]][sample_K[k]], requests[chosen[row]]) for row, k in places}
            _watch(sampling.sample(model, decoder, prefix, idle_BK, rules, how), watched, rules)
            done += len(watched)
            if progress is not None:
                progress(done, settings.n * len(requests))
    return [[_completion(stream) for stream in of_one] for of_one in streams]


def prompts_at_once(settings: Generation) -> int:
    """How many prompts a batch of samples holds."""
    return max(1, settings.batch_size // _even(settings.n, min(SHARING, settings.batch_size)))


def _streams(vocabulary, settings, number, on_text) -> list[Stream]:
    """The n streams of one prompt."""
    decode = functools.partial(vocabulary.decode, continuation=True)
    emits = [on_text and functools.partial(on_text, number, k) for k in range(settings.n)]
    return [Stream(decode, settings.stop, emit) for emit in emits]


def _watch(chunks, watched: Mapping[tuple[int, int], tuple[Stream, Request]], rules: sampling.Rules) -> None:
    """Hands the chunks to the streams, and tells the device which samples a stop string has ended."""
    stop_ids, separator = set(np.asarray(rules.stop_ids).tolist()), int(rules.separator)
    limit, stopped_BK = int(rules.max_new_tokens), None
    while True:
        try:
            token_BKC, log_prob_BKC = chunks.send(stopped_BK)
        except StopIteration:
            return
        stopped_BK = np.zeros(token_BKC.shape[:2], bool)
        for place, (stream, request) in watched.items():
            if stream.finish:
                continue
            tokens = token_BKC[place][token_BKC[place] != sampling.NOTHING].tolist()
            ids = stream.ids + tokens
            answers = len(request.openers)
            closed = ids.count(separator)
            draws = len(ids) - min(ids[:-1].count(separator) + 1, answers)
            finish = None
            if ids and (ids[-1] in stop_ids or (ids[-1] == separator and closed == answers)):
                finish = "stop_id"
            elif draws >= limit:
                finish = "length"
            stream.take(tokens, log_prob_BKC[place].tolist(), finish=finish)
            stopped_BK[place] = stream.finish is not None


def _search(model, params, vocabulary, requests, settings, decoder, on_text, progress) -> list[list[Completion]]:
    """Beam search: the n best hypotheses of every request; stop strings cut what was found."""
    if settings.n > settings.num_beams:
        raise UserError(f"n={settings.n} exceeds num_beams={settings.num_beams}; raise num_beams or lower n.")
    rows = min(max(1, settings.batch_size // settings.num_beams), len(requests))
    decoder = sampling.lay_out(model, params) if decoder is None and requests else decoder
    found: dict[int, list[Completion]] = {}
    options = {"num_beams": settings.num_beams, "length_penalty": settings.length_penalty}
    options |= {"max_new_tokens": settings.max_new_tokens, "eos_id": vocabulary.eos_id}
    for chosen, tokens_BS, mask_BS in _batches(model, requests, rows, settings.max_new_tokens):
        prefix = sampling.read(model, params, tokens_BS, mask_BS)
        token_BKT, log_prob_BK = map(np.asarray, beams.search(model, decoder, prefix, **options))
        sampling.check_finite(log_prob_BK)
        for row, number in enumerate(chosen):
            streams = _streams(vocabulary, settings, number, on_text)
            for stream, token_T, log_prob in zip(streams, token_BKT[row], log_prob_BK[row], strict=False):
                tokens = token_T.tolist()
                ended = vocabulary.eos_id in tokens
                tokens = tokens[: tokens.index(vocabulary.eos_id) + 1] if ended else tokens
                stream.take(tokens, [float(log_prob)], finish="stop_id" if ended else "length")
            found[number] = [_completion(stream) for stream in streams]
        if progress is not None:
            progress(len(found) * settings.n, len(requests) * settings.n)
    return [found[number] for number in range(len(requests))]


def _completion(stream: Stream) -> Completion:
    names = ("text", "finish", "stop_id", "log_probability")
    return Completion(ids=tuple(stream.ids), **{name: getattr(stream, name) for name in names})


def _batches(model, requests, rows: int, max_new_tokens: int):
    """(numbers of the requests, tokens_BS, mask_BS) with B = rows, the longest requests first.

    Long ones first, so that too large a batch fails at once and not after hours.
    """
    limit = getattr(model.config, "max_positions", math.inf)
    by_shape: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        if not request.ids:
            raise UserError(f"prompt {number + 1} has no tokens; give at least one.")
        room = limit - max_new_tokens - len(request.openers)
        if len(request.ids) > room and not getattr(model.config, "allow_extrapolation", False):
            raise UserError(
                f"prompt {number + 1} has {len(request.ids)} tokens, with max_new_tokens={max_new_tokens} more than "
                f"the model's {limit} positions; cut it to {max(room, 0)} tokens, or lower max_new_tokens."
            )
        by_shape.setdefault(padded_length(len(request.ids), limit), []).append(number)
    for length in sorted(by_shape, reverse=True):
        numbers = sorted(by_shape[length], key=lambda number: -len(requests[number].ids))
        for start in range(0, len(numbers), rows):
            chosen = numbers[start : start + rows]
            lengths_B = np.resize([len(requests[number].ids) for number in chosen], rows)
            tokens_BS = _padded([requests[number].ids for number in chosen], rows, length)
            yield chosen, np.maximum(tokens_BS, 0), np.arange(length)[None] < lengths_B[:, None]


def padded_length(tokens: int, limit: float = math.inf) -> int:
    """What a prompt of so many tokens is padded to, in a model of at most `limit` positions."""
    return int(max(min(max(SHORTEST_SHAPE, 1 << (tokens - 1).bit_length()), limit), tokens))


def _padded(sequences: Sequence[Sequence[int]], rows: int, length: int | None = None) -> np.ndarray:
    """int32[rows, length]; NOTHING behind a sequence's end, and the sequences again where there are more rows."""
    length = max(map(len, sequences)) if length is None else length
    table = np.full((rows, length), sampling.NOTHING, np.int32)
    for row in range(rows):
        sequence = sequences[row % len(sequences)]
        table[row, : len(sequence)] = sequence
    return table


def _even(total: int, most: int) -> int:
    """The size of equal groups of at most `most` that together hold `total`."""
    return math.ceil(total / math.ceil(total / most))

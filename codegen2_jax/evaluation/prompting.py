"""Prompts as a model can read them: wrapped, cut where they are too long, with the ids that end an answer.

A prompt of a benchmark may be longer than the model. It then loses its beginning (a hole's surroundings lose their far
ends), which is counted and told: refusing it would leave small models without any score.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from codegen2_jax.decoding import infill
from codegen2_jax.decoding.text import Request, padded_length, requests_of
from codegen2_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Requests, and how they end.

    Attributes:
      requests: one for each problem.
      stop_ids, separator: see `decoding.text.run`.
      max_new_tokens: what was asked for, or what the model has room for.
      cut: how many requests lost something.
    """

    requests: tuple[Request, ...]
    stop_ids: tuple[int, ...]
    separator: int | None
    max_new_tokens: int
    cut: int


def positions(model: Any) -> float:
    """How many tokens the model can hold; infinite where nothing limits it."""
    config = model.config
    return math.inf if getattr(config, "allow_extrapolation", False) else getattr(config, "max_positions", math.inf)


def continuations(model: Any, vocabulary: Any, texts: Sequence[str], max_new_tokens: int) -> Prompts:
    """Texts to be continued."""
    requests, limit = requests_of(model, vocabulary, list(texts)), positions(model)
    max_new_tokens = _affordable(max_new_tokens, limit)
    kept = [last_tokens(one, limit - max_new_tokens - len(one.openers), vocabulary) for one in requests]
    cut = sum(len(new.ids) < len(old.ids) for new, old in zip(kept, requests, strict=True))
    return Prompts(
        requests=tuple(kept), stop_ids=(vocabulary.eos_id,), separator=None, max_new_tokens=max_new_tokens, cut=cut
    )


def holes(model: Any, vocabulary: Any, parts: Sequence[tuple[str, str]], max_new_tokens: int, form: str) -> Prompts:
    """(prefix, suffix) pairs to be filled, in a form of `decoding.infill`; an answer ends at <eom> or the end token."""
    if not hasattr(model, "prefill"):
        raise UserError("this model is an encoder-decoder, which has another infill format; choose a CodeGen2 model.")
    requests, limit = [infill.request_of(vocabulary, pair, form) for pair in parts], positions(model)
    max_new_tokens = _affordable(max_new_tokens, limit)
    kept = [_around_hole(one, limit - max_new_tokens - len(one.openers), vocabulary, form) for one in requests]
    ends = {"stop_ids": (vocabulary.eos_id,), "separator": vocabulary.eom_id}
    if form == "middle":
        ends = {"stop_ids": (vocabulary.eos_id, vocabulary.eom_id), "separator": None}
    cut = sum(len(new.ids) < len(old.ids) for new, old in zip(kept, requests, strict=True))
    return Prompts(requests=tuple(kept), max_new_tokens=max_new_tokens, cut=cut, **ends)


def chunks(requests: Sequence[Request], rows: int, limit: float = math.inf) -> list[list[int]]:
    """Numbers of the requests in groups of at most `rows` of one padded length, the longest first.

    Long ones first, so that a batch that does not fit into memory fails at once and not after hours.
    """
    by_length: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        by_length.setdefault(padded_length(len(request.ids), limit), []).append(number)
    found = []
    for length in sorted(by_length, reverse=True):
        numbers = sorted(by_length[length], key=lambda number: -len(requests[number].ids))
        found += [numbers[start : start + rows] for start in range(0, len(numbers), rows)]
    return found


def _affordable(max_new_tokens: int, limit: float) -> int:
    """At most half of the positions are for the answer."""
    return int(min(max_new_tokens, max(1, limit // 2)))


def last_tokens(request: Request, room: float, vocabulary: Any) -> Request:
    """The request's last tokens, its start token kept."""
    if len(request.ids) <= room:
        return request
    starts = vocabulary.bos_id != vocabulary.eos_id and request.ids[0] == vocabulary.bos_id
    head = request.ids[:1] if starts else ()
    return dataclasses.replace(request, ids=head + request.ids[len(request.ids) - int(room) + len(head) :])


def _around_hole(request: Request, room: float, vocabulary: Any, form: str) -> Request:
    """The nearest tokens on both sides of a hole; what one side does not need the other gets."""
    excess = len(request.ids) - room
    if excess <= 0:
        return request
    ids, first, last = request.ids, 0, 2
    if form == "middle":
        first, last, mark = 1, 1, ids.index(vocabulary.fim_suffix_id)
    else:
        mark = ids.index(request.openers[0])
    prefix, suffix = ids[first:mark], ids[mark + 1 : len(ids) - last]
    free = len(prefix) + len(suffix) - int(excess)
    before = min(len(prefix), max(free // 2, free - len(suffix)))
    kept = (*ids[:first], *prefix[len(prefix) - before :], ids[mark], *suffix[: free - before], *ids[len(ids) - last :])
    return dataclasses.replace(request, ids=kept)

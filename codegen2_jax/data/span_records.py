"""Records of decoders: what stands in a row of a piece of a document, and the prompts that ask for the same form.

    causal   x_1 .. x_n EOS
    spans    c_0 M_1 c_1 M_2 .. M_J c_J EOS SEP M_1 s_1 EOM .. M_J s_J EOM EOS
    middle   PRE prefix SUF suffix MID middle EOM EOS
    prompt   prefix M_1 suffix EOS SEP M_1           (a model continues it with the middle and EOM)

Source of the formats: "CodeGen2: Lessons for Training LLMs on Programming and Natural Languages" (arXiv 2305.02309) and
its model cards. All of it is numpy, and pure given the generator. Letters: n tokens of a piece, m masked ones, J spans.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from codegen2_jax.errors import UserError


class Piece(NamedTuple):
    """A part of a document in a window: int32 [n] tokens without end token, and whether the document ends with it."""

    tokens: np.ndarray
    final: bool


class Record(NamedTuple):
    """What a row holds of a piece.

    tokens: int32 [length]. weights: bool [length], whether a token is a target of the loss. context: tokens up to and
    including SEP or MID, 0 where there is none. bidirectional: tokens at the beginning that see one another.
    """

    tokens: np.ndarray
    weights: np.ndarray
    context: int = 0
    bidirectional: int = 0


def draw_lengths(masked: int, rng: np.random.Generator, span_max: int | None = None) -> list[int]:
    """Lengths of spans that add up to `masked`, each uniform on 1 .. what remains (or `span_max`), in drawn order.

    Without `span_max` there are as many as the harmonic number of `masked` on average: 6.79 for 500.
    """
    lengths, remaining = [], masked
    while remaining:
        for uniform in rng.random(32).tolist():
            length = 1 + int(uniform * min(remaining, span_max or remaining))
            lengths.append(length)
            remaining -= length
            if not remaining:
                break
    return lengths


def merge_smallest(lengths: Sequence[int], most: int) -> list[int]:
    """At most `most` lengths of the same sum: the smallest two become one until it holds."""
    heap = list(lengths)
    if len(heap) > most:
        heapq.heapify(heap)
        while len(heap) > most:
            smallest = heapq.heappop(heap)
            heapq.heapreplace(heap, smallest + heap[0])
    return heap


def place_spans(size: int, lengths: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """int64 [J] starts and lengths of spans in random order at distinct gaps between the tokens that are kept."""
    length_J = rng.permutation(np.asarray(lengths, np.int64))
    num_gaps = size - int(length_J.sum()) + 1
    gap_J = np.sort(rng.choice(num_gaps, len(length_J), replace=False))
    return gap_J + np.cumsum(length_J) - length_J, length_J


def causal_record(piece: Piece, eos_id: int) -> Record:
    """The tokens, and the end token where the document ends; all are targets."""
    if not piece.final:
        return Record(piece.tokens, np.ones(len(piece.tokens), bool))
    return Record(np.append(piece.tokens, np.int32(eos_id)), np.ones(len(piece.tokens) + 1, bool))


def span_record(
    piece: Piece,
    start_J: np.ndarray,
    length_J: np.ndarray,
    vocabulary: Any,
    *,
    eos_before_sep: str = "always",
    final_eos: bool = True,
    loss_on: str = "all",
) -> Record:
    """The piece with its spans moved behind SEP. An end token that the document does not have there has no weight."""
    tokens, num_spans, masked = piece.tokens, len(start_J), int(length_J.sum())
    mask_J = vocabulary.sentinel_id(0) - np.arange(num_spans, dtype=np.int32)
    before_J = np.cumsum(length_J) - length_J
    with_eos = int(piece.final or eos_before_sep == "always")
    separator = len(tokens) - masked + num_spans + with_eos
    ending = separator + 1 + masked + 2 * num_spans
    made = np.empty(ending + int(final_eos), np.int32)
    made[separator], made[separator + 1 : ending] = vocabulary.sep_id, vocabulary.eom_id

    lengths = np.empty(2 * num_spans + 1, np.int64)  # kept, span, kept, .., span, kept
    lengths[1::2] = length_J
    lengths[0:-1:2] = np.diff(start_J - before_J, prepend=0)
    lengths[-1] = len(tokens) - start_J[-1] - length_J[-1]
    in_span = np.repeat(np.arange(2 * num_spans + 1) % 2 == 1, lengths)

    sentinel_J = start_J - before_J + np.arange(num_spans)
    is_text = np.ones(separator - with_eos, bool)
    is_text[sentinel_J] = False
    context, targets = made[: len(is_text)], made[separator + 1 : ending]
    context[is_text], context[sentinel_J] = tokens[~in_span], mask_J
    begin_J = before_J + 2 * np.arange(num_spans)
    is_text = np.ones(len(targets), bool)
    is_text[begin_J] = is_text[begin_J + length_J + 1] = False  # the latter hold EOM already
    targets[is_text], targets[begin_J] = tokens[in_span], mask_J

    weights = np.ones(len(made), bool)
    if with_eos:
        made[separator - 1], weights[separator - 1] = vocabulary.eos_id, piece.final
    if final_eos:
        made[-1] = vocabulary.eos_id
    if loss_on == "targets":
        weights[: separator + 1] = False
    elif loss_on == "no_context_sentinels":
        weights[sentinel_J] = False
    return Record(made, weights, context=separator + 1)


def middle_record(prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], vocabulary: Any) -> Record:
    """PRE prefix SUF suffix MID middle EOM EOS; all are targets."""
    made = np.empty(len(prefix) + len(middle) + len(suffix) + 5, np.int32)
    second, third = 1 + len(prefix), 2 + len(prefix) + len(suffix)
    made[0], made[second], made[third] = (
        vocabulary.fim_prefix_id,
        vocabulary.fim_suffix_id,
        vocabulary.fim_middle_id,
    )
    made[1:second], made[second + 1 : third], made[third + 1 : -2] = prefix, suffix, middle
    made[-2:] = vocabulary.eom_id, vocabulary.eos_id
    return Record(made, np.ones(len(made), bool), context=third + 1)


def joined(pieces: Sequence[Piece], eos_id: int) -> Piece:
    """All pieces as one, end tokens between them."""
    records = [causal_record(piece, eos_id).tokens for piece in pieces]
    records[-1] = pieces[-1].tokens
    return Piece(np.concatenate(records), pieces[-1].final)


def restore(tokens: np.ndarray, vocabulary: Any) -> np.ndarray:
    """int32: the piece that a span record was made of, without end token; UserError if it is no such record.

    An infill prompt with its completed answer is such a record too.
    """
    tokens = np.asarray(tokens, np.int32)
    separator = np.flatnonzero(tokens == vocabulary.sep_id)
    if len(separator) != 1:
        raise UserError(f"the record has {len(separator)} <sep>, one is expected; it holds no corrupted spans.")
    context, targets = tokens[: separator[0]], tokens[separator[0] + 1 :]
    if len(context) and context[-1] == vocabulary.eos_id:
        context = context[:-1]
    ends = np.flatnonzero(targets == vocabulary.eom_id)
    first = vocabulary.sentinel_id(0)
    where = np.flatnonzero((context <= first) & (context > first - vocabulary.num_sentinels))
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    if len(ends) != len(where) or not np.array_equal(context[where], targets[begins[: len(ends)]]):
        raise UserError(f"{len(where)} masks and {len(ends)} spans that end do not belong together.")
    parts, at = [], 0
    for place, begin, end in zip(where, begins, ends, strict=True):
        parts += [context[at:place], targets[begin + 1 : end]]
        at = place + 1
    return np.concatenate([*parts, context[at:]])


def infill_prompt(vocabulary: Any, parts: Sequence[str]) -> np.ndarray:
    """int32: the prompt that asks for what belongs between the parts: p_0 M_1 p_1 .. M_J p_J EOS SEP M_1.

    The answer ends with EOM; where there are several holes, M_2 and so on ask for the next ones.
    """
    if len(parts) < 2:
        raise UserError(f"an infill prompt of {len(parts)} parts has no hole; give the text before and behind it.")
    require_spans(vocabulary, len(parts) - 1)
    ids = vocabulary.encode(parts[0])
    for number, part in enumerate(parts[1:]):
        ids = [*ids, vocabulary.sentinel_id(number), *vocabulary.encode(part)]
    return np.asarray([*ids, vocabulary.eos_id, vocabulary.sep_id, vocabulary.sentinel_id(0)], np.int32)


def middle_prompt(vocabulary: Any, prefix: str, suffix: str) -> np.ndarray:
    """int32: the prompt of a model of `PrefixSuffixMiddle`: PRE prefix SUF suffix MID."""
    require_middle(vocabulary)
    ids = [vocabulary.fim_prefix_id, *vocabulary.encode(prefix), vocabulary.fim_suffix_id]
    return np.asarray([*ids, *vocabulary.encode(suffix), vocabulary.fim_middle_id], np.int32)


def require_spans(vocabulary: Any, num_spans: int) -> None:
    """UserError where the vocabulary lacks what records of that many spans need."""
    missing = [name for name in ("sep_id", "eom_id") if getattr(vocabulary, name) is None]
    if missing or vocabulary.num_sentinels < num_spans:
        lacks = " and no ".join(["", *missing])
        raise UserError(
            f"{num_spans} spans need as many masks, <sep> and <eom>; the vocabulary has {vocabulary.num_sentinels} "
            f"masks{lacks}: use CodeGen2's, or fewer spans."
        )


def require_middle(vocabulary: Any) -> None:
    """UserError where the vocabulary lacks what records with a middle need."""
    names = ("fim_prefix_id", "fim_middle_id", "fim_suffix_id", "eom_id")
    missing = [name for name in names if getattr(vocabulary, name) is None]
    if missing:
        raise UserError(f"the vocabulary has no {', '.join(missing)}; use CodeGen2's or CodeGen2.5's.")

"""Documents of known lengths -> windows: which part of which document stands where, planned before anything is read.

The end token of a document of n tokens counts as its token n, so a document has n + 1 places and a piece is a
half-open range of them. A plan is a pure function of (lengths, order, seed), and one of an epoch is some arrays.
Letters: D documents, P pieces, W windows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from codegen2_jax.data.span_records import Piece, Record
from codegen2_jax.errors import UserError

PACKINGS = ("concat", "jaxformer", "none")
SHORTEST_TAIL = 64
"""jaxformer drops tails of documents that are shorter (salesforce/jaxformer `preprocess/5_shuffe_concat_eos.py`)."""


class Objective:
    """What packing asks of an objective; a window, or with coin="file" each document, takes one of its branches."""

    coin = "window"

    def check(self, vocabulary: Any) -> None:
        """UserError where the vocabulary lacks what records need."""

    def choose(self, uniform: np.ndarray) -> np.ndarray:
        """int8, like `uniform`: the branch that each draw from [0, 1) stands for."""
        return np.zeros(len(uniform), np.int8)

    def is_plain(self, branch: int) -> bool:
        """Whether the branch's records are the raw tokens."""
        raise NotImplementedError

    def longest(self, branch: int, tokens: int, final: bool) -> int:
        """The most tokens that the record of a piece of `tokens` may have."""
        raise NotImplementedError

    def least(self, branch: int) -> int:
        """Pieces of fewer tokens are not cut off: the rest of a window stays padding."""
        return 1

    def apply(self, pieces: Sequence[Piece], branches: Sequence[int], rng, vocabulary: Any) -> list[Record]:
        """The records of a window's pieces, in order; `branches` has one entry for each piece."""
        raise NotImplementedError


@functools.lru_cache(maxsize=65536)
def most_tokens(objective: Objective, branch: int, room: int) -> int:
    """The longest piece cut from a document whose record always fits `room`, 0 where none does that is long enough."""
    low, high = objective.least(branch), room
    if high < low or objective.longest(branch, low, False) > room:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if objective.longest(branch, middle, False) <= room else (low, middle - 1)
    return low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of an epoch: window w holds the pieces first_W[w] .. first_W[w + 1] - 1, in order.

    document_P, start_P, stop_P: int64, places of a document. branch_P: int8, the objective's branch for each piece.
    first_W: int64 [W + 1]. dropped: places that are in no window (packing="jaxformer" only).
    """

    document_P: np.ndarray
    start_P: np.ndarray
    stop_P: np.ndarray
    branch_P: np.ndarray
    first_W: np.ndarray
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.first_W) - 1


def plan_windows(
    lengths_D: np.ndarray,
    order: np.ndarray,
    objective: Objective,
    rng: np.random.Generator,
    *,
    sequence_length: int,
    room: int | None = None,
    packing: str = "concat",
    overflow: str = "fit",
) -> Windows:
    """Windows over the documents of `order` (numbers into `lengths_D`, repeated where it repeats them).

    Args:
      sequence_length: raw tokens of a window, end tokens included.
      room: tokens that a window's records may take; default: sequence_length.
      packing: "concat" cuts one stream of all documents and drops nothing; "none" gives each document windows of its
        own; "jaxformer" cuts each document into full windows, joins its tail to a stream of tails that is cut as well,
        and drops tails below 64 tokens and what the stream of tails leaves over.
      overflow: "fit" draws a window's branch first and then takes so much text that its records fit `room`, the rest
        going to the next window; room too small for a piece stays padding. "truncate" always takes sequence_length
        tokens and leaves it to the caller to cut the records.
    """
    if packing not in PACKINGS:
        raise UserError(f"packing={packing!r} is unknown; use one of {', '.join(PACKINGS)}.")
    if overflow not in ("fit", "truncate"):
        raise UserError(f'overflow={overflow!r} is unknown; use "fit" or "truncate".')
    document_D, place_D = np.asarray(order, np.int64), np.asarray(lengths_D, np.int64)[order] + 1
    # Where no branch makes records longer than their pieces, there is nothing to fit.
    grows = not all(objective.is_plain(branch) for branch in np.unique(objective.choose(np.linspace(0, 1, 1001)[:-1])))
    if grows and overflow == "fit":
        if packing == "jaxformer":
            raise UserError('packing="jaxformer" cuts windows before their records; it needs overflow="truncate".')
        return _fit(document_D, place_D, objective, rng, sequence_length, room or sequence_length, packing == "none")
    dropped = 0
    if packing == "concat":
        pieces = _cut_stream(document_D, np.zeros_like(place_D), place_D, sequence_length)
    elif packing == "none":
        pieces = _cut_each(document_D, place_D, sequence_length)
    else:
        pieces, dropped = _jaxformer(document_D, place_D, sequence_length)
    document_P, start_P, stop_P, first_W = pieces
    if objective.coin == "file":
        branch_P = objective.choose(rng.random(len(lengths_D)))[document_P]
    else:
        branch_P = np.repeat(objective.choose(rng.random(len(first_W) - 1)), np.diff(first_W))
    return Windows(
        document_P=document_P, start_P=start_P, stop_P=stop_P, branch_P=branch_P, first_W=first_W, dropped=dropped
    )


def _cut_stream(document_D, start_D, stop_D, length: int):
    """(document_P, start_P, stop_P, first_W) of the ranges as one stream, cut every `length` places."""
    ends_D = np.cumsum(stop_D - start_D)
    total = int(ends_D[-1]) if len(ends_D) else 0
    cuts = np.union1d(ends_D, np.arange(length, total + length, length).clip(max=total))
    begins = np.append(0, cuts)[:-1]
    of = np.searchsorted(ends_D, begins, side="right")
    shift = start_D[of] - (ends_D - (stop_D - start_D))[of]
    first_W = np.searchsorted(begins, np.arange(0, total, length))
    return document_D[of], begins + shift, cuts + shift, np.append(first_W, len(begins))


def _cut_each(document_D, place_D, length: int):
    """Every document cut for itself; each piece is a window."""
    windows_D = -(-place_D // length)
    number_P = np.arange(windows_D.sum()) - np.repeat(np.cumsum(windows_D) - windows_D, windows_D)
    start_P = number_P * length
    stop_P = np.minimum(start_P + length, np.repeat(place_D, windows_D))
    return np.repeat(document_D, windows_D), start_P, stop_P, np.arange(len(start_P) + 1)


def _jaxformer(document_D, place_D, length: int):
    full = _cut_each(document_D, place_D // length * length, length)
    tail_D = place_D % length
    kept = tail_D >= min(SHORTEST_TAIL, length)
    tails = _cut_stream(document_D[kept], (place_D - tail_D)[kept], place_D[kept], length)
    used = int(tail_D[kept].sum()) // length  # whole windows
    tails = [part[: tails[3][used]] for part in tails[:3]] + [tails[3][: used + 1]]
    joined = [np.concatenate([one, other]) for one, other in zip(full[:3], tails[:3], strict=True)]
    first_W = np.concatenate([full[3], tails[3][1:] + len(full[0])])
    return (*joined, first_W), int(tail_D.sum()) - used * length


def _fit(document_D, place_D, objective, rng, length: int, room: int, alone: bool) -> Windows:
    """See `plan_windows`; one step for each piece."""
    documents, starts, stops, branches, first = [], [], [], [], [0]
    by_file = objective.coin == "file"
    coins = _coins(objective, rng)
    branch_of = objective.choose(rng.random(int(document_D.max()) + 1)).tolist() if by_file else None
    plain = {}  # branch -> is_plain
    cut_to: dict[tuple[int, int], int] = {}
    branch = -1 if by_file else next(coins)
    left = room
    for document, places in zip(document_D.tolist(), place_D.tolist(), strict=True):
        at = 0
        while at < places:
            if branch_of is not None:
                branch = branch_of[document]
            if branch not in plain:
                plain[branch] = objective.is_plain(branch)
                if not plain[branch] and most_tokens(objective, branch, room) < 1:
                    raise UserError(
                        f"no record of branch {branch} of {objective} fits {room} tokens; raise sequence_length or "
                        f"lower max_spans."
                    )
            tokens = places - 1 - at
            if plain[branch]:
                # A window of raw tokens alone holds no more than sequence_length, even where records have more room.
                taken, used = (min(left - (room - length), tokens + 1),) * 2
            elif (used := objective.longest(branch, tokens, True)) <= left:
                taken = tokens + 1
            else:
                key = (branch, left)
                if key not in cut_to:
                    cut_to[key] = most_tokens(objective, branch, left)
                taken = min(cut_to[key], tokens) if tokens >= objective.least(branch) else 0
                used = left
            if taken > 0:
                documents.append(document)
                starts.append(at)
                stops.append(at + taken)
                branches.append(branch)
                at += taken
                left -= used
            if taken <= 0 or at < places or alone:
                assert len(documents) > first[-1], (document, at, left)
                first.append(len(documents))
                left = room
                branch = -1 if by_file else next(coins)
    if len(documents) > first[-1]:
        first.append(len(documents))
    arrays = [np.asarray(values, np.int64) for values in (documents, starts, stops)]
    return Windows(
        document_P=arrays[0],
        start_P=arrays[1],
        stop_P=arrays[2],
        branch_P=np.asarray(branches, np.int8),
        first_W=np.asarray(first, np.int64),
    )


def _coins(objective, rng):
    """The branches of the windows, one after the other."""
    while True:
        yield from objective.choose(rng.random(1024)).tolist()

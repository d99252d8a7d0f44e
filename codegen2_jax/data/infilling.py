"""Objectives of decoders: causal, span corruption, prefix, fill-in-the-middle and a UL2-like mixture.

A window holds pieces of documents; an objective makes of them records (data/span_records.py), which stand one after the
other in a row.

Source: "CodeGen2: Lessons for Training LLMs on Programming and Natural Languages" (arXiv 2305.02309) for the mixture
with probability 0.5, documents corrupted one by one and the uniform draws. What the paper leaves open (ranges, most
spans, what carries loss) is a knob whose default is a choice of this project.

All of it is numpy, and pure given the generator. Letters: n tokens of a piece, m masked ones, J spans.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from codegen2_jax.data.packing import Objective
from codegen2_jax.data.span_records import (
    Piece,
    Record,
    causal_record,
    draw_lengths,
    joined,
    merge_smallest,
    middle_record,
    place_spans,
    require_middle,
    require_spans,
    span_record,
)
from codegen2_jax.errors import UserError

UL2_DENOISERS = ((3, 0.15), (8, 0.15), (3, 0.5), (8, 0.5), (64, 0.5), (64, 0.15), (None, 0.25))
"""(mean span, share masked) of R, X and S, equally likely; None is one span at the end (arXiv 2205.05131)."""

UL2_FIXED = ((None, 0.75), (None, 0.75), (8, 0.5), (64, 0.5))
"""Half of the windows continue a quarter of the text, so that 62.5 % of the text is to be predicted."""

_BELOW_ONE = np.nextafter(1.0, 0.0)  # a draw stays below 1 where a range is stretched to it
_RETOKENISED = 16  # how much longer two cuts inside tokens may make a piece before the cuts move between tokens


def _one_of(value: str, name: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; use one of {', '.join(choices)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Every token is predicted from those before it."""

    def is_plain(self, branch):
        return True

    def longest(self, branch, tokens, final):
        return tokens + final

    def apply(self, pieces, branches, rng, vocabulary):
        return [causal_record(piece, vocabulary.eos_id) for piece in pieces]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Objective):
    """Spans of a piece move behind SEP. The paper gives the idea and uniform draws; every default here is a choice.

    Attributes:
      ratio_range: a piece's share of masked tokens is uniform on it; at least one token is masked and one kept.
      span_lengths: "uniform" (`draw_lengths`), or "poisson": as many spans as give `mean_span` tokens each on average,
        lengths 1 + Poisson given their sum.
      span_max: the longest span drawn, None for all that remains to be masked ("uniform" only).
      mean_span: tokens, for "poisson". None is a single span at the end of the piece.
      max_spans: J_max; spans beyond it are merged, the smallest two at a time. None: as many as there are.
      min_file_tokens: shorter pieces stay causal.
      scope: "file" corrupts each piece for itself, "window" all pieces together, their end tokens as text.
      eos_before_sep: "always", or "real_only": only where the document ends.
      final_eos: whether an end token follows the last EOM.
      loss_on: "all", "targets" (what stands behind SEP) or "no_context_sentinels".
    """

    ratio_range: tuple[float, float] = (0.0, 1.0)
    span_lengths: str = "uniform"
    span_max: int | None = None
    mean_span: float | None = 3.0
    max_spans: int | None = 20
    min_file_tokens: int = 16
    scope: str = "file"
    eos_before_sep: str = "always"
    final_eos: bool = True
    loss_on: str = "all"

    def __post_init__(self):
        low, high = self.ratio_range
        if not 0 <= low <= high <= 1:
            raise UserError(f"ratio_range={self.ratio_range} is no range within 0 .. 1; give (lowest, highest).")
        for name in ("span_max", "mean_span", "max_spans"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is below 1; raise it, or set None.")
        _one_of(self.span_lengths, "span_lengths", ("uniform", "poisson"))
        _one_of(self.scope, "scope", ("file", "window"))
        _one_of(self.eos_before_sep, "eos_before_sep", ("always", "real_only"))
        _one_of(self.loss_on, "loss_on", ("all", "targets", "no_context_sentinels"))

    def check(self, vocabulary):
        require_spans(vocabulary, self.max_spans or 1)

    def is_plain(self, branch):
        return False

    def least(self, branch):
        return max(self.min_file_tokens, 2)

    def longest(self, branch, tokens, final):
        if tokens < self.least(branch):
            return tokens + final
        spans = min(self._spans(self._masked(tokens, self.ratio_range[1]), tokens), (tokens + 1) // 2)
        return tokens + 3 * spans + 1 + int(final or self.eos_before_sep == "always") + int(self.final_eos)

    @staticmethod
    def _masked(tokens: int, ratio: float) -> int:
        return min(max(round(ratio * tokens), 1), tokens - 1)

    def _spans(self, masked: int, tokens: int) -> int:
        """The number of spans, or the most there may be where their number is drawn."""
        spans = masked
        if self.span_lengths == "poisson":
            spans = 1 if self.mean_span is None else min(max(round(masked / self.mean_span), 1), tokens - masked + 1)
        return spans if self.max_spans is None else min(spans, self.max_spans)

    def draw(self, tokens: int, rng, most: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [J] starts and lengths for a piece of `tokens`, of at most `most` spans."""
        masked = self._masked(tokens, rng.uniform(*self.ratio_range))
        most = min(self._spans(masked, tokens), tokens - masked + 1, most)
        if self.span_lengths == "uniform":
            return place_spans(tokens, merge_smallest(draw_lengths(masked, rng, self.span_max), most), rng)
        if self.mean_span is None:
            return np.asarray([tokens - masked]), np.asarray([masked])
        return place_spans(tokens, 1 + rng.multinomial(masked - most, np.full(most, 1 / most)), rng)

    def apply(self, pieces, branches, rng, vocabulary):
        if self.scope == "window":
            pieces = [joined(pieces, vocabulary.eos_id)]
        return [self._record(piece, rng, vocabulary) for piece in pieces]

    def _record(self, piece: Piece, rng, vocabulary) -> Record:
        if len(piece.tokens) < self.least(0):
            return causal_record(piece, vocabulary.eos_id)
        start_J, length_J = self.draw(len(piece.tokens), rng, vocabulary.num_sentinels)
        format = {name: getattr(self, name) for name in ("eos_before_sep", "final_eos", "loss_on")}
        return span_record(piece, start_J, length_J, vocabulary, **format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """`corrupt` with probability `p_corrupt`, else `plain`; the paper's mixed objective has 0.5 and no task token.

    The coin is thrown for each window, or with coin="file" for each document (a choice: the paper says "sequence"). It
    also decides between the branches of a member that has some, whatever coin of its own that has: branch b of `plain`
    is branch 2 b here, branch b of `corrupt` is 2 b + 1.
    """

    p_corrupt: float = 0.5
    coin: str = "window"
    plain: Objective = CausalLM()
    corrupt: Objective = SpanCorruption()

    def __post_init__(self):
        if not 0 <= self.p_corrupt <= 1:
            raise UserError(f"p_corrupt={self.p_corrupt} is no probability; use 0 to 1.")
        _one_of(self.coin, "coin", ("window", "file"))
        if self.coin == "file" and getattr(self.corrupt, "scope", "file") == "window":
            raise UserError('coin="file" has no meaning where scope="window" corrupts documents together; change one.')

    def _member(self, branch: int) -> tuple[Objective, int]:
        """A member, and its own number of the branch."""
        return (self.corrupt if branch % 2 else self.plain), branch // 2

    def check(self, vocabulary):
        self.plain.check(vocabulary)
        self.corrupt.check(vocabulary)

    def choose(self, uniform):
        uniform = np.asarray(uniform)
        is_corrupt, branch = uniform < self.p_corrupt, np.zeros(uniform.shape, np.int8)
        ranges = ((self.plain, self.p_corrupt, 1.0), (self.corrupt, 0.0, self.p_corrupt))
        for number, (member, low, high) in enumerate(ranges):
            here = is_corrupt == number
            within = np.minimum((uniform[here] - low) / (high - low), _BELOW_ONE)
            branch[here] = 2 * member.choose(within) + number
        return branch

    def is_plain(self, branch):
        member, own = self._member(branch)
        return member.is_plain(own)

    def least(self, branch):
        member, own = self._member(branch)
        return member.least(own)

    def longest(self, branch, tokens, final):
        member, own = self._member(branch)
        return member.longest(own, tokens, final)

    def apply(self, pieces, branches, rng, vocabulary):
        if len(set(branches)) == 1:
            member, own = self._member(branches[0])
            return member.apply(pieces, [own] * len(pieces), rng, vocabulary)
        made = []
        for piece, branch in zip(pieces, branches, strict=True):
            member, own = self._member(branch)
            made += member.apply([piece], [own], rng, vocabulary)
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixSuffixMiddle(Objective):
    """Fill-in-the-middle of Bavarian et al. (arXiv 2207.14255), order prefix, suffix, middle, with loss on all tokens.

    Attributes:
      fim_rate: share of the documents that are cut; which share CodeGen2 used is unknown.
      cut: "character": at two characters, the parts tokenised for themselves (a piece that begins or ends within a
        character, and one that this makes much longer, is cut between tokens); "token": between tokens.
      coin: "file" or "window".
    """

    fim_rate: float = 0.5
    cut: str = "character"
    coin: str = "file"

    def __post_init__(self):
        if not 0 <= self.fim_rate <= 1:
            raise UserError(f"fim_rate={self.fim_rate} is no probability; use 0 to 1.")
        _one_of(self.cut, "cut", ("character", "token"))
        _one_of(self.coin, "coin", ("window", "file"))

    def check(self, vocabulary):
        require_middle(vocabulary)

    def choose(self, uniform):
        return (np.asarray(uniform) < self.fim_rate).astype(np.int8)

    def is_plain(self, branch):
        return not branch

    def least(self, branch):
        return 16 if branch else 1

    def longest(self, branch, tokens, final):
        if not branch or not tokens:
            return tokens + final
        return tokens + 5 + (_RETOKENISED if self.cut == "character" else 0)

    def apply(self, pieces, branches, rng, vocabulary):
        each = zip(pieces, branches, strict=True)
        return [
            self._record(piece, rng, vocabulary)
            if branch and len(piece.tokens)
            else causal_record(piece, vocabulary.eos_id)
            for piece, branch in each
        ]

    def _record(self, piece: Piece, rng, vocabulary) -> Record:
        tokens, parts = piece.tokens, None
        if self.cut == "character":
            text = vocabulary.decode(tokens)
            first, second = sorted(rng.integers(0, len(text) + 1, 2).tolist())
            if "\ufffd" not in text:
                parts = [vocabulary.encode(part) for part in (text[:first], text[first:second], text[second:])]
                parts = parts if sum(map(len, parts)) <= len(tokens) + _RETOKENISED else None
        if parts is None:
            parts = np.split(tokens, np.sort(rng.integers(0, len(tokens) + 1, 2)))
        return middle_record(*parts, vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UL2(Objective):
    """A comparator like UL2: one denoiser for each window, in the format of spans and without mode tokens.

    Attributes:
      fixed: `UL2_FIXED` in place of `UL2_DENOISERS`: more of the text is predicted (a choice of this project).
      loss_on, min_file_tokens, eos_before_sep, final_eos, scope: as in `SpanCorruption`.
    """

    fixed: bool = False
    loss_on: str = "targets"
    min_file_tokens: int = 16
    eos_before_sep: str = "always"
    final_eos: bool = True
    scope: str = "file"

    @functools.cached_property
    def members(self) -> tuple[SpanCorruption, ...]:
        """The denoiser of each branch."""
        shared = {name: getattr(self, name) for name in ("loss_on", "min_file_tokens", "eos_before_sep", "final_eos")}
        return tuple(
            SpanCorruption(
                ratio_range=(ratio, ratio),
                span_lengths="poisson",
                mean_span=mean,
                max_spans=None,
                scope=self.scope,
                **shared,
            )
            for mean, ratio in (UL2_FIXED if self.fixed else UL2_DENOISERS)
        )

    def check(self, vocabulary):
        require_spans(vocabulary, 1)

    def choose(self, uniform):
        return (np.asarray(uniform) * len(self.members)).astype(np.int8)

    def is_plain(self, branch):
        return False

    def least(self, branch):
        return self.members[branch].least(0)

    def longest(self, branch, tokens, final):
        return self.members[branch].longest(0, tokens, final)

    def apply(self, pieces, branches, rng, vocabulary):
        return self.members[branches[0]].apply(pieces, [0] * len(pieces), rng, vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    """Another objective for a prefix-LM: the beginning of each record sees itself both ways, and carries no loss.

    It ends with SEP or MID where a record has one, else behind p ~ U{1 .. n - 1} tokens, drawn for each record or with
    per="window" once for the whole row.
    """

    objective: Objective = CausalLM()
    per: str = "segment"

    def __post_init__(self):
        _one_of(self.per, "per", ("segment", "window"))

    @property
    def coin(self) -> str:
        return self.objective.coin

    def check(self, vocabulary):
        self.objective.check(vocabulary)

    def choose(self, uniform):
        return self.objective.choose(uniform)

    def is_plain(self, branch):
        return self.objective.is_plain(branch)

    def least(self, branch):
        return self.objective.least(branch)

    def longest(self, branch, tokens, final):
        return self.objective.longest(branch, tokens, final)

    def apply(self, pieces, branches, rng, vocabulary):
        records = self.objective.apply(pieces, branches, rng, vocabulary)
        made, remaining = [], 0
        if self.per == "window":
            remaining = _prefix(sum(len(record.tokens) for record in records), rng)
        for record in records:
            size = len(record.tokens)
            prefix = min(remaining, size) if self.per == "window" else _prefix(size, rng)
            prefix, remaining = record.context or prefix, max(remaining - size, 0)
            weights = record.weights & (np.arange(size) >= prefix)
            made.append(record._replace(weights=weights, bidirectional=prefix))
        return made


def _prefix(size: int, rng: np.random.Generator) -> int:
    return int(rng.integers(1, size)) if size > 1 else 0

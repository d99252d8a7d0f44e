"""Endless streams of windows over packed documents, planned epoch by epoch and drawn in a new order each epoch.

Letters: D documents, P pieces, W windows, S sources of a stream.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from codegen2_jax.data.packing import Windows, plan_windows
from codegen2_jax.data.plan import fetch, record_lengths, share_out
from codegen2_jax.data.span_records import Piece
from codegen2_jax.errors import UserError

END_TOKEN = -1
"""Stands for a document's end token where the vocabulary is not known."""

_SAMPLE = 256  # documents by which the bytes of a token are estimated


class Window(NamedTuple):
    """A window that was read: its pieces, their branches and sources, the token that follows, and the row's seed."""

    pieces: list[Piece]
    branches: list[int]
    sources: np.ndarray
    carried: int | None
    record: int
    seed: tuple[int, ...]


class Stream:
    """The windows over one source's documents, or over those of several, epoch after epoch."""

    def __init__(self, splits: Mapping[int, Sequence], shares, *, objective, seed, redraw, settings):
        self._numbers, self._splits = list(splits), list(splits.values())
        lengths = [record_lengths(split)[1] for split in self._splits]
        self._first_S = np.cumsum([0] + [len(part) for part in lengths])
        self._lengths_D = np.concatenate(lengths).astype(np.int64)
        self._place_S = np.add.reduceat(self._lengths_D + 1, self._first_S[:-1])
        self._objective, self._seed, self._redraw, self._settings = objective, seed, redraw, settings
        self._quotas = [len(self._lengths_D)]
        if len(splits) > 1:  # as many documents as give each source its share of the tokens
            documents = np.asarray(shares) / (self._place_S / np.diff(self._first_S))
            self._quotas = np.maximum(share_out(documents, len(self._lengths_D)), 1).tolist()
        self._epochs: dict[int, tuple[Windows, np.ndarray, np.ndarray]] = {}
        self._window_counts, self._tokens = [0], [np.zeros(len(splits), np.int64)]  # before each epoch
        self._bytes: dict[int, float] = {}
        self._lock = threading.RLock()

    def windows(self, ordinals: np.ndarray, with_carried: bool) -> list[Window]:
        """The windows of these numbers, counted through all epochs; each document is read once."""
        found, needed = [], []
        for ordinal in ordinals.tolist():
            epoch, plan, window = self._locate(ordinal)
            pieces = slice(int(plan.first_W[window]), int(plan.first_W[window + 1]))
            following = self._following(plan, pieces.stop) if with_carried else None
            found.append((epoch if self._redraw else 0, plan, window, pieces, following))
            needed += plan.document_P[pieces].tolist() + ([following[0]] if following else [])
        tokens_of = self._read(sorted(set(needed)))
        made = []
        for epoch, plan, window, pieces, following in found:
            documents = plan.document_P[pieces]
            split_P = np.searchsorted(self._first_S, documents, side="right") - 1
            cut = [
                Piece(tokens_of[document][start:stop], stop > len(tokens_of[document]))
                for document, start, stop in zip(
                    documents.tolist(), plan.start_P[pieces].tolist(), plan.stop_P[pieces].tolist(), strict=True
                )
            ]
            made.append(
                Window(
                    pieces=cut,
                    branches=plan.branch_P[pieces].tolist(),
                    sources=np.asarray(self._numbers)[split_P],
                    carried=self._token(following, tokens_of) if following else None,
                    record=int(documents[0] - self._first_S[split_P[0]]),
                    seed=(*self._seed, 2, epoch, window),
                )
            )
        return made

    def _following(self, plan: Windows, piece: int) -> tuple[int, int] | None:
        """(document, place) behind the piece that ends at number `piece`, None where the plan ends."""
        document, stop = int(plan.document_P[piece - 1]), int(plan.stop_P[piece - 1])
        if stop <= self._lengths_D[document]:
            return document, stop
        if piece < len(plan.document_P) and self._settings["packing"] == "concat":
            return int(plan.document_P[piece]), 0
        return None

    def _token(self, following: tuple[int, int], tokens_of: Mapping[int, np.ndarray]) -> int | None:
        document, place = following
        return int(tokens_of[document][place]) if place < len(tokens_of[document]) else END_TOKEN

    def _read(self, documents: list[int]) -> dict[int, np.ndarray]:
        tokens_of = {}
        ends = np.searchsorted(documents, self._first_S).tolist()
        for number, split in enumerate(self._splits):
            here = documents[ends[number] : ends[number + 1]]
            if here:
                records = fetch(split, [document - int(self._first_S[number]) for document in here])
                for document, record in zip(here, records, strict=True):
                    tokens_of[document] = np.asarray(record["targets"], np.int32)
                    assert len(tokens_of[document]) == self._lengths_D[document], (number, document)
        return tokens_of

    def _locate(self, ordinal: int) -> tuple[int, Windows, int]:
        """(epoch, its plan, the window's number in the plan) of the window that is taken as number `ordinal`."""
        with self._lock:
            while self._window_counts[-1] <= ordinal:
                self._count(len(self._window_counts) - 1)
            epoch = int(np.searchsorted(self._window_counts, ordinal, side="right")) - 1
            plan, order_W, _ = self._epoch(epoch)
            return epoch, plan, int(order_W[ordinal - self._window_counts[epoch]])

    def _count(self, epoch: int) -> None:
        plan, _, tokens_WS = self._epoch(epoch)
        if not len(plan):
            raise UserError(
                f'{int(self._place_S.sum())} tokens fill no window of {self._settings["sequence_length"]} with '
                f'packing="{self._settings["packing"]}"; use packing="concat" or more documents.'
            )
        self._window_counts.append(self._window_counts[-1] + len(plan))
        self._tokens.append(self._tokens[-1] + tokens_WS[-1])

    def _epoch(self, epoch: int) -> tuple[Windows, np.ndarray, np.ndarray]:
        """(plan, order in which its windows are taken, int64 [W + 1, S] tokens of each source before each of them)."""
        if epoch not in self._epochs:
            # Threads that read ahead may stand on both sides of an epoch's end.
            while len(self._epochs) >= 2:
                del self._epochs[min(self._epochs)]
            drawn = epoch if self._redraw else 0
            rng = np.random.default_rng((*self._seed, 1, drawn))
            plan = plan_windows(self._lengths_D, self._order(drawn), self._objective, rng, **self._settings)
            order_W = np.random.default_rng((*self._seed, 6, epoch)).permutation(len(plan))
            split_P = np.searchsorted(self._first_S, plan.document_P, side="right") - 1
            tokens_PS = np.zeros((len(split_P) + 1, len(self._splits)), np.int64)
            tokens_PS[np.arange(len(split_P)) + 1, split_P] = plan.stop_P - plan.start_P
            before_PS = np.cumsum(tokens_PS, axis=0)
            tokens_WS = np.diff(before_PS[plan.first_W], axis=0)[order_W]
            tokens_WS = np.concatenate([np.zeros_like(tokens_PS[:1]), np.cumsum(tokens_WS, axis=0)])
            self._epochs[epoch] = plan, order_W, tokens_WS
        return self._epochs[epoch]

    def _order(self, epoch: int) -> np.ndarray:
        """The documents of an epoch: from each source its quota, walking through one permutation after another."""
        drawn = []
        for source, quota in enumerate(self._quotas):
            first, size = int(self._first_S[source]), int(self._first_S[source + 1] - self._first_S[source])
            position, end = epoch * quota, (epoch + 1) * quota
            while position < end:
                number, start = divmod(position, size)
                order = np.random.default_rng((*self._seed, 0, source, number)).permutation(size)
                drawn.append(first + order[start : start + end - position])
                position += len(drawn[-1])
        if len(self._quotas) == 1:
            return drawn[0]
        return np.random.default_rng((*self._seed, 7, epoch)).permutation(np.concatenate(drawn))

    def tokens_before(self, ordinal: int) -> dict[int, int]:
        """{source: tokens in the first `ordinal` windows}."""
        if not ordinal:
            return dict.fromkeys(self._numbers, 0)
        with self._lock:
            epoch, _, _ = self._locate(ordinal - 1)
            tokens_S = self._tokens[epoch] + self._epoch(epoch)[2][ordinal - self._window_counts[epoch]]
        return dict(zip(self._numbers, tokens_S.tolist(), strict=True))

    def total(self, source: int) -> int:
        """Tokens of a source, end tokens included."""
        return int(self._place_S[self._numbers.index(source)])

    def bytes_per_token(self, source: int, vocabulary: Any) -> float:
        """Estimated from up to `_SAMPLE` documents, evenly spaced."""
        if source not in self._bytes:
            split = self._splits[self._numbers.index(source)]
            chosen = np.unique(np.linspace(0, len(split) - 1, _SAMPLE).astype(np.int64))
            tokens = [np.asarray(record["targets"], np.int64) for record in fetch(split, chosen)]
            num_bytes = sum(int(vocabulary.byte_lengths[part].sum()) for part in tokens)
            self._bytes[source] = num_bytes / sum(len(part) + 1 for part in tokens)
        return self._bytes[source]

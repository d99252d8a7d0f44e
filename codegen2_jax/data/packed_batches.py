"""Batches of packed documents for decoders: pure functions of (seed, batch number), like those of data/loader.py.

The windows come from one stream for each source, or for all (data/packed_streams.py), and an objective
(data/infilling.py) makes the records of a window. Letters: B batch, T positions, R = T + 1 tokens of a row.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from codegen2_jax.data.infilling import CausalLM
from codegen2_jax.data.loader import Batch, _Batches
from codegen2_jax.data.packed_streams import END_TOKEN, Stream, Window
from codegen2_jax.data.packing import Objective
from codegen2_jax.errors import UserError

_BLOCK = 1024  # batches whose rows' sources are drawn at a time
_CAUSAL = CausalLM()


class PackedBatches(_Batches):
    """Endless batches of packed documents.

    Args:
      sources: name -> documents: cached splits or lists of records whose "targets" are the raw ids of one document.
      objective: makes records of a window's pieces.
      vocabulary: gives the control ids, and the text of what is cut between characters.
      sequence_length: raw tokens of a window, end tokens included.
      batch_size: global.
      rows: which rows of each global batch this process makes, in their order; None for all.
      rates: name -> share of the rows (with mixing="documents": of the tokens), 0 for a source that it leaves out;
        default: all the same.
      packing, overflow: see `packing.plan_windows`.
      shift: "drop_last" has T = sequence_length - 1 positions; "carry_one" has T = sequence_length, and the last
        target of a window of raw tokens is the first token of what follows it.
      attend_across_documents: as the model's. If not, positions begin anew in each document, and its first token,
        which nothing before it can tell, carries no loss.
      redraw_per_epoch: if not, every epoch has the windows and records of the first, in another order.
      mixing: "windows" packs each source for itself and mixes rows; "documents" packs the documents of all together.

    A source that is used up begins again for itself, its documents in a new order.

    Keys of a batch, [B, T]: tokens_BT, targets_BT (the next token), positions_BT, segments_BT (1 .. in a row, 0 for
    padding) int32; bidirectional_BT, loss_mask_BT bool. [B] int32: task_B (the source's number), record_B (the number
    in its source of the row's first document).
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence],
        *,
        vocabulary: Any,
        sequence_length: int,
        batch_size: int,
        seed: int,
        objective: Objective = _CAUSAL,
        rates: Mapping[str, float] | None = None,
        packing: str = "concat",
        overflow: str = "fit",
        shift: str = "drop_last",
        attend_across_documents: bool = True,
        redraw_per_epoch: bool = True,
        mixing: str = "windows",
        rows: np.ndarray | None = None,
    ):
        super().__init__(batch_size, seed, rows)
        for name, value, known in (
            ("shift", shift, ("drop_last", "carry_one")),
            ("mixing", mixing, ("windows", "documents")),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; use one of {', '.join(known)}.")
        if sequence_length < 2:
            raise UserError(f"sequence_length={sequence_length} holds no token and its target; use 2 or more.")
        unknown = sorted(set(rates or {}) - set(sources))
        if unknown:
            raise UserError(f"rates name {', '.join(unknown)}, the sources are {', '.join(sources)}; name only those.")
        share_S = np.asarray([(rates or {}).get(name, 0.0 if rates else 1.0) for name in sources], np.float64)
        if not len(share_S) or share_S.min() < 0 or share_S.sum() <= 0:
            raise UserError(f"the rates of {list(sources)} are {share_S.tolist()}; give each 0 or more, one above 0.")
        for name, share in zip(sources, share_S, strict=True):
            if share > 0 and not len(sources[name]):
                raise UserError(f"source {name!r} has no document; give it documents or the rate 0.")
        objective.check(vocabulary)
        self.names, self.objective, self.vocabulary = tuple(sources), objective, vocabulary
        self.sequence_length, self.length = sequence_length, sequence_length - (shift == "drop_last")
        self._across, self._carries, self._redraw = attend_across_documents, shift == "carry_one", redraw_per_epoch
        settings = {"sequence_length": sequence_length, "room": self.length + 1, "packing": packing}
        settings |= {"overflow": overflow}
        shared = {"objective": objective, "redraw": redraw_per_epoch, "settings": settings}
        used = [number for number, share in enumerate(share_S) if share > 0]
        splits = {number: sources[self.names[number]] for number in used}
        if mixing == "documents" and len(used) > 1:
            self._streams = [Stream(splits, share_S[used], seed=(seed, 3), **shared)]
            self._share_K = np.ones(1)
        else:
            self._streams = [
                Stream({number: split}, np.ones(1), seed=(seed, 4, number), **shared)
                for number, split in splits.items()
            ]
            self._share_K = share_S[used] / share_S.sum()
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._before = [np.zeros(len(self._streams), np.int64)]
        self._lock = threading.Lock()

    def batch(self, number: int) -> Batch:
        rows = self._rows(number)
        shape = (len(rows), self.length)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")}
        batch |= {name: np.zeros(shape, bool) for name in ("bidirectional_BT", "loss_mask_BT")}
        batch["tokens_BT"][:] = batch["targets_BT"][:] = self.vocabulary.pad_id
        for b, row in enumerate(rows):
            size, fed = len(row.tokens), min(len(row.tokens), self.length)
            batch["tokens_BT"][b, :fed] = row.tokens[:fed]
            batch["targets_BT"][b, : size - 1] = row.tokens[1:]
            batch["positions_BT"][b, :fed] = row.positions[:fed]
            batch["segments_BT"][b, :fed] = row.segments[:fed]
            batch["bidirectional_BT"][b, :fed] = row.bidirectional[:fed]
            batch["loss_mask_BT"][b, : size - 1] = row.weights[1:]
        batch["task_B"] = np.asarray([row.source for row in rows], np.int32)
        batch["record_B"] = np.asarray([row.record for row in rows], np.int32)
        return batch

    def statistics(self, number: int) -> dict[str, float]:
        """What of batch `number` (this process's rows) a log shows; makes the batch anew.

        loss_token_fraction: share of the real tokens that are targets of the loss. padding_fraction: share of the
        positions. lost_target_tokens: targets cut off with overflow="truncate". `tokens/<source>`, `bytes/<source>`:
        share of all real tokens, and of the bytes that they stand for.
        """
        rows = self._rows(number)
        tokens_S, bytes_S, num_loss, lost = np.zeros(len(self.names)), np.zeros(len(self.names)), 0, 0
        for row in rows:
            np.add.at(tokens_S, row.sources, 1)
            np.add.at(bytes_S, row.sources, self.vocabulary.byte_lengths[row.tokens])
            num_loss, lost = num_loss + int(row.weights[1:].sum()), lost + row.lost
        total = max(tokens_S.sum(), 1)
        found = {
            "loss_token_fraction": num_loss / total,
            "padding_fraction": 1 - sum(min(len(row.tokens), self.length) for row in rows) / (len(rows) * self.length),
            "lost_target_tokens": float(lost),
        }
        found |= {f"tokens/{name}": share for name, share in zip(self.names, tokens_S / total, strict=True)}
        total = max(bytes_S.sum(), 1)
        return found | {f"bytes/{name}": share for name, share in zip(self.names, bytes_S / total, strict=True)}

    def progress(self, number: int) -> dict[str, dict[str, float]]:
        """{source: epochs, tokens and bytes} that all processes took before batch `number`.

        tokens counts raw tokens and end tokens, epochs are tokens over the source's. bytes are estimated from the bytes
        of a token in a sample of documents.
        """
        block, position = divmod(number, _BLOCK)
        stream_R, ordinal_R = self._block(block)
        taken_K = np.bincount(stream_R[: position * self.batch_size], minlength=len(self._streams))
        found = {}
        for stream, taken in zip(self._streams, self._before[block] + taken_K, strict=True):
            for source, tokens in stream.tokens_before(int(taken)).items():
                found[self.names[source]] = {
                    "epochs": tokens / stream.total(source),
                    "tokens": float(tokens),
                    "bytes": tokens * stream.bytes_per_token(source, self.vocabulary),
                }
        return found

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(stream, how many windows of it were taken before) of each row of a block of batches."""
        with self._lock:
            if block not in self._blocks:
                while len(self._before) <= block + 1:
                    stream_R = self._draw(len(self._before) - 1)
                    counts = np.bincount(stream_R, minlength=len(self._streams))
                    self._before.append(self._before[-1] + counts)
                stream_R, ordinal_R = self._draw(block), np.empty(_BLOCK * self.batch_size, np.int64)
                for k, before in enumerate(self._before[block]):
                    at = np.flatnonzero(stream_R == k)
                    ordinal_R[at] = before + np.arange(len(at))
                while len(self._blocks) >= 2:
                    del self._blocks[min(self._blocks)]
                self._blocks[block] = stream_R, ordinal_R
            return self._blocks[block]

    def _draw(self, block: int) -> np.ndarray:
        if len(self._streams) == 1:
            return np.zeros(_BLOCK * self.batch_size, np.int64)
        uniform_R = np.random.default_rng((self.seed, 5, block)).random(_BLOCK * self.batch_size)
        return np.searchsorted(np.cumsum(self._share_K), uniform_R, side="right").clip(max=len(self._streams) - 1)

    def _rows(self, number: int) -> list["_Row"]:
        block, position = divmod(number, _BLOCK)
        stream_R, ordinal_R = self._block(block)
        here = slice(position * self.batch_size, (position + 1) * self.batch_size)
        stream_B, ordinal_B = stream_R[here][self._own], ordinal_R[here][self._own]
        rows: list = [None] * len(stream_B)
        for k in np.unique(stream_B):
            at = np.flatnonzero(stream_B == k)
            for b, window in zip(at, self._streams[k].windows(ordinal_B[at], self._carries), strict=True):
                rows[b] = self._row(window)
        return rows

    def _row(self, window: "Window") -> "_Row":
        rng = np.random.default_rng(window.seed)
        records = self.objective.apply(window.pieces, window.branches, rng, self.vocabulary)
        size_N = np.asarray([len(record.tokens) for record in records])
        start_N = np.cumsum(size_N) - size_N
        tokens = np.concatenate([record.tokens for record in records])
        weights = np.concatenate([record.weights for record in records])
        segments = np.repeat(np.arange(1, len(records) + 1), size_N)
        positions = np.arange(len(tokens))
        within = positions - np.repeat(start_N, size_N)
        bidirectional = within < np.repeat([record.bidirectional for record in records], size_N)
        # Scope "window" makes one record of all pieces; whatever it holds of another source counts as the first's.
        of = window.sources if len(window.sources) == len(records) else window.sources[:1]
        sources = np.repeat(of, size_N)
        is_raw = len(tokens) == self.sequence_length and all(map(self.objective.is_plain, window.branches))
        if window.carried is not None and is_raw:
            new = int(window.pieces[-1].final)
            carried = self.vocabulary.eos_id if window.carried == END_TOKEN else window.carried
            tokens, weights = np.append(tokens, np.int32(carried)), np.append(weights, True)
            segments, sources = np.append(segments, segments[-1] + new), np.append(sources, sources[-1])
            positions, bidirectional = np.append(positions, positions[-1] + 1), np.append(bidirectional, False)
            within = np.append(within, 0 if new else within[-1] + 1)
        if not self._across:
            weights[1:] &= np.diff(segments) == 0
            positions = within
        lost = int(weights[self.length + 1 :].sum())
        kept = slice(0, self.length + 1)
        values = (tokens, weights, segments, positions, bidirectional, sources)
        return _Row(*(value[kept] for value in values), int(window.sources[0]), window.record, lost)


class _Row(NamedTuple):
    """One row before it is padded; arrays of up to R tokens."""

    tokens: np.ndarray
    weights: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    bidirectional: np.ndarray
    sources: np.ndarray
    source: int
    record: int
    lost: int

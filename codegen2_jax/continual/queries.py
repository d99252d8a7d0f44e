"""Queries of a frozen encoder: computed once per example that is used, stored beside the run, never once per step.

arXiv 2307.02435, section 4: the query of an input is the mean of the last hidden states of the frozen, pretrained
encoder over its true tokens; it depends on neither prompts nor training, so it is a constant of the example.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codegen2_jax import processes
from codegen2_jax.data import converters
from codegen2_jax.data.loader import evaluation_batches
from codegen2_jax.data.plan import Subset, record_lengths
from codegen2_jax.sharding import partitioning

NUM_SHAPES = 4  # in which a split is computed; each is compiled once
SAY_EVERY = 30.0  # seconds; the queries of a large split take longer than many a training


class QueryStore:
    """Queries by record, computed when first asked for and kept in a file of each split, named by what they depend on.

    Args:
      directory: where the files go.
      model: has `query(params, inputs_BS, inputs_mask_BS)`.
      params: the parameters of the pretrained model, placed on the mesh.
      encoder_digest: identifies those parameters.
      pooling: what `model.query` knows: "mean", and "first" of an encoder or "last" of a decoder.
      tell: is given a line now and then while queries are computed, such as `Tracker.message`.
    """

    def __init__(
        self,
        directory: Path,
        model: Any,
        params: Any,
        encoder_digest: str,
        layout: partitioning.Layout,
        *,
        pooling: str = "mean",
        batch_size: int = 64,
        tell: Callable[[str], None] | None = None,
    ):
        self.directory, self.model, self.params, self.layout = Path(directory), model, params, layout
        self.encoder_digest, self.pooling, self.batch_size, self.tell = encoder_digest, pooling, batch_size, tell
        self._query = jax.jit(
            functools.partial(model.query, pooling=pooling), out_shardings=partitioning.replicated(layout)
        )

    def _path(self, split: Any) -> Path:
        identity = f"{self.encoder_digest}|{split.digest}|{self.pooling}|{self.model.config}"
        return self.directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"

    def of(self, split: Any, records: Sequence[int]) -> np.ndarray:
        """query_RD float32, a row for each of these records of a split; those that no file holds are computed."""
        path, records = self._path(split), np.asarray(records, np.int64)
        known_N, query_ND = _load(path, len(split))
        known_N = processes.all_agree(known_N)  # each process may have a disk of its own
        # Where nothing is asked for and nothing is known, one record says how wide a query is.
        needed = records if len(records) or known_N.any() else np.zeros(1, np.int64)
        missing = np.setdiff1d(needed, np.flatnonzero(known_N))
        if len(missing):
            query_RD = self._compute(split, missing)
            query_ND = np.zeros((len(split), query_RD.shape[1]), np.float32) if query_ND is None else query_ND
            query_ND[missing], known_N[missing] = query_RD, True
            _save(path, known_N, query_ND)
        return query_ND[records]

    def _compute(self, split: Any, records: np.ndarray) -> np.ndarray:
        """query_RD of the records, in batches whose shapes depend on the split alone."""
        shapes = converters.choose_shapes(*record_lengths(split), count=NUM_SHAPES)
        batches = evaluation_batches(
            Subset(split, records), task_id=0, batch_size=self.layout.rounded_up(self.batch_size), shapes=shapes
        )
        found, done, began = [None] * len(records), 0, time.monotonic()
        said = began
        for batch in batches:
            inputs = {k: batch[k] for k in ("inputs_BS", "inputs_mask_BS")}
            placed = partitioning.put_batch(self.layout, inputs, whole=True)
            query_BD = np.asarray(self._query(self.params, placed["inputs_BS"], placed["inputs_mask_BS"]), np.float32)
            valid_B = batch["valid_B"]
            for place, query_D in zip(batch["record_B"][valid_B], query_BD[valid_B], strict=True):
                found[place] = query_D
            done, now = done + int(valid_B.sum()), time.monotonic()
            if self.tell is not None and now - said >= SAY_EVERY and done < len(records):
                rate, said = done / (now - began), now
                left = (len(records) - done) / rate / 60
                self.tell(
                    f"queries: {done:,} of {len(records):,} examples, {rate:.0f} a second, about {left:.0f} min left"
                )
        return np.stack(found)


def _load(path: Path, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(known_N, query_ND with a row for every record), or (all false, None) where there is no file."""
    known_N = np.zeros(size, bool)
    if not path.exists():
        return known_N, None
    with np.load(path, allow_pickle=False) as stored:
        records, query_KD = stored["records"], stored["queries"]
    query_ND = np.zeros((size, query_KD.shape[1]), np.float32)
    query_ND[records], known_N[records] = query_KD, True
    return known_N, query_ND


def _save(path: Path, known_N: np.ndarray, query_ND: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(temporary, records=np.flatnonzero(known_N), queries=query_ND[known_N])
    temporary.replace(path)  # a kill leaves a whole file or none


def mean_embeddings(embedding_VD: np.ndarray, tokens: list[np.ndarray]) -> np.ndarray:
    """mean_embedding_ND float32: the mean input embedding of each example's tokens, for initialising prompts."""
    return np.stack([embedding_VD[ids].mean(axis=0) for ids in tokens]).astype(np.float32)

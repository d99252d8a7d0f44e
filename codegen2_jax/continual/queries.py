"""Queries of a frozen encoder: computed once per example, stored beside the run, never once per step.

arXiv 2307.02435, section 4: the query of an input is the mean of the last hidden states of the frozen, pretrained
encoder over its true tokens; it depends on neither prompts nor training, so it is a constant of the example.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codegen2_jax import processes
from codegen2_jax.data.loader import evaluation_batches
from codegen2_jax.sharding import partitioning

SAY_EVERY = 30.0  # seconds; the queries of a large split take longer than many a training


class QueryStore:
    """Queries by split, computed when first asked for and kept in files named by what they depend on.

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

    def _path(self, split: Any, limit: int | None) -> Path:
        identity = f"{self.encoder_digest}|{split.digest}|{limit}|{self.pooling}|{self.model.config}"
        return self.directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"

    def of(self, split: Any, *, limit: int | None = None) -> np.ndarray:
        """query_ND float32, one row per record of a split; with a `limit`, rows that scoring does not visit are 0."""
        path = self._path(split, limit)
        if processes.all_agree(path.exists()):
            return np.load(path, allow_pickle=False)
        queries: np.ndarray | None = None
        batch_size = self.layout.rounded_up(self.batch_size)
        total, done, began = len(split) if limit is None else min(limit, len(split)), 0, time.monotonic()
        said = began
        for batch in evaluation_batches(split, task_id=0, batch_size=batch_size, limit=limit):
            inputs = {k: batch[k] for k in ("inputs_BS", "inputs_mask_BS")}
            placed = partitioning.put_batch(self.layout, inputs, whole=True)
            query_BD = np.asarray(self._query(self.params, placed["inputs_BS"], placed["inputs_mask_BS"]))
            if queries is None:
                queries = np.zeros((len(split), query_BD.shape[1]), np.float32)
            valid_B = batch["valid_B"]
            queries[batch["record_B"][valid_B]] = query_BD[valid_B]
            done, now = done + int(valid_B.sum()), time.monotonic()
            if self.tell is not None and now - said >= SAY_EVERY and done < total:
                rate, said = done / (now - began), now
                left = (total - done) / rate / 60
                self.tell(f"queries: {done:,} of {total:,} examples, {rate:.0f} a second, about {left:.0f} min left")
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
        np.save(temporary, queries)
        temporary.replace(path)  # a kill leaves a whole file or none
        return queries


def mean_embeddings(embedding_VD: np.ndarray, tokens: list[np.ndarray]) -> np.ndarray:
    """mean_embedding_ND float32: the mean input embedding of each example's tokens, for initialising prompts."""
    return np.stack([embedding_VD[ids].mean(axis=0) for ids in tokens]).astype(np.float32)

"""Which record stands in which batch: a pure function of (seed, epoch, batch number)."""

import threading
from collections.abc import Sequence

import numpy as np

from codegen2_jax.errors import UserError


def record_lengths(records) -> tuple[np.ndarray, np.ndarray]:
    """int32 [N] source and target lengths: a cached split knows them, a list of records is counted."""
    if hasattr(records, "source_lengths_N"):
        return records.source_lengths_N, records.target_lengths_N
    source = np.fromiter((len(record.get("inputs", ())) for record in records), np.int32, len(records))
    return source, np.fromiter((len(record["targets"]) for record in records), np.int32, len(records))


class Subset:
    """Some records of a split under numbers of their own, for example a replay buffer; reads only when asked."""

    def __init__(self, records, indices: Sequence[int]):
        self.records = records
        self.indices = np.asarray(indices, np.int64)
        source_N, target_N = record_lengths(records)
        self.source_lengths_N, self.target_lengths_N = source_N[self.indices], target_N[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.records[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list:
        return fetch(self.records, self.indices[np.asarray(indices, np.int64)])


def fetch(records, indices: Sequence[int]) -> list:
    """The records at `indices`, in one read where the source can do that."""
    if hasattr(records, "__getitems__"):
        return records.__getitems__(indices)
    return [records[int(i)] for i in indices]


class Plan:
    """Which records stand in batch number k, for every k >= 0.

    Item j of `sizes` is the number of records of source j; records are numbered through all sources. Each epoch takes
    `quotas[j]` records of source j, walking through one permutation of it after another, so that over the epochs every
    record is used equally often. An epoch that is no multiple of the batch size leaves out a random rest. Leftovers of
    a group join the next group that can hold them, hence no batch is part empty.
    """

    def __init__(self, sizes, quotas, group_N, following: Sequence[int], batch_size: int, seed: Sequence[int]):
        self.sizes, self.quotas, self.group_N, self.following = sizes, quotas, group_N, following
        self.batch_size, self.seed = batch_size, tuple(seed)
        self.batches_per_epoch = sum(quotas) // batch_size
        assert self.batches_per_epoch > 0 and len(group_N) == sum(sizes), (sizes, quotas, batch_size)
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch, int64 [B] record numbers) of batch `number`."""
        epoch, position = divmod(number, self.batches_per_epoch)
        with self._lock:
            if epoch not in self._epochs:
                # Threads that read ahead may stand on both sides of an epoch's end.
                while len(self._epochs) >= 2:
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = self._make_epoch(epoch)
            return epoch, self._epochs[epoch][position]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        drawn, offset = [], 0
        for source, (size, quota) in enumerate(zip(self.sizes, self.quotas, strict=True)):
            position, end = epoch * quota, (epoch + 1) * quota
            while position < end:
                number, start = divmod(position, size)
                order = np.random.default_rng((*self.seed, 0, source, number)).permutation(size)
                drawn.append(offset + order[start : start + end - position])
                position += len(drawn[-1])
            offset += size
        rng = np.random.default_rng((*self.seed, 1, epoch))
        drawn = rng.permutation(np.concatenate(drawn))[: self.batches_per_epoch * self.batch_size]
        group = self.group_N[drawn]
        waiting = [[drawn[group == k]] for k in range(len(self.following))]
        batches = []
        for k, following in enumerate(self.following):
            members = np.concatenate(waiting[k])
            full = len(members) // self.batch_size * self.batch_size
            batches.append(members[:full].reshape(-1, self.batch_size))
            if full < len(members):
                assert following > k, "leftovers without a group that holds them"
                waiting[following].insert(0, members[full:])
        return rng.permutation(np.concatenate(batches))


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """The places that stand for `count` of them where at most `limit` are scored, ascending; all of them for None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [place * count // limit for place in range(limit)]


def share_out(shares: Sequence[float], total: int) -> list[int]:
    """Integers in proportion to `shares` that add up to `total` (largest remainders get the rest)."""
    shares = np.asarray(shares, np.float64)
    if shares.min() < 0 or shares.sum() <= 0:
        raise UserError(f"rates={shares.tolist()}: give each 0 or more and one above 0.")
    exact = shares / shares.sum() * total
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    return quotas.tolist()

"""Which documents of a corpus stay, and in which split: an own fault, the same text twice, near duplicates, hashes.

One pass judges every document and takes its MinHash keys; one looks again at the few that share a key. Judging takes
some 0.2 KB of memory a document, 128 bytes of it the keys, and 0.5 KB more for one that is left out. A run that is
killed keeps the shards it has judged, in the folder that cache_writing.WORK_VARIABLE names.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from codegen2_jax.data import near_duplicates
from codegen2_jax.data.cache_writing import WORK_VARIABLE
from codegen2_jax.data.document_sources import Document, Shard
from codegen2_jax.data.sources import stable_hash
from codegen2_jax.errors import UserError

SPLITS = ("train", "valid")
MAX_REJECTED_LISTED = 100
# Of a few words tried, one whose valid split of the small standard library is near its share: 16 files, 2.2 % of it.
_SPLIT_SALT = "document/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What stays of a corpus. kept_N and valid_N bool over all documents; starts: the number of each shard's first.

    counts[split] has documents = examples + rejected, bytes (UTF-8, of the examples) and reasons {reason: count};
    rejected[split] lists the first hundred; digest stands for the texts and the decisions.
    """

    kept_N: np.ndarray
    valid_N: np.ndarray
    starts: tuple[int, ...]
    counts: dict[str, dict]
    rejected: dict[str, tuple[dict, ...]]
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Facts:
    """What judging a shard finds out: [N] per document, keys [N, bands], and {number: [id, reason]} of the rejected."""

    text_N: np.ndarray
    split_N: np.ndarray
    bytes_N: np.ndarray
    keys_NB: np.ndarray
    faults: dict[int, list[str]]


def select(
    name: str,
    shards: Sequence[Shard],
    *,
    read: Callable[[Shard], Iterator[Document]],
    fault_of: Callable[[Document], str],
    identity: Callable[[Shard], str],
    threshold: float | None,
    valid_per_mille: int,
) -> Selection:
    """Judges all documents of the corpus `name`.

    Args:
      read: the documents of a shard, the same ones each time.
      fault_of: why a document is left out whatever the others are, "" when it may stay.
      identity: what decides the facts of a shard; those that a killed run has found are taken where it is the same.
      threshold: Jaccard similarity from which a later document is left out; None: only equal texts are.
      valid_per_mille: share of the documents that is the valid split.

    Raises UserError where fewer than two documents stay.
    """
    folder = os.environ.get(WORK_VARIABLE)
    facts = [
        _kept_facts(folder, identity(shard), functools.partial(_judge, shard, read, fault_of, threshold))
        for shard in shards
    ]
    starts = np.cumsum([0] + [len(one.text_N) for one in facts]).tolist()
    text_N, split_N, bytes_N, keys_NB = (
        np.concatenate([getattr(one, name) for one in facts]) for name in ("text_N", "split_N", "bytes_N", "keys_NB")
    )
    reasons = {
        start + number: tuple(fault)
        for start, one in zip(starts, facts, strict=False)
        for number, fault in one.faults.items()
    }
    del facts
    kept_N = np.ones(len(text_N), bool)
    kept_N[list(reasons)] = False
    same = _same_texts(text_N, kept_N)
    kept_N[list(same)] = False
    keys_NB[~kept_N] = 0
    names: dict[int, str] = {}

    def look_again(wanted) -> Iterator[tuple[int, np.ndarray]]:
        for number, document in _documents_numbered(shards, read, starts, wanted):
            names[number] = document.id
            yield number, near_duplicates.shingles(document.text)

    similar = near_duplicates.find(keys_NB, look_again, threshold=threshold) if threshold else {}
    kept_N[list(similar)] = False
    listed = {*sorted(same)[:MAX_REJECTED_LISTED], *(same[number] for number in sorted(same)[:MAX_REJECTED_LISTED])}
    names |= {number: document.id for number, document in _documents_numbered(shards, read, starts, listed)}
    for number, first in same.items():
        reasons[number] = names.get(number, ""), f"the same text as another: {names.get(first, '')}"
    for number, (first, value) in similar.items():
        reasons[number] = names[number], f"near duplicate: {value:.3f} like {names[first]}"
    if np.count_nonzero(kept_N) < 2:
        counted = _counted(reason for _, reason in reasons.values())
        raise UserError(f"{name} has {np.count_nonzero(kept_N)} usable documents of {len(kept_N)}, left out: "
                        f"{counted}; two splits need at least 2.")  # fmt: skip
    valid_N = _valid(split_N, kept_N, valid_per_mille)
    counts, rejected = _told(reasons, kept_N, valid_N, bytes_N)
    digest = hashlib.sha256(text_N.tobytes() + kept_N.tobytes() + valid_N.tobytes()).hexdigest()
    return Selection(
        kept_N=kept_N, valid_N=valid_N, starts=tuple(starts[:-1]), counts=counts, rejected=rejected, digest=digest
    )  # fmt: skip


def _told(reasons: dict[int, tuple[str, str]], kept_N, valid_N, bytes_N) -> tuple[dict[str, dict], dict[str, tuple]]:
    """(counts, rejected) of a `Selection`. reasons: number of a document -> (its name, why it is left out)."""
    counts, rejected = {}, {}
    for split in SPLITS:
        inside_N = valid_N == (split == "valid")
        left_out = [number for number in sorted(reasons) if inside_N[number]]
        num_kept = int(np.count_nonzero(inside_N & kept_N))
        counts[split] = {
            "documents": int(np.count_nonzero(inside_N)),
            "examples": num_kept,
            "rejected": len(left_out),
            "bytes": int(bytes_N[inside_N & kept_N].sum()),
            "reasons": _counted(reasons[number][1] for number in left_out),
        }
        assert num_kept + len(left_out) == counts[split]["documents"], counts
        rejected[split] = tuple(
            {"file": reasons[number][0], "line": number, "reason": reasons[number][1]}
            for number in left_out[:MAX_REJECTED_LISTED]
        )
    return counts, rejected


def _counted(reasons) -> dict[str, int]:
    """How often each reason occurs, without what stands behind its colon."""
    return dict(collections.Counter(reason.partition(": ")[0] for reason in reasons).most_common())


def _judge(shard: Shard, read, fault_of, threshold: float | None) -> _Facts:
    texts, splits, sizes, keys, faults = [], [], [], [], {}
    bands = near_duplicates.choose_bands(threshold)[0] if threshold else 0
    for number, document in enumerate(read(shard)):
        data = document.text.encode("utf-8")
        fault = fault_of(document)
        if fault:
            faults[number] = [document.id, fault]
        texts.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
        splits.append(stable_hash(f"{_SPLIT_SALT}{document.split_by or document.id}"))
        sizes.append(len(data))
        if bands and not fault:
            keys.append(near_duplicates.band_keys(near_duplicates.shingles(document.text), threshold))
        else:
            keys.append(np.zeros(bands, np.uint64))
    return _Facts(
        text_N=np.array(texts, np.uint64),
        split_N=np.array(splits, np.uint64),
        bytes_N=np.array(sizes, np.int64),
        keys_NB=np.array(keys, np.uint64).reshape(len(texts), bands),
        faults=faults,
    )


def _kept_facts(folder: str | None, identity: str, judge: Callable[[], _Facts]) -> _Facts:
    """The facts of a shard, from the work folder where a run before has left them there."""
    path = Path(folder, f"{identity[:32]}.facts.npz") if folder else None
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("text_N", "split_N", "bytes_N", "keys_NB")}
            faults = json.loads(stored["faults"].tobytes())
        return _Facts(**arrays, faults={int(number): fault for number, fault in faults.items()})
    facts = judge()
    if path is not None:
        part = path.with_suffix(".writing.npz")
        stored = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
        np.savez(part, **stored | {"faults": np.frombuffer(json.dumps(facts.faults).encode("utf-8"), np.uint8)})
        part.replace(path)
    return facts


def _same_texts(text_N: np.ndarray, kept_N: np.ndarray) -> dict[int, int]:
    """{document: the first with the same text}, among those kept."""
    numbers = np.flatnonzero(kept_N)
    _, first, inverse = np.unique(text_N[numbers], return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(numbers)))
    return dict(zip(numbers[again].tolist(), numbers[first[inverse[again]]].tolist(), strict=True))


def _documents_numbered(shards, read, starts: Sequence[int], wanted) -> Iterator[tuple[int, Document]]:
    """(number, document) of those wanted, in order; reads only the shards that they are in."""
    inside = np.diff(np.searchsorted(np.array(sorted(wanted), np.int64), starts))
    for shard, start, count in zip(shards, starts, inside, strict=False):
        if count:
            for number, document in enumerate(read(shard), start=start):
                if number in wanted:
                    yield number, document


def _valid(split_N: np.ndarray, kept_N: np.ndarray, per_mille: int) -> np.ndarray:
    """bool [N]: the documents held out; of a corpus so small that none is, the one with the least hash. Never all."""
    valid_N = split_N % np.uint64(1000) < per_mille
    numbers = np.flatnonzero(kept_N)
    if not valid_N[numbers].any():
        valid_N[numbers[np.argmin(split_N[numbers])]] = True
    elif valid_N[numbers].all():
        valid_N[numbers[np.argmax(split_N[numbers])]] = False
    return valid_N

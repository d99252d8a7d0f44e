"""Documents that are almost the same: MinHash with banding finds candidates, the true Jaccard similarity decides.

A document is the set of its token 5-grams. Of its 128 minima only one key per band is kept, so the index costs 8 bytes
a band: 128 bytes a document at the default threshold of 0.85 (16 bands). Sets are made again for the few documents that
share a key. Own code rather than the datasketch library (MIT): that needs SciPy, computes the minima several times
slower, changed its hash functions in version 2, which would change every corpus made with it, and leaves the
verification to its caller.
"""

import collections
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from codegen2_jax.errors import UserError

THRESHOLD = 0.85
NUM_PERMUTATIONS = 128
SHINGLE_TOKENS = 5
LEAST_RECALL = 0.99
"""How likely a pair exactly at the threshold must be to share a band."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_KEPT_HASHES = 1 << 20
_BLOCK = 512  # shingles whose 128 minima are taken at once: half a megabyte, which stays in the processor's cache
_ODD = np.uint64(0x9E3779B97F4A7C15)
_rng = np.random.default_rng(0)
_FACTORS = _rng.integers(1, 2**63, NUM_PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _rng.integers(0, 2**63, NUM_PERMUTATIONS, dtype=np.uint64)


class _TokenHashes(dict):
    """{token: 64 bits of its BLAKE2b digest}: the same in every process, unlike hash(). Forgets when it is full."""

    def __missing__(self, token: str) -> int:
        if len(self) >= _KEPT_HASHES:
            self.clear()
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[token] = value = int.from_bytes(digest, "little")
        return value


_hashes = _TokenHashes()


def token_hashes(tokens: Sequence[str]) -> np.ndarray:
    """uint64 [N] hashes of tokens."""
    return np.fromiter(map(_hashes.__getitem__, tokens), np.uint64, len(tokens))


def mix(hash_N: np.ndarray) -> np.ndarray:
    """Spreads every bit over all: the finaliser of SplitMix64, a bijection."""
    hash_N = (hash_N ^ (hash_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hash_N = (hash_N ^ (hash_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hash_N ^ (hash_N >> np.uint64(31))


def window_hashes(hash_N: np.ndarray, size: int) -> np.ndarray:
    """uint64 [N - size + 1]: one hash for every `size` consecutive entries; of fewer entries one hash for all."""
    if not len(hash_N):
        return hash_N
    size = min(size, len(hash_N))
    count = len(hash_N) - size + 1
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        total = (total + hash_N[offset : offset + count]) * _ODD
        total ^= total >> np.uint64(32)  # without it the last token's low bits would decide too little
    return mix(total)


def shingles(text: str) -> np.ndarray:
    """uint64 [N], sorted: the set of the text's token 5-grams (words and single signs), as hashes."""
    return np.unique(window_hashes(token_hashes(_TOKEN.findall(text)), SHINGLE_TOKENS))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the intersection over the size of the union of two sets of shingles; 1.0 for two empty ones."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def signature(shingles_N: np.ndarray) -> np.ndarray:
    """uint64 [128]: the least value of the set under each of 128 fixed hash functions (all ones for an empty set).

    The expected share of equal entries of two signatures is the Jaccard similarity (Broder 1997).
    """
    least = np.full(NUM_PERMUTATIONS, np.iinfo(np.uint64).max)
    for start in range(0, len(shingles_N), _BLOCK):
        block_NP = shingles_N[start : start + _BLOCK, None] * _FACTORS + _SHIFTS
        np.minimum(least, block_NP.min(axis=0), out=least)
    return least


def choose_bands(threshold: float = THRESHOLD) -> tuple[int, int]:
    """(bands, rows): the longest bands with which a pair at the threshold is found with probability 0.99.

    A pair of similarity s shares a band with probability 1 - (1 - s ** rows) ** bands. Verification removes whatever is
    found in excess, so recall alone decides, and longer bands only cost fewer comparisons.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"near_duplicates={threshold} is outside 0..1; give a Jaccard similarity such as {THRESHOLD}.")
    for rows in range(NUM_PERMUTATIONS, 1, -1):
        bands = NUM_PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= LEAST_RECALL:
            return bands, rows
    return NUM_PERMUTATIONS, 1


def band_keys(shingles_N: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """uint64 [bands]: documents with an equal key in some band are candidates. An empty set has all keys 0: none."""
    bands, rows = choose_bands(threshold)
    if not len(shingles_N):
        return np.zeros(bands, np.uint64)
    parts_BR = signature(shingles_N)[: bands * rows].reshape(bands, rows)
    return np.maximum(np.array([window_hashes(part, rows)[0] for part in parts_BR]), np.uint64(1))


def find(
    keys_NB: np.ndarray,
    shingles_of: Callable[[Collection[int]], Iterable[tuple[int, np.ndarray]]],
    *,
    threshold: float = THRESHOLD,
) -> dict[int, tuple[int, float]]:
    """{document: (an earlier one that stays, their Jaccard similarity)} for every document to leave out.

    Going through the documents in order, one is left out when its similarity to one that stays is at least the
    threshold. keys_NB uint64 [documents, bands] are their band_keys; a row of zeros takes no part. shingles_of(wanted)
    gives (number, shingles) of the wanted documents, in increasing order, and is called once: it may read them from
    disk. Time is that of sorting the keys, and linear in the texts.
    """
    buckets_of, last_member = _shared_buckets(keys_NB)
    held: dict[int, np.ndarray] = {}
    staying = collections.defaultdict(list)  # bucket -> its members so far that stay
    forget_after = collections.defaultdict(list)
    found = {}
    for number, shingles_N in shingles_of(buckets_of.keys()) if buckets_of else ():
        earlier = sorted({other for bucket in buckets_of[number] for other in staying[bucket]})
        similar = ((other, jaccard(held[other], shingles_N)) for other in earlier)
        match = next(((other, value) for other, value in similar if value >= threshold), None)
        if match is not None:
            found[number] = match
        else:
            held[number] = shingles_N
            for bucket in buckets_of[number]:
                staying[bucket].append(number)
            forget_after[max(last_member[bucket] for bucket in buckets_of[number])].append(number)
        for other in forget_after.pop(number, ()):
            del held[other]
            for bucket in buckets_of[other]:
                staying[bucket].remove(other)
    return found


def _shared_buckets(keys_NB: np.ndarray) -> tuple[dict[int, list[int]], dict[int, int]]:
    """({document: buckets}, {bucket: its last member}), in order, of the buckets with at least two members."""
    buckets_of, last_member = collections.defaultdict(list), {}
    for band in range(keys_NB.shape[1]):
        order = np.argsort(keys_NB[:, band], kind="stable")
        key_N = keys_NB[order, band]
        bounds = np.flatnonzero(np.r_[True, key_N[1:] != key_N[:-1], True]) if len(key_N) else np.zeros(1, int)
        for run in np.flatnonzero(np.diff(bounds) > 1):
            members = order[bounds[run] : bounds[run + 1]].tolist()
            if key_N[bounds[run]]:
                bucket = len(last_member)
                last_member[bucket] = members[-1]
                for member in members:
                    buckets_of[member].append(bucket)
    return {number: buckets_of[number] for number in sorted(buckets_of)}, last_member


def near_duplicates(texts: Sequence[str], *, threshold: float = THRESHOLD) -> dict[int, tuple[int, float]]:
    """`find` for texts that can be indexed: {number: (earlier number that stays, similarity)}."""
    bands, _ = choose_bands(threshold)
    keys_NB = np.zeros((len(texts), bands), np.uint64)
    for number, text in enumerate(texts):
        keys_NB[number] = band_keys(shingles(text), threshold)
    return find(keys_NB, lambda wanted: ((number, shingles(texts[number])) for number in wanted), threshold=threshold)

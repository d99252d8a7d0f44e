"""Which evaluation problems occur in a training corpus: verbatim, reformatted, or with other names.

The evaluation side is small and is indexed: hashes of windows of consecutive tokens (data/token_windows.py). The corpus
is streamed past it, once, in linear time. A part of a problem (its question, its solution) counts as found in a record
that holds a large enough share of the part's distinct windows, `SHARES`; a problem is found when one of its parts is.
Parts with fewer than 5 windows are too short to judge and counted as such: `return a + b` is in every corpus.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from codegen2_jax.data.evaluation_sets import EvaluationSet
from codegen2_jax.data.token_windows import KINDS, WINDOWS, family_of, windows
from codegen2_jax.data.vocabulary import Vocabulary

SHARES = {"verbatim": 0.7, "reformatted": 0.7, "renamed": 0.6}
LEAST_WINDOWS = 5
RECORDS_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A part found in a record. part is a number of the index; share is that of the part's distinct windows."""

    part: int
    kind: str
    share: float


class Index:
    """The windows of all parts of the evaluation sets, each text once however many problems have it.

    Memory: 20 bytes for every window of the evaluation side and, per kind, 16 MB at most for a table that turns away
    nearly all of the corpus's windows.
    """

    def __init__(self, evaluation_sets: Sequence[EvaluationSet], kinds: Sequence[str] = KINDS):
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        numbers: dict[tuple[str, str], int] = {}
        self.owners: list[list[tuple[str, str, str]]] = []  # of each part: (set, problem, name of the part)
        for one in evaluation_sets:
            for problem in one.problems:
                for part in problem.parts:
                    key = part.text, part.family or family_of("", part.text)
                    number = numbers.setdefault(key, len(numbers))
                    if number == len(self.owners):
                        self.owners.append([])
                    self.owners[number].append((one.name, problem.id, part.name))
        hashes = {kind: [] for kind in self.kinds}
        for text, family in numbers:
            for kind, window_N in windows(text, family, self.kinds).items():
                hashes[kind].append(np.unique(window_N))
        self._tables = {kind: _Table(hashes[kind]) for kind in self.kinds}
        self.judged_P = np.zeros(len(numbers), bool)
        for table in self._tables.values():
            self.judged_P |= table.size_P >= LEAST_WINDOWS

    def matches(self, text: str, family: str) -> list[Match]:
        """The parts found in a record, each under the strictest kind that holds."""
        found: dict[int, Match] = {}
        for kind, window_N in windows(text, family, self.kinds).items():
            for part, share in self._tables[kind].shares(window_N):
                if share >= SHARES[kind] and part not in found:
                    found[part] = Match(part=part, kind=kind, share=share)
        return list(found.values())

    def first_problem(self, text: str, family: str) -> str:
        """ "set/problem (kind)" of a problem that a record contains, or "" """
        found = self.matches(text, family)
        if not found:
            return ""
        name, problem, _ = self.owners[found[0].part][0]
        return f"{name}/{problem} ({found[0].kind})"


class _Table:
    """window hash -> the parts that have it, as sorted arrays."""

    def __init__(self, hashes_of: Sequence[np.ndarray]):
        self.size_P = np.array([len(hash_N) for hash_N in hashes_of], np.int64)
        part_M = np.repeat(np.arange(len(hashes_of), dtype=np.int32), self.size_P)
        hash_M = np.concatenate([*hashes_of, np.zeros(0, np.uint64)])
        keep = self.size_P[part_M] >= LEAST_WINDOWS
        part_M, hash_M = part_M[keep], hash_M[keep]
        order = np.argsort(hash_M, kind="stable")
        self._part_M = part_M[order]
        self._hash_U, starts = np.unique(hash_M[order], return_index=True)
        self._starts = np.append(starts, len(part_M))
        bits = int(np.clip(np.ceil(np.log2(32 * len(self._hash_U) + 1)), 10, 24))
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, bool)
        self._present[self._hash_U >> self._shift] = True

    def shares(self, window_N: np.ndarray) -> Iterator[tuple[int, float]]:
        """(part, share of its distinct windows) of the parts that have a window in common with the record."""
        window_N = window_N[self._present[window_N >> self._shift]]
        if not len(window_N):
            return
        at = np.searchsorted(self._hash_U, window_N)
        at = np.unique(at[(at < len(self._hash_U)) & (self._hash_U[np.minimum(at, len(self._hash_U) - 1)] == window_N)])
        counts = self._starts[at + 1] - self._starts[at]
        first = np.repeat(self._starts[at] - np.cumsum(counts) + counts, counts)
        parts, common = np.unique(self._part_M[first + np.arange(len(first))], return_counts=True)
        yield from zip(parts.tolist(), (common / self.size_P[parts]).tolist(), strict=True)


def report(corpus_records: Iterable[tuple[str, str]], evaluation_sets: Sequence[EvaluationSet]) -> dict:
    """What of the evaluation sets is in the corpus; meant to be run, and read, before training.

    corpus_records are (id, text), streamed once; the id's suffix tells the language. The result is plain JSON:
    {"settings", "corpus": {"records", "bytes", "sha256"}, "sets": {name: {"problems", "judged", "found": {kind: count},
    "share", "leaks": [{"problem", "part", "kind", "share", "records", "num_records"}]}}}. A problem counts once, under
    its strictest kind; "judged" problems have a part long enough, and "share" is that of the found among them.
    """
    index = Index(evaluation_sets)
    digest, num_records, num_bytes = hashlib.sha256(), 0, 0
    found: dict[int, Match] = {}
    records = collections.defaultdict(list)
    num_found = collections.Counter()
    for name, text in corpus_records:
        data = text.encode("utf-8", "surrogatepass")
        num_records, num_bytes = num_records + 1, num_bytes + len(data)
        digest.update(hashlib.sha256(data).digest())
        for match in index.matches(text, family_of(name, text)):
            num_found[match.part] += 1
            if len(records[match.part]) < RECORDS_LISTED:
                records[match.part].append(name)
            if match.part not in found or _strictness(match) > _strictness(found[match.part]):
                found[match.part] = match
    leaks = collections.defaultdict(dict)
    for part, match in found.items():
        for set_name, problem, part_name in index.owners[part]:
            known = leaks[set_name].get(problem)
            if known is None or _strictness(match) > _strictness(known[0]):
                leaks[set_name][problem] = match, part_name
    judged = {owner[:2] for number, owners in enumerate(index.owners) if index.judged_P[number] for owner in owners}
    sets = {}
    for one in evaluation_sets:
        rows = []
        for problem in one.problems:
            if problem.id in leaks[one.name]:
                match, part_name = leaks[one.name][problem.id]
                rows.append({
                    "problem": problem.id, "part": part_name, "kind": match.kind, "share": round(match.share, 4),
                    "records": records[match.part], "num_records": num_found[match.part],
                })  # fmt: skip
        num_judged = sum((one.name, problem.id) in judged for problem in one.problems)
        sets[one.name] = {
            "problems": len(one.problems),
            "judged": num_judged,
            "found": {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS},
            "share": round(len(rows) / num_judged, 6) if num_judged else 0.0,
            "leaks": rows,
        }
    settings = {"windows": WINDOWS, "shares": SHARES, "least_windows": LEAST_WINDOWS}
    corpus = {"records": num_records, "bytes": num_bytes, "sha256": digest.hexdigest()}
    return {"settings": settings, "corpus": corpus, "sets": sets}


def _strictness(match: Match) -> tuple[int, float]:
    return -KINDS.index(match.kind), match.share


def table(found: dict) -> str:
    """A report as text: one line a set, then up to five leaks of each."""
    rows = [("set", "problems", "judged", *KINDS, "share")]
    for name, one in found["sets"].items():
        counts = [str(one["found"][kind]) for kind in KINDS]
        rows.append((name, str(one["problems"]), str(one["judged"]), *counts, f"{100 * one['share']:.2f} %"))
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found['corpus']['records']} records, {found['corpus']['bytes']:,} bytes"]
    for row in rows:
        cells = [cell.rjust(length) for cell, length in zip(row[1:], lengths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(lengths[0]), *cells]))
    for name, one in found["sets"].items():
        for leak in one["leaks"][:5]:
            where = ", ".join(leak["records"][:3]) + (" ..." if leak["num_records"] > 3 else "")
            share = f"{100 * leak['share']:.0f} %"
            lines.append(f"  {name}/{leak['problem']}: {leak['part']}, {leak['kind']}, {share}, in {where}")
        if len(one["leaks"]) > 5:
            lines.append(f"  {name}: {len(one['leaks']) - 5} more")
    return "\n".join(lines)


def write(found: dict, path: str | Path) -> None:
    """Writes a report as JSON to `path` and its table beside it with the suffix .txt."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".txt").write_text(table(found) + "\n", encoding="utf-8")


def cached_records(split, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """(id, text) of a cached split of documents, for `report`."""
    for number in range(len(split)):
        record = split[number]
        yield record["id"], vocabulary.decode(record["targets"])

"""Task tags: a text such as `<translate> <java-cs> ` in front of a source (specification, section 1.4).

A tag tells the model, and through the query a prompt pool, which task it sees; results with and without tags are not
comparable. The tag is ordinary text here, split by the vocabulary like any other.
"""

from collections.abc import Sequence

import numpy as np

from codegen2_jax.data.plan import fetch
from codegen2_jax.errors import UserError


class TaggedSplit:
    """A split whose sources begin with a tag: `<s> tag tokens </s>`, cut from the right to `max_source`, `</s>` kept.

    `begins`: whether the sources have a `<s>` of their own; with one token for both ends (GPT-2's `<|endoftext|>`) they
    have it at the end only (tasks/sequences.py), and the tag comes first.
    `records` is the split without tags. The lengths, the digest and the texts are those of what a model sees; the text
    of a source ("inputs_text") stays as it is, because baselines copy it.
    """

    def __init__(self, records, tag_ids: Sequence[int], max_source: int, *, begins: bool):
        self.records, self.max_source, self._begins = records, max_source, int(begins)
        self._tag = np.asarray(tag_ids, np.int32)
        if len(self._tag) + self._begins + 1 > max_source:
            raise UserError(f"a tag of {len(self._tag)} tokens leaves no room in {max_source}; shorten the task's tag.")
        self.source_lengths_N = np.minimum(records.source_lengths_N + len(self._tag), max_source).astype(np.int32)
        self.target_lengths_N = records.target_lengths_N
        self.digest = f"{records.digest}|{self._tag.tolist()}|{max_source}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return self._tagged(self.records[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self._tagged(record) for record in fetch(self.records, indices)]

    def _tagged(self, record: dict) -> dict:
        begin, tokens, end = np.split(record["inputs"], [self._begins, -1])
        kept = tokens[: self.max_source - self._begins - 1 - len(self._tag)]
        return {**record, "inputs": np.concatenate([begin, self._tag, kept, end])}

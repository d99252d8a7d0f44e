"""Task tags: what stands before a source, how it is cut, and that baselines do not see it."""

import numpy as np
import pytest

from codegen2_jax.data.plan import Subset, fetch, record_lengths
from codegen2_jax.data.tags import TaggedSplit
from codegen2_jax.errors import UserError


class Split:
    """Three records of 4, 7 and 9 source tokens, <s> = 1 and </s> = 2 included."""

    digest = "abc"

    def __init__(self):
        self.source_lengths_N = np.asarray([4, 7, 9], np.int32)
        self.target_lengths_N = np.asarray([3, 3, 3], np.int32)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        inputs = np.asarray([1, *range(10, 8 + self.source_lengths_N[index]), 2], np.int32)
        return {"inputs": inputs, "targets": np.asarray([1, 5, 2]), "inputs_text": "plain"}


def test_a_tag_stands_behind_the_start_and_cuts_from_the_right():
    split = TaggedSplit(Split(), [70, 71], max_source=9, begins=True)
    assert [record["inputs"].tolist() for record in fetch(split, [0, 1, 2])] == [
        [1, 70, 71, 10, 11, 2],
        [1, 70, 71, 10, 11, 12, 13, 14, 2],
        [1, 70, 71, 10, 11, 12, 13, 14, 2],  # 15 and 16 are cut
    ]
    assert [len(split[i]["inputs"]) for i in range(3)] == record_lengths(split)[0].tolist() == [6, 9, 9]
    assert split[0]["inputs_text"] == "plain" and split[0]["targets"].tolist() == [1, 5, 2]


def test_a_tag_comes_first_where_sources_have_no_begin_token():
    """As `wrap_and_cut` leaves them when one token stands for both ends."""

    class EndedSplit(Split):
        def __getitem__(self, index):
            inputs = np.asarray([*range(10, 9 + self.source_lengths_N[index]), 0], np.int32)
            return super().__getitem__(index) | {"inputs": inputs}

    split = TaggedSplit(EndedSplit(), [70, 71], max_source=9, begins=False)
    assert [split[i]["inputs"].tolist() for i in range(3)] == [
        [70, 71, 10, 11, 12, 0],
        [70, 71, 10, 11, 12, 13, 14, 15, 0],
        [70, 71, 10, 11, 12, 13, 14, 15, 0],  # 16 and 17 are cut
    ]
    assert [len(split[i]["inputs"]) for i in range(3)] == record_lengths(split)[0].tolist()
    with pytest.raises(UserError, match="a tag of 3 tokens leaves no room in 3"):
        TaggedSplit(EndedSplit(), [7, 8, 9], max_source=3, begins=False)


def test_a_subset_of_a_tagged_split_is_tagged_and_the_digest_says_so():
    split = TaggedSplit(Split(), [70], max_source=20, begins=True)
    assert Subset(split, [2, 0])[1]["inputs"].tolist() == [1, 70, 10, 11, 2]
    assert split.digest not in (Split.digest, TaggedSplit(Split(), [71], max_source=20, begins=True).digest)


def test_a_tag_without_room_is_refused():
    with pytest.raises(UserError, match="a tag of 3 tokens leaves no room in 4"):
        TaggedSplit(Split(), [7, 8, 9], max_source=4, begins=True)

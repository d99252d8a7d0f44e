"""A growing text shows the same, and ends at the same place, however its tokens come in."""

import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax.decoding.streams import Stream, held_back


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return byte_vocabulary(tmp_path_factory.mktemp("bytes"))


def in_pieces(vocabulary, ids, stop, cuts, finish):
    """The stream after all pieces, and what it showed on the way."""
    shown = []
    stream = Stream(vocabulary.decode, stop, shown.append)
    bounds = [0, *sorted(cuts), len(ids)]
    for first, last in zip(bounds, bounds[1:], strict=False):
        if not stream.finish:
            log_probs = [-float(place) for place in range(first, last)]
            stream.take(ids[first:last], log_probs, finish=finish if last == len(ids) else None)
    return stream, shown


TEXT = "return 'caf\u00e9 \U0001f600\u4e2d\u6587'\n    #\n\n#END ENE ENDE\nx"


@pytest.mark.parametrize(
    "stop, expected, finish",
    [
        ((), TEXT, "length"),
        (("ENDE", "nowhere"), TEXT[: TEXT.index("ENDE")], "stop_string"),
        (("\n\n#", "#END"), TEXT[: TEXT.index("\n\n#")], "stop_string"),  # the first to be complete, though both stand
        (("E",), TEXT[: TEXT.index("E")], "stop_string"),
        (("\U0001f600",), TEXT[: TEXT.index("\U0001f600")], "stop_string"),
        (("x more",), TEXT, "length"),  # held back till the end
    ],
)
def test_pieces_make_no_difference(vocabulary, stop, expected, finish):
    ids = vocabulary.encode(TEXT)
    assert len(ids) > len(TEXT)  # characters of several tokens
    whole, _ = in_pieces(vocabulary, ids, stop, [], "length")
    assert (whole.text, whole.finish) == (expected, finish)
    rng = np.random.default_rng(0)
    splits = [range(1, len(ids)), *(rng.choice(np.arange(1, len(ids)), rng.integers(1, 9), False) for _ in range(25))]
    for cuts in splits:
        stream, shown = in_pieces(vocabulary, ids, stop, [int(cut) for cut in cuts], "length")
        assert (stream.text, stream.finish) == (expected, finish)
        assert stream.ids == whole.ids and stream.log_probability == whole.log_probability
        assert "".join(shown) == expected and "\ufffd" not in "".join(shown) and "" not in shown
    if finish == "stop_string":
        assert vocabulary.decode(whole.ids).endswith(stop) and whole.ids == ids[: len(whole.ids)]
        assert whole.log_probability == -sum(range(len(whole.ids)))


def test_half_a_character_is_neither_shown_nor_kept(vocabulary):
    ids = vocabulary.encode("ab\u4e2d")
    for size in (len(ids) - 1, len(ids) - 2):
        shown = []
        stream = Stream(vocabulary.decode, (), shown.append)
        stream.take(ids[:size], [0.0] * size)
        assert shown == ["ab"] and stream.finish is None
        stream.take([], [], finish="length")
        assert stream.text == "ab" and shown == ["ab"]


def test_the_stop_id_counts_and_is_no_part_of_the_text(vocabulary):
    stream = Stream(vocabulary.decode, ("zz",), None)
    stream.take([*vocabulary.encode("abc"), vocabulary.eos_id], [-1.0, -1.0, -1.0, -0.5], finish="stop_id")
    assert (stream.text, stream.finish, stream.stop_id) == ("abc", "stop_id", vocabulary.eos_id)
    assert stream.log_probability == -3.5 and stream.ids == vocabulary.encode("abc")


def test_a_stop_string_before_the_stop_id_comes_first(vocabulary):
    stream = Stream(vocabulary.decode, ("b",), None)
    stream.take([*vocabulary.encode("abc"), vocabulary.eos_id], [-1.0] * 4, finish="stop_id")
    assert (stream.text, stream.finish, stream.stop_id, stream.log_probability) == ("a", "stop_string", None, -2.0)


@pytest.mark.parametrize(
    "text, stop, length",
    [("x\n", ["\n\n"], 1), ("aab", ["aabaac", "b-"], 3), ("abc", ["abc"], 0), ("abc", [], 0), ("", ["a"], 0)],
)
def test_what_may_become_a_stop_string_is_held_back(text, stop, length):
    assert held_back(text, stop) == length

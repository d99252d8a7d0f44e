"""Near duplicates: recall on planted copies, nothing found among distinct files, the same result everywhere."""

import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from codegen2_jax.data import near_duplicates
from codegen2_jax.data.near_duplicates import band_keys, choose_bands, find, jaccard, shingles, signature
from codegen2_jax.data.sources import standard_library
from codegen2_jax.errors import UserError

TEXT = "def f(caf\u00e9): pass"
FILES = [file for file in standard_library() if 2_000 < len(file.text) < 12_000]


def edited(text, share, seed):
    """The text with a share of its words replaced by new ones; each spoils up to five 5-grams."""
    rng = random.Random(seed)
    pieces = re.split(r"(\W+)", text)
    for position in rng.sample(range(0, len(pieces), 2), int(share * len(pieces) / 2)):
        pieces[position] = f"other{rng.randrange(10**9)}"
    return "".join(pieces)


def brute_force(texts, threshold):
    sets, found, staying = [shingles(text) for text in texts], {}, []
    for number, one in enumerate(sets):
        match = next((other for other in staying if jaccard(sets[other], one) >= threshold), None)
        if match is None:
            staying.append(number)
        else:
            found[number] = match
    return found


def test_similarity_is_jaccards():
    one, other = shingles("a b c d e f g"), shingles("a b c d e f h")
    assert len(one) == 3 and one.dtype == np.uint64
    assert jaccard(one, other) == pytest.approx(2 / 4)
    assert jaccard(one, one) == 1.0 and jaccard(one, shingles("x y z x y z")) == 0.0
    assert jaccard(shingles(""), shingles(" \n")) == 1.0
    assert len(shingles("too few words")) == 1  # one for the whole
    assert np.array_equal(shingles("f( x,\n  y ) + 1"), shingles("f(x, y)+1"))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15])
def test_signatures_estimate_it(share):
    errors = []
    for seed, file in enumerate(FILES[:40]):
        one, other = shingles(file.text), shingles(edited(file.text, share, seed))
        errors.append(np.mean(signature(one) == signature(other)) - jaccard(one, other))
    # 128 functions: the standard deviation of one estimate is at most 0.5 / sqrt(128) = 0.044.
    assert abs(np.mean(errors)) < 0.02 and np.max(np.abs(errors)) < 0.16


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95])
def test_bands_suit_the_threshold(threshold):
    bands, rows = choose_bands(threshold)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99
    assert band_keys(shingles("a b c d e f"), threshold).shape == (bands,)
    assert choose_bands(0.85) == (16, 8)


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(UserError, match=f"near_duplicates={threshold} is outside"):
        choose_bands(threshold)


def test_planted_copies_are_found_and_distinct_files_are_not():
    """Copies with random edits, similarity known: all well above the threshold are found, none below it ever is."""
    texts, similarity = [file.text for file in FILES], {}
    for number, file in enumerate(FILES):
        for seed, share in enumerate((0.005, 0.02, 0.05)):
            copy = edited(file.text, share, seed)
            similarity[len(texts)] = number, jaccard(shingles(file.text), shingles(copy))
            texts.append(copy)
    start = time.process_time()
    found = near_duplicates.near_duplicates(texts)
    seconds, characters = time.process_time() - start, sum(map(len, texts))
    above = [number for number, (_, value) in similarity.items() if value >= 0.85]
    below = [number for number, (_, value) in similarity.items() if value < 0.85]
    recall = np.mean([number in found for number in above])
    print(f"{len(texts)} texts, {characters / 1e6:.1f} MB, {seconds:.1f} CPU s; recall {recall:.4f} of {len(above)}")
    assert len(above) > 250 and len(below) > 150
    assert recall >= 0.99
    assert not [number for number in below if number in found and found[number][0] == similarity[number][0]]
    originals = brute_force([file.text for file in FILES], 0.85)
    assert {number: match[0] for number, match in found.items() if number < len(FILES)} == originals
    assert len(originals) < 0.02 * len(FILES)
    for number, (first, value) in found.items():
        assert first < number and first not in found and value >= 0.85


@pytest.mark.parametrize("threshold", [0.5, 0.85])
def test_it_agrees_with_comparing_all_pairs(threshold):
    texts = []
    for seed, file in enumerate(FILES[:12]):
        texts += [edited(file.text, share, seed) for share in (0, 0.01, 0.03, 0.08, 0.3, 0)]
    texts += ["", "", "a", "a", "b c"]
    random.Random(0).shuffle(texts)
    found = near_duplicates.near_duplicates(texts, threshold=threshold)
    expected = brute_force(texts, threshold)
    expected = {number: first for number, first in expected.items() if texts[number]}  # empty texts take no part
    assert {number: first for number, (first, _) in found.items()} == expected
    assert len(expected) > 20


def test_the_first_stays_and_what_is_like_it_goes():
    """A chain: b is like a, c is like b but not like a. Leaving out b, c has nothing that it repeats."""
    words, new = [f"w{number}" for number in range(200)], [f"x{number}" for number in range(10)]
    a, b, c = (" ".join(text) for text in (new + words[10:], words, words[:190] + new))
    assert jaccard(shingles(a), shingles(b)) > 0.88 < jaccard(shingles(b), shingles(c))
    assert jaccard(shingles(a), shingles(c)) < 0.88
    found = near_duplicates.near_duplicates([a, b, c], threshold=0.88)
    assert set(found) == {1} and found[1][0] == 0


def test_sets_are_asked_for_once_in_order_and_only_where_a_key_is_shared():
    texts = [FILES[0].text, FILES[1].text, edited(FILES[0].text, 0.002, 0), FILES[2].text]
    asked = []

    def shingles_of(wanted):
        asked.append(list(wanted))
        return ((number, shingles(texts[number])) for number in wanted)

    found = find(np.stack([band_keys(shingles(text)) for text in texts]), shingles_of)
    assert asked == [[0, 2]] and set(found) == {2}
    assert find(np.zeros((3, 16), np.uint64), shingles_of) == {} and len(asked) == 1
    assert find(np.zeros((0, 16), np.uint64), shingles_of) == {}


def test_many_copies_take_linear_time():
    """A thousand near copies of one file: each is compared with the one that stays, not with all before it."""
    words = [f"w{number}" for number in range(150)]
    texts = [" ".join([*words, f"copy{number}"]) for number in range(1000)]
    start = time.process_time()
    found = near_duplicates.near_duplicates(texts)
    assert {first for first, _ in found.values()} == {0} and len(found) == 999
    assert time.process_time() - start < 20  # half a million comparisons would take minutes


def test_another_process_finds_the_same(program_environment):
    program = f"from codegen2_jax.data.near_duplicates import *\nprint(band_keys(shingles({TEXT!r})).tolist())"
    outputs = set()
    for seed in ("0", "1"):
        environment = program_environment | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        outputs.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert outputs == {f"{band_keys(shingles(TEXT)).tolist()}\n"}

"""Exact match counts equal stripped lines, and refuses lists that do not pair up."""

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.metrics.bleu import codet5_bleu, codet5_smooth_bleu
from codegen2_jax.metrics.exact_match import exact_match


def test_counts_equal_stripped_strings():
    assert exact_match([" a b ", "a  b", "A b", "a b"], ["a b", "a b", "a b", "a b"]) == 50.0


def test_newline_and_tab_become_one_space_on_both_sides():
    assert exact_match(["a\nb\tc", "a\n\nb"], ["a b c", "a b"]) == 50.0
    assert exact_match(["a b"], ["a\nb\n"]) == 100.0


def test_case_counts():
    assert exact_match(["Return x"], ["return x"]) == 0.0


@pytest.mark.parametrize("scorer", [codet5_bleu, codet5_smooth_bleu, exact_match])
def test_lists_must_pair_up_and_hold_something(scorer):
    with pytest.raises(UserError, match="2 hypotheses for 1 references"):
        scorer(["a", "b"], ["a"])
    with pytest.raises(UserError, match="0 examples"):
        scorer([], [])

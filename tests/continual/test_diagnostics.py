"""The pool's diagnostics on selections and queries small enough to work out by hand."""

import json
import math

import numpy as np
import pytest

from codegen2_jax.continual import diagnostics, pool_diagnostics

# Three tasks, seven keys: two own keys each, and key 6 shared by tasks 0 and 1.
ASSIGNMENT_JM = np.array([[1, 1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 0]], bool)
TASK_B = np.array([0, 0, 1, 2])
SELECTED_BK = np.array([[0, 1, 6], [1, 2, 3], [2, 3, 6], [0, 1, 5]])
SCORE_BK = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.8], [0.5, 0.4, 0.9], [0.1, 0.2, 0.7]])


def test_retrieval_top1_asks_who_owns_the_best_key():
    # Best keys 1, 3, 6, 5 for tasks 0, 0, 1, 2: the second belongs to task 1.
    assert diagnostics.retrieval_top1(SELECTED_BK, SCORE_BK, TASK_B, ASSIGNMENT_JM) == 0.75


def test_retrieval_majority_counts_owned_keys():
    # Votes (3, 1, 0), (1, 2, 0), (1, 3, 0), (2, 0, 1): right, wrong, right, wrong.
    assert diagnostics.retrieval_majority(SELECTED_BK, TASK_B, ASSIGNMENT_JM) == 0.5
    tie_BK = np.array([[0, 2], [0, 2]])
    assert diagnostics.retrieval_majority(tie_BK, np.array([0, 1]), ASSIGNMENT_JM) == 0.5, "ties go to task 0"


def test_own_key_recall_per_task():
    # Task 0: 3/3 and 1/3; task 1: 3/3; task 2 owns two keys and finds one.
    np.testing.assert_allclose(
        diagnostics.own_key_recall(SELECTED_BK, TASK_B, ASSIGNMENT_JM), [(3 / 3 + 1 / 3) / 2, 1.0, 0.5]
    )
    only_first = diagnostics.own_key_recall(SELECTED_BK[:1], TASK_B[:1], ASSIGNMENT_JM)
    assert only_first[0] == 1.0 and np.isnan(only_first[1:]).all()


def test_usage_counts():
    expected_JM = np.array([[1, 2, 1, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(diagnostics.usage_counts(SELECTED_BK, TASK_B, ASSIGNMENT_JM), expected_JM)


def test_usage_entropy_and_effective_number():
    assert diagnostics.usage_entropy(np.full(8, 5)) == pytest.approx((1.0, 8.0))
    assert diagnostics.usage_entropy(np.array([0, 9, 0])) == pytest.approx((0.0, 1.0))
    assert diagnostics.usage_entropy(np.array([4, 4, 0, 0])) == pytest.approx((0.5, 2.0))
    assert all(map(math.isnan, diagnostics.usage_entropy(np.zeros(3))))


def test_selection_overlap_ignores_rarely_used_keys():
    usage_JM = np.array([[50, 49, 1, 0], [0, 50, 50, 0], [0, 0, 0, 0]])
    overlap_JJ = diagnostics.selection_overlap(usage_JM)
    np.testing.assert_allclose(overlap_JJ[:2, :2], [[1, 1 / 3], [1 / 3, 1]])  # {0, 1} and {1, 2}
    assert np.isnan(overlap_JJ[2]).all() and np.isnan(overlap_JJ[:, 2]).all()


def test_key_drift_reads_the_given_rows_only():
    before_MD = np.eye(3)
    after_MD = np.array([[0, 5, 0], [0, 2, 0], [-1, 0, 0]])
    assert diagnostics.key_drift(before_MD, after_MD, np.array([True, True, False])) == pytest.approx(0.5)
    assert diagnostics.key_drift(before_MD, after_MD, np.array([False, True, False])) == pytest.approx(0.0)
    assert math.isnan(diagnostics.key_drift(before_MD, after_MD, np.zeros(3, bool)))


def test_keys_that_stayed_have_no_negative_drift():
    keys_MD = np.random.default_rng(0).normal(size=(200, 24))
    for row, key_D in enumerate(keys_MD):
        assert diagnostics.key_drift(keys_MD, 2 * keys_MD, np.arange(200) == row) >= 0.0, key_D


def test_query_cosines_equal_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    queries = [rng.normal(loc=task, size=(n, 4)) for task, n in enumerate([3, 5, 4])]
    separation = diagnostics.query_separation(queries)
    units = [query_ND / np.linalg.norm(query_ND, axis=1, keepdims=True) for query_ND in queries]
    for i, a in enumerate(units):
        for j, b in enumerate(units):
            pairs = a @ b.T
            expected = pairs[~np.eye(len(a), dtype=bool)].mean() if i == j else pairs.mean()
            assert separation.cosine_JJ[i, j] == pytest.approx(expected)
    assert separation.gap == pytest.approx(separation.within - separation.cross)
    assert separation.within == pytest.approx(np.diagonal(separation.cosine_JJ).mean())


def test_separated_queries_are_told_apart():
    rng = np.random.default_rng(1)
    queries = [np.eye(3, 8)[task] + 0.1 * rng.normal(size=(20, 8)) for task in range(3)]
    separation = diagnostics.query_separation(queries)
    assert separation.nearest_mean_accuracy == 1.0 and separation.gap > 0.8
    assert not separation.collapsed
    assert not any("collapsed" in line for line in separation.lines(["a", "bb", "c"]))


def test_collapsed_queries_are_warned_about():
    rng = np.random.default_rng(2)
    queries = [np.ones(64) + 0.01 * rng.normal(size=(40, 64)) for _ in range(2)]
    separation = diagnostics.query_separation(queries)
    assert separation.collapsed
    assert "queries collapsed" in separation.lines(["a", "b"])[-1]


def test_nearest_mean_leaves_the_query_out_of_its_own_mean():
    """Pure noise in a wide space: counting a query in its own mean would make it look separable."""
    rng = np.random.default_rng(3)
    separation = diagnostics.query_separation([rng.normal(size=(30, 200)) for _ in range(2)])
    assert separation.nearest_mean_accuracy < 0.75


def test_one_query_has_no_pair_within_its_task():
    """A test split of one row ends no run: what cannot be said is null, and the other tasks' figures stand."""
    separation = diagnostics.query_separation([np.eye(3)[:1], np.ones((4, 3))])
    assert math.isnan(separation.cosine_JJ[0, 0]) and separation.within == pytest.approx(1.0)
    assert separation.cross == pytest.approx(1 / math.sqrt(3)) and separation.nearest_mean_accuracy == 1.0
    single = diagnostics.query_separation([np.eye(3)[:1], np.eye(3)[1:2]])
    assert math.isnan(single.within) and math.isnan(single.nearest_mean_accuracy) and single.cross == 0.0
    assert "within -  cross 0.000  gap -" in single.lines(["a", "b"])[-1]


def test_a_stage_stores_and_prints_every_figure_and_null_for_none():
    table_JM = np.repeat(np.eye(2, dtype=bool), 2, axis=1)
    queries = [np.eye(4, 8)[:1], np.eye(4, 8)[2:3]]
    selected_BK = np.array([[0, 1], [2, 3]])
    found = pool_diagnostics.stage_diagnostics(table_JM, np.eye(4, 8), queries, selected_BK, last=0, before_MD=None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["query_cosine"][0][0] is found["query_gap"] is found["nearest_mean_accuracy"] is None
    assert found["query_cross"] == 0.0 and found["retrieval_top1"] == [1.0, None]
    assert found["usage_entropy_overall"] == 1.0 and found["usage_entropy"] == [0.5, 0.5]
    shown = pool_diagnostics.lines(found, ["one", "two"])
    assert "retrieval_top1" in shown[0] and shown[1].split()[:2] == ["one", "1.000"]
    assert shown[2].split() == ["two", *"----", "0.500", "2.000"]
    assert "usage_entropy_overall 1.000" in shown[3] and "WARNING" not in "".join(shown)
    same = [np.ones((3, 8))] * 2
    found = pool_diagnostics.stage_diagnostics(
        table_JM, np.eye(4, 8), same, np.zeros((6, 2), int), last=1, before_MD=np.eye(4, 8)
    )
    assert "queries collapsed" in pool_diagnostics.lines(found, ["one", "two"])[-1]


def test_single_task_has_no_cross_cosine():
    separation = diagnostics.query_separation([np.eye(4)[:3] + 1.0])
    assert math.isnan(separation.cross) and not separation.collapsed

"""The assignment table: exact for the released code's preset, refused where a task would be short of keys."""

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.prompts.assignment import ASSIGNMENTS, assignment_table
from codegen2_jax.prompts.sharing import first_owner_only, without_sharing

# Exclusive ids as a range, then the keys shared with each other task in turn: arXiv 2307.02435's released code, T = 4.
CODE_TABLE = {
    0: (range(0, 14), [14, 15, 16, 31, 32, 33]),
    1: (range(17, 31), [14, 15, 48, 49, 50, 65]),
    2: (range(34, 48), [16, 31, 48, 49, 66, 67]),
    3: (range(51, 65), [32, 33, 50, 65, 66, 67]),
}


def test_code_table_for_four_tasks():
    expected_JM = np.zeros((4, 68), bool)
    for task, (exclusive, shared) in CODE_TABLE.items():
        expected_JM[task, [*exclusive, *shared]] = True
    actual_JM = assignment_table("code", num_tasks=4, top_k=20, shared_per_pair=2)
    assert actual_JM.dtype == bool
    np.testing.assert_array_equal(actual_JM, expected_JM)


@pytest.mark.parametrize(("num_tasks", "num_keys", "exclusive"), [(1, 20, 20), (8, 104, 6), (10, 110, 2)])
def test_code_grows_with_the_stream(num_tasks, num_keys, exclusive):
    table_JM = assignment_table("code", num_tasks=num_tasks, top_k=20, shared_per_pair=2)
    assert table_JM.shape == (num_tasks, num_keys)
    np.testing.assert_array_equal(table_JM.sum(axis=1), 20)
    np.testing.assert_array_equal(table_JM[:, table_JM.sum(axis=0) == 1].sum(axis=1), exclusive)
    overlap_JJ = table_JM.astype(int) @ table_JM.T
    np.testing.assert_array_equal(overlap_JJ[~np.eye(num_tasks, dtype=bool)], 2)


def test_code_without_a_key_of_its_own_warns_and_beyond_is_refused():
    with pytest.warns(UserWarning, match="no task a key of its own"):
        assert assignment_table("code", num_tasks=11, top_k=20).shape == (11, 110)
    with pytest.raises(UserError, match="at most 11 tasks, not 12"):
        assignment_table("code", num_tasks=12, top_k=20)
    with pytest.raises(UserError, match="at most 3 tasks, not 4"):
        assignment_table("code", num_tasks=4, top_k=4)


def test_code_with_an_odd_number_of_shared_keys_is_refused():
    with pytest.raises(UserError, match="must|needs .* even, not 3"):
        assignment_table("code", num_tasks=4, top_k=20, shared_per_pair=1)
    assert assignment_table("code", num_tasks=3, top_k=20, shared_per_pair=1).shape == (3, 57)


@pytest.mark.parametrize(("num_tasks", "num_keys"), [(4, 80), (7, 140)])
def test_disjoint_gives_top_k_own_keys(num_tasks, num_keys):
    table_JM = assignment_table("disjoint", num_tasks=num_tasks, top_k=20)
    assert table_JM.shape == (num_tasks, num_keys)
    np.testing.assert_array_equal(table_JM.sum(axis=0), 1)
    np.testing.assert_array_equal(table_JM.sum(axis=1), 20)
    assert table_JM[1, 20:40].all()


def test_paper_text_is_a_hundred_keys_for_four_tasks():
    table_JM = assignment_table("paper_text", num_tasks=4, top_k=20)
    assert table_JM.shape == (4, 100)
    assert table_JM[2, 50:75].all() and table_JM[2].sum() == 25
    assert assignment_table("paper_text", num_tasks=2, top_k=20).shape == (2, 50)
    assert assignment_table("paper_text", num_tasks=5, top_k=20, pool_size=100).sum(axis=1).tolist() == [20] * 5


def test_learned_owns_everything():
    assert assignment_table("learned", num_tasks=3, top_k=20).shape == (3, 100)
    assert assignment_table("learned", num_tasks=3, top_k=4, pool_size=6).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="disjoint", num_tasks=4, top_k=20, pool_size=60), "exactly 80 keys .* at most 3 tasks"),
        (dict(name="code", num_tasks=4, top_k=20, pool_size=100), "exactly 68 keys"),
        (dict(name="paper_text", num_tasks=10, top_k=20, pool_size=100), "at most 5 tasks"),
        (dict(name="paper_text", num_tasks=3, top_k=20, pool_size=100), "no multiple of 3 tasks; use 99"),
        (dict(name="paper_text", num_tasks=4, top_k=26), "at most 3 tasks"),
        (dict(name="balanced", num_tasks=4, top_k=26), "assignment 'balanced' leaves 25 of 100 keys"),
        (dict(name="balanced", num_tasks=3, top_k=20, pool_size=100), "assignment 'balanced' cuts"),
        (dict(name="learned", num_tasks=4, top_k=20, pool_size=10), "top_k=20 exceeds pool_size=10"),
        (dict(name="all_to_all", num_tasks=4, top_k=20, pool_size=30), "exactly 20 keys"),
        (dict(name="pairs", num_tasks=4, top_k=20), "'pairs' is unknown; choose one of"),
        (dict(name="learned", num_tasks=4, top_k=0), "top_k=0"),
        (dict(name="code", num_tasks=4, top_k=20, shared_per_pair=-1), "shared_per_pair=-1"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        assignment_table(**arguments)


@pytest.mark.parametrize("name", sorted(set(ASSIGNMENTS) - {"similarity"}))  # its rows are completed by data
@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_every_strategy_gives_every_task_enough_keys(name, num_tasks):
    table_JM = assignment_table(name, num_tasks=num_tasks, top_k=8)
    assert table_JM.dtype == bool
    assert table_JM.sum(axis=1).min() >= 8
    assert table_JM.any(axis=0).all(), "a key without an owner would never be set"


def test_random_gives_every_key_one_owner_by_the_seed():
    table_JM = assignment_table("random", num_tasks=4, top_k=20, pool_size=100, seed=3)
    assert table_JM.shape == (4, 100) and (table_JM.sum(axis=0) == 1).all() and table_JM.sum(axis=1).min() >= 20
    assert len(set(table_JM.sum(axis=1))) > 1, "equal counts would be 'balanced'"
    again, other = (assignment_table("random", num_tasks=4, top_k=20, pool_size=100, seed=seed) for seed in (3, 4))
    assert (again == table_JM).all() and (other != table_JM).any()
    with pytest.raises(UserError, match="'random' left a task of 8 .* raise pool_size well above 160"):
        assignment_table("random", num_tasks=8, top_k=20, pool_size=160)


def test_balanced_is_equal_blocks_out_of_order():
    table_JM = assignment_table("balanced", num_tasks=4, top_k=20, seed=1)
    assert (table_JM.sum(axis=1) == 25).all() and (table_JM.sum(axis=0) == 1).all()
    assert (table_JM != assignment_table("paper_text", num_tasks=4, top_k=20)).any()


def test_similarity_leaves_room_for_the_keys_a_later_task_takes_over():
    table_JM = assignment_table("similarity", num_tasks=3, top_k=5, shared_per_pair=2)
    assert table_JM.sum(axis=1).tolist() == [5, 3, 3] and table_JM.shape == (3, 11)
    with pytest.raises(UserError, match="leaves later tasks no key"):
        assignment_table("similarity", num_tasks=3, top_k=2, shared_per_pair=2)


def test_pairwise_beyond_its_last_stream_names_the_largest_valid_number():
    with pytest.raises(UserError, match="serves at most 11 tasks, not 12"):
        assignment_table("pairwise", num_tasks=12, top_k=20)


def test_keys_without_sharing_start_from_those_they_replace():
    shared_JM = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 1]], bool)
    own_JM, copy_of_M = without_sharing(shared_JM)
    assert (own_JM.sum(axis=0) == 1).all() and (own_JM.sum(axis=1) == shared_JM.sum(axis=1)).all()
    assert copy_of_M.tolist() == [-1, -1, -1, -1, -1, 2, 1, 4]
    assert own_JM.argmax(axis=0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert first_owner_only(shared_JM).astype(int).tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]

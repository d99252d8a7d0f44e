"""The plane of queries and keys: principal axes of unit queries, found once, the same at every stage."""

import numpy as np
import pytest

from codegen2_jax.continual import diagnostics, projection


def test_axes_are_the_principal_axes_of_the_unit_queries():
    rng = np.random.default_rng(0)
    query_BD = rng.normal(size=(50, 6)) * [4, 2, 1, 1, 1, 1] + [3, 0, 0, 0, 0, 0]
    plane = projection.fit(query_BD)
    unit_BD = query_BD / np.linalg.norm(query_BD, axis=1, keepdims=True)
    values, vectors_DD = np.linalg.eigh(np.cov(unit_BD.T))
    np.testing.assert_allclose(plane.explained, (values[::-1] / values.sum())[:2], rtol=1e-9)
    np.testing.assert_allclose(np.abs(plane.axis_2D @ vectors_DD[:, ::-1][:, :2]), np.eye(2), atol=1e-9)
    point_B2 = np.array(plane.place(query_BD))
    np.testing.assert_allclose(point_B2.mean(axis=0), 0, atol=1e-12)
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in plane.axis_2D), "the sign is fixed"


def test_only_the_direction_of_a_key_counts():
    query_BD = np.random.default_rng(1).normal(size=(20, 4))
    plane = projection.fit(query_BD)
    key_MD = np.random.default_rng(2).normal(size=(3, 4))
    np.testing.assert_allclose(plane.place(key_MD), plane.place(7.0 * key_MD), rtol=1e-12)
    assert np.isfinite(plane.place(np.zeros((1, 4)))).all(), "a key that was never set has a place"


def test_the_sample_is_small_evenly_spaced_and_plain():
    query_BD = np.random.default_rng(3).normal(size=(150, 5))
    task_B = np.repeat([0, 1], [100, 50])
    plane = projection.fit(query_BD)
    sample = plane.sample(query_BD, task_B)
    assert sample["task"] == [0] * 60 + [1] * 50
    np.testing.assert_array_equal(sample["points"][:2], plane.place(query_BD[:2]))
    np.testing.assert_array_equal(sample["points"][60:], plane.place(query_BD[100:]))
    assert all(isinstance(number, float) for point in sample["points"] for number in point)
    assert sample["explained"] == list(plane.explained)


@pytest.mark.parametrize("query_BD", [np.ones((3, 4)), np.eye(2)[:, :1], np.ones((1, 3))], ids=["equal", "line", "one"])
def test_queries_without_two_directions_still_give_a_plane(query_BD):
    plane = projection.fit(query_BD)
    assert np.isfinite(plane.place(query_BD)).all() and np.isfinite(plane.explained).all()


def test_own_key_limit_is_what_later_owners_leave():
    # Tasks own 4 keys each and share one with each other task: (k - s (T - t)) / k = 2/4, 3/4, 4/4.
    table_JM = np.zeros((3, 9), bool)
    for task, keys in enumerate(((0, 1, 6, 7), (2, 3, 6, 8), (4, 5, 7, 8))):
        table_JM[task, list(keys)] = True
    np.testing.assert_allclose(diagnostics.own_key_limit(table_JM, 4, 3), [0.5, 0.75, 1.0])
    np.testing.assert_allclose(diagnostics.own_key_limit(table_JM, 4, 2), [0.75, 1.0])
    np.testing.assert_allclose(diagnostics.own_key_limit(table_JM, 2, 3), [1.0, 1.0, 1.0])

"""Result files are JSON to the letter: numbers that it lacks are null, and a file is written whole or not at all."""

import json
import math

import numpy as np
import pytest

from codegen2_jax import json_files
from codegen2_jax.continual.diagnostics import usage_entropy
from codegen2_jax.continual.pool_diagnostics import stage_diagnostics
from codegen2_jax.evaluation import records
from codegen2_jax.evaluation.understanding import write_lines
from codegen2_jax.training import run_directory


def strict(text):
    """The value of a text that a strict parser takes."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


RECORD = {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": np.float64("nan"), "e": True}, "f": "nan"}


def test_numbers_that_json_lacks_are_null_at_any_depth():
    expected = {"a": [1.5, None, [None]], "b": {"c": None, "d": None, "e": True}, "f": "nan"}
    assert strict(json_files.dumps(RECORD)) == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda place: run_directory.write_scores(place.parent, RECORD),
        lambda place: records.write_json(place, RECORD),
        lambda place: write_lines(place, [RECORD]),
    ],
    ids=["scores", "evaluation", "lines"],
)
def test_result_files_are_strict(tmp_path, write):
    place = tmp_path / run_directory.SCORES_FILE
    write(place)
    assert strict(place.read_text())["b"]["c"] is None
    assert [path.name for path in tmp_path.iterdir()] == [place.name], "nothing temporary stays"


def test_one_key_has_no_evenness_and_its_diagnostics_say_so_by_null():
    assert math.isnan(usage_entropy(np.array([3]))[0])
    queries = [np.eye(4, dtype=np.float32)]
    selected_BK = np.zeros((4, 1), int)
    found = stage_diagnostics(np.ones((1, 1)), np.ones((1, 4)), queries, selected_BK, last=0, before_MD=None)
    assert found["usage_entropy"] == [None] and found["effective_keys"] == [1.0]
    assert strict(json.dumps(found)) == found

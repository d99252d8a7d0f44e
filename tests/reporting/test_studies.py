"""The report of studies of retrieval: their figures with intervals, recall by task, pools, from the files alone."""

import json
import re

import pytest
from test_report import pool_diagnostics, record_of, rows_of, write_run

from codegen2_jax import report
from codegen2_jax.reporting import html_page

SUMMARY = {"nearest_mean_accuracy": 0.9, "retrieval_top1": 0.8, "own_key_recall": 0.75, "own_key_limit": 2 / 3}


def study_of(tasks=3, seed=0, more=0.0, **changes):
    """The contents of a retrieval.json of `tasks` tasks with two keys each."""
    diagnostics = pool_diagnostics()
    if tasks != 3:
        owned = [[float(key // 2 == task) for key in range(2 * tasks)] for task in range(tasks)]
        recall = [[1.0] * (stage + 1) + [None] * (tasks - stage - 1) for stage in range(tasks)]
        matrix = [[0.5] * tasks for _ in range(tasks)]
        diagnostics = {"key_usage": [owned] * tasks, "assignment": [owned] * tasks, "own_key_recall": recall}
        diagnostics |= {"own_key_limit": [[1.0] * (stage + 1) for stage in range(tasks)]}
        diagnostics |= {"query_cosine": [matrix] * tasks, "nearest_mean_accuracy": [0.9] * tasks}
    else:
        del diagnostics["key_plane"], diagnostics["query_plane"]
    return {
        "stream": [f"task_{number:02d}" for number in range(tasks)],
        "complete": True,
        "method": "synthetic_retrieval",
        "seed": seed,
        "prompt": {"top_k": 2, "seed": seed},
        "config_digest": f"{tasks}{seed}",
        "summary": {"test": {name: value + more for name, value in SUMMARY.items()}},
        "diagnostics": diagnostics,
        **changes,
    }


def write_study(directory, record):
    directory.mkdir(parents=True)
    (directory / "retrieval.json").write_text(json.dumps(record))
    return directory


def test_studies_have_a_page_from_their_files_alone(tmp_path):
    records = [study_of(), study_of(seed=1, more=0.1), study_of(14)]
    directories = [write_study(tmp_path / f"run{n}", record) for n, record in enumerate(records)]
    out = tmp_path / "out"
    page = html_page.write(directories, out).read_text()
    assert "What a prompt pool finds again" in page and "Retrieval against the number of tasks" in page
    rows = rows_of(out, "retrieval")
    assert [(row["study"], row["tasks"], row["runs"]) for row in rows] == [
        ("synthetic_retrieval", "3", "2"),
        ("synthetic_retrieval", "14", "1"),
    ]
    assert float(rows[0]["own_key_recall (test)"]) == pytest.approx(0.8)
    assert float(rows[0]["own_key_recall (test), 95 % interval +-"]) == pytest.approx(12.7062 * 0.05, abs=1e-4)
    assert rows[0]["usage_entropy (test)"] == "", "a figure that the study does not have"
    by_task = rows_of(out, "retrieval_by_task")
    assert [float(row["own_key_recall (test)"]) for row in by_task[:3]] == [0.5, 0.25, 1.0]
    assert [float(row["own_key_limit"]) for row in by_task[:3]] == [0.5, 0.5, 1.0] and len(by_task) == 3 + 14
    usage = rows_of(out, "retrieval_synthetic_retrieval_seed0_2_key_usage")
    assert len(usage) == 28 and usage[-1] == {"task": "13", "key": "27", "share of selections": "0.5", "owned": "1"}
    assert {path.stem for path in out.glob("figures/*.png")} > {
        f"retrieval_synthetic_retrieval_seed1_{name}" for name in ("key_usage", "own_key_recall", "query_cosine")
    }
    assert "http" not in page and not re.search(r"(fill|stroke): #", page)


def test_a_study_stands_beside_runs(tmp_path):
    run = write_run(tmp_path / "run", record_of("synthetic_retrieval", diagnostics=pool_diagnostics()))
    sections = html_page.report_of([run, write_study(tmp_path / "study", study_of())]).sections
    names = [section.name for section in sections]
    assert names[-3:] == ["runs", "retrieval", "retrieval_pool"] and "pool" in names


@pytest.mark.parametrize(
    ("record", "words"),
    [(study_of(complete=False), "is of an older version"), ([1], "cannot be read"), ({}, "is of an older version")],
)
def test_what_is_no_study_is_one_line(tmp_path, capsys, record, words):
    assert report.main([str(write_study(tmp_path / "run", record))]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1

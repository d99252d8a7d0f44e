"""Streams without BLEU, and those where some tasks have none, are read by exact match."""

import copy

import numpy as np
import pytest
from test_groups import content_of, rows_of
from test_report import BLEU, record_of, write_run

from codegen2_jax.errors import UserError
from codegen2_jax.reporting import html_page, sweep_table

MATCH = np.asarray(BLEU) / 10  # what record_of makes of it


def classified(**changes):
    """A run whose tasks are scored by exact match alone."""
    record = copy.deepcopy(record_of(**changes))
    record["scorers"] = {"exact_match": ["exact_match"] * len(record["stream"])}
    for matrices in record["splits"].values():
        matrices.pop("bleu", None)
    for row in record["baselines"]["copy"].values():
        row.pop("bleu", None)
    return record


def mixed():
    """A run whose last task has no BLEU."""
    record = copy.deepcopy(record_of())
    record["scorers"]["bleu"][-1] = None
    for matrices in record["splits"].values():
        matrices["bleu"] = [[*row[:-1], None] for row in matrices["bleu"]]
    for row in record["baselines"]["copy"].values():
        row["bleu"] = [*row["bleu"][:-1], None]
    return record


@pytest.mark.parametrize("record", [classified(), mixed()], ids=["no task has BLEU", "one task has none"])
def test_exact_match_stands_where_bleu_does_not_score_every_task(record, tmp_path):
    runs = [write_run(tmp_path / "a", record, metrics=[{"step": 1, "task": "toy_generate", "valid_exact_match": 2.5}])]
    report, exhibits, words = content_of(runs)
    row = rows_of(exhibits["methods"])[0]
    assert float(row["average_exact_match (test)"]) == pytest.approx(MATCH[-1].mean())
    assert float(row["test exact_match toy_refine (exact_match)"]) == pytest.approx(MATCH[-1, 2])
    assert float(row["forget_paper_exact_match (valid; exact_match)"]) == pytest.approx(0.2)
    assert not [name for name in row if "bleu" in name] and len(set(row)) == len(row)
    assert "nothing that exact match shows" in words["methods"]
    assert report.findings[0] == f"Highest average test exact match: pool with {MATCH[-1].mean():.2f}."
    assert "forget_paper_exact_match_valid" in exhibits
    assert exhibits["score_against_cost"].title == "Average test exact match against cost"
    assert [float(row["validation exact match"]) for row in rows_of(exhibits["learning_curves"])] == [2.5]
    assert "Highest average test exact match" in html_page.write(runs, tmp_path / "out").read_text()


def test_other_data_are_told_apart_by_exact_match_too(tmp_path):
    other = classified(data_digest="e" * 64, stream=["toy_generate", "toy_translate", "toy_other"])
    other["baselines"]["copy"]["valid"]["exact_match"] = [1.0, 0.0, 0.0]
    runs = [write_run(tmp_path / "a", classified()), write_run(tmp_path / "b", other)]
    with pytest.raises(UserError, match="copying the input of toy_generate scores"):
        content_of(runs)


def test_lengths_of_streams_have_a_curve_for_each_metric(tmp_path):
    runs = []
    for number, make in enumerate((record_of, classified)):
        whole = make(method=f"method{number}", seed=number)
        short = copy.deepcopy(whole)
        short["stream"] = short["stream"][:2]
        short["leave_out"] = []
        short["scorers"] = {name: ids[:2] for name, ids in short["scorers"].items()}
        for split, matrices in short["splits"].items():
            short["splits"][split] = {name: [row[:2] for row in rows[:3]] for name, rows in matrices.items()}
        for split, row in short["baselines"]["copy"].items():
            short["baselines"]["copy"][split] = {name: values[:2] for name, values in row.items()}
        runs.append([write_run(tmp_path / f"{number}{name}", one) for name, one in (("w", whole), ("s", short))])
    _, exhibits, _ = content_of(runs[0])
    assert "average_bleu (test)" in rows_of(exhibits["score_against_tasks"])[0]
    _, exhibits, _ = content_of(runs[1])
    rows = rows_of(exhibits["score_against_tasks"])
    assert [int(row["tasks"]) for row in rows] == [2, 3]
    assert float(rows[1]["average_exact_match (test)"]) == pytest.approx(MATCH[-1].mean())


def test_a_sweeps_table_shows_what_the_page_speaks_of():
    def shown(*names):
        groups, found = {(): []}, {}
        for split, name in names:
            found.setdefault(split, {})[name] = {"mean": 1.0, "half_width_95": None, "values": [1.0]}
        return [column.csv_name for column in sweep_table._table(groups, {(): found}).columns[1:]]

    match = [("test", "average_exact_match"), ("valid", "forget_paper_exact_match")]
    assert shown(*match, ("test", "average_loss")) == [f"{name} ({split})" for split, name in match]
    both = [("test", "average_bleu"), match[0], ("valid", "forget_paper_bleu")]
    assert shown(*match, *both) == [f"{name} ({split})" for split, name in both]
    assert shown(("valid", "average_bleu"), ("valid", "average_loss")) == ["average_bleu (valid)"]

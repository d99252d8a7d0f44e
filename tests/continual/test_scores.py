"""The continual-learning metrics on a matrix worked out by hand, scores.json, and the tables drawn from it."""

import json
import math

import numpy as np
import pytest

from codegen2_jax.continual import scores as library
from codegen2_jax.continual.scores import Scores, format_matrix, format_summary
from codegen2_jax.errors import UserError

R = np.array([[5, 10, 20], [50, 12, 22], [52, 60, 25], [45, 63, 70]], float)
CEILING, COPY = [55, 62, 71], [0, 20, 60]
GOLDEN = {
    "average": 178 / 3,
    "avg_incremental": (50 + 56 + 178 / 3) / 3,
    "forget_paper": 2.0,
    "forget_clipped": 3.5,
    "forget_last": 1.0,
    "forget_step": 0.0,
    "bwt": -1.0,
    "fwt": 3.5,
    "learning_accuracy": 60.0,
}


@pytest.mark.parametrize("name", sorted(library.METRICS))
def test_golden_matrix(name):
    assert library.METRICS[name](R) == pytest.approx(GOLDEN[name])


def test_golden_matrix_against_ceiling_and_copy():
    assert library.intransigence(R, CEILING) == pytest.approx(8 / 3)
    np.testing.assert_allclose(library.copy_normalised_per_task(R, CEILING, COPY), [0.8182, 1.0238, 0.9091], atol=5e-5)
    assert library.copy_normalised(R, CEILING, COPY) == pytest.approx(0.9170, abs=5e-5)
    assert library.oracle_gap(R + 2.0, R) == pytest.approx(2.0)


def test_a_task_without_headroom_is_left_out():
    per_task = library.copy_normalised_per_task(R, [55, 20.5, 50], COPY)
    assert per_task[0] == pytest.approx(45 / 55) and np.isnan(per_task[1:]).all()
    assert library.copy_normalised(R, [55, 20.5, 50], COPY) == pytest.approx(45 / 55)
    assert math.isnan(library.copy_normalised(R, COPY, COPY))


def test_tasks_without_headroom_are_named():
    book = recorded()
    book.record_baseline("copy", "valid", "bleu", COPY)
    book.record_baseline("multitask", "valid", "bleu", [55, 20.5, 71])
    stored = book.to_dict()
    summary = stored["summary"]["valid"]
    assert summary["no_headroom_vs_multitask_bleu"] == ["trans"]
    assert summary["copy_normalised_vs_multitask_bleu"] == pytest.approx((45 / 55 + 10 / 11) / 2)
    assert "no_headroom_vs_multitask_bleu (valid): trans" in format_summary(stored, split="valid")


def test_signs():
    """A model that loses everything at the end forgets by every definition; one that only gains does by none."""
    loses = np.array([[0, 0], [80, 0], [0, 80]], float)
    gains = np.array([[0, 0], [60, 0], [80, 80]], float)
    for name in ("forget_paper", "forget_clipped", "forget_last", "forget_step"):
        assert library.METRICS[name](loses) == 80.0
        assert library.METRICS[name](gains) == (0.0 if name == "forget_clipped" else -20.0)
    assert library.bwt(loses) == -80.0 and library.bwt(gains) == 20.0


def test_one_task_has_nothing_to_forget():
    single = np.array([[1.0], [7.0]])
    assert library.average(single) == library.learning_accuracy(single) == library.avg_incremental(single) == 7.0
    for name in ("forget_paper", "forget_clipped", "forget_last", "forget_step", "bwt", "fwt"):
        assert math.isnan(library.METRICS[name](single))


def test_a_matrix_without_row_zero_is_refused():
    with pytest.raises(UserError, match=r"\(3, 3\) is not \(tasks \+ 1\) x tasks"):
        library.average(R[1:])


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        ([(0, 1)], {"fwt"}),
        ([(0, 0), (1, 2)], set()),  # no metric reads these
        (
            [(3, 1)],
            {"average", "avg_incremental", "bwt", "forget_paper", "forget_clipped", "forget_last", "forget_step"},
        ),
        ([(2, 0)], {"avg_incremental", "forget_paper", "forget_clipped", "forget_step"}),
    ],
)
def test_a_metric_that_needs_a_missing_cell_is_nan(cells, missing):
    holed = R.copy()
    for cell in cells:
        holed[cell] = np.nan
    assert {name for name, metric in library.METRICS.items() if math.isnan(metric(holed))} == missing


def recorded(matrix=R, split="valid", metric="bleu", **settings):
    book = Scores(
        tasks=("gen", "trans", "refine"),
        scorers={"bleu": ["codet5_bleu", "codet5_smooth_bleu", "codet5_bleu"]},
        header={"method": "pp_tf", "seed": 3, "versions": {"jax": "0"}},
        **settings,
    )
    for (stage, task), value in np.ndenumerate(matrix):
        book.record(split, metric, stage=stage, task=task, value=value)
    return book


def test_nothing_forgotten_is_printed_without_a_sign():
    lines = format_summary(recorded(np.zeros_like(R)).to_dict(), split="valid")
    assert "forget_last_bleu (valid): 0.00" in lines and not [line for line in lines if "-0.00" in line]


def test_summary_names_variant_and_metric_under_its_split():
    book = recorded(leave_out=("refine",))
    book.record_baseline("copy", "valid", "bleu", COPY)
    book.record_baseline("individual", "valid", "bleu", CEILING)
    book.record("test", "exact_match", stage=3, task=0, value=1.0)
    summary = book.summary()
    for name, value in GOLDEN.items():
        assert summary["valid"][f"{name}_bleu"] == pytest.approx(value)
    assert summary["valid"]["average_without_refine_bleu"] == pytest.approx(54.0)
    assert summary["valid"]["intransigence_vs_individual_bleu"] == pytest.approx(8 / 3)
    assert summary["valid"]["copy_normalised_vs_individual_bleu"] == pytest.approx(0.9170, abs=5e-5)
    assert len(summary["valid"]["copy_normalised_per_task_vs_individual_bleu"]) == 3
    assert summary["test"] == {}, "an average of one of three tasks would be a guess"


def test_a_final_row_alone_gives_averages_only():
    book = recorded(np.where(np.arange(4)[:, None] == 3, R, np.nan), split="test", metric="exact_match")
    assert book.summary() == {"test": {"average_exact_match": pytest.approx(178 / 3)}}


def test_loss_and_oracle_rows_are_averaged_and_compared_not_forgotten():
    book = recorded()
    for (stage, task), value in np.ndenumerate(R):
        book.record("valid", "bleu_oracle", stage=stage, task=task, value=value + 3.0)
        book.record("valid", "loss", stage=stage, task=task, value=1.0)
    summary = book.summary()["valid"]
    assert summary["oracle_gap_bleu"] == pytest.approx(3.0)
    rises = {f"rise_{name}_loss" for name in ("paper", "clipped", "last", "step")}
    expected = {"average_loss", "avg_incremental_loss", "average_bleu_oracle"} | rises
    assert {name for name in summary if name.endswith(("_loss", "_oracle"))} == expected


def test_a_loss_that_rises_is_worse_by_every_definition():
    book = recorded(-R, metric="loss")
    summary = book.summary()["valid"]
    for name in ("paper", "clipped", "last", "step"):
        assert summary[f"rise_{name}_loss"] == pytest.approx(GOLDEN[f"forget_{name}"])
    lines = format_matrix(book.to_dict(), split="valid", metric="loss")
    assert "lower is better" in lines[0] and len(lines) == 6 and not any("copy" in line for line in lines)


def test_a_task_that_a_metric_does_not_score_is_left_out_of_its_means():
    """The figures are those of the other tasks, and the lines say of which; a hole among those still counts."""
    holed = R.copy()
    holed[:, 1] = np.nan
    book = recorded(holed)
    book.scorers["bleu"][1] = None
    found = book.summary()["valid"]
    expected = {"average": 57.5, "learning_accuracy": 60.0, "forget_paper": 7.0, "forget_clipped": 7.0, "bwt": -5.0}
    expected |= {"fwt": 5.0, "avg_incremental": (50 + 52 + 57.5) / 3, "forget_step": (-2 + 7) / 2}
    for name, value in expected.items():
        assert found[f"{name}_bleu"] == pytest.approx(value), name
    stored = book.to_dict()
    assert format_matrix(stored, split="valid", metric="bleu")[-3].split()[-4:] == ["45.00", "-", "70.00", "57.50"]
    assert "average_bleu (valid; over gen, refine): 57.50" in format_summary(stored, split="valid")
    holed[3, 2] = np.nan
    assert math.isnan(library.average(holed, [True, False, True]))


def test_json_round_trip_keeps_everything():
    holed = R.copy()
    holed[0, 2] = np.nan
    book = recorded(holed, leave_out=("refine",))
    book.record_baseline("copy", "valid", "bleu", [0, None, 60])
    book.diagnostics["retrieval_top1"] = [[1.0]]
    book.cost["wall_seconds"] = 12.5
    stored = json.loads(json.dumps(book.to_dict(), allow_nan=False))
    assert stored["stream"] == ["gen", "trans", "refine"]
    assert stored["method"] == "pp_tf" and stored["seed"] == 3
    assert stored["splits"]["valid"]["bleu"][0] == [5.0, 10.0, None]
    assert stored["baselines"]["copy"]["valid"]["bleu"] == [0.0, None, 60.0]
    assert "fwt_bleu" not in stored["summary"]["valid"]
    again = Scores.from_dict(stored)
    assert again.to_dict() == stored
    again.record("valid", "bleu", stage=0, task=2, value=20.0)
    assert again.summary()["valid"]["fwt_bleu"] == pytest.approx(3.5)


def test_what_is_no_score_file_is_refused():
    with pytest.raises(UserError, match="lack .*splits"):
        Scores.from_dict({"stream": ["a"]})
    with pytest.raises(UserError, match="names no task of this stream"):
        Scores(tasks=("a", "b"), leave_out=("c",))


def test_table_has_stages_tasks_average_and_both_baselines():
    book = recorded(np.where(np.arange(4)[:, None] == 2, np.nan, R))
    book.record_baseline("copy", "valid", "bleu", COPY)
    book.record_baseline("individual", "valid", "bleu", CEILING)
    lines = format_matrix(book.to_dict(), split="valid", metric="bleu")
    assert lines[0] == "valid bleu: codet5_bleu (gen, refine), codet5_smooth_bleu (trans)"
    assert [line.split() for line in lines[1:]] == [
        "gen trans refine average".split(),
        "before training 5.00 10.00 20.00 11.67".split(),
        "after 1 gen 50.00 12.00 22.00 28.00".split(),
        "after 3 refine 45.00 63.00 70.00 59.33".split(),
        "copy 0.00 20.00 60.00 26.67".split(),
        "constant (not computed) - - - -".split(),
        "individual 55.00 62.00 71.00 62.67".split(),
    ]
    assert len({len(line) for line in lines[1:]}) == 1, "columns are aligned"


def test_table_of_an_unfinished_stage_does_not_average_over_a_part():
    book = recorded(np.full((4, 3), np.nan))
    book.record("valid", "bleu", stage=1, task=0, value=50.0)
    line = format_matrix(book.to_dict(), split="valid", metric="bleu")[2]
    assert line.split() == ["after", "1", "gen", "50.00", "-", "-", "-"]


def test_no_output_uses_the_bare_word():
    book = recorded(leave_out=("refine",))
    book.record_baseline("copy", "valid", "bleu", COPY)
    book.record_baseline("individual", "valid", "bleu", CEILING)
    stored = book.to_dict()
    text = "\n".join(
        [
            json.dumps(stored),
            *format_matrix(stored, split="valid", metric="bleu"),
            *format_summary(stored, split="valid"),
        ]
    )
    assert "forgetting" not in text
    assert "forget_paper_bleu (valid): 2.00" in text.splitlines()

"""What scores a task: which scorer decides, which choices are refused, and what row of R comes of it."""

import pytest

from codegen2_jax.continual import scoring
from codegen2_jax.continual.stream_tasks import TaskData
from codegen2_jax.errors import UserError


def task(*scorers):
    return TaskData(name="toy", train=None, valid=None, test=None, scorers=scorers, max_lengths=(8, 8))


@pytest.mark.parametrize(
    ("scorers", "scores", "value"),
    [
        (("codet5_bleu", "exact_match"), {"bleu": 61.078, "exact_match": 50.0}, 111.08),
        (("codet5_bleu",), {"bleu": 61.078}, 61.08),
        (("codet5_smooth_bleu", "exact_match"), {"bleu": 9.5547, "exact_match": 20.0}, 9.5547),
        (("exact_match",), {"exact_match": 40.0}, 40.0),
        (("exact_match", "codet5_smooth_bleu"), {"exact_match": 40.0, "bleu": 9.0}, 40.0),
        (("codebleu_java", "exact_match"), {"codebleu": 30.0, "exact_match": 10.0}, 40.0),
    ],
)
def test_the_first_scorer_decides_with_exact_match(scorers, scores, value):
    assert scoring.selection_score(scorers, scores) == pytest.approx(value)


def test_two_scorers_of_one_column_are_refused_before_anything_is_trained():
    with pytest.raises(UserError, match="codet5_bleu and codet5_smooth_bleu both fill the column 'bleu'"):
        task("codet5_bleu", "codet5_smooth_bleu")
    with pytest.raises(UserError, match="choose from"):
        task()
    assert task("exact_match").scorers == ("exact_match",)


def test_a_scorer_that_cannot_be_computed_does_not_come_first(monkeypatch):
    monkeypatch.setitem(scoring.runner.SCORERS, "codebleu_java", ("codebleu", lambda hypotheses, references: None))
    with pytest.raises(UserError, match="codebleu_java comes first and so decides"):
        task("codebleu_java", "exact_match")
    assert task("exact_match", "codebleu_java"), "behind the first it is stored as not computed"

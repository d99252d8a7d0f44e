"""Ceilings: whose scores they are, that they are comparable, and the figures that a report draws from them."""

import json

import pytest

from codegen2_jax.continual import ceilings
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import ceilings as reported

# The golden matrix of the metrics' tests (specification, section 5), learned in sequence and held against two ceilings.
BLEU = [[5.0, 10.0, 20.0], [50.0, 12.0, 22.0], [52.0, 60.0, 25.0], [45.0, 63.0, 70.0]]
COPY, TOP = [0.0, 20.0, 60.0], [55.0, 62.0, 71.0]
ALONE = [BLEU[0], [55.0, None, None], [None, 62.0, None], [None, None, 71.0]]
TOGETHER = [BLEU[0], [None] * 3, [None] * 3, [55.0, 20.5, 71.0]]


def record(walk="sequential", bleu=BLEU, **changes):
    loss = [[None if cell is None else 1.0 for cell in row] for row in bleu]
    matrices = {"bleu": bleu, "loss": loss, "bleu_oracle": bleu}
    return {
        "stream": ["a", "b", "c"], "walk": walk, "complete": True, "data_digest": "d", "eval_examples": 64,
        "decoding": "greedy", "scorers": {"bleu": ["codet5_bleu"] * 3},
        "splits": {"valid": matrices, "test": matrices},
        "baselines": {"copy": {"valid": {"bleu": COPY}, "test": {"bleu": COPY}}}, **changes,
    }  # fmt: skip


def write(path, contents):
    path.write_text(json.dumps(contents))
    return path


def test_a_ceiling_is_read_from_a_run_or_its_file(tmp_path):
    file = write(tmp_path / "scores.json", record("individual", ALONE))
    for place in (tmp_path, file):
        name, rows = ceilings.read(place, record())
        assert name == "individual" and rows == {"valid": {"bleu": TOP}, "test": {"bleu": TOP}}, "bleu alone is a score"
    name, rows = ceilings.read(write(file, record("joint", TOGETHER)), record())
    assert name == "multitask" and rows["test"]["bleu"] == TOGETHER[-1]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (record(), "is a run of walk='sequential', which is no ceiling"),
        (record("individual", ALONE, complete=False), "is unfinished"),
        (record("individual", ALONE, eval_examples=None), "eval_examples is None there and 64 here"),
        (record("individual", ALONE, stream=["a", "c", "b"]), "stream is a, c, b there and a, b, c here"),
        (record("individual", ALONE, decoding="beam_5"), "decoding is beam_5 there"),
        (record("individual", ALONE, scorers={"bleu": ["codet5_smooth_bleu"] * 3}), "scorers is"),
        ([], "is no scores.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, contents, message):
    with pytest.raises(UserError, match=message):
        ceilings.read(write(tmp_path / "scores.json", contents), record())


def test_a_missing_ceiling_is_named(tmp_path):
    with pytest.raises(UserError, match=r"CEILING='.*nowhere': .* cannot be read"):
        ceilings.read(tmp_path / "nowhere", record())


def test_a_report_holds_every_run_against_every_ceiling_on_both_splits():
    runs = [record(), record("individual", ALONE), record("joint", TOGETHER)]
    table, caption = reported.table(["pool", "individual", "multitask"], runs)
    names = [column.csv_name for column in table.columns]
    (pool, joint) = (dict(zip(names, row, strict=True)) for row in table.rows)
    assert (pool["run"], joint["run"]) == ("pool", "multitask")
    for split in ("valid", "test"):
        assert pool[f"intransigence_vs_individual_bleu ({split})"] == pytest.approx(8 / 3)
        assert pool[f"copy_normalised_vs_individual_bleu ({split})"] == pytest.approx(0.9170, abs=5e-5)
        assert pool[f"copy_normalised_vs_multitask_bleu ({split})"] == pytest.approx((45 / 55 + 10 / 11) / 2)
        assert joint[f"intransigence_vs_individual_bleu ({split})"] is None, "it has no score just after a task"
        assert joint[f"copy_normalised_vs_individual_bleu ({split})"] == pytest.approx((1 + 0.5 / 42 + 1) / 3)
    assert "vs_multitask_bleu (test): b" in caption and "vs_individual_bleu (test)" not in caption
    assert not any("loss" in name or "oracle" in name for name in names)


def test_without_a_comparable_ceiling_there_is_no_table():
    assert reported.table(["pool"], [record()]) is None
    assert reported.table(["pool", "alone"], [record(), record("individual", ALONE, eval_examples=8)]) is None

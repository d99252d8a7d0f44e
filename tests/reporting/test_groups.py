"""Which runs of a report are repetitions of one another, what groups are called, and curves over what was varied."""

import csv
import io

import numpy as np
import pytest
from test_report import BLEU, COPY, codetask_record, record_of, write_run

from codegen2_jax.errors import UserError
from codegen2_jax.reporting import drawing, finished_runs, html_page, paper_table
from codegen2_jax.reporting.exhibits import Exhibit
from codegen2_jax.reporting.tables import to_csv

CONFIG = "LR = {rate}\nSEED = {seed}\nSTREAM = 'x'\noptimizers.AdamW.learning_rate = %LR\nreplay.Replay.size = {size}\n"


def replaying(size, seed, **changes):
    replay = {"size": size, "policy": "ring", "batch_size": None}
    return record_of(**{"method": "finetune_er", "seed": seed, "replay": replay, "tags": "none", **changes})


def groups_of(place, records, configs=None):
    """{name of a group: seeds of its runs}."""
    directories = [write_run(place / f"run{n}", record, metrics=None) for n, record in enumerate(records)]
    for directory, config in zip(directories, configs or [], strict=False):
        (directory / "config.gin").write_text(config)
    return finished_runs.gather(finished_runs.load(directories))


def content_of(directories):
    """What a page of these directories says: (the report, {name: exhibit}, its words by section), undrawn."""
    report = html_page.report_of(directories)
    parts = [(section.name, part) for section in report.sections for part in section.parts]
    words = {}
    for name, part in parts:
        words[name] = words.get(name, "") + (part if isinstance(part, str) else "")
    return report, {part.name: part for _, part in parts if isinstance(part, Exhibit)}, words


def rows_of(exhibit):
    """The rows of a table as {column: text}."""
    return list(csv.DictReader(io.StringIO(to_csv(exhibit.table))))


def seeds_of(groups):
    return {group.name: [run.seed for run in group.runs] for group in groups}


def test_other_settings_are_no_seeds(tmp_path):
    records = [replaying(100, 0), replaying(500, 1), replaying(500, 2, tags="input")]
    assert seeds_of(groups_of(tmp_path, records)) == {
        "finetune_er, replay.size=100, tags=none": [0],
        "finetune_er, replay.size=500, tags=none": [1],
        "finetune_er, replay.size=500, tags=input": [2],
    }


def test_a_sweep_over_a_setting_has_its_seeds_in_every_group(tmp_path):
    prompts = [{"top_k": 4, "seed": seed} for seed in (0, 1)]
    records = [replaying(size, seed, prompt=prompts[seed]) for size in (100, 500) for seed in (0, 1)]
    groups = groups_of(tmp_path, records)
    assert seeds_of(groups) == {"finetune_er, replay.size=100": [0, 1], "finetune_er, replay.size=500": [0, 1]}
    assert groups[1].runs[0].name == "finetune_er, replay.size=500, seed 0"


def test_what_only_the_configuration_tells_apart_is_told_apart(tmp_path):
    cells = [(rate, seed) for rate in ("0.001", "0.01") for seed in (0, 1)]
    configs = [CONFIG.format(rate=rate, seed=seed, size=100) for rate, seed in cells]
    records = [replaying(100, seed) for _, seed in cells]
    expected = {"finetune_er, LR=0.001": [0, 1], "finetune_er, LR=0.01": [0, 1]}
    assert seeds_of(groups_of(tmp_path / "all", records, configs)) == expected
    # What both files say stands in the name once.
    both = [CONFIG.format(rate=0.1, seed=0, size=size) for size in (100, 500)]
    named = groups_of(tmp_path / "both", [replaying(100, 0), replaying(500, 0)], both)
    assert list(seeds_of(named)) == ["finetune_er, replay.size=100", "finetune_er, replay.size=500"]
    # Without all configurations the four cannot be told apart: two of each seed stand alone.
    alone = groups_of(tmp_path / "some", records, configs[:3])
    assert [len(group.runs) for group in alone] == [1, 1, 1, 1]
    assert alone[0].name == "finetune_er (run0)"


def reordered(record, order):
    """The record of a run that learned the tasks in another order and scored each of them the same."""
    tasks = [record["stream"][number] for number in order]
    matrix = [[row[number] for number in order] for row in BLEU]
    copied = {split: {"bleu": [COPY[number] for number in order]} for split in ("valid", "test")}
    splits = {split: {"bleu": matrix} for split in ("valid", "test")}
    return record | {"stream": tasks, "splits": splits, "baselines": {"copy": copied}, "data_digest": "other"}


def test_orders_are_repetitions_and_scores_stay_with_their_tasks(tmp_path):
    groups = groups_of(tmp_path, [record_of(), reordered(record_of(), (2, 0, 1))])
    assert seeds_of(groups) == {"pool": [0, 0]}
    assert [run.name for run in groups[0].runs] == ["pool, seed 0, order 012", "pool, seed 0, order 201"]
    _, exhibits, words = content_of([run.directory for run in groups[0].runs])
    assert "Several seeds and 2 orders of the tasks" in words["methods"]
    (methods, *_) = rows_of(exhibits["methods"])
    for task, score in zip(groups[0].tasks, BLEU[3], strict=True):
        assert float(methods[f"test bleu {task} (codet5_bleu)"]) == score
        assert float(methods[f"test bleu {task} (codet5_bleu), 95 % interval +-"]) == 0.0
    assert methods["runs"] == "2"


def test_streams_of_other_data_are_refused(tmp_path):
    other = reordered(record_of(), (2, 0, 1))
    other["baselines"]["copy"]["valid"]["bleu"][0] += 1
    with pytest.raises(UserError, match="copying the input of toy_refine scores 61.00 in .* other data"):
        groups_of(tmp_path, [record_of(), other])


def shorter(record, count):
    """The record of a run that learned the first tasks alone."""

    def cut(matrix):
        return [row[:count] for row in matrix[: count + 1]]

    splits = {split: {name: cut(m) for name, m in found.items()} for split, found in record["splits"].items()}
    rows = {split: {"bleu": COPY[:count]} for split in ("valid", "test")}
    scorers = {name: ids[:count] for name, ids in record["scorers"].items()}
    changes = {"stream": record["stream"][:count], "splits": splits, "baselines": {"copy": rows}, "scorers": scorers}
    return record | changes | {"leave_out": [], "data_digest": str(count)}


def test_curves_over_buffer_sizes_and_numbers_of_tasks(tmp_path):
    higher = [[cell + 4.0 for cell in row] for row in BLEU]
    records = [replaying(100, 0), replaying(500, 0, bleu=higher), replaying(500, 1), shorter(replaying(100, 0), 2)]
    records += [record_of(), shorter(record_of(), 2)]
    directories = [write_run(tmp_path / f"run{n}", record, metrics=None) for n, record in enumerate(records)]
    report, exhibits, _ = content_of(directories)
    assert report.title == "Learning 2 to 3 tasks one after another" and "paper_table_3" not in exhibits
    buffers = exhibits["stream1_score_against_buffer"]
    assert "stream2_score_against_buffer" not in exhibits
    assert "finetune_er" in drawing.render(buffers.drawing, name="b", alt=buffers.alt).svg
    rows = rows_of(buffers)
    assert [(row["method"], row["buffer examples"], row["runs"]) for row in rows] == [
        ("finetune_er", "100", "1"),
        ("finetune_er", "500", "2"),
    ]
    assert float(rows[1]["average_bleu (test)"]) == pytest.approx(np.mean(BLEU[3]) + 2)
    # Two seeds 4 points apart: t(0.975, 1) s / sqrt(2) with s = sqrt(8).
    assert float(rows[1]["average_bleu (test), 95 % interval +-"]) == pytest.approx(12.7062 * 2, abs=1e-3)
    assert float(rows[0]["forget_paper_bleu (valid)"]) == 2.0
    rows = rows_of(exhibits["score_against_tasks"])
    assert [(row["method"], row["tasks"]) for row in rows] == [
        ("finetune_er, replay.size=100", "2"), ("finetune_er, replay.size=100", "3"), ("pool", "2"), ("pool", "3"),
    ]  # fmt: skip
    assert float(rows[2]["average_bleu (test)"]) == np.mean(BLEU[2][:2])


def test_the_papers_third_table_stands_beside_a_sweep_of_its_stream(tmp_path):
    for *_, bleu_4, average, _, _, without, _ in [(row[1:5], *row[5:]) for row in paper_table.BUFFER_ROWS]:
        assert np.mean(bleu_4) == pytest.approx(average, abs=0.006)
        assert np.mean(bleu_4[:3]) == pytest.approx(without, abs=0.006)
    assert list(paper_table.BUFFER_ROWS[-1][1:]) == list(paper_table.ROWS[-1][2:]), "5,000 examples are in both tables"
    records = [codetask_record("finetune_er", replay={"size": size}, eval_examples=64) for size in (100, 5000)]
    directories = [write_run(tmp_path / str(n), record, metrics=None) for n, record in enumerate(records)]
    _, exhibits, words = content_of(directories)
    rows = rows_of(exhibits["paper_table_3"])
    assert [row["buffer examples"] for row in rows] == ["100", "500", "1000", "2000", "5000"]
    assert "Not comparable" in words["buffers"] and "only 64 examples" in words["buffers"]


def test_a_run_may_have_no_test_scores(tmp_path):
    record = record_of()
    del record["splits"]["test"]
    report, exhibits, _ = content_of([write_run(tmp_path / "run", record)])
    assert "Highest average valid BLEU: pool with 59.33." in report.findings
    (methods, *_) = rows_of(exhibits["methods"])
    assert float(methods["average_bleu (valid)"]) == pytest.approx(178 / 3)

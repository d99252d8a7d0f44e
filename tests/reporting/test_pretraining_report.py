"""The report of pretraining runs: its curves are the lines of metrics.jsonl, overlaid, of finished runs and others."""

import csv
import io
import json
import re

import pytest

from codegen2_jax import report
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import html_page, pretraining_runs

RECORD = {
    "complete": True, "config_digest": "c" * 64, "seed": 0, "init_from": "random", "steps": 40, "batch_size": 16,
    "parameters": 5678, "wall_seconds": 90, "seen": {}, "summary": {"valid": {}}, "versions": {"codegen2_jax": "0"},
}  # fmt: skip


def metrics(shift=0.0, evaluations=(20, 40)):
    """A line every ten steps, ten seconds and 100 tokens a step apart; an evaluation takes a minute."""
    lines, now = [], 1000.0
    for step in range(10, 41, 10):
        now += 10.0
        lines.append({"step": step, "time": now, "loss": 5.0 + shift - step / 20, "tokens": 100.0, "pull": 0.0})
        if step in evaluations:
            now += 60.0
            line = {"step": step, "time": now, "split": "valid", "code": 4.0 + shift, "code, objective": 4.5}
            line |= {"code, bits per byte": 2.0 + shift - step / 40, "text, bits per byte": 3.0 + shift}
            line |= {"code, tokens seen": 90.0 * step, "code, bytes seen": 300.5 * step, "code, epochs seen": step / 80}
            lines.append(line)
    return lines


def write_run(directory, record=RECORD, lines=None):
    directory.mkdir(parents=True)
    if record is not None:
        (directory / "scores.json").write_text(json.dumps(record))
    text = "".join(json.dumps(line) + "\n" for line in (metrics() if lines is None else lines))
    (directory / "metrics.jsonl").write_text(text)
    return directory


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a finished run and one under way whose last line was cut short: (its directory, the page)."""
    place = tmp_path_factory.mktemp("runs")
    runs = [write_run(place / "nano"), write_run(place / "micro", None, metrics(shift=0.25, evaluations=(20,)))]
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    page = html_page.write(runs, place / "out")
    return place / "out", page.read_text(encoding="utf-8")


def rows_of(out, name):
    return list(csv.DictReader(io.StringIO((out / "figures" / f"{name}.csv").read_text(encoding="utf-8"))))


def test_the_curves_are_those_of_the_log(written):
    rows = rows_of(written[0], "pretraining_loss")
    loss = {(row["run"], row["step"]): row["training batches (nats per token)"] for row in rows}
    assert {key: float(value) for key, value in loss.items()} == {
        (name, str(step)): 5.0 + shift - step / 20
        for name, shift in (("nano", 0.0), ("micro", 0.25))
        for step in range(10, 41, 10)
    }
    held_out = [(row["run"], row["step"], row["code (nats per token)"]) for row in rows]
    expected = [("nano", "20", "4.0"), ("nano", "40", "4.0"), ("micro", "20", "4.25")]
    assert [row for row in held_out if row[2]] == expected
    rows = rows_of(written[0], "pretraining_bits_per_byte")
    assert [float(row["code (bits per byte)"]) for row in rows] == [1.5, 1.0, 1.75]
    assert [float(row["text (bits per byte)"]) for row in rows] == [3.0, 3.0, 3.25]


def test_what_was_read_and_how_fast_is_told(written):
    seen = rows_of(written[0], "pretraining_seen")
    assert [(row["run"], row["source"], row["tokens"], row["bytes"], row["epochs"]) for row in seen] == [
        ("nano", "code", "3600", "12020", "0.5"),
        ("micro", "code", "1800", "6010", "0.25"),
    ]
    speed = rows_of(written[0], "pretraining_speed")
    assert {float(row["training (tokens per second)"]) for row in speed} == {100.0}, "evaluations are no part of it"
    results = {row["run"]: row for row in rows_of(written[0], "pretraining_results")}
    assert results["nano"]["minutes"] == "1.5" and results["micro"]["minutes"] == ""
    assert (results["nano"]["steps"], results["micro"]["steps"]) == ("40", "40")
    assert float(results["nano"]["tokens per second (median)"]) == 100.0


def test_a_pause_is_no_speed():
    """Stopped for an hour between steps 20 and 30, and continued."""
    lines = [dict(line, time=line["time"] + 3600 * (line["step"] > 20)) for line in metrics(evaluations=())]
    run = pretraining_runs.PretrainingRun(directory=".", name="run", record={}, metrics=tuple(lines))
    assert run.tokens_per_second == [(20, 100.0), (40, 100.0)]


def test_numbers_that_are_none_leave_a_gap():
    lines = [dict(metrics()[0], loss="nan"), *metrics()[1:]]
    run = pretraining_runs.PretrainingRun(directory=".", name="run", record={}, metrics=tuple(lines))
    assert [step for step, _ in run.training_loss] == [20, 30, 40]


def test_the_page_stands_alone_and_says_what_is_unfinished(written):
    out, page = written
    assert "http" not in page and "<script" not in page and not re.search(r"url\((?!#)", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 4 == len(list(out.glob("figures/*.png")))
    assert not re.search(r"(fill|stroke): #", "".join(drawings)) and "var(--series-2)" in drawings[0]
    assert "Under way, curves so far</dt><dd>micro" in page
    assert "code: 1.000 bits per byte after 40 steps, 1.500 after 20, the lowest of 2 runs, by nano." in page
    assert "micro" in page and "Continual" not in page


def test_the_command_draws_one_run_into_its_directory(tmp_path, capsys):
    run = write_run(tmp_path / "run", lines=[line for line in metrics() if "split" not in line])
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"wrote {run}/report/index.html\n"
    names = {path.name for path in (run / "report" / "figures").glob("*.png")}
    assert names == {"pretraining_loss.png", "pretraining_speed.png"}, "nothing else was logged"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [write_run(tmp_path / cell / "seed0") for cell in ("clm", "mix")]
    assert [run.name for run in pretraining_runs.load(runs)] == ["clm/seed0", "mix/seed0"]
    with pytest.raises(UserError, match="given twice"):
        pretraining_runs.load([runs[0], runs[0]])


def test_runs_of_two_kinds_are_refused(tmp_path):
    other = tmp_path / "continual"
    other.mkdir()
    (other / "scores.json").write_text(json.dumps({"stream": ["a"], "complete": True}))
    with pytest.raises(UserError, match="is a pretraining run and .*continual is none; report them apart"):
        html_page.write([write_run(tmp_path / "run"), other], tmp_path / "out")

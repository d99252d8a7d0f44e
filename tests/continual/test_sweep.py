"""Sweeps: which runs there are, that old ones are found again by their digest, and what they say together."""

import dataclasses
import json
import subprocess
import sys

import pytest

from codegen2_jax.continual import sweep
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import sweep_table


def text_of(line):
    return "\n".join(sorted(line)) + "\n"


def cells_of(place, *, seeds="0,1", values=()):
    return sweep.plan(["--gin_file=a.gin"], sweep.axes(None, seeds=seeds, orders=None, values=values), place, text_of)


def finish(cell, bleu):
    cell.directory.mkdir(parents=True, exist_ok=True)
    (cell.directory / "config.gin").write_text(text_of(["--gin_file=a.gin", *cell.bindings]))
    summary = {"test": {"average_bleu": bleu, "average_exact_match": 1.0}, "valid": {"forget_paper_bleu": 0.5}}
    record = {"complete": True, "config_digest": cell.digest, "summary": summary}
    (cell.directory / "scores.json").write_text(json.dumps(record))


def test_every_combination_has_a_run_of_its_own(tmp_path):
    cells = cells_of(tmp_path, values=["REPLAY_SIZE=100,500", "POOL_PRESET=code"])
    assert [cell.settings for cell in cells] == [
        {"REPLAY_SIZE": size, "POOL_PRESET": "code", "SEED": seed} for size in ("100", "500") for seed in ("0", "1")
    ]
    assert cells[0].bindings == ("--gin.REPLAY_SIZE=100", "--gin.POOL_PRESET='code'", "--gin.SEED=0")
    assert len({cell.digest for cell in cells}) == len({cell.directory for cell in cells}) == 4


def test_a_run_is_found_again_under_any_name(tmp_path):
    (cell, other) = cells_of(tmp_path)
    renamed = dataclasses.replace(cell, directory=tmp_path / "my_first_run")
    finish(renamed, 10.0)
    again, still_missing = cells_of(tmp_path)
    assert again.directory == tmp_path / "my_first_run" and again.record()["summary"]
    assert still_missing.directory == other.directory and still_missing.record() is None


def test_means_have_intervals_over_seeds_only(tmp_path):
    cells = cells_of(tmp_path, seeds="0,1,2", values=["REPLAY_SIZE=100,500"])
    for number, cell in enumerate(cells[:4]):
        finish(cell, 10.0 + number)
    text = sweep_table.write(cells, tmp_path)
    groups = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert [group["runs"] for group in groups] == [3, 1]
    figure = groups[0]["figures"]["test"]["average_bleu"]
    assert figure["mean"] == 11.0 and figure["values"] == [10.0, 11.0, 12.0]
    assert figure["half_width_95"] == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2) s / sqrt(3), s = 1
    assert "11.00 +- 2.48" in text and "13.00" in text
    assert (tmp_path / "sweep.csv").read_text().startswith("REPLAY_SIZE,runs,average_bleu (test)")


def test_a_mistake_in_the_configuration_ends_the_sweep_and_another_failure_does_not(tmp_path, monkeypatch):
    codes = iter([3, 0, 2, 0])
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], next(codes)))
    assert len(sweep.run(cells_of(tmp_path), [])) == 1
    with pytest.raises(UserError, match="SEED=0: without a word"):
        sweep.run(cells_of(tmp_path), [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seeds": "0,x"}, "--seeds=0,x must be whole numbers"),
        ({"seeds": "0,0"}, "SEED has a value twice: 0, 0"),
        ({"values": ["size=3"]}, "--set size=3 must be NAME=VALUE1,VALUE2"),
        ({"values": ["SEED=3"]}, "SEED is given twice"),
    ],
)
def test_slips_are_told(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        cells_of(tmp_path, **flags)


def test_two_orders_of_a_tiny_stream(tmp_path, environment):
    line = [sys.executable, "-m", "codegen2_jax.sweep", "--gin_file=finetune.gin", "--gin_file=streams/tiny_ci.gin"]
    line += ["--gin_file=models/tiny_t5.gin", "--gin.STEPS_PER_TASK=1", "--gin.EVAL_EXAMPLES=2"]
    line += ["--seeds=1", "--orders=2", f"--sweep_dir={tmp_path}"]
    first = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "2 runs, 0 of them complete" in first.stdout and "average_bleu (test)" in first.stdout
    streams = {tuple(json.loads(path.read_text())["stream"]) for path in tmp_path.glob("*/scores.json")}
    assert len(streams) == 2 and all(len(stream) == 3 for stream in streams)
    second = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert "2 runs, 2 of them complete" in second.stdout

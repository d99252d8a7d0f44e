"""Sweeps: which runs there are, that old ones are found again by their digest, and what they say together."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from codegen2_jax import sweep as command
from codegen2_jax.continual import sweep
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import sweep_table


def text_of(line):
    return "\n".join(sorted(line)) + "\n"


def cells_of(place, *, seeds="0,1", values=(), job=None):
    axes = sweep.axes(None, seeds=seeds, orders=None, values=values)
    return sweep.plan(["--gin_file=a.gin"], axes, place, lambda line: (job, text_of(line)))


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
    text = sweep_table.write(cells, tmp_path, {})
    groups = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert [group["runs"] for group in groups] == [3, 1]
    figure = groups[0]["figures"]["test"]["average_bleu"]
    assert figure["mean"] == 11.0 and figure["values"] == [10.0, 11.0, 12.0]
    assert figure["half_width_95"] == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2) s / sqrt(3), s = 1
    assert "11.00 +- 2.48" in text and "13.00" in text
    assert (tmp_path / "sweep.csv").read_text().startswith("REPLAY_SIZE,runs,average_bleu (test)")


def test_a_finished_run_on_changed_data_counts_as_failed(tmp_path, capsys):
    def check_finished(record, directory):
        if directory.name == "changed":
            raise UserError(f"{directory} holds a run on other data (x has changed).")

    (cell, other) = cells_of(tmp_path)
    finish(dataclasses.replace(cell, directory=tmp_path / "changed"), 10.0)
    finish(other, 20.0)
    cells, failed = cells_of(tmp_path, job=SimpleNamespace(check_finished=check_finished)), {}
    sweep.run(cells, [], failed)
    assert list(failed) == [0] and "changed holds a run on other data (x has changed)." in failed[0]
    sweep_table.write(cells, tmp_path, failed)
    (group,) = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert group["runs"] == 1 and group["figures"]["test"]["average_bleu"]["values"] == [20.0]


def refusing(line):
    """The configuration of a line, refused where a value is not what it may be."""
    if "--gin.REPLAY_SIZE=0" in line:
        raise UserError("size=0 is out of range; it must be at least 1.")
    return text_of(line)


def ends_with(codes, monkeypatch):
    """Runs that end with these exit codes, one after another; those of 0 leave a result."""
    found = []

    def run(command, stdout, **_):
        code = next(codes)
        if code == 0:
            bindings = tuple(part for part in command if part.startswith("--gin."))
            place = Path(command[-1].removeprefix("--model_dir="))
            digest = sweep.run_directory.config_digest(text_of(["--gin_file=a.gin", *bindings]))
            finish(sweep.Cell(settings={}, bindings=bindings, digest=digest, directory=place), 10.0)
        else:
            stdout.write(b"error: what was wrong\n")
        found.append(command)
        return subprocess.CompletedProcess([], code)

    monkeypatch.setattr(sweep.subprocess, "run", run)
    return found


def sweep_command(monkeypatch, place, *flags):
    monkeypatch.setattr(command.cli, "describe", lambda line, **_: (None, refusing(line[1:])))
    return command.main(["--gin_file=a.gin", f"--sweep_dir={place}", *flags])


def test_a_run_that_fails_stops_no_other_and_the_table_is_written(tmp_path, monkeypatch, capsys):
    commands = ends_with(iter([2, 0, 3, 0]), monkeypatch)
    flags = ["--seeds=0,1", "--set", "REPLAY_SIZE=0,100,500"]
    assert sweep_command(monkeypatch, tmp_path, *flags) == 2
    printed = capsys.readouterr()
    assert len(commands) == 4, "the two of size 0 are refused before anything is run"
    assert printed.err.count("\n") == 1 and "4 of 6 runs did not end" in printed.err
    assert "the first: REPLAY_SIZE=0 SEED=0: size=0 is out of range; it must be at least 1." in printed.err
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert [group["runs"] for group in stored["groups"]] == [0, 1, 1]
    errors = [run["error"] for run in stored["runs"]]
    assert errors[0].startswith("size=0") and errors[2].startswith("code 2, what was wrong (")
    assert [error is None for error in errors] == [False, False, False, True, False, True]
    ends_with(iter([0, 0]), monkeypatch)
    assert sweep_command(monkeypatch, tmp_path, *flags) == 2
    assert "6 runs, 2 of them complete" in capsys.readouterr().out, "what failed is tried again"


def test_a_signal_ends_the_sweep_and_the_table_is_written(tmp_path, monkeypatch, capsys):
    ends_with(iter([0, 75]), monkeypatch)
    assert sweep_command(monkeypatch, tmp_path, "--seeds=0,1,2") == 75
    assert "SEED=1 was stopped; the same command continues." in capsys.readouterr().err
    stored = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["complete"] for run in stored] == [True, False, False]


def test_streams_that_are_set_are_no_repetitions_and_orders_are(tmp_path, monkeypatch):
    cells = cells_of(tmp_path, seeds="0", values=["STREAM='a,b','a,b,c'"])
    assert cells[1].bindings[0] == "--gin.STREAM='a,b,c'" and cells[1].settings["STREAM"] == "a,b,c"
    for number, cell in enumerate(cells):
        finish(cell, 10.0 + number)
    sweep_table.write(cells, tmp_path, {})
    groups = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert [group["settings"] for group in groups] == [{"STREAM": "a,b"}, {"STREAM": "a,b,c"}]
    monkeypatch.setattr(sweep, "task_names", lambda job: ("a", "b"))
    axes = sweep.axes(None, seeds="0,1", orders="01,10", values=[])
    cells = sweep.plan([], axes, tmp_path, lambda line: (None, text_of(line)))
    assert len(cells) == 4 and {cell.repetitions for cell in cells} == {frozenset({"SEED", "STREAM"})}


def test_a_study_of_retrieval_is_found_again_and_collected(tmp_path, monkeypatch, capsys):
    """The training command runs in this process, and is asked once for each seed."""
    from codegen2_jax import train

    asked = []

    def run(line, **_):
        asked.append(line)
        return subprocess.CompletedProcess([], train.main(["train", *line[3:]]))

    monkeypatch.setattr(sweep.subprocess, "run", run)
    line = ["--gin_file=ablations/retrieval_synthetic.gin", f"--sweep_dir={tmp_path}", "--seeds=0,1"]
    line += ["--gin.NUM_TASKS=2", "--gin.TOP_K=2", "--gin.STEPS_PER_TASK=2", "--gin.BATCH_SIZE=2"]
    assert command.main(line) == 0 and len(asked) == 2
    assert command.main(line) == 0 and len(asked) == 2
    assert "2 runs, 2 of them complete" in capsys.readouterr().out
    (group,) = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert group["runs"] == 2 and group["figures"]["test"]["own_key_recall"]["half_width_95"] is not None
    (path, _) = sorted(tmp_path.glob("*/retrieval.json"))
    before = path.read_bytes()
    assert train.main(["train", *asked[0][3:]]) == 0 and path.read_bytes() == before
    assert "is finished" in capsys.readouterr().out
    assert train.main(["train", *asked[0][3:], "--gin.TOP_K=1"]) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seeds": "0,x"}, "--seeds=0,x must be whole numbers"),
        ({"seeds": "0,0"}, "SEED has a value twice: 0, 0"),
        ({"values": ["size=3"]}, "--set size=3 must be NAME=VALUE1,VALUE2"),
        ({"values": ["SEED=3"]}, "SEED is given twice"),
        ({"values": ["X=100,"]}, "--set X=100, has an empty value"),
    ],
)
def test_slips_are_told(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        cells_of(tmp_path, **flags)


@pytest.mark.parametrize("flag", ["--model_dir=runs/x", "--dry_run", "--print_config", "--show_batch"])
def test_flags_of_a_single_run_are_refused(flag, tmp_path, capsys):
    assert command.main(["--gin_file=pp_tf.gin", f"--sweep_dir={tmp_path}", flag]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{flag.partition('=')[0]} is for a single training run" in told
    assert not any(tmp_path.iterdir())


def test_two_orders_of_a_tiny_stream(tmp_path, environment):
    line = [sys.executable, "-m", "codegen2_jax.sweep", "--gin_file=finetune.gin", "--gin_file=streams/tiny_ci.gin"]
    line += ["--gin_file=models/tiny_t5.gin", "--gin.STEPS_PER_TASK=1", "--gin.EVAL_EXAMPLES=2"]
    line += ["--gin.STREAM='tiny_copy,tiny_upper'", "--seeds=1", "--orders=2", f"--sweep_dir={tmp_path}"]
    first = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "2 runs, 0 of them complete" in first.stdout and "average_bleu (test)" in first.stdout
    streams = {tuple(json.loads(path.read_text())["stream"]) for path in tmp_path.glob("*/scores.json")}
    assert streams == {("tiny_copy", "tiny_upper"), ("tiny_upper", "tiny_copy")}
    second = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert "2 runs, 2 of them complete" in second.stdout

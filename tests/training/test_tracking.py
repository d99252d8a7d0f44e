"""Files for programs, lines for people, and signals that end a run politely."""

import contextlib
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from codegen2_jax.training.signals import StopSignal
from codegen2_jax.training.tracking import Tracker

CHECKOUT = Path(__file__).parents[2]


def records(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def timeless(directory) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "time"} for record in records(directory)]


def train(tracker, first, last):
    """Metrics at every step, and a second line with other labels at every third."""
    for step in range(first, last):
        tracker.metrics(step, {"loss": 1 / (step + 1)}, task="a")
        if step % 3 == 0:
            tracker.metrics(step, {"bleu": float(step), "count": step}, split="valid")


def test_metrics_are_one_json_object_per_line_and_there_at_once(tmp_path):
    with Tracker(tmp_path / "run", tensorboard=False) as tracker:
        began = time.time()
        tracker.metrics(3, {"loss": np.float32(0.5), "tokens": np.int64(7), "norm": float("nan")}, task="a", stage=1)
        (record,) = records(tmp_path / "run")
        assert abs(record.pop("time") - began) < 60
    assert record == {"step": 3, "task": "a", "stage": 1, "loss": 0.5, "tokens": 7, "norm": None}
    assert list(record) == ["step", "task", "stage", "loss", "tokens", "norm"]


def test_a_label_may_not_hide_a_number(tmp_path):
    with Tracker(tmp_path, tensorboard=False) as tracker:
        with pytest.raises(AssertionError, match="loss"):
            tracker.metrics(0, {"loss": 1.0}, loss="a")


@pytest.mark.parametrize("saved, reached", [(4, 5), (4, 9), (5, 6), (0, 7)])
def test_a_resumed_file_equals_the_unbroken_one(tmp_path, saved, reached):
    """Killed at `reached` with a checkpoint of `saved`, in the middle of a line; work after `saved` is done again.

    The lines of step `saved` came before the save or after it: they are repeated here, and must not be doubled.
    """
    with Tracker(tmp_path / "whole", tensorboard=False) as tracker:
        train(tracker, 0, 12)
    with Tracker(tmp_path / "broken", tensorboard=False) as tracker:
        train(tracker, 0, reached)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    with Tracker(tmp_path / "broken", tensorboard=False) as tracker:
        tracker.resume(saved)
        train(tracker, saved, 12)
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "whole")


def test_a_redone_line_counts_as_the_same_though_its_measured_speed_differs(tmp_path):
    for speed in (10.0, 11.0):
        with Tracker(tmp_path, tensorboard=False) as tracker:
            tracker.resume(5)
            tracker.metrics(5, {"loss": 0.25, "examples_per_second": speed}, task="a")
            tracker.metrics(5, {"loss": 0.25, "examples_per_second": speed}, task="b")
    assert [(record["task"], record["examples_per_second"]) for record in records(tmp_path)] == [("a", 10), ("b", 10)]


def test_starting_again_from_nothing_empties_the_file(tmp_path):
    for _ in range(2):
        with Tracker(tmp_path, tensorboard=False) as tracker:
            tracker.resume(-1)
            train(tracker, 0, 2)
    assert [record["step"] for record in records(tmp_path)] == [0, 0, 1]


def scalars(folder) -> list[tuple[int, str, float]]:
    """(step, tag, value) of all event files, read as TFRecords: length, checksum, payload, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.metrics(1, {"loss": 0.5, "norm": float("inf")}, task="a")
        tracker.metrics(2, {"loss": 0.25}, task="a")
    assert scalars(tmp_path / "tensorboard") == [(1, "a/loss", 0.5), (2, "a/loss", 0.25)]


def test_only_process_zero_writes_and_prints(tmp_path, capsys):
    with Tracker(tmp_path / "run", process_index=1) as tracker:
        tracker.resume(3)
        use_everything(tracker)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_quiet_prints_nothing_but_writes(tmp_path, capsys):
    with Tracker(tmp_path, quiet=True, tensorboard=False) as tracker:
        use_everything(tracker)
    assert capsys.readouterr() == ("", "")
    assert len(records(tmp_path)) == 1


def use_everything(tracker):
    tracker.metrics(1, {"loss": 0.5})
    tracker.message("hello [b]there[/b]")
    with tracker.progress("stage 1", 10, first=2) as progress:
        progress.update(5, loss=0.5, examples_per_second=12.34)
        progress.update(10)
    tracker.table("Scores", ["task", "bleu"], [["a", 1.0], ["longer", None]])


def test_plain_text_is_aligned_and_short(tmp_path, capsys):
    with Tracker(tmp_path, tensorboard=False) as tracker:
        use_everything(tracker)
    assert capsys.readouterr().out.splitlines() == [
        "hello [b]there[/b]",
        "stage 1  10/10  loss 0.5  12.34 examples/s  took 0:00",
        "Scores",
        "task    bleu",
        "------  ----",
        "a       1.00",
        "longer     -",
    ]


def test_plain_progress_is_neither_a_flood_nor_silent(tmp_path, capsys):
    """1000 updates over 100 seconds, on a clock of our own: about one line for each tenth, with the time left."""
    now = [0.0]
    tracker = Tracker(tmp_path, tensorboard=False, clock=lambda: now[0])
    with tracker, tracker.progress("work", 1000) as progress:
        for step in range(1, 1001):
            now[0] += 0.1
            progress.update(step, loss=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 12
    assert lines[4] == "work  500/1000  loss 1  left 0:50"
    assert lines[-1] == "work  1000/1000  loss 1  took 1:40"


def test_slow_progress_still_shows_life(tmp_path, capsys):
    now = [0.0]
    tracker = Tracker(tmp_path, tensorboard=False, clock=lambda: now[0])
    with tracker, tracker.progress("work", 1000) as progress:
        for step in range(1, 4):
            now[0] += 3600.0
            progress.update(step)
        lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2] == "work  3/1000  left 997:00:00"


def test_a_terminal_gets_the_same_words(tmp_path):
    """In a pseudo-terminal, where rich draws; nested progress and markup in texts must not break it."""
    script = """
import sys
from codegen2_jax.training.tracking import Tracker
with Tracker(sys.argv[1], tensorboard=False) as tracker:
    with tracker.progress("outer [1]", 4) as outer:
        outer.update(2, loss=0.5)
        with tracker.progress("inner", 2) as inner:
            inner.update(2)
        tracker.message("between [/b]")
        outer.update(4)
    tracker.table("Scores [x]", ["task", "bleu"], [["a", 1.0]])
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=theirs, stderr=subprocess.PIPE, env=environment, cwd=CHECKOUT
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a pseudo-terminal ends
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    errors = child.communicate()[1].decode()
    assert child.returncode == 0, errors
    text = shown.decode()
    for words in ("outer [1]  4/4  loss 0.5  took 0:00", "inner  2/2", "between [/b]", "Scores [x]", "1.00"):
        assert words in text
    assert "\x1b[" in text  # drawn, not only printed


def test_a_signal_sets_the_flag_and_the_old_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        with StopSignal() as stop:
            assert not stop.requested and stop.name == ""
            os.kill(os.getpid(), number)
            assert stop.requested and stop.name == signal.Signals(number).name
    assert {number: signal.getsignal(number) for number in before} == before
    with StopSignal() as stop:
        stop.request()
        assert stop.requested and stop.name == "request"


def test_a_second_signal_ends_the_process_at_once():
    script = """
import time
from codegen2_jax.training.signals import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    try:
        time.sleep(60)
    finally:
        print("never", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "asked\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == ""
    assert child.returncode == 128 + signal.SIGINT

"""Answers as JSON lines: what was killed is gone on from, to the same bytes; other settings are refused."""

import json

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import records
from codegen2_jax.training.tracking import Tracker

CHUNKS = [[("b", 0), ("b", 1)], [("a", 0)], [("c", 0), ("c", 1), ("d", 0)]]


def work(made=None, dies_at=None, **header):
    def make(number):
        if number == dies_at:
            raise KeyboardInterrupt
        if made is not None:
            made.append(number)
        return [{"task_id": id, "sample": k, "completion": f"{id}{k} ü\n", "tokens": 3} for id, k in CHUNKS[number]]

    header = {"seed": 0, "stop": ("x",), **header}
    return records.Work(chunks=CHUNKS, make=make, header=header, facts={"stop_ids": ["2"]})


@pytest.fixture
def tracker(tmp_path):
    with Tracker(tmp_path / "log", quiet=True) as found:
        yield found


@pytest.fixture
def whole(tmp_path, tracker):
    path = tmp_path / "whole" / "samples.jsonl"
    records.collect(path, work(), tracker)
    return path.read_bytes()


@pytest.mark.parametrize("dies_at", [0, 1, 2])
@pytest.mark.parametrize("cut", [0, 1, 7, 60])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, tracker, whole, dies_at, cut):
    path, made = tmp_path / "run" / "samples.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        records.collect(path, work(dies_at=dies_at), tracker)
    half = path.read_bytes()
    path.write_bytes(half[: max(0, len(half) - cut)])  # what a power failure may leave
    records.collect(path, work(made), tracker)
    assert path.read_bytes() == whole
    assert made == list(range(made[0], 3)) and made[0] <= dies_at
    records.collect(path, work(made := [], dies_at=0), tracker)
    assert made == []
    assert records.throughput(path)["samples"] == 6 and records.throughput(path)["tokens"] == 18


def test_other_settings_are_refused(tmp_path, tracker):
    path = tmp_path / "run" / "samples.jsonl"
    records.collect(path, work(), tracker)
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        records.collect(path, work(seed=1), tracker)
    with pytest.raises(UserError, match="temperature: null there"):
        records.collect(path, work(temperature=0.2), tracker)
    assert records.settings_of(path) == {"seed": 0, "stop": ["x"], "stop_ids": ["2"]}


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    with pytest.raises(UserError, match="is missing"):
        records.read(path)
    path.write_text(json.dumps({"task_id": "a"}) + "\n\n{broken\n")
    with pytest.raises(UserError, match="line 3"):
        records.read(path)
    assert records.throughput(path) is None and records.settings_of(path) == {}
    for line in (b'{"task_id": ["a"]}', b'{"task_id": "a", "completion": "\xe9"}', b'"task_id"', b"[" * 100_000):
        path.write_bytes(line + b"\n")
        with pytest.raises(UserError, match="line 1 is no record"):
            records.read(path)
    (tmp_path / "samples.timing.jsonl").write_text('{"chunk": 0}\n5\n')
    assert records.throughput(path)["tokens"] == 0
    for text in ("{broken", "[]", '{"header": []}'):
        (tmp_path / "samples.settings.json").write_text(text)
        with pytest.raises(UserError, match="samples.settings.json is damaged"):
            records.settings_of(path)

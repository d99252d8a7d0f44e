"""Streams from a user's own files: which rows feed which split, what is rejected, and what a slip is told."""

import json

import pytest

from codegen2_jax.data import jsonl
from codegen2_jax.errors import UserError

TASK = {"name": "titles", "train": "titles.jsonl", "source": "text", "target": "title"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "titles.jsonl", [{"text": f"text {i % 150}", "title": f"t{i}"} for i in range(200)])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    write(tmp_path / "other.jsonl", [{"text": ["a", "b"], "title": "x"}, {"text": "", "title": "y"}, {"text": "c"}])
    return tmp_path


def test_one_file_feeds_three_splits_and_no_source_two(folder):
    (task,) = jsonl.parse((TASK,))
    splits = {split: jsonl.read_split(task, split).examples for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 200
    assert len(splits["valid"]) > 5 and len(splits["test"]) > 5 and len(splits["train"]) > 120
    sources = {split: {example.inputs for example in examples} for split, examples in splits.items()}
    assert not sources["train"] & (sources["valid"] | sources["test"]) and not sources["valid"] & sources["test"]


def test_a_split_with_a_file_of_its_own_takes_all_of_it_and_rejects_with_the_line(folder):
    (task,) = jsonl.parse((TASK | {"test": "other.jsonl"},))
    read = jsonl.read_split(task, "test")
    assert [(example.inputs, example.targets) for example in read.examples] == [("a b", "x")]
    assert [(one.line, one.reason) for one in read.rejected] == [(2, "empty source"), (3, "no field title")]
    assert len(jsonl.read_split(task, "train").examples) + len(jsonl.read_split(task, "valid").examples) == 200


def test_a_json_file_holds_a_stream_and_paths_start_in_its_folder(folder, monkeypatch):
    tasks = [TASK, TASK | {"name": "again", "scorers": ["exact_match"], "max_source": 40}]
    (folder / "stream.json").write_text(json.dumps(tasks), encoding="utf-8-sig")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    first, second = jsonl.parse(str(folder / "stream.json"))
    assert first.train == str(folder / "titles.jsonl") and second.scorers == ("exact_match",)
    assert jsonl.parse(tuple(json.loads(json.dumps(tasks))))[0].train == str(elsewhere / "titles.jsonl")


def test_the_environment_carries_every_task(folder, monkeypatch):
    tasks = jsonl.parse((TASK, TASK | {"name": "again", "tag": "<x> ", "scorers": "exact_match"}))
    for name, value in jsonl.environment(tasks).items():
        monkeypatch.setenv(name, value)
    assert jsonl.from_environment() == tasks


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "names no task"),
        ("nowhere.json", "'nowhere.json' is no file"),
        (("titles",), "every task is a dictionary with name, train"),
        ((TASK | {"sorce": "x"},), "task 'titles' of JSONL_TASKS has no field 'sorce'"),
        (({"name": "titles", "train": "a"},), "lacks source, target"),
        ((TASK, TASK), "names a task twice"),
        ((TASK | {"name": "my task"},), "'my task' must be letters"),
        ((TASK | {"scorers": ("bleu",)},), r"scorers=\['bleu'\] of task titles: choose from"),
        ((TASK | {"scorers": 3},), r"scorers=3 of task titles is no list; choose from \['codet5_bleu'"),
        ((TASK | {"scorers": (3,)},), r"scorers=\[3\] of task titles: choose from"),
        ((TASK | {"max_source": 2},), "max_source=2 of task titles is too small"),
        ((TASK | {"max_target": "9"},), "max_target='9' of task titles is no whole number"),
        ((TASK | {"name": 3},), "task name 3 must be letters"),
        ((TASK | {"name": "x" * 300},), "at most 100 of them"),
        ((TASK | {"name": "pytask_generate"},), "'pytask_generate' of JSONL_TASKS is taken .* such as 'my_"),
        ((TASK | {"name": "codetask_cl"},), "'codetask_cl' of JSONL_TASKS is taken"),
        ((TASK | {"name": "jsonl"},), "'jsonl' of JSONL_TASKS is taken"),
        ((TASK | {"train": 3},), "train=3 of task titles is no text; give a string"),
        ((TASK | {"source": None},), "source=None of task titles is no text"),
        ((TASK | {"valid": False},), "valid=False of task titles is no text"),
        ((TASK | {"tag": "\ud800"},), r"tag='\\ud800' of task titles is no text"),
        (".", "'.' is no file"),
        ("deep.json", "'deep.json' is not JSON: nested too deeply"),
    ],
)
def test_a_slip_is_told_in_one_line(folder, given, message):
    with pytest.raises(UserError, match=message) as caught:
        jsonl.parse(given)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder):
    (task,) = jsonl.parse((TASK | {"valid": "none.jsonl"},))
    with pytest.raises(UserError, match="none.jsonl is missing; the field 'valid' of task titles"):
        jsonl.read_split(task, "valid")


def sources_of(task):
    return {split: {one.inputs for one in jsonl.read_split(task, split).examples} for split in jsonl.SPLITS}


@pytest.mark.parametrize("count", [3, 4, 12])
def test_a_few_rows_feed_every_split(folder, count):
    """Of three to twelve rows the hash alone leaves valid or test empty, for these texts."""
    for seed in range(20):
        rows = [{"text": f"{seed} {i}", "title": "t"} for i in range(count)]
        write(folder / "few.jsonl", [*rows, rows[0], {"text": "no title", "title": " "}])
        jsonl.read_split.cache_clear()
        (task,) = jsonl.parse((TASK | {"train": "few.jsonl"},))
        found = sources_of(task)
        assert all(found.values()) and sum(map(len, found.values())) == count
        jsonl.read_split.cache_clear()
        assert sources_of(task) == found


def test_rows_that_feed_every_split_by_their_hash_stay_where_they_are(folder):
    (task,) = jsonl.parse((TASK,))
    for split, sources in sources_of(task).items():
        assert {jsonl.stable_hash(source) % 10 for source in sources} == {"valid": {0}, "test": {1}}.get(
            split, set(range(2, 10))
        )


FAULTS = {
    "two sources": (
        {},
        "task titles has no row for its split '(train|valid|test)': .*few.jsonl has 3 usable rows with 2 different "
        "sources; give 'valid' and 'test' files, or a train file with at least 3 different sources",
    ),
    "valid file": (
        {"test": "other.jsonl", "valid": "one.jsonl"},
        "'valid': .*one.jsonl has 0 usable rows .* 1 rejected rows, the first in line 2: no field title; correct its "
        "rows, or the fields 'source' and 'target'",
    ),
    "field": ({"target": "titel"}, "'train': .*few.jsonl has 0 .*3 rejected rows, the first in line 1: no field titel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_split_without_a_row_says_file_counts_reason_and_remedy(folder, name):
    changes, message = FAULTS[name]
    write(folder / "few.jsonl", [{"text": text, "title": "t"} for text in "aab"])
    (folder / "one.jsonl").write_text('\n{"text": "a"}\n')
    jsonl.read_split.cache_clear()
    (task,) = jsonl.parse((TASK | {"train": "few.jsonl"} | changes,))
    with pytest.raises(UserError, match=message) as caught:
        sources_of(task)
    assert "\n" not in str(caught.value)

"""Changed data is noticed: by a run that goes on, and by one that is finished, whether its caches are there or not."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from codegen2_jax.continual import data_record
from codegen2_jax.continual.run import Run
from codegen2_jax.continual.stream import ContinualLearning
from codegen2_jax.data import cache, jsonl
from codegen2_jax.errors import UserError
from codegen2_jax.training import run_directory

TASK = {"name": "titles", "source": "text", "target": "title"}
SPLITS = ("train", "valid", "test")
STATE = ("step", "trainable", "opt_state", "prompt_state", "skipped")


class Place:
    """A folder with one task's file and, made by hand, what its cache would tell of it."""

    def __init__(self, folder):
        self.folder, self.cache = folder, folder / "cache"
        self.rows(folder / "titles.jsonl", "one")

    def rows(self, path, text):
        path.write_text(json.dumps({"text": text, "title": text}) + "\n")

    def given(self, **changes):
        return ({"train": str(self.folder / "titles.jsonl"), **TASK, **changes},)

    def tasks(self, **changes):
        return jsonl.parse(self.given(**changes))

    def make_cache(self, sha256="0", **changes):
        (task,) = self.tasks(**changes)
        info = {
            "format": cache.FORMAT, "task": "titles", "vocabulary": "v", "max_lengths": [task.max_source, 128],
            "metrics": list(task.scorers), "tag": "<titles> ", "splits": {name: {"sha256": sha256} for name in SPLITS},
            "sources": {task.train: cache.file_sha256(Path(task.train))},
            "environment": {task.variable: jsonl.environment([task])[task.variable]},
        }  # fmt: skip
        info["source_stats"] = {path: cache.file_stamp(path) for path in info["sources"]}
        (self.cache / "titles").mkdir(parents=True, exist_ok=True)
        (self.cache / "titles" / "info.json").write_text(json.dumps(info))

    def record(self):
        return json.loads(json.dumps(data_record.read(self.cache, ["titles"], splits=SPLITS, tags=False)))

    def check(self, recorded, **changes):
        environment = jsonl.environment(self.tasks(**changes))
        data_record.check_finished(recorded, "runs/x", names=("titles",), cache_dir=self.cache, environment=environment)


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    found.make_cache()
    return found


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_finished_run_notices_changed_files_and_definitions(place, has_cache):
    recorded = place.record()
    if not has_cache:
        (place.cache / "titles" / "info.json").unlink()
    place.check(recorded)
    place.check(None)  # of a run from before this was kept
    place.check(recorded, tag="<other> ")  # which no source of this run begins with
    for changes, message in (
        ({"max_source": 40}, "max_source of task titles was 256 and is 40"),
        ({"scorers": "exact_match"}, r"scorers of task titles was \['codet5_bleu', 'exact_match'\] and is \['exact"),
        ({"test": "test.jsonl"}, "test of task titles was None and is '.*test.jsonl'"),
        ({"name": "other"}, r"the tasks were titles and are none\); choose another MODEL_DIR, or put the data back"),
    ):
        with pytest.raises(UserError, match=rf"runs/x holds a run on other data \({message}"):
            place.check(recorded, **changes)
    file = place.folder / "titles.jsonl"
    stamp = file.stat()
    place.rows(file, "two")
    with pytest.raises(UserError, match=r"titles.jsonl of task titles has changed\); choose another MODEL_DIR"):
        place.check(recorded)
    place.rows(file, "one")  # put back, with another time
    place.check(recorded)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    file.rename(place.folder / "moved.jsonl")
    place.check(recorded, train=str(place.folder / "moved.jsonl"))
    assert (place.cache / "titles" / "info.json").exists() == has_cache, "nothing is made to say that a run is finished"


def test_a_current_cache_of_other_examples_is_noticed_and_a_stale_one_says_nothing(place):
    recorded = place.record()
    place.make_cache(sha256="1")  # made again by other code
    with pytest.raises(UserError, match="the train split of task titles has other examples"):
        place.check(recorded)
    info = json.loads((place.cache / "titles" / "info.json").read_text())
    for changes in ({"format": 0}, {"vocabulary": "w"}):
        (place.cache / "titles" / "info.json").write_text(json.dumps(info | changes))
        place.check(recorded)


def test_files_below_another_folder_are_those_that_count(tmp_path):
    """As of CODETASK_CL_DIR, which no configuration needs to hold."""
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.txt").write_text(text)
    entry = {
        "name": "t", "vocabulary": "v", "tag": None, "splits": {}, "environment": {"SOME_DIR": str(tmp_path / "a")},
        "files": {str(tmp_path / "a" / "rows.txt"): cache.file_sha256(tmp_path / "a" / "rows.txt")},
    }  # fmt: skip

    def check(folder):
        environment = {"SOME_DIR": str(tmp_path / folder)}
        data_record.check_finished([entry], "runs/x", names=("t",), cache_dir=tmp_path, environment=environment)

    check("a"), check("b")
    with pytest.raises(UserError, match="c/rows.txt of task t has changed"):
        check("c")


def test_a_finished_run_is_compared_by_its_job(place, tmp_path):
    job = {"method": "x", "stream": "jsonl", "source": None, "optimizer": None, "labels": (), "steps_per_task": 1}
    job |= {"batch_size": 1, "seed": 0, "cache_dir": str(place.cache), "model_dir": str(tmp_path / "run")}
    record = {"complete": True, "config_digest": run_directory.config_digest("A = 1"), "data": place.record()}
    (tmp_path / "run").mkdir()
    for name, more in (("scores.json", {}), ("retrieval.json", {"retrieval_only": True})):
        (tmp_path / "run" / name).write_text(json.dumps(record))
        with pytest.raises(UserError, match=f"{tmp_path}/run holds .*max_target of task titles was 128 and is 9"):
            ContinualLearning(jsonl_tasks=place.given(max_target=9), **job, **more).run(config_text="A = 1")
        (tmp_path / "run" / name).unlink()


def test_a_run_that_goes_on_is_compared_with_its_caches(place):
    recorded = place.record()
    data_record.check_restored(None, recorded, "runs/x")
    run = object.__new__(Run)
    run.config = SimpleNamespace(model_dir="runs/x")
    run.setup = SimpleNamespace(data=recorded, state_shapes=SimpleNamespace(**dict.fromkeys(STATE)))
    run.checkpoints = SimpleNamespace(restore_latest=lambda shapes: (3, None, {"tasks": recorded, "wall_seconds": 0}))
    run.began = 0.0
    with pytest.raises(AttributeError):  # past the comparison, into what this stands for
        run._restore()
    place.rows(place.folder / "titles.jsonl", "two")
    place.make_cache(sha256="1")
    run.setup.data = place.record()
    with pytest.raises(UserError, match=r"runs/x holds a run on other data \(.*titles.jsonl of task titles has"):
        run._restore()
    place.make_cache(sha256="1", max_source=40)
    with pytest.raises(UserError, match=r"max_lengths of task titles was \[256, 128\] and is \[40, 128\]"):
        data_record.check_restored(recorded, place.record(), "runs/x")
    with pytest.raises(UserError, match="the tasks were titles and are titles, titles"):
        data_record.check_restored(recorded, recorded * 2, "runs/x")

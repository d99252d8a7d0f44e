"""What a run opens of its tasks: the splits that are scored, and what is said of one without targets."""

import json
from types import SimpleNamespace

import pytest

from codegen2_jax.continual.stream import ContinualLearning
from codegen2_jax.continual.stream_tasks import open_tasks
from codegen2_jax.data import cache
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop.names import PACKAGED

VOCABULARY = PACKAGED["nano_t5"]


@pytest.fixture
def config(tmp_path):
    """A task cached by hand whose test split has inputs only, as CONCODE's official files have."""
    splits = {}
    for split in ("train", "valid", "test"):
        rows = [{"id": f"{split}/{i}", "inputs": [1, 9, 2], "targets": [1, 2] if split == "test" else [1, 8, 2],
                 "inputs_text": "a", "targets_text": "b"} for i in range(3)]  # fmt: skip
        splits[split] = cache.write_split(tmp_path / "mine", split, rows)
    info = {
        "format": cache.FORMAT, "task": "mine", "metrics": ["exact_match"], "max_lengths": [8, 8], "tag": "<mine> ",
        "vocabulary": Vocabulary.from_directory(VOCABULARY).digest, "splits": splits, "environment": {}, "sources": {},
        "has_targets": {"train": True, "valid": True, "test": False},
    }  # fmt: skip
    (tmp_path / "mine" / "info.json").write_text(json.dumps(info))
    return SimpleNamespace(
        stream="mine", cache_dir=tmp_path, codetask_cl_dir=None, jsonl_tasks=None, task_modules=(), tags="none",
        eval_splits=("valid", "test"),
    )  # fmt: skip


def opened(config):
    return open_tasks(config, str(VOCABULARY), Vocabulary.from_directory(VOCABULARY))


def test_a_split_without_targets_is_not_scored_and_the_others_can_be(config):
    message = (
        r"task mine: its split 'test' has 3 examples and no target, but EVAL_SPLITS=\('valid', 'test'\) scores it; "
        r"score the valid split alone, --gin.EVAL_SPLITS='\(\"valid\",\)', or give it a test file with targets."
    )
    with pytest.raises(UserError, match=message):
        opened(config)
    config.eval_splits = ("valid",)
    (task,) = opened(config)
    assert len(task.train) == len(task.valid) == 3 and task.test is None


@pytest.mark.parametrize("splits", [(), ("test",), ("valid", "valid"), ("train",), "valid"])
def test_splits_that_cannot_be_scored_are_refused(splits):
    job = {"model_dir": "x", "method": "x", "stream": "x", "source": None, "optimizer": None, "labels": ()}
    with pytest.raises(UserError, match=r"EVAL_SPLITS=.* is out of range; give \('valid', 'test'\) or \('valid',\)"):
        ContinualLearning(**job, steps_per_task=1, batch_size=1, seed=0, eval_splits=splits)

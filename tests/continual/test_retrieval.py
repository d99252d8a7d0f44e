"""Retrieval without a language model: separated tasks are found, shared keys are lost as the formula says."""

import json

import pytest

from codegen2_jax.continual import retrieval
from codegen2_jax.continual.synthetic_queries import SyntheticRetrieval, make_queries
from codegen2_jax.errors import UserError
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.prompts.soft import SoftPrompts
from codegen2_jax.training.optimizers import AdamW

KEYS = AdamW(learning_rate=0.05, schedule="linear")


def study(tasks, steps=120, **settings):
    prompt = PromptPool(**{"top_k": 8, "prompt_length": 1, "shared_per_pair": 2, **settings})
    return retrieval.study(prompt, KEYS, tasks, steps_per_task=steps, batch_size=16, seed=0)


def test_separated_tasks_are_retrieved_and_each_stage_has_its_row():
    tasks = make_queries(4, 64, 0.3, seed=0)
    stages = study(tasks)
    assert [sum(value is not None for value in stage["own_key_recall"]) for stage in stages] == [1, 2, 3, 4]
    assert min(stages[-1]["own_key_recall"]) > 0.95 and min(stages[-1]["retrieval_top1"]) > 0.95
    assert "key_drift" in stages[1] and "key_drift" not in stages[0]
    assert stages == study(tasks), "the same seed gives the same study"


def test_shared_keys_go_to_the_task_that_trained_them_last():
    stages = study(make_queries(4, 64, 0.3, seed=0), steps=300, assignment="pairwise")
    recall, limit = stages[-1]["own_key_recall"], stages[-1]["own_key_limit"]
    assert limit == [2 / 8, 4 / 8, 6 / 8, 1.0]  # k - s (T - t) of k = 8 keys
    # Places that no key of the task fills any more go to whatever key is left, and sometimes that is one of its own.
    assert all(low - 0.05 <= found <= low + 0.3 for found, low in zip(recall, limit, strict=True))
    assert recall[0] < recall[1] < recall[2] < recall[3]


def test_tasks_without_variance_between_them_are_confused():
    stages = study(make_queries(4, 64, 1e-6, seed=0))
    assert max(stages[-1]["own_key_recall"]) < 0.6 and stages[-1]["nearest_mean_accuracy"] < 0.5


def test_a_run_writes_its_result_and_its_table(tmp_path, capsys):
    job = SyntheticRetrieval(
        model_dir=str(tmp_path), prompt=PromptPool(top_k=4, prompt_length=1), optimizer=KEYS, num_tasks=3,
        steps_per_task=20, batch_size=8, seed=1, width=32, between_share=0.3,
    )  # fmt: skip
    job.run(config_text="x = 1\n")
    record = json.loads((tmp_path / "retrieval.json").read_text())
    assert record["complete"] and record["summary"]["test"]["nearest_mean_accuracy"] > 0.9
    assert record["stream"] == ["task_00", "task_01", "task_02"] and len(record["diagnostics"]["own_key_recall"]) == 3
    out = capsys.readouterr().out
    assert "nearest_mean_accuracy" in out and "task_02" in out and "own_key_limit" in out


def test_what_cannot_be_studied_is_refused():
    with pytest.raises(UserError, match="needs a prompt pool"):
        retrieval.study(
            SoftPrompts(per_task=True), KEYS, make_queries(2, 8, 0.3, 0), steps_per_task=1, batch_size=2, seed=0
        )
    with pytest.raises(UserError, match="between_share=0 is out of range"):
        SyntheticRetrieval(
            model_dir="x", prompt=None, optimizer=None, num_tasks=3, steps_per_task=1, batch_size=1, seed=0,
            between_share=0,
        )  # fmt: skip

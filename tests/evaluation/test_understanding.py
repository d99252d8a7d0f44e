"""Choices, last words and vectors: what is scored is the model's own likelihood, and a constant answer is seen."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax.data import understanding as files
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import records, understanding
from codegen2_jax.evaluation.likelihood import Scorer
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.evaluation.suite import Suite
from codegen2_jax.evaluation.summaries import XSum, first_sentence
from codegen2_jax.evaluation.understanding import Choices, CloneRetrieval, LastWords
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.reporting import html_page
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.tracking import Tracker


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    vocabulary = byte_vocabulary(where)
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 8, "head_dim": 4, "rotary_dim": 4}
    model = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, max_positions=128, **sizes))
    params = jax.jit(model.init_params)(jax.random.key(1))
    params["embedding"] = params["embedding"] * 30  # so that answers differ from text to text
    huggingface.save(where, model.config, params, "float32")
    return Subject("toy", ModelSource(init_from=str(where)).load())


def call(directory, subject=None, step="all"):
    return Call(directory=directory, subject=subject, step=step, tracker=Tracker(directory, quiet=True), workers=1)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def boolq(tmp_path):
    for name, count in (("train", 20), ("dev", 12)):
        write(tmp_path / "boolq" / f"{name}.jsonl", [
            {"question": f"is it {n}", "passage": f"It is {n}. " * (1 + n % 3 * 5), "answer": n % 3 == 0, "title": ""}
            for n in range(count)
        ])  # fmt: skip
    return str(tmp_path / "boolq")


def test_a_target_has_the_log_probability_of_its_tokens(subject):
    scorer = Scorer(subject.model, subject.vocabulary)
    pairs = [scorer.pair("a prompt of some length:", " yes"), scorer.pair("x", " no way")]
    assert [subject.vocabulary.decode(list(target)) for _, target in pairs] == [" yes", " no way"]
    log_prob_B, greedy_B = scorer(subject.params, pairs)
    for (prompt, target), found, greedy in zip(pairs, log_prob_B, greedy_B, strict=True):
        tokens_1T = jnp.asarray([[*prompt, *target]])
        batch = {"tokens_BT": tokens_1T, "positions_BT": jnp.arange(tokens_1T.shape[1])[None]}
        batch |= {"segments_BT": jnp.ones_like(tokens_1T), "bidirectional_BT": jnp.zeros(tokens_1T.shape, bool)}
        logits_TV = subject.model.logits(subject.params, batch)[0]
        log_probs_TV = np.asarray(jax.nn.log_softmax(logits_TV))[len(prompt) - 1 : -1]
        assert found == pytest.approx(sum(log_probs_TV[t, token] for t, token in enumerate(target)), abs=1e-3)
        assert greedy == bool((log_probs_TV.argmax(axis=1) == target).all())


def test_choices_are_resumed_scored_and_told_with_their_distribution(tmp_path, subject, boolq):
    benchmark = Choices(benchmark="boolq", directory=boolq, shots=1, batch_size=8)
    Suite(boolq=benchmark).run(call(tmp_path / "out", subject))
    path = tmp_path / "out/boolq_1_shot/answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    record = Suite(boolq=benchmark).run(call(tmp_path / "out", subject))
    assert path.read_bytes() == whole
    result = record["benchmarks"]["boolq_1_shot"]
    rows = {row["task_id"]: row["log_probabilities"] for row in records.read(path)}
    right = [(np.argmax(rows[f"dev/{n + 1}"]) == 1) == (n % 3 == 0) for n in range(12)]
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(100 * np.mean(right))
    assert result["metrics"]["majority"]["value"] == pytest.approx(100 * 8 / 12)
    assert sum(result["predicted"].values()) == 12 and result["references"] == {"False": 8, "True": 4}
    assert bool(result["warnings"]) == (len(result["predicted"]) == 1)
    assert 0 < result["generation"]["cut_prompts"] <= 12  # 128 positions do not hold an example and a long passage
    page = html_page.write([tmp_path / "out"], tmp_path / "page")
    text = page.read_text("utf-8")
    assert "Evaluation: toy" in text and "boolq_1_shot" in text and "macro_f1" in text
    with pytest.raises(UserError, match="shots"):
        Choices(benchmark="boolq", directory=boolq, shots=-1)
    with pytest.raises(UserError, match="PIQA_DIR"):
        files.questions("piqa", None, "test")


def test_last_words(tmp_path, subject):
    (tmp_path / "lambada_test_plain_text.txt").write_text("one two three\nfour five\n")
    result = LastWords(directory=str(tmp_path)).run(call(tmp_path / "out", subject))
    rows = records.read(tmp_path / "out/lambada/answers.jsonl")
    assert result["problems"] == 2 and result["metrics"]["perplexity"]["value"] == pytest.approx(
        np.exp(-np.mean([row["log_probability"] for row in rows]))
    )


def test_clones_are_ranked_by_vectors(tmp_path, subject):
    texts = {1: "int a = 1;", 2: "while (x) y();", 3: "return 0;", 4: "f(g(h));"}
    write(tmp_path / "all.jsonl", [
        {"label": str(80 + c), "index": str(i), "code": text + " " * i} for c, text in texts.items() for i in range(3)
    ])  # fmt: skip
    result = CloneRetrieval(directory=str(tmp_path)).run(call(tmp_path / "out", subject))
    assert result["metrics"]["map_at_r"]["value"] == 100.0 and result["classes"] == 4
    assert result["metrics"]["same_class"]["value"] == pytest.approx(100 * 2 / 11)
    part = CloneRetrieval(directory=str(tmp_path), limit=6).run(call(tmp_path / "part", subject))
    assert part["problems"] == 6 and part["classes"] == 2


def test_vectors_of_a_killed_call_are_kept(tmp_path, subject, monkeypatch):
    write(tmp_path / "all.jsonl", [{"label": str(81 + i % 2), "index": str(i), "code": f"f({i});"} for i in range(6)])
    benchmark, place, asked = CloneRetrieval(directory=str(tmp_path), batch_size=2), tmp_path / "out", []
    pad = understanding.converters.pad

    def dying(rows, *rest):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return pad(rows, *rest)

    monkeypatch.setattr(understanding.converters, "pad", dying)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(call(place, subject, "generate"))
    for _ in range(2):  # the second finds all of them
        benchmark.run(call(place, subject, "generate"))
        assert len(asked) == 4  # one died, three of two rows each were made, the first of them before
    asked.clear()
    asked += [0] * 2
    benchmark.run(call(tmp_path / "whole", subject, "generate"))
    found, whole = (folder / "poj104/vectors.npy" for folder in (place, tmp_path / "whole"))
    assert found.read_bytes() == whole.read_bytes() and not found.with_name("vectors.partial.npy").exists()
    with pytest.raises(UserError, match="other settings .max_tokens: 400 there, 3 here"):
        CloneRetrieval(directory=str(tmp_path), batch_size=2, max_tokens=3).run(call(place, subject, "generate"))
    found.write_bytes(b"junk")
    with pytest.raises(UserError, match="vectors.npy is damaged"):
        benchmark.run(call(place, step="score"))
    write(tmp_path / "lambada_test.jsonl", [{"text": "a b"}])
    (tmp_path / "lambada").mkdir()
    write(tmp_path / "lambada/answers.jsonl", [{"task_id": "test/1", "greedy": "yes", "log_probability": -1.0}])
    with pytest.raises(UserError, match="greedy of test/1 is 'yes', no bool"):
        LastWords(directory=str(tmp_path)).run(call(tmp_path, step="score"))


def test_summaries_are_scored_beside_the_first_sentence(tmp_path, subject):
    pytest.importorskip("rouge_score")
    document = "Number {} came first. Then more came."
    rows = [{"document": document.format(n), "summary": f"number {n}", "id": n} for n in range(3)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    benchmark = XSum(directory=str(tmp_path), max_new_tokens=8)
    result = benchmark.run(call(tmp_path / "out", subject))
    assert set(result["metrics"]) >= {"rouge1", "rougeL", "first_sentence_rouge2"}
    found = records.read(tmp_path / "out/xsum/samples.jsonl")
    assert len(found) == 3 and all("\n" not in row["completion"] for row in found)
    write(tmp_path / "mine/xsum/samples.jsonl", [{"task_id": str(n), "completion": f"number {n}"} for n in range(3)])
    again = benchmark.run(call(tmp_path / "mine", step="score"))
    assert again["metrics"]["rougeL"]["value"] == pytest.approx(100.0)
    assert first_sentence("A. B? C") == "A." and first_sentence("no end") == "no end"

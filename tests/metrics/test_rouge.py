"""ROUGE equals its library's, pair by pair."""

import random

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.metrics.rouge import rouge, rouge_of_each

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
WORDS = "the a model models running runs ran code codes summary writes wrote quickly of in is was".split()


def test_equals_the_library_on_a_hundred_pairs():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(0, 15))) for _ in range(200)]
    hypotheses, references = texts[:100], texts[100:]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = rouge_of_each(hypotheses, references)
    for number, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True)):
        expected = scorer.score(reference, hypothesis)
        for kind, values in found.items():
            assert values[number] == pytest.approx(100 * expected[kind].fmeasure)
    assert rouge(hypotheses, references) == {kind: pytest.approx(sum(v) / 100) for kind, v in found.items()}


def test_identities():
    texts = ["The runner was running in the city.", "A model writes code."]
    assert rouge(texts, texts) == dict.fromkeys(("rouge1", "rouge2", "rougeL"), 100.0)
    assert rouge(["", ""], texts) == dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.0)
    assert rouge(["runs"], ["running"])["rouge1"] == 100.0
    with pytest.raises(UserError):
        rouge(["a"], ["a", "b"])
    with pytest.raises(UserError):
        rouge([], [])

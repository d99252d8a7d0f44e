"""Both BLEU definitions: hand-computed cases, properties, and sacreBLEU where the definitions meet."""

import math
import random

import pytest

from codegen2_jax.metrics.bleu import codet5_bleu, codet5_smooth_bleu

CODE_CASES = [
    ("a b c d e", "a b c d e", 100.0),
    ("a b c d", "a b c d e", 77.880078),
    ("a b c d e f", "a b c d e", 80.910671),
    ("x", "a b c d e", 1.540156),
    ("the cat sat", "the cat sat on the mat", 36.787944),
]
SUMMARY_CASES = [
    ("Returns the user_name", "returns the user name .", 53.182959),
    ("", "a b c", 4.978707),
    ("x", "a b c", 0.0),
    ("Returns the value.", "Returns the value .", 100.0),
    ("Get_foo!", "get foo", 37.991784),
]


@pytest.mark.parametrize(("hypothesis", "reference", "expected"), CODE_CASES)
def test_code_bleu_hand_cases(hypothesis, reference, expected):
    assert codet5_bleu([hypothesis], [reference]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("hypothesis", "reference", "expected"), SUMMARY_CASES)
def test_summary_bleu_hand_cases(hypothesis, reference, expected):
    assert codet5_smooth_bleu([hypothesis], [reference]) == pytest.approx(expected, abs=1e-6)


def test_code_bleu_pools_the_corpus_and_summary_bleu_averages_sentences():
    hypotheses, references = zip(*[case[:2] for case in SUMMARY_CASES], strict=True)
    mean = sum(case[2] for case in SUMMARY_CASES) / len(SUMMARY_CASES)
    assert codet5_smooth_bleu(hypotheses, references) == pytest.approx(mean, abs=1e-6)
    # Matches 7 of 8, 5 of 6, 3 of 4, 1 of 2 n-grams, 8 tokens against 9: worked out by hand.
    pooled = 100 * math.exp(1 - 9 / 8) * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25
    assert codet5_bleu(["a b c d", "p q r x"], ["a b c d e", "p q r s"]) == pytest.approx(pooled)


def test_code_keeps_case_and_summaries_do_not():
    assert codet5_bleu(["A b c d e"], ["a b c d e"]) < 100.0
    assert codet5_smooth_bleu(["A b c d e"], ["a b c d e"]) == pytest.approx(100.0)


def test_no_tokens_at_all():
    assert codet5_bleu(["", ""], ["a b", "c"]) == 0.0
    assert codet5_bleu(["", "c"], ["", "c"]) == pytest.approx(100.0)


@pytest.mark.parametrize("scorer", [codet5_bleu, codet5_smooth_bleu])
def test_newline_and_tab_are_one_space(scorer):
    assert scorer(["return a\n+\tb ;"], ["return a + b ;"]) == pytest.approx(100.0)


def random_corpus(seed, num_sentences=30):
    """Lists of lower-case word strings; each hypothesis is at least as long as its reference."""
    rng = random.Random(seed)
    references = [[rng.choice("abcdef") for _ in range(rng.randint(4, 9))] for _ in range(num_sentences)]
    hypotheses = [[rng.choice([word, "g"]) for word in ref] + ["h"] * rng.randint(0, 2) for ref in references]
    return [" ".join(words) for words in hypotheses], [" ".join(words) for words in references]


def test_code_bleu_from_sacrebleu_counts():
    """sacreBLEU's counts, lengths and brevity penalty are ours; only the smoothing is applied here by hand."""
    sacrebleu = pytest.importorskip("sacrebleu")
    references, hypotheses = random_corpus(0)  # swapped, so that the brevity penalty is at work
    theirs = sacrebleu.BLEU(tokenize="none", smooth_method="none").corpus_score(hypotheses, [references])
    precisions = [(match + 1) / (total + 1) for match, total in zip(theirs.counts, theirs.totals, strict=True)]
    assert theirs.bp < 1.0
    assert codet5_bleu(hypotheses, references) == pytest.approx(100 * theirs.bp * math.prod(precisions) ** 0.25)


def test_summary_bleu_is_sacrebleu_add_one_without_brevity_penalty():
    """Equal per sentence where the hypothesis is no shorter than the reference: then neither penalty applies."""
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = sacrebleu.BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, effective_order=False)
    for hypothesis, reference in zip(*random_corpus(1), strict=True):
        theirs = scorer.corpus_score([hypothesis], [[reference]]).score
        assert codet5_smooth_bleu([hypothesis], [reference]) == pytest.approx(theirs, abs=1e-9)

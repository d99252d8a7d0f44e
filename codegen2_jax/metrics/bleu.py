"""BLEU as CodeT5 and CodeXGLUE compute it: one definition for code, another for summaries.

Both take lists of strings with one reference each and return an unrounded score in [0, 100]; higher is better. They
differ from sacreBLEU's defaults in smoothing and tokenisation, so scores of different definitions are not comparable:
store the function's name with every number.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence

from codegen2_jax.metrics.exact_match import paired_lines

MAX_ORDER = 4
_TINY = sys.float_info.min
# Runs of letters and digits, or one other visible character; an underscore stands alone. This is what CodeXGLUE's two
# steps (split punctuation, then NIST-style tokenisation) amount to on lower-cased text.
_SUMMARY_TOKEN = re.compile(r"[^\W_]+|_|[^\s\w]")


def codet5_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 on white-space tokens, case kept; CodeT5's and CodeXGLUE's score for generated code.

    Over the whole corpus m_n counts the clipped n-gram matches and c_n the n-grams of the hypotheses. For n = 1..4
    p_n = (m_n + 1) / (c_n + 1), and BLEU = 100 * BP * exp(mean_n log p_n) with BP = min(1, exp(1 - ref / hyp)), lengths
    in tokens. A corpus of empty hypotheses scores 0. Source: CodeXGLUE, Code-Code/code-to-code-trans/evaluator/bleu.py.
    """
    matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
    hypothesis_length = reference_length = 0
    for hypothesis, reference in paired_lines(hypotheses, references):
        hypothesis_tokens, reference_tokens = hypothesis.split(), reference.split()
        hypothesis_length += len(hypothesis_tokens)
        reference_length += len(reference_tokens)
        for n, (match, total) in enumerate(_matches_and_totals(hypothesis_tokens, reference_tokens)):
            matches[n] += match
            totals[n] += total
    if hypothesis_length == 0:
        return 0.0
    log_brevity = min(0.0, 1.0 - reference_length / hypothesis_length)
    log_precision = sum(math.log((m + 1) / (c + 1)) for m, c in zip(matches, totals, strict=True)) / MAX_ORDER
    return 100.0 * math.exp(log_brevity + log_precision)


def codet5_smooth_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Mean of per-sentence smoothed BLEU-4 on lower-cased words and punctuation; CodeT5's score for summaries.

    p_1 = (m_1 + e) / (c_1 + e) with e the smallest normal double, so a sentence without a common word scores 0 and an
    empty hypothesis exp(-r); p_n = (m_n + 1) / (c_n + 1) for n = 2..4. BP = exp(min(0, 1 - (r + 1) / (h + 1))), one
    token more on each side than usual. Source: CodeXGLUE, Code-Text/code-to-text/evaluator/evaluator.py.
    """
    pairs = paired_lines(hypotheses, references)
    return 100.0 * sum(_smooth_sentence_bleu(hyp, ref) for hyp, ref in pairs) / len(pairs)


def _smooth_sentence_bleu(hypothesis: str, reference: str) -> float:
    hypothesis_tokens = _SUMMARY_TOKEN.findall(hypothesis.lower())
    reference_tokens = _SUMMARY_TOKEN.findall(reference.lower())
    log_brevity = min(0.0, 1.0 - (len(reference_tokens) + 1) / (len(hypothesis_tokens) + 1))
    log_precision = 0.0
    for n, (match, total) in enumerate(_matches_and_totals(hypothesis_tokens, reference_tokens)):
        added = _TINY if n == 0 else 1.0
        log_precision += math.log((match + added) / (total + added)) / MAX_ORDER
    return math.exp(log_brevity + log_precision)


def _matches_and_totals(hypothesis: list[str], reference: list[str]) -> list[tuple[int, int]]:
    """For n = 1..4: n-grams of the hypothesis also in the reference (clipped to its count there), and all of them."""
    counts = []
    for n in range(1, MAX_ORDER + 1):
        common = ngrams(hypothesis, n) & ngrams(reference, n)
        counts.append((common.total(), max(0, len(hypothesis) - n + 1)))
    return counts


def ngrams(tokens: list[str], n: int) -> Counter:
    """Counts of the n-grams, as tuples of tokens."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))

"""CodeBLEU for Java and C#: BLEU that also looks at keywords, syntax and data flow (arXiv 2009.10297).

Lists of strings with one reference each in, a score in [0, 100] out; higher is better. Everything is counted over the
whole corpus. The definition is that of CodeXGLUE (Code-Code/code-to-code-trans/evaluator/CodeBLEU) as the PyPI package
codebleu 0.7.0 computes it, and the numbers are the package's, with these exceptions:

* A corpus none of whose references has a data flow cannot miss one: its data flow scores 100. The package reports 0 and
  adds a full quarter to the total, so the total is the same.
* A corpus of hypotheses that share no data flow with references that have some scores 0 there, as in CodeXGLUE. The
  package takes this 0 for the case above, which is 25 points too much.
* The sources of a value are ordered as the code names them. The package orders them by Python's randomised hashes, so
  its data-flow match of hypotheses that differ from their references changes from run to run.
* Tokens are found by bytes, as tree-sitter counts; the package takes byte columns for characters, and so cuts the wrong
  tokens out of a line with a letter beyond ASCII.

tree-sitter makes the trees (extra `eval`). Without it nothing is computed, and the result is None, never 0. A tree, and
so a score, depends on the grammar's version: constraints.txt names those that the numbers were checked with. On code
that parses, the grammars of 2024, for which the package is made, give the same; they mend some broken code otherwise.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from codegen2_jax.metrics.bleu import MAX_ORDER, ngrams
from codegen2_jax.metrics.code_trees import available, code_language, parse, subtrees
from codegen2_jax.metrics.data_flow import data_flow
from codegen2_jax.metrics.exact_match import paired_lines

_KEYWORD_WEIGHT, _OTHER_WEIGHT = 1.0, 0.2
# Stands for a count of no match, so that one missing order does not make the geometric mean 0.
_NO_MATCH = 0.1
# A recall needs no brevity penalty, and the evaluators all but have none: each reference is taken to be two words long.
_WEIGHTED_REFERENCE_LENGTH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeBleu:
    """The four parts of CodeBLEU, each in [0, 100].

    Attributes:
      ngram: BLEU-4 on white-space tokens. Not `codet5_bleu`, which smooths differently.
      weighted_ngram: the same as recall, where a keyword counts 1 and any other word 0.2 among the single words.
      syntax: the share of the references' subtrees that the hypotheses have as well.
      data_flow: the share of the references' data-flow items that the hypotheses have as well.
    """

    ngram: float
    weighted_ngram: float
    syntax: float
    data_flow: float

    @property
    def total(self) -> float:
        """CodeBLEU: the mean of the parts."""
        return (self.ngram + self.weighted_ngram + self.syntax + self.data_flow) / 4


def codebleu_java(hypotheses: Sequence[str], references: Sequence[str]) -> float | None:
    """CodeBLEU of Java code, in [0, 100]; None where tree-sitter is not installed. Errors as in `codebleu`."""
    return _total(codebleu(hypotheses, references, "java"))


def codebleu_c_sharp(hypotheses: Sequence[str], references: Sequence[str]) -> float | None:
    """CodeBLEU of C# code, in [0, 100]; None where tree-sitter is not installed. Errors as in `codebleu`."""
    return _total(codebleu(hypotheses, references, "c_sharp"))


def codebleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> CodeBleu | None:
    """The parts of CodeBLEU, or None ("not computed") where tree-sitter or the language's grammar is not installed.

    language: "java" or "c_sharp". Texts keep their line ends, since `//` comments out the rest of a line. Raises
    UserError for another language, lists of different lengths, nothing to score, and a grammar that does not fit the
    installed tree-sitter.
    """
    keywords = code_language(language).keywords
    lines = paired_lines(hypotheses, references)
    if not available(language):
        return None
    pairs = [(hypothesis.split(), reference.split()) for hypothesis, reference in lines]
    trees = [tuple(parse(code, language) for code in pair) for pair in zip(hypotheses, references, strict=True)]
    return CodeBleu(
        ngram=100.0 * _bleu(pairs, _precision, sum(len(reference) for _, reference in pairs)),
        weighted_ngram=100.0
        * _bleu(pairs, lambda *pair: _weighted_recall(*pair, keywords), _WEIGHTED_REFERENCE_LENGTH * len(pairs)),
        syntax=100.0 * _syntax_match(trees),
        data_flow=100.0 * _data_flow_match(trees, language),
    )


def _total(parts: CodeBleu | None) -> float | None:
    return None if parts is None else parts.total


def _bleu(
    pairs: Sequence[tuple[list[str], list[str]]],
    match: Callable[[list[str], list[str], int], tuple[float, float]],
    reference_length: int,
) -> float:
    """BP * exp(mean_n log(m_n / c_n)), n = 1..4, BP = min(1, exp(1 - ref / hyp)); 0 where no single word matches.

    match: (hypothesis, reference, n) -> what m_n and c_n gain by the pair; m_n = 0 counts as 0.1, and each pair's share
    of c_n is at least 1. Smoothing 1 of Chen and Cherry (2014). reference_length: ref, in words of all pairs.
    """
    log_precision = 0.0
    for n in range(1, MAX_ORDER + 1):
        counts = [match(hypothesis, reference, n) for hypothesis, reference in pairs]
        matched = math.fsum(count for count, _ in counts)
        if n == 1 and matched == 0:
            return 0.0
        log_precision += math.log((matched or _NO_MATCH) / math.fsum(max(1, total) for _, total in counts)) / MAX_ORDER
    hypothesis_length = sum(len(hypothesis) for hypothesis, _ in pairs)
    return math.exp(min(0.0, 1.0 - reference_length / hypothesis_length) + log_precision)


def _precision(hypothesis: list[str], reference: list[str], n: int) -> tuple[float, float]:
    found = ngrams(hypothesis, n)
    return (found & ngrams(reference, n)).total(), found.total()


def _weighted_recall(
    hypothesis: list[str], reference: list[str], n: int, keywords: frozenset[str]
) -> tuple[float, float]:
    """Of the reference's n-grams, how many the hypothesis has, and all; single words are weighted."""
    wanted = ngrams(reference, n)
    common = wanted & ngrams(hypothesis, n)
    if n > 1:
        return common.total(), wanted.total()
    return _weight(common, keywords), _weight(wanted, keywords)


def _weight(words: Counter, keywords: frozenset[str]) -> float:
    weights = {True: _KEYWORD_WEIGHT, False: _OTHER_WEIGHT}
    return math.fsum(count * weights[word in keywords] for (word,), count in words.items())


def _syntax_match(trees: Sequence[tuple[Any, ...]]) -> float:
    """A subtree of a reference counts each time it occurs there if its hypothesis has it at least once."""
    matched = total = 0
    for hypothesis, reference in trees:
        found, wanted = set(subtrees(hypothesis)), subtrees(reference)
        matched += sum(subtree in found for subtree in wanted)
        total += len(wanted)
    return matched / total


def _data_flow_match(trees: Sequence[tuple[Any, ...]], language: str) -> float:
    """An item of a reference's data flow matches as often as the hypothesis has it; 1 where no reference has any."""
    matched = total = 0
    for hypothesis, reference in trees:
        wanted = data_flow(reference, language)
        matched += (wanted & data_flow(hypothesis, language)).total()
        total += wanted.total()
    return matched / total if total else 1.0

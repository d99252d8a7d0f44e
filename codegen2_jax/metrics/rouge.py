"""ROUGE of summaries (Lin 2004), by the package `rouge-score`, Google's rewrite of the original script."""

from collections.abc import Sequence

from codegen2_jax.errors import UserError

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge_of_each(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F1 of unigrams, bigrams and the longest common subsequence for every pair, 0..100, words stemmed (Porter).

    Raises UserError where the package is missing, or the lists differ in length.
    """
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        if error.name != "rouge_score":
            raise
        raise UserError("ROUGE needs rouge-score; pip install 'codegen2_jax[eval]'.") from error
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses for {len(references)} references; give one for each.")
    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=True)
    scores = [scorer.score(reference, one) for reference, one in zip(references, hypotheses, strict=True)]
    return {kind: [100.0 * score[kind].fmeasure for score in scores] for kind in KINDS}


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means of `rouge_of_each` over the pairs."""
    if not hypotheses:
        raise UserError("there is no summary to score; give at least one.")
    return {kind: sum(values) / len(values) for kind, values in rouge_of_each(hypotheses, references).items()}

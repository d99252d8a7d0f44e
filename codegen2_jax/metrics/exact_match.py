"""Exact match: how many predictions are, character for character, the reference."""

from collections.abc import Sequence

from codegen2_jax.errors import UserError


def paired_lines(hypotheses: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """The (hypothesis, reference) pairs as stripped single lines; every scorer of this package starts here.

    CodeT5's evaluators write one line per example to a file, where a newline in a prediction shifts every later pair
    and a tab cuts a summary. Here the pairs stay lists, and each newline or tab becomes one space, on both sides.

    Raises UserError when the lengths differ, or when there is nothing to score.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses for {len(references)} references; a score needs one of each per example."
        )
    if not references:
        raise UserError("0 examples to score; a score needs at least 1, so check the split and EVAL_EXAMPLES.")
    return [(_one_line(hyp), _one_line(ref)) for hyp, ref in zip(hypotheses, references, strict=True)]


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """100 x the share of examples whose stripped lines are equal; in [0, 100], higher is better.

    As in CodeT5 (`run_gen.py`: `pred.strip() == gold.strip()`), after `paired_lines`.
    """
    pairs = paired_lines(hypotheses, references)
    return 100.0 * sum(hyp == ref for hyp, ref in pairs) / len(pairs)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()

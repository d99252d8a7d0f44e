"""Tables 1 and 3 of "Exploring Continual Learning for Code Generation Models" (arXiv 2307.02435v1), and when they may
be shown.

Test BLEU of CodeT5-small (60 M parameters), rows with replay hold 5,000 examples in total, single runs. The paper's
`<Forget>` is `forget_paper` on the validation split. Two columns are derived here: the mean of the first three tasks,
and the copy-normalised mean of them (copy 0.02 / 18.72 / 2.00, ceiling Individual FT).
"""

from collections.abc import Sequence

from codegen2_jax.reporting.finished_runs import Group, baseline, scored_split, short_names
from codegen2_jax.reporting.tables import Column, Table

SOURCE = "https://arxiv.org/abs/2307.02435"
STREAM = ("codetask_concode", "codetask_translate", "codetask_summarize", "codetask_refine")
BEAMS = 5
# Test BLEU of copying the input in the official files; the test targets of CONCODE are withheld.
OFFICIAL_COPY = {"codetask_translate": 18.72, "codetask_summarize": 2.00, "codetask_refine": 78.06}
COPY_TOLERANCE = 0.011  # the figures above are rounded to two decimals

ROWS = (
    ("Sequential FT", "no", 6.42, 2.76, 3.13, 77.75, 22.52, 22.44, 39.64, 4.10, 0.00),
    ("MTL", "no", 32.24, 74.87, 14.69, 79.23, 50.26, 49.25, None, 40.60, 0.91),
    ("Individual FT", "no", 38.61, 83.34, 14.32, 77.73, 53.50, 52.68, None, 45.42, 1.00),
    ("Shared Prompts (SP)", "no", 0.63, 6.75, 0.37, 78.5, 21.56, 21.71, 30.33, 2.58, -0.10),
    ("SP + ER", "yes", 13.82, 45.87, 14.36, 78.64, 38.17, 36.93, 8.46, 24.68, 0.59),
    ("Task-Specific Prompts (TSPT)", "no", 22.93, 65.37, 14.57, 78.81, 45.42, 44.56, 0.00, 34.29, 0.78),
    ("Prompt Pooling (PP)", "no", 2.41, 7.47, 2.62, 78.67, 22.79, 23.10, 27.43, 4.17, -0.02),
    ("PP + ER", "yes", 16.33, 50.96, 13.13, 78.71, 39.78, 38.47, 6.41, 26.81, 0.61),
    ("PP + Teacher Forcing (PP-TF)", "no", 24.28, 59.37, 14.15, 79.50, 44.33, 43.10, 1.68, 32.60, 0.75),
    ("CodeT5 + ER", "yes", 32.92, 77.94, 11.74, 78.43, 50.26, 49.03, 2.22, 40.87, 0.85),
)
# CodeT5 + ER by the size of its buffer.
BUFFER_ROWS = (
    (100, 24.11, 61.87, 10.72, 77.82, 43.63, 41.25, 14.18, 32.23, 0.67),
    (500, 29.39, 57.56, 11.33, 78.70, 44.25, 40.10, 11.42, 32.76, 0.71),
    (1000, 28.23, 73.33, 12.06, 78.03, 47.91, 46.74, 6.98, 37.87, 0.80),
    (2000, 31.10, 75.52, 11.85, 77.58, 49.01, 47.59, 5.99, 39.49, 0.83),
    (5000, 32.92, 77.94, 11.74, 78.43, 50.26, 49.03, 2.22, 40.87, 0.85),
)


def table() -> Table:
    """The rows of Table 1, with the two derived columns named as such."""
    return Table([Column("method"), Column("replay"), *_figures()], [list(row) for row in ROWS])


def buffer_table() -> Table:
    """The rows of Table 3, with the same columns."""
    rows = [["CodeT5 + ER", *row] for row in BUFFER_ROWS]
    return Table([Column("method"), Column("buffer examples"), *_figures()], rows)


def _figures() -> list[Column]:
    headings = zip(short_names(STREAM), STREAM, strict=True)
    columns = [Column(name, "test bleu", f"test bleu {task}") for name, task in headings]
    return columns + [
        Column("average", "test bleu"),
        Column("average", "valid bleu"),
        Column("forget_paper_bleu", "valid"),
        Column("average without refine", "test bleu, derived"),
        Column("copy_normalised_bleu", "test, derived"),
    ]


def belongs(groups: Sequence[Group]) -> bool:
    """Whether the runs learned the paper's four tasks, the first of them in the paper's order."""
    return groups[0].tasks == STREAM


def differences(groups: Sequence[Group]) -> list[str]:
    """Why the paper's numbers cannot be compared with these; empty where nothing in scores.json speaks against it.

    scores.json does not name the official files; what copying the input scores tells them apart from a part or a new
    split of them.
    """
    run = groups[0].runs[0]
    found = []
    copied = baseline(run, "copy", "test", "bleu")
    split = scored_split(groups)
    if split != "test":
        found.append(f"scores are those of the {split} split here, of test there")
    elif copied is None:
        found.append("the copy row is missing, so nothing shows that the data are the official files")
    else:
        here = dict(zip(run.scores.tasks, copied, strict=True))
        other = [task for task, value in OFFICIAL_COPY.items() if not abs(here[task] - value) <= COPY_TOLERANCE]
        if other:
            pairs = ", ".join(f"{task} {here[task]:.2f} here and {OFFICIAL_COPY[task]:.2f} there" for task in other)
            found.append(f"the data differ: copying the input scores {pairs}")
    if any(other.tasks != STREAM for group in groups for other in group.runs):
        found.append("some runs learned the tasks in another order")
    if run.record.get("eval_examples") is not None:
        found.append(f"only {run.record['eval_examples']} examples of each split were scored here, all of them there")
    decodings = sorted({str(r.record.get("decoding")) for group in groups for r in group.runs})
    if not all(decoding.startswith(f"beam_{BEAMS}_") for decoding in decodings):
        found.append(f"decoding is {', '.join(decodings)} here, beam {BEAMS} there")
    return found


def verdict(groups: Sequence[Group]) -> str:
    """Whether the paper's numbers may be read beside those of these groups."""
    found = differences(groups)
    if found:
        return f"Not comparable with the rows above: {'; '.join(found)}."
    return (
        "Copying the input scores the same here as on the paper's files, all examples were scored and the beam is "
        "the paper's: nothing in the result files speaks against a comparison. Models may still differ."
    )

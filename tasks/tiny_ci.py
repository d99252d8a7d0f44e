"""tiny_ci: three synthetic tasks (copy, reverse, upper-case) over a few words; the stream of tests and first steps."""

import functools

import numpy as np

from codegen2_jax.data.sources import TextExample
from tasks import sequences

SIZES = {"train": 64, "valid": 16, "test": 16}
MAX_LENGTHS = (24, 24)
WORDS = "for if in not self return value key data name list index open read line path".split()
RULES = {
    "tiny_copy": lambda words: words,
    "tiny_reverse": lambda words: words[::-1],
    "tiny_upper": lambda words: [word.upper() for word in words],
}
STREAMS = {"tiny_ci": tuple(RULES)}


def _read(task: str, split: str) -> tuple[TextExample, ...]:
    """The examples of a split: 2 to 5 words each, the same on every machine."""
    rng = np.random.default_rng((list(RULES).index(task), list(SIZES).index(split)))
    rows = [list(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(SIZES[split])]
    return tuple(
        TextExample(id=f"{task}/{split}/{number}", inputs=" ".join(row), targets=" ".join(RULES[task](row)))
        for number, row in enumerate(rows)
    )


def provenance(task: str, split: str) -> dict:
    """Nothing to name but the lengths: the texts are made here."""
    counts = {"examples": SIZES[split]}
    return {"sources": {}, "licence": "Apache-2.0", "max_lengths": list(MAX_LENGTHS), "counts": counts}


for _name in RULES:
    sequences.register(
        _name,
        functools.partial(_read, _name),
        max_lengths=MAX_LENGTHS,
        metric_fns=(sequences.codet5_bleu, sequences.exact_match),
    )
sequences.register_stream("tiny_ci", tuple(RULES))

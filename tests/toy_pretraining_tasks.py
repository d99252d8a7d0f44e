"""A pretraining corpus of a few lines of code, as SeqIO tasks, for tests."""

import functools

from codegen2_jax.data.sources import TextExample
from tasks import sequences

STREAMS = {"toy_pretraining": ("toy_windows", "toy_pairs")}


def _read(task: str, split: str) -> tuple[TextExample, ...]:
    """40 training and 8 validation examples, each a little function and what it does."""
    numbers = range(40) if split == "train" else range(40, 48)
    return tuple(
        TextExample(
            id=f"{task}/{n}",
            inputs=f"Add {n} to the value." if task == "toy_pairs" else "",
            targets=f"def add_{n}(value):\n    return value + {n}",
        )
        for n in numbers
    )


for _name in STREAMS["toy_pretraining"]:
    _features = ("inputs", "targets") if _name == "toy_pairs" else ("targets",)
    sequences.register_raw(_name, functools.partial(_read, _name), features=_features, splits=("train", "valid"))

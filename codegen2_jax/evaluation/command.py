"""What `python -m codegen2_jax.evaluate` takes besides gin files, and which of it contradicts the rest."""

from collections.abc import Callable, Mapping
from typing import Any

from codegen2_jax.errors import UserError

# For argparse.
FLAGS: dict[str, dict[str, Any]] = {
    "model": {"help": "directory of the weights, or a name such as nano_t5"},
    "vocabulary": {"help": "directory of the tokenizer's files; default: that of the weights"},
    "dtype": {"default": "float32", "help": "of the computation: float32 or bfloat16"},
    "prefix_lm": {"action": "store_true", "default": None, "help": "read prompts in both directions"},
    "out": {"metavar": "DIR", "help": "where results go (default: evaluations/<name of the model>)"},
    "only": {"choices": ("generate", "score"), "default": "all", "help": "one step alone"},
    "workers": {"type": int, "default": 2, "help": "programs judged at once (default: 2)"},
    "allow_unsafe_execution": {"action": "store_true", "help": "run programs without isolation"},
    "print_config": {"action": "store_true", "help": "print the resolved configuration and stop"},
    "dry_run": {"action": "store_true", "help": "read the files of the benchmarks, say what is in them, and stop"},
}
# What one step alone makes no use of.
IDLE = {"score": ("vocabulary", "dtype", "prefix_lm"), "generate": ("workers", "allow_unsafe_execution")}


def check(given: Mapping[str, Any], default: Callable[[str], Any]) -> None:
    """UserError for a flag that would be ignored, and where nothing says which folder is meant.

    given: the values by name. default: of a flag.
    """
    if given["print_config"] or given["dry_run"]:
        return
    if given["out"] is None and given["model"] is None:
        raise UserError("neither --model nor --out is given; name a model, or the folder whose samples are scored.")
    for name in IDLE.get(given["only"], ()):
        if given[name] != default(name):
            raise UserError(f"--{name} has no effect with --only {given['only']}; drop one of the two.")

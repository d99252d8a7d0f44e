"""The settings of text generation, checked once."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from codegen2_jax.errors import UserError

# The command's other flags, for argparse; what it generates is decided by the fields of Generation.
FLAGS = {
    "model": {"required": True, "help": "directory of the weights, or a name such as nano_t5"},
    "vocabulary": {"help": "directory of the tokenizer's files; default: that of the weights"},
    "dtype": {"default": "float32", "help": "of the computation: float32 or bfloat16"},
    "prefix_lm": {"action": "store_true", "default": None, "help": "attend to the prompt in both directions"},
    "prompt": {"nargs": "+", "action": "extend", "help": "one or more prompts; default: standard input is the prompt"},
    "file": {"help": "file with the prompt, or with --infill with the text that has holes"},
    "infill": {"action": "store_true", "help": "fill the holes <mask_1>, <mask_2>, ... of the text"},
    "prefix": {"help": "infill one hole behind this text"},
    "suffix": {"help": "infill one hole before this text"},
    "truncation": {"default": "none", "help": "where completions are cut: codegen1, codex or none"},
    "format": {"default": "text", "choices": ("text", "jsonl"), "help": "the text, or records with all settings"},
    "out": {"help": "file to write; default: standard output"},
}

TEMPERATURES = (1e-6, 1e6)  # beyond, logits divided by it may leave float32
MOST_LENGTH_PENALTY = 8  # a length to a larger power may leave float32


def check_length_penalty(value: float) -> None:
    """UserError for an exponent that leaves no ranking of hypotheses, NaN too."""
    most = MOST_LENGTH_PENALTY
    if not abs(value) <= most:
        raise UserError(f"length_penalty={value} is out of range; it must lie in [-{most}, {most}], and 1 is usual.")


def check_text(what: str, text: str) -> None:
    """UserError for bytes of a command line that were no UTF-8, which Python hands on as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        raise UserError(f"{what} is no UTF-8 at character {at + 1} ({text[at]!r}); write it in UTF-8.") from None


def _setting(default: Any, text: str) -> Any:
    """A field with what it means, for the reader here and for --help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How texts are continued. Raises UserError for a value that is out of range or contradicts another."""

    n: int = _setting(1, "samples of each prompt")
    temperature: float = _setting(0.2, "divides the logits; 0 takes the likeliest token")
    top_k: int = _setting(0, "draw from the likeliest k tokens; 0: from all")
    top_p: float = _setting(0.95, "draw from the likeliest tokens that together have this probability; 1: from all")
    seed: int = _setting(0, "of all samples")
    num_beams: int = _setting(1, "above 1: beam search, which draws nothing; its n best hypotheses, best first")
    length_penalty: float = _setting(1.0, "of beam search: exponent of the length that divides a log-probability")
    max_new_tokens: int = _setting(128, "tokens of a completion, its end token too")
    stop: tuple[str, ...] = _setting((), "texts that end a completion and are no part of it")
    batch_size: int = _setting(64, "samples computed at once")

    def __post_init__(self):
        for name in ("n", "num_beams", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be at least 1.")
        least, most = TEMPERATURES
        if self.temperature != 0 and not least <= self.temperature <= most:
            raise UserError(
                f"temperature={self.temperature} is out of range; give 0 (greedy), or {least:g} to {most:g}; "
                "0.2 is usual."
            )
        check_length_penalty(self.length_penalty)
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is out of range; it must lie in (0, 1], and 1 keeps all tokens.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is out of range; give 0 (keep all tokens) or more.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is out of range; it must lie in [0, 2^32).")
        if isinstance(self.stop, str) or "" in self.stop:
            raise UserError(f"stop={self.stop!r} must be a tuple of texts, none of them empty.")
        for text in self.stop:
            check_text("a stop text", text)
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(f"num_beams={self.num_beams} draws nothing; set temperature=0, or num_beams=1.")
        if self.temperature == 0 and self.n > self.num_beams:
            raise UserError(
                f"temperature=0 gives num_beams={self.num_beams} different completions, n={self.n} are asked for; set "
                f"n={self.num_beams}, or a temperature."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Generation":
        """From a dictionary, in which a list may stand for a tuple; UserError for a name that is no setting."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}."
                raise UserError(f"{name} is no setting of generation; {hint}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})

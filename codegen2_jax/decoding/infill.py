"""Fills holes in a text, in the format of CodeGen2's span corruption (arXiv 2305.02309).

    text_1 <mask_1> text_2 <mask_2> text_3 <|endoftext|> <sep> <mask_1> answer_1 <eom> <mask_2> answer_2 <eom>

The prompt ends with <sep>, in a prefix-LM the end of what is attended to in both directions. Each <mask_k> behind it is
put in, and its answer ends with <eom>, or the whole with <|endoftext|>, and with nothing else: no rule about the text.

A model that was trained on prefix, suffix and middle (arXiv 2207.14255) is asked in its own form, "middle":

    <fim_prefix> prefix <fim_suffix> suffix <fim_middle> answer <eom>
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.streams import UNDECODED
from codegen2_jax.decoding.text import Completion, Request, run
from codegen2_jax.errors import UserError

MARKER = re.compile(r"<mask_(\d+)>")
FORMS = ("spans", "middle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infilled:
    """One way of filling the holes.

    Attributes:
      text: the whole text, holes filled.
      answers: what fills each hole; empty where the model ended before.
      closed: whether each answer was ended by <eom>.
      finish: "stop_id" or "length"; the latter leaves the last answer cut and the holes behind it empty.
      log_probability: sum over the tokens drawn, see `Completion`.
    """

    text: str
    answers: tuple[str, ...]
    closed: tuple[bool, ...]
    finish: str
    log_probability: float


def parse_template(text: str) -> tuple[str, ...]:
    """The parts of a text between its markers <mask_1>, <mask_2>, ... as literally written in it.

    Raises UserError where they are missing or not numbered in order. Other text is text, whatever it looks like.

    >>> parse_template("a = <mask_1>\\n")
    ('a = ', '\\n')
    """
    numbers = [int(number) for number in MARKER.findall(text)]
    if not numbers:
        raise UserError("the text has no <mask_1>; write it where the hole is, or give --prefix and --suffix.")
    if numbers != list(range(1, len(numbers) + 1)):
        found = ", ".join(f"<mask_{number}>" for number in numbers[:8])
        raise UserError(
            f"the holes {found} are not numbered 1, 2, ... in order; number them so, or give --prefix and --suffix, "
            "in which every text stays text."
        )
    return tuple(MARKER.split(text)[::2])


def request_of(vocabulary: Any, parts: Sequence[str], form: str = "spans") -> Request:
    """The prompt up to <sep>, and the sentinels that open the answers. A hole lies between two parts.

    With form="middle", for one hole, the prompt up to <fim_middle>, behind which the answer stands at once.

    Raises UserError for a vocabulary without the control tokens, and where there are more holes than it allows.
    """
    names = {"spans": ("sep_id", "eom_id"), "middle": ("fim_prefix_id", "fim_suffix_id", "fim_middle_id", "eom_id")}
    if form not in FORMS:
        raise UserError(f"infill form {form!r} is unknown; choose one of {', '.join(FORMS)}.")
    missing = [name for name in names[form] if getattr(vocabulary, name, None) is None]
    if missing:
        raise UserError(f"the model's vocabulary has no {', '.join(missing)}: it cannot infill; take a CodeGen2 model.")
    if len(parts) < 2:
        raise UserError("a text without a hole has nothing to fill; give at least a prefix and a suffix, maybe empty.")
    first, *encoded = vocabulary.encode_batch(list(parts))
    if form == "middle":
        if len(parts) > 2:
            raise UserError(f"{len(parts) - 1} holes in a text, the form 'middle' has one; use form='spans'.")
        ids = [vocabulary.fim_prefix_id, *first, vocabulary.fim_suffix_id, *encoded[0], vocabulary.fim_middle_id]
        return Request(tuple(ids))
    sentinels = tuple(vocabulary.sentinel_id(k) for k in range(len(parts) - 1))
    ids = list(first)
    for sentinel, part in zip(sentinels, encoded, strict=True):
        ids += [sentinel, *part]
    return Request((*ids, vocabulary.eos_id, vocabulary.sep_id), sentinels)


def infill(
    model: Any,
    params: Any,
    vocabulary: Any,
    texts: Sequence[Sequence[str]],
    settings: Generation | None = None,
    *,
    form: str = "spans",
    decoder: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Infilled]]:
    """The n fillings of every text, given as its parts around the holes: (prefix, suffix), or (prefix, ..., suffix).

    settings: greedy by default; max_new_tokens counts the tokens of all answers of a text together, their <eom> too.
    decoder: see `text.complete`. Raises UserError as `request_of` does, for beams and stop strings, and for a model
    that is no decoder.
    """
    settings = settings or Generation(temperature=0.0)
    if not hasattr(model, "prefill"):
        raise UserError("this model is an encoder-decoder, which has another infill format; choose a CodeGen2 model.")
    if settings.num_beams > 1:
        raise UserError(f"num_beams={settings.num_beams} is for text prompts; infill with num_beams=1.")
    if settings.stop:
        raise UserError(f"stop={settings.stop} is for text prompts; an infilled answer ends with <eom> only.")
    requests = [request_of(vocabulary, parts, form) for parts in texts]
    ends = {"stop_ids": (vocabulary.eos_id,), "separator": getattr(vocabulary, "eom_id", None)}
    if form == "middle":
        ends = {"stop_ids": (vocabulary.eos_id, vocabulary.eom_id)}
    found = run(model, params, vocabulary, requests, settings, **ends, decoder=decoder, progress=progress)
    return [
        [_filled(vocabulary, parts, completion) for completion in completions]
        for parts, completions in zip(texts, found, strict=True)
    ]


def _filled(vocabulary: Any, parts: Sequence[str], completion: Completion) -> Infilled:
    """Takes a completion apart; the sentinels in it have no text."""
    answers: list[list[int]] = [[]]
    for token in completion.ids:
        if token == vocabulary.eom_id:
            answers.append([])
        else:
            answers[-1].append(token)
    closed = [True] * (len(answers) - 1) + [completion.stop_id == vocabulary.eom_id]
    texts = [vocabulary.decode(answer, continuation=True) for answer in answers]
    if completion.finish == "length":
        texts[-1] = texts[-1].rstrip(UNDECODED)
    missing = len(parts) - 1 - len(texts)
    texts, closed = texts + [""] * missing, closed + [False] * missing
    whole = parts[0] + "".join(answer + part for answer, part in zip(texts, parts[1:], strict=True))
    return Infilled(
        text=whole,
        answers=tuple(texts),
        closed=tuple(closed),
        finish=completion.finish,
        log_probability=completion.log_probability,
    )

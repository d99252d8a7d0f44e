"""What a decoder is worth on held-out files without a benchmark: bits per byte, left to right and in holes.

Everything is told file by file, so that two models can be compared on the same files (`paired bootstrap`).
Letters: B batch, T positions, S source length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.data import converters
from codegen2_jax.data.span_records import infill_prompt, middle_prompt
from codegen2_jax.decoding import sampling
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.text import Request, run
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.likelihood import SHAPE_MULTIPLE, TARGET_MULTIPLE, Scorer

FORMS = ("left_to_right", "infill", "middle")


@dataclasses.dataclass(frozen=True)
class Hole:
    """Lines taken out of a file. file: its number among the held-out ones."""

    file: int
    prefix: str
    middle: str
    suffix: str


@dataclasses.dataclass(frozen=True)
class Costs:
    """nats and UTF-8 bytes of every example, and its file; exact: 0 or 1 where it was generated, NaN elsewhere."""

    file: np.ndarray
    nats: np.ndarray
    bytes: np.ndarray
    exact: np.ndarray | None = None

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / np.log(2) / max(self.bytes.sum(), 1))


def holes(texts: Sequence[str], *, per_file: int, seed: int, most_lines: int = 1) -> list[Hole]:
    """At most `per_file` holes of 1 to `most_lines` whole lines in every text, none of them blank, drawn from the seed.

    A middle holds its line ends, as a model must write them. A text of fewer than three lines has no hole.
    """
    found = []
    for number, text in enumerate(texts):
        lines = text.splitlines(keepends=True)
        rng = np.random.default_rng((seed, number))
        candidates = [i for i in range(1, len(lines) - 1) if lines[i].strip()]
        for start in sorted(rng.permutation(candidates)[:per_file].tolist()):
            stop = min(start + int(rng.integers(1, most_lines + 1)), len(lines) - 1)
            parts = ("".join(lines[:start]), "".join(lines[start:stop]), "".join(lines[stop:]))
            found.append(Hole(number, *parts))
    return found


def left_to_right(model: Any, params: Any, documents: Sequence[np.ndarray], vocabulary: Any, *, length: int) -> Costs:
    """The cost of every file read from its beginning in windows of `length` tokens, its end token included.

    documents: raw ids. The first token of a window is predicted from the one before it, that of a file from the end
    token that packing puts before it.
    """
    rows, file = [], []
    for number, tokens in enumerate(documents):
        whole = np.concatenate([[vocabulary.eos_id], tokens, [vocabulary.eos_id]]).astype(np.int32)
        starts = range(0, len(whole) - 1, length)
        rows += [whole[start : start + length + 1] for start in starts]
        file += [number] * len(starts)

    @jax.jit
    def cost(params, tokens_BT, targets_BT, mask_BT):
        shape = tokens_BT.shape
        batch = {
            "tokens_BT": tokens_BT,
            "positions_BT": jnp.broadcast_to(jnp.arange(shape[1])[None], shape),
            "segments_BT": mask_BT.astype(jnp.int32),
            "bidirectional_BT": jnp.zeros(shape, bool),
        }
        return _nats(model.logits(params, batch), targets_BT, mask_BT)

    nats = []
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        tokens_BT, mask_BT = converters.pad(_filled_up([row[:-1] for row in part], 16), length, 0)
        targets_BT, _ = converters.pad(_filled_up([row[1:] for row in part], 16), length, 0)
        nats.append(np.asarray(cost(params, tokens_BT, targets_BT, mask_BT))[: len(part)])
    sizes = np.asarray([int(vocabulary.byte_lengths[row[1:]].sum()) for row in rows])
    return Costs(np.asarray(file), np.concatenate(nats), sizes)


def in_holes(
    model: Any,
    params: Any,
    examples: Sequence[Hole],
    vocabulary: Any,
    *,
    form: str,
    max_context: int,
    generated: int = 0,
    ended: bool = True,
    batch_size: int = 16,
) -> Costs:
    """The cost of every true middle and its end mark behind the prompt, and whether greedy decoding finds it.

    form: "infill" (prefix M_1 suffix EOS SEP M_1), "middle" (PRE prefix SUF suffix MID), or "left_to_right": the prefix
    alone and no end mark, which is what a model that never saw a hole can use. max_context: tokens of a prompt; what is
    too long loses the far ends of prefix and suffix. generated: how many of the examples, evenly spaced, are also
    decoded, up to the length of their middle. ended: whether the end mark is part of the cost.
    """
    if form not in FORMS:
        raise UserError(f"form={form!r} is unknown; choose one of {', '.join(FORMS)}.")
    end = [] if form == "left_to_right" else [vocabulary.eom_id]
    prompts = [_prompt(hole, vocabulary, form, max_context) for hole in examples]
    middles = [np.asarray([*vocabulary.encode(hole.middle), *end], np.int32) for hole in examples]
    openers = int(form == "infill")  # its last token, the mask, stands behind what a prefix-LM sees both ways
    groups = _groups(prompts, middles, batch_size)
    scorer, nats = Scorer(model, vocabulary), np.zeros(len(examples))
    scored = middles if ended or not end else [middle[:-1] for middle in middles]
    for group in groups:
        filled = [*group, *group[-1:] * (batch_size - len(group))]
        log_prob_B, _ = scorer(params, [(prompts[i], scored[i]) for i in filled], openers)
        nats[group] = -log_prob_B[: len(group)]
    sizes = np.asarray([len(hole.middle.encode()) for hole in examples])
    exact = None
    if generated:
        chosen = np.unique(np.linspace(0, len(examples) - 1, generated).astype(int)).tolist()
        requests = {i: _request(prompts[i], openers) for i in chosen}
        exact = _exact(model, params, requests, middles, vocabulary, batch_size)
    return Costs(np.asarray([hole.file for hole in examples]), nats, sizes, exact)


def _prompt(hole: Hole, vocabulary: Any, form: str, most: int) -> np.ndarray:
    prefix, suffix = vocabulary.encode(hole.prefix), vocabulary.encode(hole.suffix)
    if form == "left_to_right":
        return np.asarray([vocabulary.eos_id, *prefix[-(most - 1) :]], np.int32)
    empty = (infill_prompt(vocabulary, ("", "")) if form == "infill" else middle_prompt(vocabulary, "", "")).tolist()
    room = most - len(empty)
    # Half for each side; what one side does not need the other gets.
    before = min(len(prefix), max(room // 2, room - len(suffix)))
    prefix, suffix = prefix[len(prefix) - before :], suffix[: room - before]
    cut = 1 if form == "infill" else 2
    if form == "infill":
        return np.asarray([*prefix, empty[0], *suffix, *empty[cut:]], np.int32)
    return np.asarray([empty[0], *prefix, empty[1], *suffix, *empty[cut:]], np.int32)


def _groups(prompts, middles, rows: int) -> list[list[int]]:
    """Numbers of at most `rows` pairs that are padded to the same shape."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (prompt, middle) in enumerate(zip(prompts, middles, strict=True)):
        whole = converters.round_up(len(prompt) + len(middle) - 1, SHAPE_MULTIPLE)
        by_shape.setdefault((whole, converters.round_up(len(middle), TARGET_MULTIPLE)), []).append(number)
    numbers = [by_shape[shape] for shape in sorted(by_shape)]
    return [of_one[start : start + rows] for of_one in numbers for start in range(0, len(of_one), rows)]


def _filled_up(arrays: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    return [*arrays, *[np.zeros(0, np.int32)] * (rows - len(arrays))]


def _nats(logits_BTV, targets_BT, mask_BT):
    log_probs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    return -jnp.sum(jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1)[..., 0] * mask_BT, axis=1)


def _request(prompt: np.ndarray, openers: int) -> Request:
    ids = tuple(prompt.tolist())
    return Request(ids[: len(ids) - openers], ids[len(ids) - openers :])


def _exact(model, params, requests: dict[int, Request], middles, vocabulary, rows: int) -> np.ndarray:
    """1 where greedy decoding writes the middle and its end mark, 0 where not, NaN where it was not asked."""
    exact, decoder = np.full(len(middles), np.nan), sampling.lay_out(model, params)
    order = sorted(requests, key=lambda i: len(middles[i]))
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        settings = Generation(temperature=0.0, max_new_tokens=len(middles[part[-1]]), batch_size=rows)
        ends = {"stop_ids": (vocabulary.eom_id,), "decoder": decoder}
        found = run(model, params, vocabulary, [requests[i] for i in part], settings, **ends)
        for i, (completion,) in zip(part, found, strict=True):
            written = [*completion.ids, *([] if completion.stop_id is None else [completion.stop_id])]
            exact[i] = float(np.array_equal(written[: len(middles[i])], middles[i]))
    return exact

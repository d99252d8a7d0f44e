"""Pretraining objectives: pure functions `(record, rng) -> {"inputs", "targets"}` over numpy arrays.

A window is a record whose "targets" are raw token ids; a pair has raw "inputs" (documentation) and "targets" (code).
What comes out is int32, wrapped as `<s> tokens </s>` and cut so that the maximum length includes both. Nothing here
keeps state: the generator comes from (seed, epoch, record index), so a resumed run makes the same examples. The facts
about the vocabulary are keyword arguments; bind them with `functools.partial`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Record = Mapping[str, np.ndarray]
Objective = Callable[[Record, np.random.Generator], dict[str, np.ndarray]]


def wrap(tokens: np.ndarray, *, bos_id: int, eos_id: int, max_length: int) -> np.ndarray:
    """`<s> tokens </s>` as int32, cut from the right to `max_length` with `</s>` kept."""
    assert max_length >= 2, max_length
    kept = tokens[: max_length - 2]
    wrapped = np.empty(len(kept) + 2, np.int32)
    wrapped[0], wrapped[1:-1], wrapped[-1] = bos_id, kept, eos_id
    return wrapped


def span_corruption(
    record: Record,
    rng: np.random.Generator,
    *,
    bos_id: int,
    eos_id: int,
    sentinel_ids: Sequence[int],
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    max_source: int,
    max_target: int,
) -> dict[str, np.ndarray]:
    """T5's span corruption (Raffel et al. 2020, section 3.1.4; google-research/text-to-text-transfer-transformer).

    The window is cut to the longest beginning whose two sides fit, so source and target together always give it back.
    Of its n tokens round(n * noise_density) are noise, in spans of `mean_span_length` on average. Spans of text and
    of noise alternate and text comes first; the k-th span of noise is `sentinel_ids[k]` in the source, and the target
    is each sentinel followed by the tokens it stands for.
    """
    tokens = record["targets"]
    length = min(len(tokens), max_source + max_target)
    while True:
        num_noise = min(max(round(length * noise_density), 1), max(length - 1, 1))
        num_spans = max(round(num_noise / mean_span_length), 1)
        num_spans = min(num_spans, num_noise, max(length - num_noise, 1), len(sentinel_ids))
        excess = max(length - num_noise + num_spans + 2 - max_source, num_noise + num_spans + 2 - max_target)
        if excess <= 0 or length <= 1:
            break
        # One token less shortens a side by two at most (noise and its sentinel): halving never cuts too much.
        length -= max(excess // 2, 1)
    assert excess <= 0, (len(tokens), max_source, max_target)
    tokens = tokens[:length]
    if length == 1:  # no text is left to stand before the noise
        inputs, targets = np.asarray(sentinel_ids[:1]), np.asarray([sentinel_ids[0], tokens[0]])
    else:
        lengths = np.empty(2 * num_spans, np.int64)
        lengths[0::2] = _segments(rng, length - num_noise, num_spans)
        lengths[1::2] = _segments(rng, num_noise, num_spans)
        starts = np.cumsum(lengths) - lengths
        is_noise = np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)
        sides = []
        for replaced, first in ((is_noise, starts[1::2]), (~is_noise, starts[0::2])):
            side, kept = tokens.copy(), ~replaced
            side[first], kept[first] = sentinel_ids[:num_spans], True
            sides.append(side[kept])
        inputs, targets = sides
    return {
        "inputs": wrap(inputs, bos_id=bos_id, eos_id=eos_id, max_length=max_source),
        "targets": wrap(targets, bos_id=bos_id, eos_id=eos_id, max_length=max_target),
    }


def denoising(
    record: Record,
    rng: np.random.Generator,
    *,
    bos_id: int,
    eos_id: int,
    mask_id: int,
    text_ids: tuple[int, int],
    noise_range: tuple[float, float] = (0.1, 0.5),
    mean_span_length: float = 3.0,
    kinds: tuple[float, float, float] = (0.6, 0.2, 0.2),
    max_source: int,
    max_target: int,
) -> dict[str, np.ndarray]:
    """The whole window is the target; the source is the window with noise (after BART, Lewis et al. 2020).

    The share of noise is drawn uniformly from `noise_range` for each record. A span of noise is, with the chances in
    `kinds`, replaced by one mask token, deleted, or replaced by as many random tokens from the half-open `text_ids`.
    Dense targets teach copying far sooner than span corruption does.
    """
    tokens = record["targets"][: min(max_source, max_target) - 2]
    length, noised = len(tokens), tokens
    num_noise = min(round(length * rng.uniform(*noise_range)), length - 1)
    if num_noise > 0:
        num_spans = min(max(round(num_noise / mean_span_length), 1), num_noise, length - num_noise)
        noise_first = int(rng.random() < 0.5)  # else no window would ever begin with noise
        lengths, kind = np.empty(2 * num_spans, np.int64), np.full(2 * num_spans, -1)
        lengths[noise_first::2] = _segments(rng, length - num_noise, num_spans)
        lengths[1 - noise_first :: 2] = _segments(rng, num_noise, num_spans)
        drawn = np.searchsorted(np.cumsum(kinds)[:-1], rng.random(num_spans), side="right")
        kind[1 - noise_first :: 2] = drawn
        starts, kind_of_token = np.cumsum(lengths) - lengths, np.repeat(kind, lengths)
        noised, masked, random = tokens.copy(), starts[kind == 0], kind_of_token == 2
        kept = (kind_of_token == -1) | random
        noised[masked], kept[masked] = mask_id, True
        noised[random] = rng.integers(*text_ids, size=np.count_nonzero(random))
        noised = noised[kept]
    return {
        "inputs": wrap(noised, bos_id=bos_id, eos_id=eos_id, max_length=max_source),
        "targets": wrap(tokens, bos_id=bos_id, eos_id=eos_id, max_length=max_target),
    }


def continuation(
    record: Record, rng: np.random.Generator, *, bos_id: int, eos_id: int, max_source: int, max_target: int
) -> dict[str, np.ndarray]:
    """A uniformly drawn cut point; what stands before it is the source, the rest is the target.

    A source too long loses its beginning, because what stands next to the cut matters most.
    """
    tokens = record["targets"]
    cut = int(rng.integers(1, len(tokens))) if len(tokens) > 1 else 0
    kept = tokens[max(cut - (max_source - 2), 0) : cut]
    return {
        "inputs": wrap(kept, bos_id=bos_id, eos_id=eos_id, max_length=max_source),
        "targets": wrap(tokens[cut:], bos_id=bos_id, eos_id=eos_id, max_length=max_target),
    }


def text_to_code(
    record: Record, rng: np.random.Generator, *, bos_id: int, eos_id: int, max_source: int, max_target: int
) -> dict[str, np.ndarray]:
    """A pair in its own direction: documentation -> code (CodeT5's bimodal dual generation, Wang et al. 2021)."""
    del rng
    return {
        "inputs": wrap(record["inputs"], bos_id=bos_id, eos_id=eos_id, max_length=max_source),
        "targets": wrap(record["targets"], bos_id=bos_id, eos_id=eos_id, max_length=max_target),
    }


def code_to_text(
    record: Record, rng: np.random.Generator, *, bos_id: int, eos_id: int, max_source: int, max_target: int
) -> dict[str, np.ndarray]:
    """A pair turned round: code -> documentation."""
    turned = {"inputs": record["targets"], "targets": record["inputs"]}
    return text_to_code(turned, rng, bos_id=bos_id, eos_id=eos_id, max_source=max_source, max_target=max_target)


def _segments(rng: np.random.Generator, num_items: int, num_segments: int) -> np.ndarray:
    """int64 [num_segments] positive lengths that add up to `num_items`, every composition equally likely."""
    cuts = np.sort(rng.permutation(num_items - 1)[: num_segments - 1]) + 1
    lengths = np.empty(num_segments, np.int64)
    lengths[:-1], lengths[-1] = cuts, num_items
    lengths[1:] -= cuts
    return lengths

"""Records of unequal lengths -> batches of a few fixed shapes, with masks made from the lengths.

Letters: B batch, S source length, T target length, N records.
"""

from collections.abc import Iterable, Sequence

import numpy as np

SOURCE_MULTIPLE = 16
TARGET_MULTIPLE = 8

Shape = tuple[int, int]
"""(S, T) of a batch."""


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length` and not 0."""
    return max(-(-int(length) // multiple), 1) * multiple


def shape_cost(shape: Shape) -> int:
    """Relative cost of a row: a target position also attends to the source and makes logits, so it counts double."""
    return shape[0] + 2 * shape[1]


def in_order(shapes: Iterable[Shape]) -> list[Shape]:
    """Cheapest first; of two that cost the same, the one with the shorter source."""
    return sorted(shapes, key=lambda shape: (shape_cost(shape), shape))


def choose_shapes(source_lengths_N: np.ndarray, target_lengths_N: np.ndarray, *, count: int) -> list[Shape]:
    """At most `count` shapes, cheapest first, the last holding every record; few, because each is compiled once.

    Starts from the shape that holds everything and adds, one at a time, the shape that saves most padding; then each is
    chosen again given the others. Candidates are the quantiles of both lengths, rounded up to multiples of 16 (source)
    and 8 (target).
    """
    assert len(source_lengths_N) == len(target_lengths_N) > 0, (len(source_lengths_N), len(target_lengths_N))
    rounded = []
    for lengths_N, multiple in ((source_lengths_N, SOURCE_MULTIPLE), (target_lengths_N, TARGET_MULTIPLE)):
        rounded.append(np.maximum(-(-np.asarray(lengths_N, np.int64) // multiple), 1) * multiple)
    cells, number = np.unique(np.stack(rounded, axis=1), axis=0, return_counts=True)
    quantiles = [*np.linspace(0, 1, 25), 0.98, 0.99, 0.995]  # the tail is long and thin
    values = [np.unique(np.quantile(lengths, quantiles, method="higher")) for lengths in rounded]
    candidates = np.stack(np.meshgrid(*values, indexing="ij"), axis=-1).reshape(-1, 2)
    fits = (cells[None] <= candidates[:, None]).all(axis=-1)
    candidate_cost = candidates[:, 0] + 2 * candidates[:, 1]
    largest = (int(values[0][-1]), int(values[1][-1]))
    # Row i: what each cell costs in candidate i, or in the largest shape where it does not fit.
    cost = np.where(fits, candidate_cost[:, None], shape_cost(largest))

    def cheapest(chosen: list[int]) -> np.ndarray:
        return np.min(cost[chosen], axis=0, initial=shape_cost(largest))

    chosen: list[int] = []
    while len(chosen) < count - 1:
        totals = np.minimum(cost, cheapest(chosen)) @ number
        if totals.min() >= 0.995 * (cheapest(chosen) @ number):
            break
        chosen.append(int(np.argmin(totals)))
    # An early choice was made without knowing the later ones: let each be made again, twice.
    for place in list(range(len(chosen))) * 2:
        others = chosen[:place] + chosen[place + 1 :]
        chosen[place] = int(np.argmin(np.minimum(cost, cheapest(others)) @ number))
    shapes = {largest, *((int(source), int(target)) for source, target in candidates[chosen])}
    return in_order(shapes)


def smallest_shape(shapes: Sequence[Shape], source_lengths_N: np.ndarray, target_lengths_N: np.ndarray) -> np.ndarray:
    """int64 [N]: the index of the first (cheapest) shape each record fits; the last one must hold every record."""
    table = np.asarray(shapes)
    lengths = np.stack([source_lengths_N, target_lengths_N], axis=1)
    fits = (lengths[:, None] <= table).all(axis=-1)
    assert fits.any(axis=1).all(), f"a record exceeds every shape of {shapes}"
    return np.argmax(fits, axis=1)


def larger_shape(shapes: Sequence[Shape]) -> list[int]:
    """For each shape the index of the next one that holds whatever it holds; for the last one its own index."""
    following = []
    for i, (source, target) in enumerate(shapes):
        holding = [j for j in range(i + 1, len(shapes)) if shapes[j][0] >= source and shapes[j][1] >= target]
        following.append(holding[0] if holding else i)
    return following


def encoder_decoder_batch(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    shape: Shape,
    *,
    start_id: int | np.ndarray = 0,
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """Pads rows to `shape`: inputs_BS, inputs_mask_BS, decoder_inputs_BT, targets_BT, loss_mask_BT.

    Tokens are int32, masks bool and true on the record's own positions, whatever their ids. The decoder reads the
    targets moved right behind `start_id`, one for all rows or one for each.
    """
    inputs_BS, inputs_mask_BS = pad(sources, shape[0], pad_id)
    targets_BT, loss_mask_BT = pad(targets, shape[1], pad_id)
    decoder_inputs_BT = np.empty_like(targets_BT)
    decoder_inputs_BT[:, 0], decoder_inputs_BT[:, 1:] = start_id, targets_BT[:, :-1]
    # Behind the last token that is fed stands padding, and not the </s> that ends the target.
    decoder_inputs_BT[:, 1:][~loss_mask_BT[:, 1:]] = pad_id
    return {
        "inputs_BS": inputs_BS,
        "inputs_mask_BS": inputs_mask_BS,
        "decoder_inputs_BT": decoder_inputs_BT,
        "targets_BT": targets_BT,
        "loss_mask_BT": loss_mask_BT,
    }


def pad(rows: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), both [B, length]: rows filled up with pad_id, the mask true on their own positions."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    assert lengths.max(initial=0) <= length, (int(lengths.max()), length)
    mask = np.arange(length) < lengths[:, None]
    padded = np.full((len(rows), length), pad_id, np.int32)
    if rows:
        padded[mask] = np.concatenate(rows)
    return padded, mask

"""The work of Pallas kernels in a compiled program, which XLA counts as nothing: neither FLOPs nor time.

Known is splash attention, JAX's kernel for TPUs (models/attention_kernels.py). Its matrix products, of queries and keys
in tiles: two forward (logits, mix), three in the pass for the gradient of the queries (logits, gradients of the
probabilities and of the queries) and four in the one for keys and values (logits, gradients of the probabilities, of
the keys and of the values). A layer that is computed again runs the first twice.
"""

import math
import re
from collections.abc import Iterator

from codegen2_jax.sharding.hlo import Instruction, Program

PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")


def flops(program: Program) -> float:
    """FLOPs of all known kernels on one chip, loops in full, 2 for a multiply and add."""
    return sum(times * _splash_flops(program, one, found[1]) for one, times, found in _kernels(program) if found)


def unknown(program: Program) -> list[str]:
    """Names of the kernels whose work is not known here."""
    return sorted({one.name for one, _, found in _kernels(program) if not found})


def _kernels(program: Program) -> Iterator[tuple[Instruction, float, re.Match | None]]:
    for one, times, _ in program.runs():
        if one.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in one.attributes:
            yield one, times, _SPLASH.search(one.name)


def _splash_flops(program: Program, one: Instruction, phase: str) -> float:
    """Of one call: its first arrays of floats are queries [.., T, H] and keys [.., S, H], behind a mask of tiles.

    T of the S positions are on one chip. A fixed prefix, which what is before it sees too, adds a little that is not
    counted.
    """
    types = " ".join(program.type_of(name) for name in one.operands)
    queries, keys = (_sizes(dims) for dims in re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", types)[:2])
    tiles = re.search(r"\bs8\[(\d+,\d+,\d+)\]", types)
    pairs = queries[-2] * keys[-2]
    if tiles:  # without them, every query sees every key
        pairs = _causal_pairs(queries[-2], keys[-2], queries[-2] // _sizes(tiles[1])[1])
    return 2.0 * PRODUCTS[phase] * math.prod(queries[:-2]) * pairs * queries[-1]


def _causal_pairs(own: int, length: int, tile: int) -> int:
    """Queries and keys that a chip multiplies, the one that has most of them: a tile as a whole or not at all.

    Chip d of n has two pieces of the length, d and 2n - 1 - d of 2n (models/dealt_positions.py).
    """
    chips, piece, last_of_tiles = length // own, own // 2, range(tile - 1, own, tile)

    def position(chip: int, place: int) -> int:
        return chip * piece + place if place < piece else (2 * chips - 1 - chip) * piece + place - piece

    tiles = max(sum(position(chip, place) // tile + 1 for place in last_of_tiles) for chip in range(chips))
    return tiles * tile**2


def _sizes(dims: str) -> tuple[int, ...]:
    return tuple(map(int, dims.split(",")))

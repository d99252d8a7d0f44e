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

    T of the S positions are on one chip, dealt so that each chip computes as many tiles (models/dealt_positions.py). A
    tile is computed as a whole or not at all. A fixed prefix, which what is before it sees too, adds a little more.
    """
    types = " ".join(program.type_of(name) for name in one.operands)
    queries, keys = (_sizes(dims) for dims in re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", types)[:2])
    tiles = re.search(r"\bs8\[(\d+,\d+,\d+)\]", types)
    visited = keys[-2]
    if tiles:  # without them, every query sees every key
        visited = (visited + queries[-2] // _sizes(tiles[1])[1]) / 2
    return 2.0 * PRODUCTS[phase] * math.prod(queries) * visited


def _sizes(dims: str) -> tuple[int, ...]:
    return tuple(map(int, dims.split(",")))

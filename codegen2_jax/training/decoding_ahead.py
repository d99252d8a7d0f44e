"""Decoding, compiled for chips that are not here: the pass over the prompts, and the step of one token with its cache.

The functions are the model's own (`prefill` or `encode`, `start_decoding`, `decode_step`), as decoding/ runs them.
Shapes: B rows, S prompt tokens, T new tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.sharding import estimates, hlo, kernels, partitioning, topologies
from codegen2_jax.training.ahead_of_time import Built, compiled
from codegen2_jax.training.fitting import gib, milliseconds

ROWS_A_CHIP = 8


class Prefill(NamedTuple):
    """The pass over the prompts, not compiled, and the shapes that it takes: (weights, tokens, mask)."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    rows: int


def prefill_of(built: Built, shape: tuple[int | None, int, int]) -> Prefill:
    """The prefill of a decoding of this shape, traced once; UserError where rows or positions are not possible."""
    rows, prompt, new = shape
    rows = rows or ROWS_A_CHIP * built.layout.batch_parts
    built.layout.check_rows("decoding", rows, setting="the first number of --decode_shape")
    most = getattr(built.config, "max_positions", prompt + new)
    if prompt + new > most and not built.config.allow_extrapolation:
        raise UserError(f"--decode_shape: {prompt} + {new} tokens exceed the model's {most} positions; give fewer.")
    model, by_rows = built.learner.model, partitioning.batch_sharding(built.layout)

    def first(params, tokens_BS, mask_BS):
        encoded, mask_BS = model.encode(params, tokens_BS, mask_BS)
        if hasattr(model, "prefill"):
            _, encoded, mask_BS = model.prefill(params, tokens_BS, mask_BS)
        decoder = model.decoder_params(params)
        return decoder, model.start_decoding(decoder, encoded, mask_BS, max_length=new)

    tokens, mask = (jax.ShapeDtypeStruct((rows, prompt), dtype, sharding=by_rows) for dtype in (jnp.int32, bool))
    inputs = (built.params["model"], tokens, mask)
    jax.eval_shape(first, *inputs)
    return Prefill(first, inputs, rows)


def examine(
    built: Built,
    topology: topologies.Topology,
    shape: tuple[int | None, int, int],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """What prefill and one step of decoding take on a chip; see `ahead_of_time.examine` for the record's parts."""
    first, inputs, rows = prefill_of(built, shape)
    model, whole = built.learner.model, partitioning.replicated(built.layout)

    def step(decoder, cache, tokens_B1, position):
        logits_B1V, cache = model.decode_step(decoder, cache, tokens_B1, position)
        return jnp.argmax(logits_B1V, axis=-1).astype(jnp.int32), cache

    prefill, took = compiled(jax.jit(first).lower(*inputs))
    say(f"compiled prefill in {took:.0f} s")
    decoder, cache = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(first, *inputs),
        prefill.output_shardings,
    )
    position = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=partitioning.batch_sharding(built.layout))
    lowered = jax.jit(step, donate_argnums=1).lower(decoder, cache, tokens, position)
    one, took_step = compiled(lowered)
    say(f"compiled the step of one token in {took_step:.0f} s")
    parts = {"prefill": _part(prefill, built, topology), "step": _part(one, built, topology)}
    memory = max((part["memory"] for part in parts.values()), key=lambda memory: memory["total"])
    return {
        "rows": rows,
        "prompt_tokens": shape[1],
        "new_tokens": shape[2],
        "cache_bytes_per_chip": _shard_bytes(cache),
        "memory": memory | {"chip": int(topology.chip.hbm_bytes)},
        "fits": memory["total"] <= topology.chip.hbm_bytes,
        **parts,
        "tokens_per_second": rows / parts["step"]["seconds"]["step"],
        "compile_seconds": took + took_step,
    }


def _part(program: Any, built: Built, topology: topologies.Topology) -> dict[str, Any]:
    read = hlo.read(program.as_text(), devices=built.layout.mesh.size)
    cost, rows = estimates.cost_of(program, read).with_loops(), estimates.collectives(read)
    products, in_kernels = read.flops(), kernels.flops(read)
    flops = estimates.Flops(products + in_kernels, products, in_kernels)
    return {
        "memory": estimates.memory(program),
        "flops_per_chip": flops.compiled,
        "bytes_accessed_per_chip": cost.bytes_accessed,
        "collectives": rows,
        "seconds": estimates.seconds(cost, flops, rows, topology.chip),
    }


def _shard_bytes(tree: Any) -> int:
    def size(leaf):
        return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype).size * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def table(record: Mapping[str, Any]) -> str:
    """A record of `examine` to read."""
    memory, step, prefill = record["memory"], record["step"]["seconds"], record["prefill"]["seconds"]
    floors = ", ".join(f"{name} {milliseconds(value)}" for name, value in step["floors"].items())
    lines = [
        ("decoding", f"{record['rows']} rows, {record['prompt_tokens']} prompt and {record['new_tokens']} new tokens"),
        ("memory per chip", f"{gib(memory['total'])} of {gib(memory['chip'])}"),
        ("  of it cache", gib(record["cache_bytes_per_chip"])),
        ("prefill", milliseconds(prefill["step"])),
        ("step", f"{milliseconds(step['step'])}, {record['tokens_per_second']:,.0f} tokens/s"),
        ("floors", f"{floors}; bound by {step['bound']}"),
    ]
    return "\n" + "\n".join(f"{name:<17}{text}" for name, text in lines)

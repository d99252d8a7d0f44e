"""Decoding, compiled for chips that are not here: the pass over the prompts, and the step of one token with its cache.

The functions are the model's own (`prefill` or `encode`, `start_decoding`, `decode_step`), as decoding/ runs them.
Shapes: B rows, S prompt tokens, T new tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax.sharding import estimates, hlo, partitioning, topologies
from codegen2_jax.training.ahead_of_time import Built, compiled
from codegen2_jax.training.fitting import gib, milliseconds

ROWS_A_CHIP = 8


def examine(
    built: Built,
    topology: topologies.Topology,
    shape: tuple[int | None, int, int],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """What prefill and one step of decoding take on a chip; see `ahead_of_time.examine` for the record's parts."""
    rows, prompt, new = shape
    rows = rows or ROWS_A_CHIP * built.layout.batch_parts
    built.layout.process_rows(rows)
    model, by_rows = built.learner.model, partitioning.batch_sharding(built.layout)
    whole = partitioning.replicated(built.layout)

    def rowwise(dtype, *sizes):
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=by_rows)

    def first(params, tokens_BS, mask_BS):
        encoded, mask_BS = model.encode(params, tokens_BS, mask_BS)
        if hasattr(model, "prefill"):
            _, encoded, mask_BS = model.prefill(params, tokens_BS, mask_BS)
        decoder = model.decoder_params(params)
        return decoder, model.start_decoding(decoder, encoded, mask_BS, max_length=new)

    def step(decoder, cache, tokens_B1, position):
        logits_B1V, cache = model.decode_step(decoder, cache, tokens_B1, position)
        return jnp.argmax(logits_B1V, axis=-1).astype(jnp.int32), cache

    inputs = (built.params["model"], rowwise(jnp.int32, prompt), rowwise(bool, prompt))
    prefill, took = compiled(jax.jit(first).lower(*inputs))
    say(f"compiled prefill in {took:.0f} s")
    decoder, cache = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(first, *inputs),
        prefill.output_shardings,
    )
    position = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    lowered = jax.jit(step, donate_argnums=1).lower(decoder, cache, rowwise(jnp.int32, 1), position)
    one, took_step = compiled(lowered)
    say(f"compiled the step of one token in {took_step:.0f} s")
    parts = {"prefill": _part(prefill, built, topology), "step": _part(one, built, topology)}
    memory = max((part["memory"] for part in parts.values()), key=lambda memory: memory["total"])
    return {
        "rows": rows,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "cache_bytes_per_chip": _shard_bytes(cache),
        "memory": memory | {"chip": int(topology.chip.hbm_bytes)},
        "fits": memory["total"] <= topology.chip.hbm_bytes,
        **parts,
        "tokens_per_second": rows / parts["step"]["seconds"]["step"],
        "compile_seconds": took + took_step,
    }


def _part(program: Any, built: Built, topology: topologies.Topology) -> dict[str, Any]:
    read = hlo.read(program.as_text(), devices=built.layout.mesh.size)
    cost, rows, flops = estimates.cost_of(program, read), estimates.collectives(read), read.flops()
    return {
        "memory": estimates.memory(program),
        "flops_per_chip": flops,
        "bytes_accessed_per_chip": cost.bytes_accessed,
        "collectives": rows,
        "seconds": estimates.seconds(cost, flops, rows, topology.chip, flops),
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

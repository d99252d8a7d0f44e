"""What a run would take, without running it: parameters, memory and FLOPs of one lowered step."""

import math
from typing import Any

import jax
import numpy as np

from codegen2_jax import processes
from codegen2_jax.sharding.partitioning import Layout, batch_sharding
from codegen2_jax.training.step import TrainState, merge_params


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of arrays laid out as their shapes say."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shards)


def model_flops(params_shapes: Any, batch: dict, *, prompt_tokens: int, backbone_trains: bool) -> float:
    """Multiply-adds of one step as 2 FLOPs each, attention scores left out.

    2 N FLOPs a token forward; backward costs the same for activations and, where weights train, once more for them
    (Kaplan et al. 2020, section 2.1). Encoder weights count per source token, decoder and head per target token; the
    blocks of a decoder-only model count per source and target token.
    """
    batch_size, target = batch["targets_BT"].shape
    source = batch["inputs_BS"].shape[1] + prompt_tokens if "inputs_BS" in batch else 0
    decoder = _count(params_shapes["decoder"])
    head = _count(params_shapes.get("head", params_shapes["embedding"]))
    per_source, per_target = decoder, decoder + head
    if "encoder" in params_shapes:
        cross = sum(_count(params_shapes["decoder"]["layers"]["cross_attention"][name]) for name in ("k", "v"))
        per_source, per_target = _count(params_shapes["encoder"]) + cross, per_target - cross
    forward = 2.0 * batch_size * (source * per_source + target * per_target)
    return forward * (3 if backbone_trains else 2)


def attention_flops(config: Any, batch: dict, *, prompt_tokens: int = 0) -> float:
    """FLOPs of one step in attention's two products (queries with keys, weights with values), which have no weights.

    4 FLOPs for each channel of each pair of a query and a key forward, twice that backward: both factors of a product
    are activations, whose gradients a prompt needs too, though no weight trains. Of a causal attention the
    visible half counts, and of a pair's source and target all that a decoder sees.
    """
    rows, target = batch["targets_BT"].shape
    source = batch["inputs_BS"].shape[1] + prompt_tokens if "inputs_BS" in batch else 0
    width = config.num_heads * config.head_dim
    if hasattr(config, "num_layers"):
        pairs = config.num_layers * (source + target) ** 2 / 2
    else:
        pairs = config.num_encoder_layers * source**2 + config.num_decoder_layers * (target**2 / 2 + source * target)
    return 3 * 4.0 * rows * width * pairs


def describe_step(
    train_step: Any,
    layout: Layout,
    state_shapes: TrainState,
    batch: dict,
    *,
    prompt_tokens: int = 0,
    note: str = "",
) -> dict[str, float]:
    """Lowers and compiles one step for the shapes of `batch`, prints what it takes, and returns the numbers.

    Memory of the step is the compiled program's on each device: arguments (state and batch), temporaries, output.
    FLOPs are the model's formula (`model_flops`); the compiler's own count sees a loop over layers once and would be
    far too low.
    """
    layout.process_rows(len(batch["targets_BT"]))  # whether they divide
    shapes = {
        name: jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype, sharding=batch_sharding(layout))
        for name, value in batch.items()
    }
    memory = train_step.lower(state_shapes, shapes).compile().memory_analysis()
    model = merge_params(state_shapes.trainable, state_shapes.frozen)["model"]
    numbers = {
        "parameters": _count((state_shapes.trainable, state_shapes.frozen)),
        "trainable_parameters": _count(state_shapes.trainable),
        "parameter_bytes": _bytes((state_shapes.trainable, state_shapes.frozen)),
        "optimizer_bytes": _bytes(state_shapes.opt_state),
        "parameter_bytes_per_device": _bytes_per_device((state_shapes.trainable, state_shapes.frozen)),
        "optimizer_bytes_per_device": _bytes_per_device(state_shapes.opt_state),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "flops_per_step": model_flops(
            model, batch, prompt_tokens=prompt_tokens, backbone_trains="model" in state_shapes.trainable
        ),
    }
    rows, target = np.shape(batch["targets_BT"])
    source = f"({prompt_tokens} prompt + {np.shape(batch['inputs_BS'])[1]} source), " if "inputs_BS" in batch else ""
    if not processes.is_first():
        return numbers
    sizes = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print(f"devices             {jax.device_count()} x {jax.devices()[0].device_kind}{hosts}; mesh: {sizes}")
    print(f"batch               {rows} x {source}{target} target tokens")
    print(f"parameters          {numbers['parameters']:,} ({numbers['trainable_parameters']:,} trained)")
    for name in ("parameter", "optimizer"):
        whole, part = numbers[f"{name}_bytes"], numbers[f"{name}_bytes_per_device"]
        print(f"{name + ' memory':<20}{part / 2**20:,.1f} MiB on each device, {whole / 2**20:,.1f} MiB in all")
    for name in ("argument", "temporary", "output"):
        print(f"{name + ' memory':<20}{numbers[name + '_bytes'] / 2**20:,.1f} MiB on each device")
    print(f"FLOPs per step      {numbers['flops_per_step']:.3e} (model formula, without attention scores)")
    if note:
        print(note)
    return numbers

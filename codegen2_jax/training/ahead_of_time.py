"""The step of a job, compiled for chips that are not here.

A job builds its step for given devices (`built_for`), the very step that `run` jits; this compiles it and reads off
what it takes. Chips and costs are in `sharding/`.
"""

import dataclasses
import os
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jaxlib
import numpy as np

from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding import estimates, hlo, kernels, partitioning, topologies
from codegen2_jax.sharding.estimates import Cost
from codegen2_jax.training.description import attention_flops, model_flops
from codegen2_jax.training.step import Learner, TrainState, merge_params

COMPILERS = 2  # programs compiled at a time: most of a compilation runs on one core, and holds 2 GiB for 7B


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """A job's step for some devices, nothing of it compiled.

    train_step: jitted as the run jits it. state, batch: shapes with shardings. prompt_tokens: vectors before a source.
    accumulation_steps: parts that a batch is computed in. compiler_options: of XLA, for the step.
    """

    train_step: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    layout: partitioning.Layout
    learner: Learner
    prompt_tokens: int = 0
    accumulation_steps: int = 1
    compiler_options: Mapping[str, Any] | None = None

    @property
    def config(self) -> Any:
        return self.learner.model.config

    @property
    def params(self) -> Any:
        """Shapes of all parameters."""
        return merge_params(self.state.trainable, self.state.frozen)

    def model_flops(self) -> float:
        """FLOPs that one step needs by the model's formula, on all chips together; see training/description.py."""
        options = {"prompt_tokens": self.prompt_tokens, "backbone_trains": "model" in self.state.trainable}
        attention = attention_flops(self.config, self.batch, prompt_tokens=self.prompt_tokens)
        return model_flops(self.params["model"], self.batch, **options) + attention


def placed(batch: Mapping[str, np.ndarray], layout: partitioning.Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, its rows where `put_batch` puts them. UserError where they do not divide."""
    layout.process_rows(len(batch["task_B"]))
    sharding = partitioning.batch_sharding(layout)
    return {
        name: jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype, sharding=sharding)
        for name, value in batch.items()
    }


class OutOfMemory(Exception):
    """XLA's own words for a program that it could not place in a chip's memory."""


def compiled(lowered: Any) -> tuple[Any, float]:
    """(the compiled program, the seconds that took); OutOfMemory where the compiler gave up for want of memory."""
    began = time.perf_counter()
    try:
        return lowered.compile(), time.perf_counter() - began
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise OutOfMemory(" ".join(str(error).split())[:300]) from error


def depths(config: Any) -> dict[str, int]:
    """The layers of a configuration, by the field that counts them."""
    names = ("num_encoder_layers", "num_decoder_layers") if isinstance(config, T5Config) else ("num_layers",)
    return {name: getattr(config, name) for name in names}


def step_cost(
    build: Callable[..., Built], config: Any, say: Callable[[str], None], workers: ThreadPoolExecutor
) -> Callable[[], Cost]:
    """XLA's figures for one step on one chip, from programs of one and two unrolled layers (sharding/estimates.py).

    build: `built_for` of a job with its devices bound; takes fields of the model's configuration. Compiling goes on in
    the workers; the function that is returned waits for it.
    """

    def cost(**layers: int) -> Future:
        built = build(unrolled=True, **layers)
        lowered = built.train_step.lower(built.state, built.batch)

        def finish() -> Cost:
            program, took = compiled(lowered)
            say(f"compiled {', '.join(f'{name}={count}' for name, count in layers.items())}, unrolled, in {took:.0f} s")
            return estimates.cost_of(program, hlo.read(program.as_text(), devices=built.layout.mesh.size))

        return workers.submit(finish)

    found = depths(config)
    one = dict.fromkeys(found, 1)
    once, twice = cost(**one), {name: cost(**{**one, name: 2}) for name in found}
    return lambda: estimates.extrapolated(once.result(), {name: two.result() for name, two in twice.items()}, found)


def examine(
    build: Callable[..., Built], topology: topologies.Topology, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Compiles the step of a job for a slice, and says what it takes; the record that is printed and written.

    Raises OutOfMemory as `compiled` does.
    """
    built, chip = build(), topology.chip
    chips = built.layout.mesh.size
    with ThreadPoolExecutor(COMPILERS) as workers:
        whole = workers.submit(compiled, built.train_step.lower(built.state, built.batch))
        finish_cost = step_cost(build, built.config, say, workers)
        program, took = whole.result()
        memory = estimates.memory(program)
        say(f"compiled the whole step in {took:.0f} s: {memory['total'] / 2**30:.2f} GiB a chip")
        cost = finish_cost()
    read = hlo.read(program.as_text(), devices=chips)
    flops = estimates.Flops(built.model_flops() / chips, read.flops(), kernels.flops(read))
    rows = estimates.collectives(read)
    times = estimates.seconds(cost, flops, rows, chip)
    return {
        **header(built, topology),
        "memory": memory | {"chip": int(chip.hbm_bytes)},
        "fits": memory["total"] <= chip.hbm_bytes,
        "flops_per_chip": {
            "model": flops.model,
            "compiled": flops.compiled,
            "kernels": flops.kernels,
            "xla_extrapolated": cost.flops,
        },
        "bytes_accessed_per_chip": cost.bytes_accessed,
        "collectives": rows,
        "seconds": times,
        "tokens_per_second": _tokens(built) / times["step"],
        "unknown_loops": read.unknown_loops,
        "unknown_kernels": kernels.unknown(read),
        "compile_seconds": took,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def header(built: Built, topology: topologies.Topology) -> dict[str, Any]:
    """What was compiled, for which chips, by what."""
    import importlib.metadata

    chip = topology.chip
    shapes = {name: list(leaf.shape) for name, leaf in built.batch.items()}
    return {
        "topology": topology.name,
        "chips": built.layout.mesh.size,
        "chip": {
            "hbm_bytes": int(chip.hbm_bytes),
            "peak_flops": chip.peak_flops,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "ici_bandwidth": chip.ici_bandwidth,
        },
        "mesh": dict(built.layout.mesh.shape),
        "parameters": _count(built.params),
        "trainable_parameters": _count(built.state.trainable),
        "state_bytes_per_chip": {
            "parameters": _bytes_per_chip((built.state.trainable, built.state.frozen)),
            "optimizer": _bytes_per_chip(built.state.opt_state),
        },
        "batch": shapes,
        "rows": len_of(built),
        "batch_parts": built.layout.batch_parts,
        "tokens_per_step": _tokens(built),
        "remat": built.config.remat,
        "dtype": built.config.dtype,
        "accumulation_steps": built.accumulation_steps,
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
        },
        "compiler_options": dict(built.compiler_options or {}),
        "compiler_flags": os.environ.get("LIBTPU_INIT_ARGS", ""),
    }


def len_of(built: Built) -> int:
    """Rows of a batch."""
    return built.batch["task_B"].shape[0]


def _tokens(built: Built) -> int:
    """Positions of a batch that the model reads, padding and all."""
    names = ("tokens_BT",) if "tokens_BT" in built.batch else ("inputs_BS", "decoder_inputs_BT")
    return sum(int(np.prod(built.batch[name].shape)) for name in names)


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes_per_chip(tree: Any) -> int:
    def size(leaf):
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))

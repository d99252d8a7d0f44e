"""Steps to measure: models by name, batches of any shape, compiled programs with their FLOPs, bytes and seconds.

Used by the rooflines, scaling.py, memory.py and gpu.py with its rows. Nothing here needs SeqIO, TensorFlow or a file.
"""

import dataclasses
import json
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import contest
import numpy as np

T5_SHAPES = {
    "codet5-small": dict(vocab_size=32100, d_model=512, d_ff=2048, layers=6, num_heads=8, head_dim=64),
    "codet5-large": dict(vocab_size=32100, d_model=1024, d_ff=4096, layers=24, num_heads=16, head_dim=64),
    "tiny-t5": dict(vocab_size=512, d_model=32, d_ff=64, layers=2, num_heads=2, head_dim=16),
}
DECODER_SHAPES = {
    "codegen2-1b": dict(vocab_size=51200, d_model=2048, layers=16, num_heads=16, head_dim=128, rotary_dim=64),
    "codegen-125m": dict(vocab_size=51200, d_model=768, layers=12, num_heads=12, head_dim=64, rotary_dim=32),
    "tiny-decoder": dict(vocab_size=512, d_model=64, layers=2, num_heads=4, head_dim=16, rotary_dim=8),
}
POOL = dict(top_k=20, prompt_length=5, assignment="code")  # PP-TF as released: 68 keys, 100 vectors in front
NUM_TASKS = 4
EVERYTHING, PROMPT_ALONE = ((".*", "train"),), (("prompt/.*", "train"), (".*", "freeze"))
# Tokens of the real tasks' training splits under CodeT5's vocabulary: quantiles 0, 1/16 ... 1 of sources and targets,
# and the correlation of their ranks (benchmarks/codetask_lengths.py wrote it).
LENGTHS = Path(__file__).with_name("codetask_lengths.json")


def config_of(name: str, **changes: Any):
    """The configuration of a model by its name; changes: other fields, "layers" for both stacks of a T5."""
    from codegen2_jax.models.codegen import CodeGenConfig
    from codegen2_jax.models.t5 import T5Config

    shape = dict(T5_SHAPES[name] if name in T5_SHAPES else DECODER_SHAPES[name]) | changes
    layers = shape.pop("layers")
    if name in T5_SHAPES:
        return T5Config(**shape, num_encoder_layers=layers, num_decoder_layers=layers)
    shape.setdefault("d_ff", 4 * shape["d_model"])
    shape.setdefault("max_positions", 1 << 16)
    return CodeGenConfig(**shape, num_layers=layers)


def pairs(config: Any, rows: int, source: int, target: int, *, query: bool = False) -> dict[str, np.ndarray]:
    """A full batch for an encoder-decoder (or a decoder that learns pairs) of random tokens."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(3, config.vocab_size, (rows, length)).astype(np.int32)  # noqa: E731
    batch = {"inputs_BS": draw(source), "decoder_inputs_BT": draw(target), "targets_BT": draw(target)}
    batch |= {"inputs_mask_BS": np.ones((rows, source), bool), "loss_mask_BT": np.ones((rows, target), bool)}
    batch |= {"task_B": np.arange(rows, dtype=np.int32) % NUM_TASKS, "record_B": np.zeros(rows, np.int32)}
    if query:
        batch["query_BD"] = rng.normal(size=(rows, config.d_model)).astype(np.float32)
    return batch


def windows(config: Any, rows: int, length: int) -> dict[str, np.ndarray]:
    """Packed windows of random tokens, two documents each."""
    tokens_BT = np.random.default_rng(0).integers(3, config.vocab_size, (rows, length)).astype(np.int32)
    zeros_B, places_T = np.zeros(rows, np.int32), np.arange(length, dtype=np.int32)
    return {
        "tokens_BT": tokens_BT,
        "targets_BT": np.roll(tokens_BT, -1, axis=1),
        "positions_BT": np.broadcast_to(places_T, tokens_BT.shape),
        "segments_BT": np.broadcast_to(1 + (places_T >= length // 2).astype(np.int32), tokens_BT.shape),
        "loss_mask_BT": np.broadcast_to(places_T < length - 1, tokens_BT.shape),
        "task_B": zeros_B,
        "record_B": zeros_B,
    }


def records_like_codetask(vocab_size: int, count: int, seed: int = 0) -> dict[str, list[dict]]:
    """{task: records of random tokens}, as long as the real ones are."""
    rng, tasks = np.random.default_rng(seed), {}
    for task, facts in json.loads(LENGTHS.read_text())["tasks"].items():
        # Two normal numbers with the ranks' correlation give the ranks; the quantiles make lengths of them.
        normal_2N = rng.multivariate_normal([0, 0], [[1, facts["correlation"]], [facts["correlation"], 1]], count).T
        ranks_2N = normal_2N.argsort(axis=1).argsort(axis=1) / max(1, count - 1)
        places = np.linspace(0, 1, len(facts["sources"]))
        sides = (np.interp(ranks_2N[0], places, facts["sources"]), np.interp(ranks_2N[1], places, facts["targets"]))
        lengths_N2 = np.stack(sides, axis=1).round().astype(int)
        draw = lambda length: rng.integers(3, vocab_size, length).astype(np.int32)  # noqa: B023, E731
        tasks[task] = [{"id": str(i), "inputs": draw(s), "targets": draw(t)} for i, (s, t) in enumerate(lengths_N2)]
    return tasks


@dataclasses.dataclass
class Step:
    """A jitted training step with its state; `run` takes a batch and gives the metrics, `compiled` the program."""

    train: Any
    state: Any

    @classmethod
    def of(cls, config: Any, *, pool: bool = False, dropout: bool = False, loss_blocks: int | None = None) -> "Step":
        """AdamW on all weights, or on a prompt pool beside frozen ones."""
        import jax

        from codegen2_jax.prompts.pool import PromptPool
        from codegen2_jax.training import optimizers, step
        from codegen2_jax.training.initialisation import model_of

        model = model_of(config)
        params, prompt, prompt_state = {"model": jax.jit(model.init_params)(jax.random.key(0))}, None, {}
        if pool:
            prompt = PromptPool(**POOL, initialisation="random_unit")
            table_VD = params["model"]["embedding"]
            make = lambda key: prompt.init(  # noqa: E731
                key, num_tasks=NUM_TASKS, embedding_VD=table_VD, query_width=config.d_model
            )
            params["prompt"], prompt_state = jax.jit(make)(jax.random.key(1))
        learner = step.Learner(model=model, prompt=prompt, loss_blocks=loss_blocks)
        optimizer = optimizers.AdamW(learning_rate=1e-4, schedule="constant")
        labels = PROMPT_ALONE if pool else EVERYTHING
        return cls(
            *common.training(learner, params, labels, optimizer, prompt_state=prompt_state, dropout=dropout)
        )

    def compiled(self, batch: dict):
        import jax

        return self.train.lower(jax.eval_shape(lambda: self.state), batch).compile()

    def run(self, batch: dict):
        self.state, metrics = self.train(self.state, batch)
        return metrics


def shapes_of_step(config: Any, batch: dict, *, pool: bool = False, loss_blocks: int | None = None):
    """The compiled step of a configuration, with nothing allocated: for its memory alone."""
    import jax

    from codegen2_jax.prompts.pool import PromptPool
    from codegen2_jax.training import optimizers, step
    from codegen2_jax.training.initialisation import model_of

    model = model_of(config)
    prompt = PromptPool(**POOL, initialisation="random_unit") if pool else None
    learner = step.Learner(model=model, prompt=prompt, loss_blocks=loss_blocks)
    labels = PROMPT_ALONE if pool else EVERYTHING
    axes, _ = step.split_params(learner.param_axes(), labels)

    def initial(key):
        params, prompt_state = {"model": model.init_params(key)}, {}
        if pool:
            params["prompt"], prompt_state = prompt.init(
                key, num_tasks=NUM_TASKS, embedding_VD=params["model"]["embedding"], query_width=config.d_model
            )
        return *step.split_params(params, labels), prompt_state

    trainable, frozen, prompt_state = jax.eval_shape(initial, jax.random.key(0))
    optimizer = optimizers.AdamW(learning_rate=1e-4, schedule="constant")
    transformation = optimizer.transformation(100, axes, learner.row_shapes(trainable, prompt_state))
    number = jax.ShapeDtypeStruct((), np.int32)
    state = step.TrainState(
        step=number,
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.eval_shape(transformation.init, trainable),
        prompt_state=prompt_state,
        skipped=number,
    )
    train = step.make_train_step(learner, transformation, seed=0)
    return jax.jit(train, donate_argnums=0).lower(state, batch).compile()


def model_flops(config: Any, batch: dict, *, pool: bool = False) -> float:
    """FLOPs that the model asks for: 2 per weight in a product and token, causal scores at half; 3 times for a step.

    Without recomputation, and without the embedding, which is read and not multiplied.
    """
    import jax

    from codegen2_jax.training import description
    from codegen2_jax.training.initialisation import model_of

    shapes = jax.eval_shape(model_of(config).init_params, jax.random.key(0))
    prompt = POOL["top_k"] * POOL["prompt_length"] if pool else 0
    products = description.model_flops(shapes, batch, prompt_tokens=prompt, backbone_trains=not pool)
    return products + description.attention_flops(config, batch, prompt_tokens=prompt)


def seconds_of(run: Callable[[], Any], *, rounds: int = 3, least: float = 0.0, repeats: int = 1) -> dict[str, Any]:
    """Wall and CPU seconds of one call, medians over rounds of `repeats` calls (more until `least` seconds passed).

    What several calls in a round give must not be donated to the next one: it is waited for.
    """
    import jax

    wall, cpu = [], []
    for _ in range(rounds):
        start, used, count, result = time.perf_counter(), cpu_seconds(), 0, None
        while count < repeats or time.perf_counter() - start < least:
            # Calls return before they are done: without the wait the clock would count what is only queued, and the
            # round would last as long as the queue. One call behind, the device always has another to go on with.
            previous, result = result, run()
            jax.block_until_ready(previous)
            count += 1
        jax.block_until_ready(result)
        wall.append((time.perf_counter() - start) / count)
        cpu.append((cpu_seconds() - used) / count)
    return {
        "seconds": statistics.median(wall),
        "fastest": min(wall),
        "slowest": max(wall),
        "cpu_seconds": statistics.median(cpu),
        "cpu_spread": [min(cpu), max(cpu)],
    }


def cpu_seconds() -> float:
    """Processor seconds of all threads of this process: on a shared machine the steadier clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_of(compiled: Any) -> dict[str, float]:
    """MiB of a compiled program: its arguments, its temporaries, and the most that it holds (donated outputs once)."""
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes, "peak": peak}
    return {name: round(size / 2**20, 2) for name, size in parts.items()}


def last_error(text: str) -> str:
    """The line of a traceback that says what happened; JAX writes some more behind it."""
    lines = text.strip().splitlines() or ["no message"]
    raised = (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exit|Exception)\b", line))
    return next(raised, lines[-1])[:200]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent p of y ~ x^p, by least squares on logarithms."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def machine(threads: int) -> dict:
    """`contest.machine` and the device that JAX computes on."""
    import jax

    return contest.machine(threads) | {"device": jax.devices()[0].device_kind}

"""A published implementation compiled for the same TPU slice and shape: GPT-J of transformers' Flax models beside ours.

  python3.11 -m venv peer && peer/bin/pip install transformers==4.57.1 jax==0.10.2 libtpu==0.0.42 flax==0.12.8 optax
  peer/bin/python benchmarks/pods_peer.py                    # about five minutes on two cores
  peer/bin/python benchmarks/pods_peer.py --rows 1 --topology v5p:4x4x4

Its own environment, since transformers 5 has no Flax models. GPT-J is CodeGen's network up to the order of the rows of
its qkv weights. The step is that of transformers' own example (cross-entropy of the next token, optax.adamw, bfloat16
over float32 weights) but for the mesh: the example keeps all weights on every chip, which 7B with AdamW exceeds; here
they are cut over all chips along their longest side, as ours are, and XLA does the rest. The layers of this network are
not scanned, and nothing is computed again: memory and cost are those of one and of two layers, extrapolated to all.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results"

from codegen2_jax.sharding import topologies  # noqa: E402

topologies.prepare()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

try:
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    import transformers
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from transformers.models.gptj.modeling_flax_gptj import FlaxGPTJForCausalLMModule
except ImportError as error:
    print(f"{error}; this program needs an environment of its own:\n{__doc__}", file=sys.stderr)
    sys.exit(2)

from codegen2_jax.sharding import estimates, hlo, kernels  # noqa: E402

# CodeGen2-7B: gin_configs/models/codegen2_7b.gin.
SHAPE = {"vocab_size": 51200, "n_embd": 4096, "n_inner": 16384, "n_head": 16, "rotary_dim": 64, "n_positions": 2048}
NUM_LAYERS, LENGTH = 32, 2048
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def compiled(devices, rows: int, num_layers: int):
    """The training step with this many layers, for `rows` sequences a chip."""
    config = transformers.GPTJConfig(**SHAPE, **NO_DROPOUT, n_layer=num_layers, tie_word_embeddings=False)
    module = FlaxGPTJForCausalLMModule(config, dtype=jnp.bfloat16)
    optimizer = optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.1)
    mesh = Mesh(devices, ("fsdp",))

    def cut(leaf):
        longest = max(range(leaf.ndim), key=lambda axis: leaf.shape[axis], default=None)
        if longest is None or leaf.shape[longest] % mesh.size:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    def place(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut(leaf)), tree)

    def step(params, moments, tokens_BT, mask_BT, positions_BT):
        def loss(params):
            logits_BTV = module.apply({"params": params}, tokens_BT, mask_BT, positions_BT).logits[:, :-1]
            return optax.softmax_cross_entropy_with_integer_labels(
                logits_BTV.astype(jnp.float32), tokens_BT[:, 1:]
            ).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    tokens = jax.ShapeDtypeStruct(
        (rows * mesh.size, LENGTH), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    short = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a)["params"], short, short, short)
    params, moments = place(params), place(jax.eval_shape(optimizer.init, params))
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, moments, tokens, tokens, tokens)
    began = time.monotonic()
    program = lowered.compile()
    print(f"{rows} rows a chip, {num_layers} layers: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return program, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def measure(topology, rows: int, model_flops: float) -> dict:
    """Memory, seconds and utilisation of a step at full depth. model_flops: of one chip, for so many rows."""
    devices = topologies.devices(topology)
    programs = [compiled(devices, rows, num_layers) for num_layers in (1, 2)]
    (one, first), (two, second) = programs
    read = [hlo.read(program.as_text(), devices=len(devices)) for program, _ in programs]
    costs = [estimates.cost_of(program, text) for (program, _), text in zip(programs, read, strict=True)]

    def deep(at_one: float, at_two: float) -> float:
        return at_one + (NUM_LAYERS - 1) * (at_two - at_one)

    cost = estimates.extrapolated(costs[0], {"layers": costs[1]}, {"layers": NUM_LAYERS})
    sent = [estimates.collectives(text) for text in read]
    rows_sent = [
        {
            "overlaps": overlaps,
            "sent_bytes": deep(*(sum(r["sent_bytes"] for r in found if r["overlaps"] == overlaps) for found in sent)),
        }
        for overlaps in (False, True)
    ]
    flops = estimates.Flops(model_flops, deep(*(text.flops() for text in read)), deep(*map(kernels.flops, read)))
    memory = deep(*(estimates.memory(program)["total"] for program in (one, two)))
    seconds = estimates.seconds(cost, flops, rows_sent, topology.chip)
    return {
        "rows_a_chip": rows,
        "parameters": round(deep(first, second)),
        "memory": memory,
        "chip_memory": topology.chip.hbm_bytes,
        "fits": memory <= topology.chip.hbm_bytes,
        "flops_per_chip": {"model": flops.model, "compiled": flops.compiled},
        "seconds": seconds,
        "tokens_per_second": rows * len(devices) * LENGTH / seconds["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5p:4x4x4", help="one whose row of CodeGen2-7B pods.json has")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 1], help="sequences a chip")
    given = parser.parse_args()
    ours = json.loads((RESULTS / "pods.json").read_text())["rows"][f"7b {given.topology}"]
    topology = topologies.parse(given.topology)
    # The same network and length, so the formula's FLOPs are those of our row, by sequences.
    one_row = ours["flops_per_chip"]["model"] / (ours["rows"] / topology.num_chips)
    path = RESULTS / "pods_peer.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    versions = {module.__name__: module.__version__ for module in (transformers, jax, flax, optax)}
    for rows in given.rows:
        found = measure(topology, rows, one_row * rows) | {"topology": topology.name, "versions": versions}
        stored[f"GPT-J of transformers, 7B, {topology.name}, {rows}"] = found
        path.write_text(json.dumps(stored, indent=1) + "\n")
        print(json.dumps(found))


if __name__ == "__main__":
    main()

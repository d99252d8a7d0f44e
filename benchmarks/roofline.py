"""Where a step's time goes: of each part the FLOPs and bytes, the least time this machine needs for them, and the time.

  python benchmarks/roofline.py                          # CodeT5-small, 8 x (256 + 128); a minute or two on two cores
  python benchmarks/roofline.py --method=pool            # the same behind a prompt of 100 vectors, backbone frozen
  python benchmarks/roofline.py --model=codegen-125m --shape 4 0 512

Parts are compiled alone, one layer of each, and counted as often as the step has them; FLOPs and bytes are XLA's own
account of those programs (which have no loops, so nothing is counted once that runs many times). The floor is the
larger of FLOPs over the rate of a square product and bytes over the rate of a copy, both measured here first. Backward
is the program of value and gradient less that of the value, of weights and inputs; with a pool of inputs alone. What
the sum leaves of the whole step is what the parts do not see: residual additions and norms, the scan, the choice of
prompts, what the compiler fuses across them.
"""

import common
import contest
import steps

from codegen2_jax import start_up


def parts_of(config, shape: tuple[int, int, int]) -> dict[str, tuple[int, object, tuple]]:
    """{part: (how often, a function of (weights, *inputs) to a scalar, its arguments, which of them have gradients)}.

    The weights are argument 0 and stand in none of the last.
    """
    import jax
    import jax.numpy as jnp

    from codegen2_jax.models import attention_kernels, rotary, t5
    from codegen2_jax.models.attention import causal_bias, mask_bias
    from codegen2_jax.models.layers import FeedForward
    from codegen2_jax.models.self_attention import SelfAttention
    from codegen2_jax.training import head_loss

    rows, source, target = shape
    dtype, width = jnp.dtype(config.dtype), config.d_model
    normal = lambda *size: jax.random.normal(jax.random.key(0), size).astype(dtype)  # noqa: E731
    summed = lambda out: jnp.sum(out.astype(jnp.float32))  # noqa: E731

    def module(one, *inputs, **fixed):
        """A module with drawn weights, as (weights, x) -> scalar."""
        boxed = jax.eval_shape(lambda: one.init(jax.random.key(0), *inputs, **fixed))["params"]
        is_box = lambda leaf: hasattr(leaf, "names")  # noqa: E731
        weights = jax.tree.map(lambda box: 0.02 * normal(*box.value.shape).astype(jnp.float32), boxed, is_leaf=is_box)

        def run(weights, x, *rest):
            out = one.apply({"params": weights}, x, *rest, **fixed)
            return summed(out[0] if isinstance(out, tuple) else out)

        return run, (weights, *inputs)

    parts = {}

    def embedding(table_VD, x_BTD, tokens_BT):
        return summed(table_VD[tokens_BT].astype(dtype) * x_BTD)

    tokens = jnp.zeros((rows, source + target), jnp.int32)
    table_VD = normal(config.vocab_size, width).astype(jnp.float32)
    parts["embedding"] = (1, embedding, (table_VD, normal(rows, source + target, width), tokens), ())
    x_BTD = normal(rows, target, width)
    if isinstance(config, t5.T5Config):
        x_BSD = normal(rows, source, width)
        encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
        own = t5._attention(config)
        bias_S, bias_T = (jnp.zeros((1, config.num_heads, n, n)) + causal_bias(n) for n in (source, target))
        mask = mask_bias(jnp.ones((rows, source), bool))

        def to_itself(x, bias, mask):
            run, (weights, _, _) = module(own, x, x, bias_1NQS=bias, mask_B11S=mask)
            return lambda weights, x: run(weights, x, x), (weights, x), (1,)

        parts["attention, encoder"] = (encoder, *to_itself(x_BSD, bias_S, mask))
        parts["attention, decoder"] = (decoder, *to_itself(x_BTD, bias_T, None))
        across = module(own, x_BTD, x_BSD, bias_1NQS=None, mask_B11S=mask)
        parts["attention, across"] = (decoder, *across, (1, 2))
        parts["MLP, encoder"] = (encoder, *module(t5._feed_forward(config), x_BSD), (1,))
        parts["MLP, decoder"] = (decoder, *module(t5._feed_forward(config), x_BTD), (1,))
    else:
        positions = jnp.broadcast_to(jnp.arange(target), (rows, target))
        turned = rotary.rotation(positions, config.rotary_dim, config.rope_theta)
        visible = attention_kernels.Visible(jnp.ones((rows, target), bool), ends_padded=True)
        mask = attention_kernels.prepared(config.attention, visible)
        own = module(SelfAttention.of(config, "neighbours"), x_BTD, turned, mask)
        parts["attention"] = (config.num_layers, *own, (1,))
        mlp = FeedForward(config.d_ff, "gelu", biased=True, dtype=dtype)
        parts["MLP"] = (config.num_layers, *module(mlp, x_BTD), (1,))
    true_BT = jnp.ones((rows, target), bool)

    def head(table_VD, x_BTD, targets_BT):
        return head_loss.head_loss(x_BTD, head_loss.Head(table_VD), targets_BT, true_BT).objective

    parts["head and loss"] = (1, head, (table_VD, x_BTD, jnp.zeros((rows, target), jnp.int32)), (1,))
    return parts


def account(function, arguments: tuple, times: int, peaks: dict, rounds: int) -> dict:
    """GFLOP, GB, floor and measured seconds of a function, run `times` times."""
    import jax

    compiled = jax.jit(function).lower(*arguments).compile()
    cost = compiled.cost_analysis()
    found = steps.seconds_of(lambda: compiled(*arguments), rounds=rounds)
    flops, size = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    floor = max(flops / peaks["flops"], size / peaks["bytes"])
    row = {"gflop": flops / 1e9, "gb": size / 1e9, "floor": floor}
    row |= {"seconds": found["seconds"], "cpu_seconds": found["cpu_seconds"]}
    return {name: times * value for name, value in row.items()}


def measured_peaks(side: int, rounds: int) -> dict[str, float]:
    """FLOP/s of a square float32 product, bytes/s of a copy (read once, written once)."""
    import jax
    import jax.numpy as jnp

    a, line = jnp.ones((side, side)), jnp.ones(side * side * 16)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    rates = {}
    for name, run, amount in (("flops", lambda: product(a), 2 * side**3), ("bytes", lambda: copy(line), 8 * line.size)):
        jax.block_until_ready(run())
        rates[name] = amount / steps.seconds_of(run, rounds=rounds)["fastest"]
    return rates


def rows_of(config, shape: tuple[int, int, int], *, pool: bool, rounds: int, side: int) -> tuple[dict, dict]:
    """({part: its figures}, peaks)."""
    import jax

    peaks = measured_peaks(side, rounds)
    rows, backward = {}, {}
    in_front = steps.POOL["top_k"] * steps.POOL["prompt_length"] if pool else 0
    read = (shape[0], shape[1] + in_front, shape[2])
    for name, (times, function, arguments, inputs) in parts_of(config, read).items():
        rows[name] = account(function, arguments, times, peaks, rounds)
        argnums = inputs if pool else (0, *inputs)
        if not argnums:
            continue
        both = account(jax.value_and_grad(function, argnums=argnums), arguments, times, peaks, rounds)
        backward[f"{name}, backward"] = {key: max(0.0, both[key] - rows[name][key]) for key in both}
    rows |= backward
    batch = steps.pairs(config, *shape, query=pool) if shape[1] else steps.windows(config, shape[0], shape[2])
    step = steps.Step.of(config, pool=pool)
    jax.block_until_ready(step.run(batch))
    found = steps.seconds_of(lambda: step.run(batch)["loss"], rounds=rounds)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(step.state.trainable))
    rows["optimizer"] = optimizer_row(parameters, peaks, rounds)
    total = {key: sum(row[key] for row in rows.values()) for key in ("gflop", "gb", "floor", "seconds", "cpu_seconds")}
    rows["sum of the parts"] = total
    flops = steps.model_flops(config, batch, pool=pool)
    whole = {"gflop": flops / 1e9, "gb": None, "floor": flops / peaks["flops"]}
    rows["the whole step"] = whole | {"seconds": found["seconds"], "cpu_seconds": found["cpu_seconds"]}
    return rows, peaks


def optimizer_row(parameters: int, peaks: dict, rounds: int) -> dict:
    """AdamW's update of as many parameters in one array."""
    import jax
    import jax.numpy as jnp

    from codegen2_jax.training import optimizers

    params, rows = {"w": jnp.ones((parameters,))}, {"w": jnp.ones((), bool)}
    adamw = optimizers.AdamW(learning_rate=1e-4, schedule="constant")
    transformation = adamw.transformation(100, {"w": ("embed",)}, rows)

    def update(params, state, gradients):
        updates, state = transformation.update(gradients, state, params, rows=rows)
        return jax.tree.map(jnp.add, params, updates), state

    state = jax.jit(transformation.init)(params)
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params).compile()
    cost, gradients, held = compiled.cost_analysis(), {"w": jnp.ones((parameters,))}, [params, state]

    def run():
        held[:] = compiled(held[0], held[1], gradients)
        return held[0]["w"]

    found = steps.seconds_of(run, rounds=rounds)
    size = 4 * parameters * 7  # parameters and both moments read and written, gradients read
    row = {"gflop": cost.get("flops", 0.0) / 1e9, "gb": size / 1e9, "floor": size / peaks["bytes"]}
    return row | {"seconds": found["seconds"], "cpu_seconds": found["cpu_seconds"]}


def show(rows: dict[str, dict], heading: str) -> None:
    """Prints {part: its figures} as Markdown; heading: of the first column."""
    print(f"| {heading} | GFLOP | GB | floor s | measured s | CPU s | of floor |\n" + "|---" * 7 + "|")
    for name, row in rows.items():
        gigabytes = "-" if row["gb"] is None else f"{row['gb']:.2f}"
        cells = [f"{row['gflop']:.1f}", gigabytes, f"{row['floor']:.3f}", f"{row['seconds']:.3f}"]
        cells += [f"{row['cpu_seconds']:.3f}", f"{row['seconds'] / max(row['floor'], 1e-9):.1f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    options = common.Options(__doc__, out="benchmarks/results/roofline_{method}_{model}.json")
    options.add_argument("--method", default="finetune", choices=("finetune", "pool"), help="all weights, or prompts")
    options.add_argument("--model", default="codet5-small", choices=[*steps.T5_SHAPES, *steps.DECODER_SHAPES])
    options.add_argument("--shape", type=int, nargs=3, default=(8, 256, 128), metavar=("ROWS", "SOURCE", "TARGET"))
    options.add_argument("--dtype", default="float32")
    options.add_argument("--rounds", type=contest.count, default=5)
    arguments = options.parse_args()
    model, shape, side = arguments.model, tuple(arguments.shape), 2048
    if arguments.tiny:
        model, side = ("tiny-t5", 128) if model in steps.T5_SHAPES else ("tiny-decoder", 128)
        shape = (2, 8 if model == "tiny-t5" else 0, 8)
    if bool(shape[1]) != (model in steps.T5_SHAPES):
        contest.fail(f"--shape {shape}: an encoder-decoder has a source, a decoder's windows have none (0).")
    pool = arguments.method == "pool"
    if pool and not shape[1]:
        contest.fail(f"--method=pool --shape {shape}: prompts stand before a source; give one.")
    config = steps.config_of(model, dtype=arguments.dtype)
    rows, peaks = rows_of(config, shape, pool=pool, rounds=arguments.rounds, side=side)
    print(f"{peaks['flops'] / 1e9:,.0f} GFLOP/s in a square product, {peaks['bytes'] / 1e9:.1f} GB/s in a copy")
    show(rows, "part")
    report = {"machine": steps.machine(2), "model": model, "method": arguments.method, "shape": shape}
    common.write_report(arguments.out, report | {"dtype": arguments.dtype, "peaks": peaks, "parts": rows})


if __name__ == "__main__":
    start_up.use_large_allocations()  # as training does
    main()

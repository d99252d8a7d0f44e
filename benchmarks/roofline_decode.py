"""Where the time of greedy and beam search goes: the floor of each part on this machine, and its time.

  python benchmarks/roofline_decode.py                   # CodeT5-small, 16 sources of 256, 64 tokens; two minutes
  python benchmarks/roofline_decode.py --model=codegen-125m --shape 4 128 64 --num_beams 1

The parts of `decoding.generate`: the source read and its keys made, once; then at every position the network with its
head over a cache of two lengths, and the choice of the next tokens, each as the loop that a search runs. FLOPs are
XLA's account of one position, times the positions; bytes are weights, keys and values, read once a position. Floors are
made as in roofline.py. No row ends early. The head alone is shown too, a part of the network.
"""

import common
import contest
import roofline
import steps

from codegen2_jax import start_up

COLUMNS = ("gflop", "gb", "floor", "seconds", "cpu_seconds")


def parts_of(config, shape: tuple[int, int, int], num_beams: int) -> dict[str, tuple[int, object, object, tuple]]:
    """{part: (how often, one of it to account for, all of it to measure, arguments of both, bytes or None)}.

    Bytes are those that one of it must read; None: XLA's account, which counts more of a cache than is read.
    """
    import dataclasses

    import jax
    import jax.numpy as jnp

    from codegen2_jax.decoding import search
    from codegen2_jax.decoding.generate import generate
    from codegen2_jax.training.initialisation import model_of

    rows, source, max_length = shape
    if config.decoder_start_token_id is None:  # a decoder's, which come with a vocabulary
        config = dataclasses.replace(config, decoder_start_token_id=0, eos_token_id=1, pad_token_id=2)
    model, flat = model_of(config), model_of(dataclasses.replace(config, unrolled=True))
    params = jax.jit(model.init_params)(jax.random.key(0))
    batch = {name: value for name, value in steps.pairs(config, rows, source, 2).items() if name.startswith("inputs")}
    lengths = search.segments(max_length)
    tokens_BK, ends = jnp.full((rows, num_beams), 7, jnp.int32), {"eos_id": -1, "pad_id": 0, "start_id": 0}
    ancestry_BKT = None
    if num_beams > 1:
        ancestry_BKT = jnp.broadcast_to(jnp.arange(num_beams)[None, :, None], (rows, num_beams, max_length))

    def reading(which):
        def read(params, batch):
            encoded, mask_BS = which.encode(params, batch["inputs_BS"], batch["inputs_mask_BS"])
            options = {"max_length": lengths[0], "num_beams": num_beams}
            return which.start_decoding(which.decoder_params(params), encoded, mask_BS, **options)

        return read

    cache, decoder = jax.jit(reading(model))(params, batch), jax.jit(model.decoder_params)(params)
    parts = {"source, once": (1, reading(flat), reading(model), (params, batch), None)}
    unread = decoder["embedding"].nbytes if "head" in decoder else 0  # a row of it for each token
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(decoder)) - unread

    def position(decoder, cache, at):
        return model.decode_step(decoder, cache, tokens_BK, at, ancestry_BKT)

    for before, length in zip((0, *lengths), lengths, strict=False):
        grown = cache if not before else model.grow_decoding(cache, length, num_beams=num_beams)

        def positions(decoder, cache, at, before=before, length=length):
            body = lambda i, held: position(decoder, held[1], i)  # noqa: E731
            start = (jnp.zeros((*tokens_BK.shape, config.vocab_size), jnp.float32), cache)
            return jax.lax.fori_loop(before, length, body, start)[0]

        size = weights + sum(leaf.nbytes for leaf in jax.tree.leaves(grown))
        name = f"network, positions {before} to {length - 1}"
        parts[name] = (length - before, position, positions, (decoder, grown, jnp.int32(before)), size)
    table_VD, bias_V = model.head_weights(params)
    x_BKD = jax.random.normal(jax.random.key(0), (rows, num_beams, table_VD.shape[1])).astype(config.dtype)
    head = model.logits_of
    parts["the head in it"] = (lengths[-1], head, head, (params, x_BKD), table_VD.nbytes)
    logits_BKV = jax.random.normal(jax.random.key(1), (rows, num_beams, config.vocab_size))

    def choice(max_length):
        def choose(logits_BKV):
            # What changes with the position cannot be taken out of the loop.
            step = lambda cache, tokens_BK, position, ancestry_BKT: (logits_BKV + 1e-6 * position, cache)  # noqa: E731
            grow = lambda cache, length: cache  # noqa: E731
            options = {"batch_size": rows, "max_length": max_length, **ends}
            if num_beams > 1:
                return search.beam_search(step, grow, None, num_beams=num_beams, **options)
            return search.greedy(step, grow, None, **options)

        return choose

    parts["choice of the tokens"] = (lengths[-1], choice(2), choice(max_length), (logits_BKV,), logits_BKV.nbytes)
    whole = lambda params, batch: generate(model, params, batch, max_length=max_length, num_beams=num_beams)  # noqa: E731
    parts["the whole"] = (0, None, whole, (params, batch), 0)
    return parts


def rows_of(config, shape: tuple[int, int, int], num_beams: int, peaks: dict, rounds: int) -> dict[str, dict]:
    """{part: its figures}, the sum of the parts last but one."""
    import jax

    rows = {}
    for name, (times, one, everything, arguments, read) in parts_of(config, shape, num_beams).items():
        # A loop over positions is measured whole; what has none is measured once and counted as often as it happens.
        looped = one != everything
        compiled = jax.jit(everything).lower(*arguments).compile()
        found = steps.seconds_of(lambda: compiled(*arguments), rounds=rounds)  # noqa: B023
        spent = {key: found[key] * (1 if looped else times) for key in ("seconds", "cpu_seconds")}
        flops = size = 0.0
        if one is not None:
            cost = jax.jit(one).lower(*arguments).compile().cost_analysis()
            flops = times * cost.get("flops", 0.0)
            size = times * (cost.get("bytes accessed", 0.0) if read is None else read)
        floor = max(flops / peaks["flops"], size / peaks["bytes"])
        rows[name] = {"gflop": flops / 1e9, "gb": size / 1e9, "floor": floor} | spent
    whole, counted = rows.pop("the whole"), [row for name, row in rows.items() if name != "the head in it"]
    total = {key: sum(row[key] for row in counted) for key in COLUMNS}
    rows["sum of the parts"] = total
    rows["the whole"] = whole | {key: total[key] for key in ("gflop", "gb", "floor")}
    return rows


def main() -> None:
    options = common.Options(__doc__, out="benchmarks/results/roofline_decode_{model}.json")
    options.add_argument("--model", default="codet5-small", choices=[*steps.T5_SHAPES, *steps.DECODER_SHAPES])
    sizes = dict(nargs=3, default=(16, 256, 64), metavar=("ROWS", "SOURCE", "TOKENS"))
    options.add_argument("--shape", type=contest.count, **sizes)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--num_beams", type=contest.count, nargs="+", default=(1, 5))
    options.add_argument("--rounds", type=contest.count, default=5)
    arguments = options.parse_args()
    model, shape, side = arguments.model, tuple(arguments.shape), 2048
    if arguments.tiny:
        model, shape, side = "tiny-t5" if model in steps.T5_SHAPES else "tiny-decoder", (2, 8, 40), 128
    config, peaks = steps.config_of(model, dtype=arguments.dtype), roofline.measured_peaks(side, arguments.rounds)
    print(f"{peaks['flops'] / 1e9:,.0f} GFLOP/s in a square product, {peaks['bytes'] / 1e9:.1f} GB/s in a copy")
    searches = {}
    for num_beams in arguments.num_beams:
        found = rows_of(config, shape, num_beams, peaks, arguments.rounds)
        searches["greedy" if num_beams == 1 else f"{num_beams} beams"] = found
    for name, rows in searches.items():
        roofline.show(rows, name)
    report = {"machine": steps.machine(2), "model": model, "shape": shape, "dtype": arguments.dtype, "peaks": peaks}
    common.write_report(arguments.out, report | {"searches": searches})


if __name__ == "__main__":
    start_up.use_large_allocations()  # as training does, whose scoring this is
    main()

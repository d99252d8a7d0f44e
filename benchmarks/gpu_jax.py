"""The rows of gpu.py that JAX computes: each a function of the settings and its own arguments to its figures."""

import functools
import time

import contest
import gpu_work
import numpy as np
import steps


def timed(run, work: dict) -> dict:
    """Seconds of a call, after two to warm up; "compile_seconds" of the first."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - start
    jax.block_until_ready(run())
    found = steps.seconds_of(run, least=work["least"])
    return {"seconds": found["seconds"], "spread": [found["fastest"], found["slowest"]], "compile_seconds": first}


def jax_peak_gib() -> float:
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", contest.peak_gib() * 2**30) / 2**30


def jax_peak(work: dict) -> dict:
    import jax

    side = work["square"]
    # Random: a product of equal numbers takes less power, and so runs at a higher clock.
    a = jax.random.normal(jax.random.key(0), (side, side), "bfloat16")
    found = timed(functools.partial(jax.jit(lambda a: a @ a), a), work)
    return found | {"tflops": 2 * side**3 / found["seconds"] / 1e12}


def jax_pretrain(work: dict, attention: str, remat: str) -> dict:
    from codegen2_jax.models import attention_kernels

    config = steps.config_of(work["decoder"], dtype="bfloat16", remat=remat, attention=attention)
    import jax

    reason = attention_kernels.refusal(attention, jax.default_backend(), config=config)
    if reason is not None:
        return {"skipped": f"{attention} {reason}"}
    batch = steps.windows(config, work["rows"], work["length"])
    step = steps.Step.of(config)
    found = timed(lambda: step.run(batch)["loss"], work)
    loss, tokens = float(step.run(batch)["loss"]), batch["tokens_BT"].size
    facts = {"tokens_per_second": tokens / found["seconds"], "loss": loss, "rows": work["rows"]}
    facts |= {"tflops": steps.model_flops(config, batch) / found["seconds"] / 1e12}
    return found | facts | {"peak_gib": jax_peak_gib()}


def jax_pairs(work: dict, model: str, pool: bool) -> dict:
    """Examples per second over a fixed set of batches in a few shapes."""
    import jax

    config = steps.config_of(model, dtype="bfloat16", dropout_rate=0.1)
    batches, _ = gpu_work.batches_of(work, config.vocab_size)
    if pool:
        rng = np.random.default_rng(0)  # queries are read from the cache, whatever they are
        for batch in batches:
            batch["query_BD"] = rng.normal(size=(work["batch_size"], config.d_model)).astype(np.float32)
    step = steps.Step.of(config, pool=pool, dropout=True)

    def run():
        for batch in batches:
            metrics = step.run(batch)
        return metrics["loss"]

    found = timed(run, work)
    examples = sum(len(batch["task_B"]) for batch in batches)
    flops = sum(steps.model_flops(config, batch, pool=pool) for batch in batches)
    facts = {"examples_per_second": examples / found["seconds"], "tflops": flops / found["seconds"] / 1e12}
    return found | facts | {"loss": float(jax.device_get(run())), "peak_gib": jax_peak_gib()}


def jax_sample(work: dict, batch: int) -> dict:
    import jax

    from codegen2_jax.decoding import sampling
    from codegen2_jax.training.initialisation import model_of

    config = steps.config_of(work["decoder"], dtype="bfloat16")
    model = model_of(config)

    def initial(key):
        params = model.init_params(key)
        params |= {"head": gpu_work.sharpened(params["head"])}
        return jax.tree.map(lambda w: w.astype("bfloat16") if w.ndim > 1 else w, params)

    # On the host: drawing numbers takes more than twice the memory of the weights, which could be the row's peak.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.jit(initial)(jax.random.key(0))
    params = jax.device_put(params, jax.local_devices()[0])
    prompts_BS = gpu_work.prompts_of(work, config, batch)
    run = functools.partial(sample_once, sampling, model, params, prompts_BS, work["new_tokens"])
    found = timed(run, work)
    rate = batch * work["new_tokens"] / found["seconds"]
    return found | {"tokens_per_second": rate, "peak_gib": jax_peak_gib()}


def sample_once(sampling, model, params, prompts_BS, new_tokens: int):
    """The tokens of one sample of each prompt, from ids to ids; nothing ends early."""
    rows = len(prompts_BS)
    decoder = sampling.lay_out(model, params)
    prefix = sampling.read(model, params, prompts_BS, np.ones(prompts_BS.shape, bool))
    none = np.zeros((rows, 0), np.int32)
    rules = sampling.Rules(none[0], np.int32(sampling.NOTHING - 1), none, np.int32(new_tokens))
    how = sampling.draws(np.arange(rows), np.zeros(1), seed=0, temperature=0.8, top_k=0, top_p=0.95)
    chunks = [chunk for chunk, _ in sampling.sample(model, decoder, prefix, np.zeros((rows, 1), bool), rules, how)]
    tokens_BT = np.concatenate(chunks, axis=2)[:, 0]
    assert np.sum(tokens_BT >= 0) == rows * new_tokens, "a sample ended early"
    return tokens_BT

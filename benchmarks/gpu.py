"""One GPU, every figure, one table: training, finetuning, a prompt pool, sampling, beside transformers on torch.

  bash benchmarks/gpu.sh                                          # what 8.5 minutes hold; again: the rows that are left
  bash benchmarks/gpu.sh --data_dir=DIR --vocabulary=DIR          # CodeTask-CL's records and CodeT5's tokenizer files
  bash benchmarks/gpu.sh --smoke                                  # everything, tiny, on a CPU: does it run?

  peak      a square product of random bfloat16 numbers, in JAX and in torch: what the GPU gives
  pretrain  CodeGen2-1B, AdamW, windows of 2,048 tokens in bfloat16, with cudnn's and xla's attention: tokens/s, and the
            share of the GPU's peak that the model's own FLOPs are (MFU; causal scores count half, recomputation not; of
            finetuning and pools padding too, since it is computed)
  finetune  CodeT5-small and -large, AdamW on all weights, on batches of CodeTask-CL, each of one task; without
            --data_dir on random tokens of the real lengths. Both sides train on the same records: ours in the loader's
            batches (like lengths together, three shapes), torch's shuffled, each batch padded to its longest row
  pool      PP-TF's pool (68 keys, 100 vectors) beside frozen weights, on the same batches. Torch computes the query
            with the encoder, without dropout; ours reads it
  sample    CodeGen2-1B in bfloat16, top-p 0.95 behind prompts of 128 tokens, batches of 1, 32 and 256. The weights are
            random, the head's scaled on both sides to logits of standard deviation 6: 2.2 nats a token, the top-p part
            mostly below 10 tokens, near to a trained model's. Unscaled they are almost even, and top-p keeps 33,000
            tokens, which no model in use makes it do

Torch attends by sdpa where transformers has it for the architecture (T5, not CodeGen) and is compiled, for samples as
transformers does it: a cache of fixed length, and each token a replayed CUDA graph. Where compiling fails or takes more
than 90 seconds it runs as it is. The note of a row says which. Rates are medians of 3 rounds, with slowest and fastest.

Every measurement is a process of its own, so that its peak of memory (of what arrays held, by each library's own
account) is its own and a failure is a row, not the end; the end of what a failed row said stands in the report, and the
exit code is then 1. The report (--out) is written after every row. A second call adds the rows that are missing, were
left out or failed to the report that is there; --again measures the rest anew as well. It must have the same settings,
versions and GPU: with others it ends with an error, so that no table mixes them. What --minutes do not reach is listed
as left out, and so are the rows of a library that is not installed. Torch runs where it sees the GPU (with --smoke: on
the CPU).
"""

import argparse
import functools
import gc
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BEGAN = time.perf_counter()  # ahead of the imports that take seconds: --minutes count from the program's start

import contest  # noqa: E402
import gpu_report  # noqa: E402
import numpy as np  # noqa: E402
import steps  # noqa: E402

from codegen2_jax import json_files  # noqa: E402

REAL = dict(decoder="codegen2-1b", t5=("codet5-small", "codet5-large"), length=2048, rows=16, batch_size=32)
REAL |= dict(batches_per_task=3, samples=(1, 32, 256), prompt=128, new_tokens=128, square=8192, least=3.0)
REAL |= dict(records=2000, compile_limit=90)
SMOKE = dict(decoder="tiny-decoder", t5=("tiny-t5",), length=64, rows=2, batch_size=4)
SMOKE |= dict(batches_per_task=1, samples=(1, 2), prompt=8, new_tokens=4, square=256, least=0.0, records=40)
SMOKE |= dict(compile_limit=90)
SHARPNESS = 6.0  # standard deviation of the logits that samples are drawn from
NO_GPU, STOPPED = "JAX sees no GPU", "stopped after"
OUTPUT = 4000  # characters that are kept of what a failed row said


class LeftOut(Exception):
    """Why a row cannot be measured here."""


# ------------------------------------------------------------------------------------------------------------ with JAX


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
    batches, _ = batches_of(work, config.vocab_size)
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
        params |= {"head": sharpened(params["head"])}
        return jax.tree.map(lambda w: w.astype("bfloat16") if w.ndim > 1 else w, params)

    # On the host: drawing numbers takes more than twice the memory of the weights, which could be the row's peak.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.jit(initial)(jax.random.key(0))
    params = jax.device_put(params, jax.local_devices()[0])
    prompts_BS = prompts_of(work, config, batch)
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


# ---------------------------------------------------------------------------------------------------------- with torch


def torch_setup(work: dict):
    """(torch, device): full speed, and the largest peak from here on."""
    import torch

    torch.set_float32_matmul_precision("high")
    if work["smoke"]:
        return torch, "cpu"
    if not torch.cuda.is_available():
        raise LeftOut("torch sees no GPU")
    return torch, "cuda"


def as_it_is(function):
    return function


def torch_timed(run_of: Callable, work: dict, torch, device: str, dynamic: bool | None = None) -> dict:
    """Seconds of the call `run_of(wrap)`, compiled where that works; "compiled" says of a model what ran.

    wrap: takes a module or a function to its compiled form, or is `as_it_is`; nothing is compiled on a CPU.
    dynamic: whether one program is to hold for all lengths, as `torch.compile` has it.
    """

    def stop(*_):
        raise TimeoutError(f"more than {work['compile_limit']} s")

    def mark() -> Callable:
        """Waits, when called, for what the device was given up to now."""
        if device != "cuda":
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    note, start = "not compiled", time.perf_counter()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # making the model is no part of the work
        signal.signal(signal.SIGALRM, stop)  # many layers can take longer than the row has
        signal.alarm(work["compile_limit"])
        try:
            run = run_of(functools.partial(torch.compile, dynamic=dynamic))
            run()
            wait()
            note = "compiled"
        except Exception as error:  # whatever the compiler raises, the row without it is worth having
            reason = next(iter(str(error).strip().splitlines()), "")
            note = f"not compiled ({type(error).__name__}: {reason[:80]})"
            torch.compiler.reset()
        finally:
            signal.alarm(0)
    if note != "compiled":
        if device == "cuda":  # behind the except clause, whose error keeps all that the failed call held
            run = None
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        run = run_of(as_it_is)
        run()
        wait()
    first = time.perf_counter() - start
    run()
    wait()
    rates = []
    for _ in range(3):
        start, count, previous = time.perf_counter(), 0, lambda: None
        while not count or time.perf_counter() - start < work["least"]:
            # One call behind, as `steps.seconds_of` waits for ours: the device always has another to go on with.
            run()
            previous()
            previous, count = mark(), count + 1
        wait()
        rates.append((time.perf_counter() - start) / count)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else contest.peak_gib()
    rates.sort()
    found = {"seconds": rates[1], "spread": [rates[0], rates[2]], "compile_seconds": first, "peak_gib": peak}
    return found | {"compiled": note}


def torch_peak(work: dict) -> dict:
    torch, device = torch_setup(work)
    a = torch.randn((work["square"], work["square"]), device=device).to(torch.bfloat16)
    found = torch_timed(lambda wrap: lambda: a @ a, work, torch, device)
    del found["compiled"]  # there is nothing to compile
    return found | {"tflops": 2 * work["square"] ** 3 / found["seconds"] / 1e12}


def torch_model(automatic: str, config, device: str, dtype):
    """(model, how its attention is computed): sdpa where transformers has it for this architecture."""
    import torch
    import transformers

    for attention in ("sdpa", "eager"):
        try:
            with torch.device(device):  # drawing a billion numbers on the host takes longer than measuring
                model = getattr(transformers, automatic).from_config(config, attn_implementation=attention, dtype=dtype)
        except ValueError:
            continue
        return model.to(device=device, dtype=dtype), attention
    raise SystemExit(f"transformers can make no {type(config).__name__} with this configuration")


def torch_decoder(work: dict, device: str, dtype):
    import transformers

    ours = steps.config_of(work["decoder"])
    config = transformers.CodeGenConfig(
        vocab_size=ours.vocab_size, n_embd=ours.d_model, n_layer=ours.num_layers, n_head=ours.num_heads,
        rotary_dim=ours.rotary_dim, n_positions=work["length"], n_inner=ours.d_ff, eos_token_id=None,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    return torch_model("AutoModelForCausalLM", config, device, dtype)


def torch_pretrain(work: dict) -> dict:
    torch, device = torch_setup(work)
    model, attention = torch_decoder(work, device, torch.float32)
    # Without, this batch does not fit; the reentrant kind would split the compiled program.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    config = steps.config_of(work["decoder"])
    batch = steps.windows(config, work["rows"], work["length"])
    tokens = torch.from_numpy(batch["tokens_BT"].astype(np.int64)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")

    def run_of(wrap):
        forward = wrap(model)

        def run():
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return run

    found = torch_timed(run_of, work, torch, device)
    facts = {"tokens_per_second": tokens.numel() / found["seconds"], "rows": work["rows"]}
    facts |= {"tflops": steps.model_flops(config, batch) / found["seconds"] / 1e12}
    return found | facts | {"note": f"{attention} attention, gradient checkpointing, {found['compiled']}"}


def torch_pairs(work: dict, model: str, pool: bool) -> dict:
    """The records of our batches as `benchmarks/train_step.py` has torch train on them; see `shuffled`."""
    torch, device = torch_setup(work)
    import codetask
    import train_step
    import transformers

    from codegen2_jax.prompts.pool import PromptPool

    ours = steps.config_of(model)
    config = transformers.T5Config(
        vocab_size=ours.vocab_size, d_model=ours.d_model, d_ff=ours.d_ff, d_kv=ours.head_dim, num_heads=ours.num_heads,
        num_layers=ours.num_encoder_layers, num_decoder_layers=ours.num_decoder_layers, dropout_rate=0.1,
        decoder_start_token_id=0,
    )  # fmt: skip
    network, attention = torch_model("AutoModelForSeq2SeqLM", config, device, torch.float32)
    network.train()
    _, records = batches_of(work, ours.vocab_size)
    groups = []  # padded ahead, as the processes of a loader would
    for rows in shuffled(records, work["batch_size"]):
        inputs = codetask.pad([row["inputs"] for row in rows], -1)
        arrays = [np.maximum(inputs, 0), (inputs >= 0).astype(np.int64)]
        arrays += [codetask.pad([row["targets"] for row in rows], -100), np.array([row["task"] for row in rows])]
        groups.append([torch.from_numpy(array) for array in arrays])
    prompts = None
    if pool:
        network.requires_grad_(False)
        table = np.asarray(PromptPool(**steps.POOL).table(steps.NUM_TASKS))
        prompts = train_step.TorchPool(table, ours.d_model).to(device)
    trained = list((prompts or network).parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=device == "cuda")

    def run_of(wrap):
        forward, encode = wrap(network), wrap(network.encoder)

        def loss_of(inputs, mask, labels, tasks):
            if prompts is None:
                return forward(input_ids=inputs, attention_mask=mask, labels=labels).loss
            with torch.no_grad():
                network.encoder.eval()
                states = encode(input_ids=inputs, attention_mask=mask).last_hidden_state.float()
                query = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                network.encoder.train()
            vectors, pull = prompts(query, tasks)
            embeds = torch.cat([vectors, network.shared(inputs)], dim=1)
            mask = torch.cat([torch.ones(vectors.shape[:2], dtype=torch.int64, device=device), mask], dim=1)
            return forward(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss - 0.1 * pull

        def run():
            for group in groups:
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = loss_of(*(array.to(device) for array in group))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return run

    found = torch_timed(run_of, work, torch, device, dynamic=True)
    note = f"{attention} attention, dynamic padding, autocast, {found['compiled']}"
    return found | {"examples_per_second": len(records) / found["seconds"], "note": note}


def torch_sample(work: dict, batch: int) -> dict:
    torch, device = torch_setup(work)
    model, attention = torch_decoder(work, device, torch.bfloat16)
    model.eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(sharpened(model.lm_head.weight.float()))
    prompts = torch.from_numpy(prompts_of(work, steps.config_of(work["decoder"]), batch).astype(np.int64)).to(device)
    options = dict(do_sample=True, temperature=0.8, top_p=0.95, top_k=0, pad_token_id=0)
    options |= dict(max_new_tokens=work["new_tokens"], min_new_tokens=work["new_tokens"])

    def run_of(wrap):
        from transformers import StaticCache

        cache = None
        if wrap is not as_it_is:  # not used: with a static cache transformers compiles by itself
            cache = StaticCache(config=model.config, max_cache_len=work["prompt"] + work["new_tokens"])

        def run():
            if cache is None:
                with torch.inference_mode():
                    tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
            else:
                cache.reset()  # the same one each time: a graph is replayed on the memory it was recorded on
                tokens = model.generate(
                    prompts, attention_mask=torch.ones_like(prompts), past_key_values=cache, **options
                )
                if device == "cuda" and not hasattr(model, "_compiled_call"):
                    raise RuntimeError("transformers left it uncompiled")
            assert tokens.shape[1] == work["prompt"] + work["new_tokens"], "a sample ended early"

        return run

    found = torch_timed(run_of, work, torch, device)
    rate = batch * work["new_tokens"] / found["seconds"]
    return found | {"tokens_per_second": rate, "note": f"{attention} attention, {found['compiled']}"}


# -------------------------------------------------------------------------------------------------------------- driver


def records_of(work: dict, vocab_size: int) -> dict[str, list[dict]]:
    """CodeTask-CL's training records, or random ones as long; a tiny vocabulary gets random ones in any case."""
    if work["data_dir"] and vocab_size >= 32100:
        import codetask

        return codetask.records(work["data_dir"], work["vocabulary"], "train")
    records = steps.records_like_codetask(vocab_size, work["records"])
    if work["smoke"]:  # short ones: the point is that it runs
        records = {
            task: [row | {side: row[side][:16] for side in ("inputs", "targets")} for row in rows]
            for task, rows in records.items()
        }
    return records


def batches_of(work: dict, vocab_size: int) -> tuple[list[dict], list[dict]]:
    """(our batches, the records in them with their "task"): each batch of one task, planned over its whole split."""
    from codegen2_jax.data.loader import TrainingBatches

    tasks, size = list(records_of(work, vocab_size).values()), work["batch_size"]
    # One set of shapes for all tasks, as a run over the stream has it.
    shapes = TrainingBatches(tasks, range(len(tasks)), size, seed=0, num_shapes=3).shapes
    batches, records = [], []
    for task, rows in enumerate(tasks):
        loader = TrainingBatches([rows], [task], size, seed=0, shapes=shapes)
        for number in range(work["batches_per_task"]):
            batches.append(loader.batch(number))
            records += [rows[i] | {"task": task} for i in batches[-1]["record_B"]]
    return batches, records


def shuffled(records: list[dict], batch_size: int) -> list[list[dict]]:
    """The records in batches of one task each, both in random order: as a Hugging Face collator gets them.

    Drawn once for all rounds, so that no shape is compiled while the clock runs.
    """
    rng, groups = np.random.default_rng(0), []
    for task in sorted({row["task"] for row in records}):
        own = [row for row in records if row["task"] == task]
        order = rng.permutation(len(own))
        groups += [[own[i] for i in order[at : at + batch_size]] for at in range(0, len(own), batch_size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def prompts_of(work: dict, config, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, config.vocab_size, (batch, work["prompt"])).astype(np.int32)


def sharpened(head_VD):
    """The head, of JAX or of torch, scaled to logits of standard deviation SHARPNESS behind the last LayerNorm."""
    return head_VD * (SHARPNESS / (head_VD.std() * head_VD.shape[1] ** 0.5))


def plan(work: dict) -> dict[str, tuple[str, dict]]:
    """{row: (function, arguments)} in the order of their worth: pretraining, ours and torch's, before all others."""
    decoder = work["decoder"]
    pretrain = lambda attention, remat: ("jax_pretrain", {"attention": attention, "remat": remat})  # noqa: E731
    rows = {"peak, jax": ("jax_peak", {}), f"pretrain {decoder}, jax cudnn": pretrain("cudnn", "dots_no_batch")}
    rows[f"pretrain {decoder}, torch"] = ("torch_pretrain", {})
    rows[f"pretrain {decoder}, jax cudnn, remat none"] = pretrain("cudnn", "none")
    pairs = {
        model: {
            f"{'pool' if pool else 'finetune'} {model}, {side}": (f"{side}_pairs", {"model": model, "pool": pool})
            for pool in (False, True)
            for side in ("jax", "torch")
        }
        for model in work["t5"]
    }
    small, *larger = pairs.values()
    rows |= small
    for batch in work["samples"]:
        rows |= {f"sample {batch}, {side}": (f"{side}_sample", {"batch": batch}) for side in ("jax", "torch")}
    rows[f"pretrain {decoder}, jax xla"] = pretrain("xla", "dots_no_batch")
    rows[f"pretrain {decoder}, jax cudnn, remat full"] = pretrain("cudnn", "full")
    rows["peak, torch"] = ("torch_peak", {})
    for more in larger:
        rows |= more
    return rows


def chosen(rows: dict, asked: str) -> list[str]:
    """The names that contain one of the comma-separated parts, and the peak, which the others are measured by."""
    parts = [part.strip() for part in asked.split(",") if part.strip()]
    unknown = [part for part in parts if not any(part in name for name in rows)]
    if unknown:
        names = ", ".join(map(repr, unknown))
        contest.fail(f"--rows={asked}: no row's name contains {names}; rows: {'; '.join(rows)}.")
    return [name for name in rows if not parts or name == "peak, jax" or any(part in name for part in parts)]


def why(said: str, code: int) -> str:
    """What ended a process, in a line: a signal's name, where that was it, and the error that it told."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; it said: {steps.last_error(said)}"
    return steps.last_error(said)


def measured(function: str, arguments: dict, work: dict, limit_s: float) -> dict:
    """One row, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out, said = Path(scratch, "row.json"), Path(scratch, "said")
        task = json.dumps({"function": function, "arguments": arguments, "work": work, "out": str(out)})
        # JAX gives memory back and takes what it needs, so that the peak is the program's; 0.95 of all at most.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": "0.95"}
        environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its old name; JAX refuses both together
        platforms = os.environ.get("JAX_PLATFORMS", "")
        if work["smoke"] or function.startswith("torch"):
            environment["JAX_PLATFORMS"] = "cpu"
        elif platforms and "cpu" not in platforms.split(","):
            environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # where the weights of samples are drawn
        command = [sys.executable, __file__, f"--row={task}"]
        # A file, no pipe: the compiler's processes, which torch leaves for a moment, would hold a pipe open.
        with said.open("wb") as noise:
            try:
                done = subprocess.run(command, env=environment, stdout=noise, stderr=noise, timeout=limit_s)
            except subprocess.TimeoutExpired:
                reason = f"{STOPPED} {limit_s:.0f} s; --row_minutes gives more"
                return {"failed": reason, "output": said.read_text(errors="replace")[-OUTPUT:]}
        text = said.read_text(errors="replace")
        if done.returncode or not out.exists():
            return {"failed": why(text, done.returncode), "output": text[-OUTPUT:]}
        row = json.loads(out.read_text())
        if "left_out" in row and row["left_out"] == NO_GPU and text.strip():  # JAX says why, and goes on with the CPU
            row["told"] = steps.last_error(text)
        return row


def one_row(task: dict) -> dict:
    """What a row's own process does."""
    function, work = task["function"], task["work"]
    try:
        if function.startswith("torch"):
            torch, device = torch_setup(work)
            device = torch.cuda.get_device_name() if device == "cuda" else device
        else:
            import jax

            device = jax.devices()[0].device_kind
            if jax.default_backend() == "cpu" and not work["smoke"]:
                raise LeftOut(NO_GPU)
        found = globals()[function](work, **task["arguments"])
    except LeftOut as reason:
        return {"left_out": str(reason)}
    except ModuleNotFoundError as error:
        if not error.name:  # transformers' word for an import of its own that failed
            raise
        return {"left_out": f"{error.name} is not installed"}
    return found | ({"device": device, "date": time.strftime("%Y-%m-%d")} if "seconds" in found else {})


def is_done(row: dict) -> bool:
    """Measured, or nothing that could be measured here; others are tried again."""
    return "seconds" in row or "skipped" in row


def earlier(out: Path, work: dict, machine: dict) -> tuple[dict, dict]:
    """(rows, machine) of the report that is there, which must be one of the same settings and versions."""
    if not out.exists():
        return {}, machine
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        rows, before = report["rows"], report["machine"]
        then = report["settings"] | before["versions"]
    except (ValueError, KeyError, TypeError) as error:
        contest.fail(f"{out} is no report of this program ({error!r}); give another --out.")
    now = json.loads(json.dumps(work | machine["versions"]))
    other = [f"{name}={then.get(name)!r}" for name in now | then if now.get(name) != then.get(name)]
    if other:
        contest.fail(f"{out} was measured with {', '.join(other)}; give another --out, or delete it to start anew.")
    return rows, before


def check(arguments: argparse.Namespace) -> None:
    """Ends the program where an option cannot be meant, before a row takes its time to fail of it."""
    if bool(arguments.data_dir) != bool(arguments.vocabulary):
        contest.fail("--data_dir and --vocabulary belong together: records and the tokenizer they need.")
    if arguments.data_dir and arguments.smoke:
        contest.fail("--smoke trains tiny models on random records; give it no --data_dir.")
    if arguments.data_dir:
        contest.check_folders(data_dir=arguments.data_dir, vocabulary=arguments.vocabulary)
    for name, least in (("minutes", 0), ("row_minutes", 0.1), ("batch_rows", 1)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < math.inf:
            contest.fail(f"--{name}={value:g} must be at least {least} and finite.")


def main() -> None:
    options = contest.Parser(__doc__)
    options.add_argument("--smoke", action="store_true", help="everything tiny, on a CPU")
    options.add_argument("--data_dir", default="", help="CodeTask-CL's files; without: random tokens, real lengths")
    options.add_argument("--vocabulary", default="", help="directory of CodeT5's tokenizer files, with --data_dir")
    options.add_argument("--rows", default="", help="only rows whose name contains one of these, comma separated")
    options.add_argument("--again", action="store_true", help="measure rows anew that the report has")
    options.add_argument("--minutes", type=float, default=8.5, help="no longer, from the start of the program")
    options.add_argument("--row_minutes", type=float, default=3.0, help="no longer for one row, which fails then")
    options.add_argument("--batch_rows", type=int, help="windows of a pretraining step, default 16")
    options.add_argument("--out", help="default benchmarks/results/gpu.json; with --smoke nothing is written")
    options.add_argument("--row", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.row:
        task = json.loads(arguments.row)
        Path(task["out"]).write_text(json.dumps(one_row(task)))
        return
    check(arguments)
    work = dict(SMOKE if arguments.smoke else REAL)
    work |= {"smoke": arguments.smoke, "data_dir": arguments.data_dir, "vocabulary": arguments.vocabulary}
    if arguments.batch_rows is not None:
        work["rows"] = arguments.batch_rows
    out = Path(arguments.out) if arguments.out else None if arguments.smoke else Path("benchmarks/results/gpu.json")
    rows, machine = plan(work), contest.machine(os.cpu_count())
    names = chosen(rows, arguments.rows)
    results, machine = earlier(out, work, machine) if out else ({}, machine)
    names = [name for name in names if arguments.again or not is_done(results.get(name, {}))]
    failed = []
    # What failed before may fail again and take its time: behind what was not tried.
    for name in sorted(names, key=lambda name: "failed" in results.get(name, {})):
        left, start = arguments.minutes * 60 - (time.perf_counter() - BEGAN), time.perf_counter()
        if left <= 0:
            results.setdefault(name, {"left_out": "no time was left"})
            continue
        limit = min(left, arguments.row_minutes * 60)
        row = measured(*rows[name], work, limit)
        if row.get("failed", "").startswith(STOPPED) and limit == left:
            row = {"left_out": "no time was left to finish it"}
        if row.get("left_out") == NO_GPU:
            told = f" It said: {row['told']}" if "told" in row else ""
            contest.fail(f"{NO_GPU}; install codegen2_jax[cuda] or [cuda12], or use --smoke.{told}")
        before = gpu_report.device_of(results, name.split(", ")[1].split()[0])
        if "device" in row and before and row["device"] != before:
            contest.fail(f"{out} was measured on {before}, and this is {row['device']}; give another --out.")
        if is_done(row) or not is_done(results.get(name, {})):
            results[name] = row
        if "failed" in row:
            failed.append(name)
        results = {name: results[name] for name in rows if name in results}
        if out:  # at once: whatever ends the program later, this row is kept
            json_files.write(out, gpu_report.report_of(results, work, machine))
        rest = f"{arguments.minutes - (time.perf_counter() - BEGAN) / 60:.1f} minutes left"
        print(f"{name}: {gpu_report.said_of(row)}; {time.perf_counter() - start:.0f} s, {rest}", flush=True)
    results = {name: results[name] for name in rows if name in results}
    report = gpu_report.report_of(results, work, machine)
    found = report["machine"]
    print(f"\n{found['device']}, peak {found['peak_tflops']:.4g} TFLOP/s in bfloat16 ({found['peak_from']})")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{versions}; {gpu_report.dates_of(results)}")
    print(f"{report['table']}\n")
    if out:
        contest.write(out, report)
    if failed:
        print(f"error: {len(failed)} of {len(names)} rows failed: {'; '.join(failed)}.", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()

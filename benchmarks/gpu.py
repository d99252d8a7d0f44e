"""One GPU, every figure, one table: training, finetuning, a prompt pool, sampling, beside transformers on torch.

  bash benchmarks/gpu.sh                                          # about ten minutes on one GPU
  bash benchmarks/gpu.sh --data_dir=DIR --vocabulary=DIR          # CodeTask-CL's records and CodeT5's tokenizer files
  bash benchmarks/gpu.sh --smoke                                  # everything, tiny, on a CPU: does it run?

  peak      a square product in bfloat16, in JAX and in torch: what the GPU gives, and the rates below are measured by
  pretrain  CodeGen2-1B, AdamW, windows of 2,048 tokens in bfloat16, with xla's and cudnn's attention: tokens/s, and the
            share of the GPU's peak that the model's own FLOPs are (MFU; causal scores count half, recomputation not)
  finetune  CodeT5-small and -large, AdamW on all weights, on batches of CodeTask-CL; without --data_dir on random
            tokens of the real lengths. Torch pads dynamically
  pool      PP-TF's pool (68 keys, 100 vectors) beside frozen weights, on the same batches. Torch computes the query
            with the encoder; ours reads it
  sample    CodeGen2-1B, random weights in bfloat16, top-p 0.95 behind prompts of 128 tokens, batches of 1, 32 and 256

Every measurement is a process of its own, so that its peak of memory is its own and a failure is a row, not the end.
What --minutes do not reach is listed. Torch runs where it sees the GPU (with --smoke: on the CPU).
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
import numpy as np
import steps

# Dense bfloat16 products, TFLOP/s, by a part of the device's name (the makers' data sheets).
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "B200": 2250}
REAL = dict(decoder="codegen2-1b", t5=("codet5-small", "codet5-large"), length=2048, rows=16, batch_size=32)
REAL |= dict(batches=12, samples=(1, 32, 256), prompt=128, new_tokens=128, square=8192, least=3.0, records=2000)
SMOKE = dict(decoder="tiny-decoder", t5=("tiny-t5",), length=64, rows=2, batch_size=4)
SMOKE |= dict(batches=2, samples=(1, 2), prompt=8, new_tokens=4, square=256, least=0.0, records=40)


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
    a = jax.numpy.ones((side, side), "bfloat16")
    found = timed(functools.partial(jax.jit(lambda a: a @ a), a), work)
    return found | {"tflops": 2 * side**3 / found["seconds"] / 1e12, "device": jax.devices()[0].device_kind}


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

    from codegen2_jax.data.loader import TrainingBatches

    config = steps.config_of(model, dtype="bfloat16", dropout_rate=0.1)
    records = records_of(work, config.vocab_size)
    loader = TrainingBatches(list(records.values()), range(len(records)), work["batch_size"], seed=0, num_shapes=3)
    batches = [dict(loader.batch(number)) for number in range(work["batches"])]
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
    params = jax.jit(
        lambda key: jax.tree.map(lambda w: w.astype("bfloat16") if w.ndim > 1 else w, model.init_params(key))
    )(jax.random.key(0))
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
    cuda = torch.cuda.is_available()
    if not cuda and not work["smoke"]:
        raise SystemExit("torch sees no GPU")
    return torch, "cuda" if cuda else "cpu"


def compiled_on(device: str) -> str:
    """What a row's note says of torch.compile, which a smoke test on a CPU leaves out."""
    return ", compiled" if device == "cuda" else ""


def torch_timed(run, work: dict, torch, device: str) -> dict:
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    start = time.perf_counter()
    run()
    wait()
    first = time.perf_counter() - start
    run()
    wait()
    rates = []
    for _ in range(3):
        start, count = time.perf_counter(), 0
        while not count or time.perf_counter() - start < work["least"]:
            run()
            wait()
            count += 1
        rates.append((time.perf_counter() - start) / count)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else contest.peak_gib()
    rates.sort()
    return {"seconds": rates[1], "spread": [rates[0], rates[2]], "compile_seconds": first, "peak_gib": peak}


def torch_peak(work: dict) -> dict:
    torch, device = torch_setup(work)
    a = torch.ones((work["square"], work["square"]), dtype=torch.bfloat16, device=device)
    found = torch_timed(lambda: a @ a, work, torch, device)
    return found | {"tflops": 2 * work["square"] ** 3 / found["seconds"] / 1e12}


def torch_decoder(work: dict, torch, device: str, dtype):
    """(model, how its attention is computed): sdpa where transformers has it for this architecture."""
    import transformers

    ours = steps.config_of(work["decoder"])
    config = transformers.CodeGenConfig(
        vocab_size=ours.vocab_size, n_embd=ours.d_model, n_layer=ours.num_layers, n_head=ours.num_heads,
        rotary_dim=ours.rotary_dim, n_positions=work["length"], n_inner=ours.d_ff, eos_token_id=None,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    for attention in ("sdpa", "eager"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            return model.to(device=device, dtype=dtype), attention
        except ValueError:
            continue
    raise SystemExit("transformers can make no CodeGen of this configuration")


def torch_pretrain(work: dict) -> dict:
    torch, device = torch_setup(work)
    model, attention = torch_decoder(work, torch, device, torch.float32)
    model.gradient_checkpointing_enable()  # without, this batch does not fit
    config = steps.config_of(work["decoder"])
    batch = steps.windows(config, work["rows"], work["length"])
    tokens = torch.from_numpy(batch["tokens_BT"].astype(np.int64)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    if device == "cuda":
        model = torch.compile(model)

    def run():
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    found = torch_timed(run, work, torch, device)
    facts = {"tokens_per_second": tokens.numel() / found["seconds"], "rows": work["rows"]}
    facts |= {"tflops": steps.model_flops(config, batch) / found["seconds"] / 1e12}
    return found | facts | {"note": f"{attention} attention, gradient checkpointing{compiled_on(device)}"}


def torch_pairs(work: dict, model: str, pool: bool) -> dict:
    """As `benchmarks/train_step.py` has it: shuffled batches, each padded to its longest row."""
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
    network = transformers.T5ForConditionalGeneration(config).to(device).train()
    rows = [row | {"task": i} for i, own in enumerate(records_of(work, ours.vocab_size).values()) for row in own]
    order = np.random.default_rng(0).permutation(len(rows))[: work["batches"] * work["batch_size"]]
    groups = [[rows[i] for i in chunk] for chunk in np.split(order, work["batches"])]
    prompts = None
    if pool:
        network.requires_grad_(False)
        table = np.asarray(PromptPool(**steps.POOL).table(steps.NUM_TASKS))
        prompts = train_step.TorchPool(table, ours.d_model).to(device)
    trained = list((prompts or network).parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device == "cuda")

    def loss_of(group):
        inputs = codetask.pad([row["inputs"] for row in group], -1)
        mask = torch.from_numpy((inputs >= 0).astype(np.int64)).to(device)
        inputs = torch.from_numpy(np.maximum(inputs, 0)).to(device)
        labels = torch.from_numpy(codetask.pad([row["targets"] for row in group], -100)).to(device)
        if prompts is None:
            return network(input_ids=inputs, attention_mask=mask, labels=labels).loss
        with torch.no_grad():
            states = network.encoder(input_ids=inputs, attention_mask=mask).last_hidden_state.float()
            query = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors, pull = prompts(query, torch.tensor([row["task"] for row in group], device=device))
        embeds = torch.cat([vectors, network.shared(inputs)], dim=1)
        mask = torch.cat([torch.ones(vectors.shape[:2], dtype=torch.int64, device=device), mask], dim=1)
        return network(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss - 0.1 * pull

    def run():
        for group in groups:
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = loss_of(group)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    found = torch_timed(run, work, torch, device)
    return found | {"examples_per_second": len(order) / found["seconds"], "note": "dynamic padding, autocast"}


def torch_sample(work: dict, batch: int) -> dict:
    torch, device = torch_setup(work)
    model, attention = torch_decoder(work, torch, device, torch.bfloat16)
    model = model.eval()
    if device == "cuda":
        model.forward = torch.compile(model.forward, dynamic=True)
    prompts = torch.from_numpy(prompts_of(work, steps.config_of(work["decoder"]), batch).astype(np.int64)).to(device)
    options = dict(do_sample=True, temperature=0.8, top_p=0.95, top_k=0, pad_token_id=0)
    options |= dict(max_new_tokens=work["new_tokens"], min_new_tokens=work["new_tokens"])

    def run():
        with torch.inference_mode():
            model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)

    found = torch_timed(run, work, torch, device)
    rate = batch * work["new_tokens"] / found["seconds"]
    return found | {"tokens_per_second": rate, "note": f"{attention} attention{compiled_on(device)}"}


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


def prompts_of(work: dict, config, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, config.vocab_size, (batch, work["prompt"])).astype(np.int32)


def plan(work: dict) -> dict[str, tuple[str, dict]]:
    """{row: (function, arguments)} in the order of their worth."""
    rows = {"peak, jax": ("jax_peak", {})}
    for attention in ("xla", "cudnn"):
        arguments = {"attention": attention, "remat": "dots_no_batch"}
        rows[f"pretrain {work['decoder']}, jax {attention}"] = ("jax_pretrain", arguments)
    for batch in work["samples"]:
        rows[f"sample {batch}, jax"] = ("jax_sample", {"batch": batch})
        rows[f"sample {batch}, torch"] = ("torch_sample", {"batch": batch})
    for model in work["t5"]:
        for pool in (False, True):
            for side in ("jax", "torch"):
                name = f"{'pool' if pool else 'finetune'} {model}, {side}"
                rows[name] = (f"{side}_pairs", {"model": model, "pool": pool})
    rows[f"pretrain {work['decoder']}, torch"] = ("torch_pretrain", {})
    arguments = {"attention": "cudnn", "remat": "full"}
    rows[f"pretrain {work['decoder']}, jax cudnn, remat full"] = ("jax_pretrain", arguments)
    return rows | {"peak, torch": ("torch_peak", {})}


def measured(function: str, arguments: dict, work: dict, limit_s: float) -> dict:
    """One row, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "row.json")
        task = json.dumps({"function": function, "arguments": arguments, "work": work, "out": str(out)})
        # JAX gives memory back and takes what it needs, so that the peak is the program's; nine tenths at most.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        environment |= {"JAX_PLATFORMS": "cpu"} if work["smoke"] or function.startswith("torch") else {}
        try:
            done = subprocess.run(
                [sys.executable, __file__, f"--row={task}"], env=environment, capture_output=True, text=True,
                timeout=limit_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"stopped after {limit_s:.0f} s"}
        if done.returncode or not out.exists():
            return {"failed": steps.last_error(done.stderr or done.stdout)}
        return json.loads(out.read_text())


def peak_of(results: dict, device: str) -> tuple[float, str]:
    """(TFLOP/s, where from): the maker's figure by the device's name, else the measured square product."""
    known = next((peak for name, peak in PEAKS.items() if name in device), None)
    return (known, "data sheet") if known else (results["peak, jax"].get("tflops", float("nan")), "measured product")


def table(results: dict, peak: float) -> str:
    """Rows as text: rates, the share of the peak, memory, and ours against torch's row of the same work."""
    lines = ["| work | per second | TFLOP/s | of peak | peak GiB | x torch | compile s | note |", "|" + "---|" * 8]
    for name, row in results.items():
        if "seconds" not in row:
            reason = next(f"{key}: {row[key]}" for key in ("failed", "skipped", "left_out") if key in row)
            lines.append(f"| {name} | - | - | - | - | - | - | {reason} |")
            continue
        unit = next((unit for unit in ("tokens", "examples") if f"{unit}_per_second" in row), None)
        rate = row.get(f"{unit}_per_second", 0.0)
        other = results.get(f"{name.split(', ')[0]}, torch", {})
        ratio = other.get("seconds", 0) and row["seconds"] and other["seconds"] / row["seconds"]
        cells = [name, f"{rate:,.0f} {unit}" if unit else "-"]
        cells += [f"{row['tflops']:.1f}", f"{row['tflops'] / peak:.1%}"] if "tflops" in row else ["-", "-"]
        cells += [f"{row['peak_gib']:.1f}" if "peak_gib" in row else "-"]
        cells += [f"{ratio:.2f}" if ratio and ", jax" in name else "-", f"{row['compile_seconds']:.0f}"]
        lines.append("| " + " | ".join([*cells, row.get("note", "")]) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smoke", action="store_true", help="everything tiny, on a CPU")
    options.add_argument("--data_dir", default="", help="CodeTask-CL's files; without: random tokens, real lengths")
    options.add_argument("--vocabulary", default="", help="directory of CodeT5's tokenizer files, with --data_dir")
    options.add_argument("--rows", default="", help="only rows whose name contains one of these, comma separated")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--batch_rows", type=int, help="windows of a pretraining step, default 16")
    options.add_argument("--out", default="benchmarks/results/gpu.json")
    options.add_argument("--row", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.row:
        task = json.loads(arguments.row)
        found = globals()[task["function"]](task["work"], **task["arguments"])
        Path(task["out"]).write_text(json.dumps(found))
        return
    if bool(arguments.data_dir) != bool(arguments.vocabulary):
        raise SystemExit("error: --data_dir and --vocabulary belong together: records and the tokenizer they need.")
    work = dict(SMOKE if arguments.smoke else REAL)
    work |= {"smoke": arguments.smoke, "data_dir": arguments.data_dir, "vocabulary": arguments.vocabulary}
    if arguments.batch_rows:
        work["rows"] = arguments.batch_rows
    rows, began, results = plan(work), time.perf_counter(), {}
    if arguments.rows:
        asked = arguments.rows.split(",")
        rows = {name: row for name, row in rows.items() if name == "peak, jax" or any(map(name.count, asked))}
    for name, (function, given) in rows.items():
        left = arguments.minutes * 60 - (time.perf_counter() - began)
        start = time.perf_counter()
        results[name] = measured(function, given, work, left) if left > 0 else {"left_out": "no time was left"}
        rest = f"{arguments.minutes - (time.perf_counter() - began) / 60:.1f} minutes left"
        print(f"{name}: {time.perf_counter() - start:.0f} s; {rest}", flush=True)
        if name == "peak, jax" and not arguments.smoke and "cpu" in results[name].get("device", "cpu").lower():
            raise SystemExit(f"error: JAX sees no GPU ({results[name]}); install codegen2_jax[cuda], or use --smoke.")
    device = results["peak, jax"].get("device", "unknown")
    peak, origin = peak_of(results, device)
    text = table(results, peak)
    print(f"\n{device}, peak {peak:.4g} TFLOP/s in bfloat16 ({origin})\n{text}\n")
    report = {"machine": contest.machine(os.cpu_count()) | {"device": device, "peak_tflops": peak, "peak_from": origin}}
    contest.write(Path(arguments.out), report | {"settings": work, "rows": results, "table": text})


if __name__ == "__main__":
    main()

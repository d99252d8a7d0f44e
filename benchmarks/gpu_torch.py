"""The rows of gpu.py that transformers on torch computes, compiled where that works: what ours are beside."""

import functools
import gc
import signal
import time
from collections.abc import Callable

import contest
import gpu_work
import numpy as np
import steps


def torch_setup(work: dict):
    """(torch, device): full speed, and the largest peak from here on."""
    import torch

    torch.set_float32_matmul_precision("high")
    if work["smoke"]:
        return torch, "cpu"
    if not torch.cuda.is_available():
        raise gpu_work.LeftOut("torch sees no GPU")
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
    """The records of our batches as `benchmarks/train_step.py` has torch train on them; see `gpu_work.shuffled`."""
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
    _, records = gpu_work.batches_of(work, ours.vocab_size)
    groups = []  # padded ahead, as the processes of a loader would
    for rows in gpu_work.shuffled(records, work["batch_size"]):
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
        model.lm_head.weight.copy_(gpu_work.sharpened(model.lm_head.weight.float()))
    prompts = torch.from_numpy(gpu_work.prompts_of(work, steps.config_of(work["decoder"]), batch).astype(np.int64)).to(
        device
    )
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

"""Training examples per second on CodeTask-CL batches: this package against transformers on torch, on CPU.

  python benchmarks/train_step.py --data_dir=../shared/data/codetask_cl --vocabulary=../shared/data/tokenizers/codet5

CodeT5-small's architecture with random weights, batches of 8 from one task each, dropout 0.1, AdamW.

  finetune  all weights train
  pool      a prompt pool (68 keys, 20 x 5 vectors prepended) trains, the model is frozen; torch computes the query
            with the encoder at every step, this package reads it from the cache of queries

Both sides train on exactly the same records, once each per round. Ours come in the batches that the loader plans (like
lengths together, a few compiled shapes); theirs are shuffled and padded to the longest row of each batch, as a Hugging
Face collator does it. Contenders: jax (float32), torch (float32), torch-bf16 (autocast). About 10 minutes.
"""

import functools
import time
from pathlib import Path

import codetask
import common
import contest
import numpy as np

POOL = dict(top_k=20, prompt_length=5, assignment="code")
NUM_TASKS = 4


# ----------------------------------------------------------------------------------------------------------- contenders


def jax_contender(work: Path, threads: int):
    contest.pin(threads)
    import jax

    from codegen2_jax.interop import huggingface
    from codegen2_jax.models.language_models import EncoderDecoder
    from codegen2_jax.prompts.pool import PromptPool
    from codegen2_jax.training import optimizers, step

    todo = common.load(work)
    config, model_params = huggingface.load(work / "model")
    model = EncoderDecoder(config)
    batches, prompt, prompt_state = todo["batches"], None, {}
    params = {"model": jax.tree.map(jax.numpy.asarray, model_params)}
    labels = ((".*", "train"),)
    if todo["mode"] == "pool":
        prompt, labels = PromptPool(**POOL, initialisation="random_unit"), (("prompt/.*", "train"), (".*", "freeze"))
        embedding_VD = params["model"]["embedding"]
        params["prompt"], prompt_state = jax.jit(
            lambda key: prompt.init(key, num_tasks=NUM_TASKS, embedding_VD=embedding_VD, query_width=config.d_model)
        )(jax.random.key(0))
        query = jax.jit(model.query)
        batches = [
            batch | {"query_BD": np.asarray(query(params["model"], batch["inputs_BS"], batch["inputs_mask_BS"]))}
            for batch in batches
        ]
    learner = step.Learner(model=model, prompt=prompt)
    adamw = optimizers.AdamW(learning_rate=1e-4)
    loss = common.loss_without_dropout(config, params, batches[0])
    train, state = common.training(learner, params, labels, adamw, prompt_state=prompt_state, dropout=True)
    shapes = {(batch["inputs_BS"].shape[1], batch["targets_BT"].shape[1]): batch for batch in batches}
    state, compile_seconds = common.compiled_by_steps(train, state, shapes.values())

    def round_() -> dict:
        nonlocal state
        start = time.perf_counter()
        for batch in batches:
            state, metrics = train(state, batch)
        final, examples = float(metrics["loss"]), sum(len(batch["task_B"]) for batch in batches)
        return {"seconds": time.perf_counter() - start, "examples": examples, "loss": final}

    padded = sum(batch["inputs_BS"].size + batch["targets_BT"].size for batch in batches)
    ready = {"loss_without_dropout": loss, "compile_seconds": round(compile_seconds, 1)}
    return round_, ready | {"padded_tokens": int(padded), "shapes": len(shapes)}


def torch_contender(work: Path, threads: int, autocast: bool):
    contest.pin(threads)
    import torch

    todo = common.load(work)
    model = codetask.torch_model(work, threads)
    records, batch_size = todo["records"], todo["batch_size"]
    rng, pool = np.random.default_rng(0), None
    if todo["mode"] == "pool":
        model.requires_grad_(False)
        pool = TorchPool(todo["assignment"], model.config.d_model)
        trained = list(pool.parameters())
    else:
        trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def loss_of(rows: list[dict]):
        inputs = codetask.pad([row["inputs"] for row in rows], -1)
        mask = torch.from_numpy((inputs >= 0).astype(np.int64))
        inputs = torch.from_numpy(np.maximum(inputs, 0))
        labels = torch.from_numpy(codetask.pad([row["targets"] for row in rows], -100))
        if pool is None:
            return model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        with torch.no_grad():
            model.eval()
            states = model.encoder(input_ids=inputs, attention_mask=mask).last_hidden_state.float()
            query = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            model.train()
        prompts, pull = pool(query, torch.tensor([row["task"] for row in rows]))
        embeds = torch.cat([prompts, model.shared(inputs)], dim=1)
        mask = torch.cat([torch.ones(prompts.shape[:2], dtype=torch.int64), mask], dim=1)
        return model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss - 0.1 * pull

    def train(rows: list[dict]):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    model.eval()
    first, pool_kept, pool = [records[i] for i in todo["first"]], pool, None
    with torch.no_grad():
        exact = float(loss_of(first))
    pool = pool_kept
    model.train()
    train(first[:1] if autocast else first)

    def round_() -> dict:
        order = []  # each batch from one task, as the stream trains
        for task in sorted({row["task"] for row in records}):
            own = rng.permutation([i for i, row in enumerate(records) if row["task"] == task])
            order += [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
        examples, padded, start = 0, 0, time.perf_counter()
        for number in rng.permutation(len(order)):
            rows = [records[i] for i in order[number]]
            padded += len(rows) * sum(max(len(row[key]) for row in rows) for key in ("inputs", "targets"))
            loss, examples = float(train(rows).detach()), examples + len(rows)
            seconds = time.perf_counter() - start
            if seconds > todo["round_limit_s"]:
                break
        return {"seconds": seconds, "examples": examples, "loss": loss, "padded_tokens": padded}

    return round_, {"loss_without_dropout": exact}


def TorchPool(assignment, width):  # noqa: N802  a class, made late because torch is imported late
    """The pool of arXiv 2307.02435 as its users write it in torch: keys, masked top-k, gather, pull."""
    import torch

    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = torch.nn.Parameter(torch.randn(assignment.shape[1], width))
            self.prompts = torch.nn.Parameter(torch.randn(assignment.shape[1], POOL["prompt_length"], width))
            self.register_buffer("assignment", torch.from_numpy(assignment))

        def forward(self, query, task):
            unit = torch.nn.functional.normalize
            cosine = unit(query, dim=-1) @ unit(self.keys, dim=-1).T
            masked = cosine.detach().masked_fill(~self.assignment[task], -torch.inf)
            chosen = masked.topk(POOL["top_k"], dim=-1).indices.sort(dim=-1).values
            pull = cosine.gather(1, chosen).sum(1).mean()
            return self.prompts[chosen].flatten(1, 2), pull

    return Pool()


CONTENDERS = codetask.contenders(jax_contender, torch_contender)


# --------------------------------------------------------------------------------------------------------------- driver


def prepare(arguments, mode: str, work: Path) -> dict:
    """Plan our batches over each task's whole training split, take the first few, and give both sides their records."""
    from codegen2_jax.data.loader import TrainingBatches
    from codegen2_jax.prompts.pool import PromptPool

    tasks = codetask.records(arguments.data_dir, arguments.vocabulary, "train")
    # One set of shapes for all tasks, as a run over the stream has it.
    shapes = TrainingBatches(list(tasks.values()), range(NUM_TASKS), arguments.batch_size, seed=0, num_shapes=16).shapes
    batches, records, first = [], [], []
    for task, rows in enumerate(tasks.values()):
        plan = TrainingBatches([rows], [task], arguments.batch_size, seed=0, shapes=shapes)
        for number in range(arguments.batches_per_task):
            batch = plan.batch(number)
            batches.append(batch)
            if not first:
                first = list(range(arguments.batch_size))
            records += [rows[i] | {"task": task} for i in batch["record_B"]]
    content = {"mode": mode, "batches": batches, "records": records, "first": first}
    content |= {"round_limit_s": arguments.round_limit_s, "batch_size": arguments.batch_size}
    content |= {"assignment": np.asarray(PromptPool(**POOL).table(NUM_TASKS))}
    common.save(work, content)
    tokens = sum(len(row["inputs"]) + len(row["targets"]) for row in records)
    return {"examples": len(records), "tokens": int(tokens)}


def main() -> None:
    options = codetask.parser(__doc__, batch_size=8, out="benchmarks/results/train_step.json")
    options.add_argument("--modes", default="finetune,pool")
    options.add_argument("--batches_per_task", type=contest.count, default=4)
    arguments = options.parse_args()
    modes = contest.members("modes", arguments.modes, ("finetune", "pool"))
    variants = {mode: functools.partial(prepare, arguments, mode) for mode in modes}
    codetask.drive(__file__, arguments, variants, CONTENDERS)


if __name__ == "__main__":
    main()

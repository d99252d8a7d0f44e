"""A decoder's training step, greedy search and sampling: this package against transformers on torch, on CPU.

  python benchmarks/decoder.py --vocabulary=../shared/data/tokenizers/gpt2
  python benchmarks/decoder.py --contenders=jax,torch,jax-bf16,torch-bf16

CodeGen's architecture at the width of GPT-2's small model (12 layers, width 768, 12 heads of 64, 32 of their channels
turned, 51,200 tokens; its two tables make it 164 M parameters), random weights, no dropout.

  train    AdamW steps on packed windows of random tokens; both sides predict all but the first token of a window
  greedy   --new_tokens behind each of a few random prompts
  sample   --samples of each prompt at --temperature and --top_p; ours share their prompt's keys and values

Both sides read the same weights, and before the clock starts they must show the same loss and the same greedy tokens.
Nothing ends early. Ours goes from ids to texts, as `decoding.text.complete` does for a user, theirs from ids to ids.
bfloat16 is autocast over float32 weights in training, and bfloat16 weights in decoding, on both sides; where the
processor has no bfloat16 arithmetic it is emulated, many times slower. --tiny needs no files and takes a minute.
"""

import dataclasses
import functools
import time
from pathlib import Path

import common
import contest
import numpy as np

CODEGEN = dict(d_model=768, d_ff=3072, num_layers=12, num_heads=12, head_dim=64, rotary_dim=32)
TINY = dict(d_model=64, d_ff=256, num_layers=2, num_heads=4, head_dim=16, rotary_dim=8)
# What --tiny makes smaller beside the model; most of its minute goes into starting six processes.
TINY_WORK = dict(rounds=2, length=64, prompt_length=16, new_tokens=8)
TINY_MASKS = 8  # mask tokens of the tiny vocabulary; there only because the layout has some
DOCUMENT = 128  # mean tokens of a document in a window
ADAMW = {"weight_decay": 0.0}
LEARNING_RATE = 1e-4
# How far a loss may lie from torch's in float32, as a part of it.
TOLERANCES = {"jax": 1e-5, "jax-bf16": 1e-2, "torch-bf16": 1e-2}


# ----------------------------------------------------------------------------------------------------------- contenders


def jax_contender(work: Path, threads: int, dtype: str):
    contest.pin(threads)
    import jax

    from codegen2_jax.interop import huggingface

    todo = common.load(work)
    config, params = huggingface.load(work / "model")
    config = dataclasses.replace(config, dtype=dtype)
    params = jax.tree.map(jax.numpy.asarray, params)
    return jax_training(todo, config, params) if todo["mode"] == "train" else jax_decoding(work, todo, config, params)


def jax_training(todo: dict, config, params):
    import jax

    from codegen2_jax.training import optimizers, step
    from codegen2_jax.training.initialisation import model_of

    batches, params = [window(tokens_BT, todo["eos_id"]) for tokens_BT in todo["tokens"]], {"model": params}
    loss = common.loss_without_dropout(config, params, batches[0])
    adamw = optimizers.AdamW(learning_rate=LEARNING_RATE, schedule="constant", **ADAMW)
    learner = step.Learner(model=model_of(config))
    train, state = common.training(learner, params, ((".*", "train"),), adamw, prompt_state={}, dropout=False)
    del params
    state, compile_seconds = common.compiled_by_steps(train, state, batches[:1])

    def round_() -> dict:
        nonlocal state
        start = time.perf_counter()
        for batch in batches:
            state, metrics = train(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "examples": rows_of(todo["tokens"]), "loss": float(metrics["loss"])}

    return round_, {"loss": loss, "compile_seconds": round(compile_seconds, 1)}


def window(tokens_BT: np.ndarray, eos_id: int) -> dict[str, np.ndarray]:
    """A batch as `data.packed_batches` makes it; the last position has no target in the window and carries no loss."""
    targets_BT, before_BT = np.roll(tokens_BT, -1, axis=1), np.roll(tokens_BT, 1, axis=1)
    mask_BT, begins_BT = np.ones(tokens_BT.shape, bool), before_BT == eos_id
    mask_BT[:, -1], begins_BT[:, 0] = False, True
    zeros_B = np.zeros(len(tokens_BT), np.int32)
    return {
        "tokens_BT": tokens_BT,
        "targets_BT": targets_BT,
        "positions_BT": np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape),
        "segments_BT": np.cumsum(begins_BT, axis=1, dtype=np.int32),
        "bidirectional_BT": np.zeros(tokens_BT.shape, bool),
        "loss_mask_BT": mask_BT,
        "task_B": zeros_B,
        "record_B": zeros_B,
    }


def jax_decoding(work: Path, todo: dict, config, params):
    import jax

    from codegen2_jax.data.vocabulary import Vocabulary
    from codegen2_jax.decoding import sampling, text
    from codegen2_jax.decoding.settings import Generation
    from codegen2_jax.training.initialisation import model_of

    vocabulary, model = Vocabulary.from_directory(work / "vocabulary"), model_of(config)
    requests = [text.Request(tuple(prompt)) for prompt in todo["prompts"].tolist()]
    options = {"n": todo["samples"], "temperature": todo["temperature"], "top_p": todo["top_p"]}
    options |= {"max_new_tokens": todo["new_tokens"], "batch_size": len(requests) * todo["samples"]}

    def run(seed: int) -> list[list[int]]:
        completions = text.run(model, params, vocabulary, requests, Generation(**options, seed=seed), stop_ids=())
        return [list(completion.ids) for of_one in completions for completion in of_one]

    start = time.perf_counter()
    ids = run(0)
    compile_seconds, start = time.perf_counter() - start, time.perf_counter()
    jax.block_until_ready(sampling.lay_out(model, params))
    laying_out_seconds = time.perf_counter() - start
    ready = {"compile_seconds": round(compile_seconds, 1), "laying_out_seconds": round(laying_out_seconds, 3)}
    return decoding_round(run, todo), ready | {"ids": ids}


def decoding_round(run, todo: dict):
    """A round that draws with a new seed each time and sees to it that every row is full."""
    seed = 0

    def round_() -> dict:
        nonlocal seed
        seed += 1
        start = time.perf_counter()
        ids = run(seed)
        seconds = time.perf_counter() - start
        assert {len(row) for row in ids} == {todo["new_tokens"]}, "a row ended early"
        return {"seconds": seconds, "examples": len(ids)}

    return round_


def torch_contender(work: Path, threads: int, dtype: str):
    contest.pin(threads)
    todo, model = common.load(work), common.torch_model(work, threads, "CodeGenForCausalLM")
    return (torch_training if todo["mode"] == "train" else torch_decoding)(todo, model, dtype)


def torch_training(todo: dict, model, dtype: str):
    import torch

    autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **ADAMW)
    batches = [torch.from_numpy(tokens_BT.astype(np.int64)) for tokens_BT in todo["tokens"]]

    def loss_of(tokens_BT):
        with autocast():
            return model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss

    def train(tokens_BT) -> float:
        loss = loss_of(tokens_BT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    model.train()
    with torch.no_grad():
        ready = {"loss": float(loss_of(batches[0]))}
    train(batches[0])

    def round_() -> dict:
        examples, start = 0, time.perf_counter()
        for tokens_BT in batches:
            loss, examples = train(tokens_BT), examples + len(tokens_BT)
            seconds = time.perf_counter() - start
            if seconds > todo["round_limit_s"]:
                break
        return {"seconds": seconds, "examples": examples, "loss": loss}

    return round_, ready


def torch_decoding(todo: dict, model, dtype: str):
    import torch

    model = model.to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    prompts_BS = torch.from_numpy(todo["prompts"].astype(np.int64))
    options = {"max_new_tokens": todo["new_tokens"], "do_sample": todo["temperature"] > 0}
    options |= {"attention_mask": torch.ones_like(prompts_BS), "pad_token_id": todo["eos_id"]}
    if todo["temperature"] > 0:
        options |= {"temperature": todo["temperature"], "top_p": todo["top_p"], "top_k": 0}
        options |= {"num_return_sequences": todo["samples"]}

    def run(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        with torch.inference_mode():
            return model.generate(prompts_BS, **options)[:, prompts_BS.shape[1] :].tolist()

    return decoding_round(run, todo), {"ids": run(0)}


CONTENDERS = {
    "jax": functools.partial(jax_contender, dtype="float32"),
    "torch": functools.partial(torch_contender, dtype="float32"),
    "jax-bf16": functools.partial(jax_contender, dtype="bfloat16"),
    "torch-bf16": functools.partial(torch_contender, dtype="bfloat16"),
}


# --------------------------------------------------------------------------------------------------------------- driver


def write(arguments, work: Path) -> int:
    """The vocabulary and the model that both sides read."""
    from codegen2_jax.data import decoder_vocabularies
    from codegen2_jax.data.byte_level import codegen_tokens
    from codegen2_jax.models.codegen import CodeGenConfig
    from codegen2_jax.training.initialisation import with_ids

    directory = work / "vocabulary"
    if arguments.tiny:
        size = 256 + 1 + len(codegen_tokens("codegen2", 0, TINY_MASKS))
        vocabulary = decoder_vocabularies.train_codegen_vocabulary([], size, TINY_MASKS, directory)
    else:
        vocabulary = decoder_vocabularies.write_codegen_vocabulary(arguments.vocabulary, directory)
    shape = TINY if arguments.tiny else CODEGEN
    config = with_ids(CodeGenConfig(vocab_size=vocabulary.size, **shape), vocabulary)
    return common.write_model(work, config, arguments.seed)


def prepare(arguments, mode: str, work: Path) -> dict:
    """Random tokens below the end token's id, which are those of texts."""
    from codegen2_jax.data.vocabulary import Vocabulary

    eos_id, rng = Vocabulary.from_directory(work / "vocabulary").eos_id, np.random.default_rng(arguments.seed)
    content = {"mode": mode, "eos_id": eos_id, "round_limit_s": arguments.round_limit_s}
    if mode == "train":
        shape = (arguments.steps, arguments.batch_size, arguments.length)
        tokens = rng.integers(eos_id, size=shape, dtype=np.int32)
        tokens[rng.random(shape) < 1 / DOCUMENT] = eos_id
        common.save(work, content | {"tokens": list(tokens)})
        return {"examples": rows_of(tokens), "tokens_each": arguments.length}
    samples, temperature = (arguments.samples, arguments.temperature) if mode == "sample" else (1, 0.0)
    content |= {"prompts": rng.integers(eos_id, size=(arguments.prompts, arguments.prompt_length), dtype=np.int32)}
    content |= {"samples": samples, "temperature": temperature, "top_p": arguments.top_p}
    common.save(work, content | {"new_tokens": arguments.new_tokens})
    return {"examples": arguments.prompts * samples, "tokens_each": arguments.new_tokens}


def rows_of(batches) -> int:
    return sum(map(len, batches))


def check(mode: str, ready: dict[str, dict]) -> None:
    """Ends the program where a side does not compute what torch does in float32.

    In bfloat16 a loss may lie further from it, and greedy tokens may differ: their share stands in the report.
    """
    if "torch" not in ready:
        return
    compared = []
    for name in ready.keys() - {"torch"}:
        if mode == "train":
            own, expected = ready[name]["loss"], ready["torch"]["loss"]
            if not abs(own - expected) <= TOLERANCES[name] * expected:
                raise SystemExit(f"{name} has the loss {own}, torch {expected}: they do not compute the same.")
            compared.append(name)
        elif mode == "greedy" and name == "jax":
            share = equal_tokens(ready[name], ready["torch"])
            if share < 1:
                raise SystemExit(
                    f"{share:.1%} of {name}'s greedy tokens are torch's; where that is due to a tie, another --seed "
                    "has none."
                )
            compared.append(name)
    if compared:
        agreed = "losses" if mode == "train" else "all greedy tokens"
        print(f"  before the clock starts: {agreed} of {', '.join(sorted(compared))} agree with torch's", flush=True)


def equal_tokens(one: dict, other: dict) -> float:
    return float(np.mean(np.asarray(one["ids"]) == np.asarray(other["ids"])))


def agreement(mode: str, results: dict[str, dict]) -> dict:
    """The losses after the first round, which trained on the same tokens, or the share of torch's greedy tokens."""
    if mode == "train":
        return {"loss_after_a_round": {name: result["rounds"][0]["loss"] for name, result in results.items()}}
    if mode == "sample" or "torch" not in results:
        return {}
    ready = {name: result["ready"] for name, result in results.items()}
    return {"tokens_equal_to_torch": {name: equal_tokens(ready[name], ready["torch"]) for name in ready}}


def main() -> None:
    out = "benchmarks/results/decoder.json"
    options = common.parser(__doc__, contenders="jax,torch", batch_size=4, out=out)
    options.add_argument("--vocabulary", default="../shared/data/tokenizers/gpt2", help="directory of GPT-2's files")
    options.add_argument("--modes", default="train,greedy,sample")
    options.add_argument("--length", type=contest.count, default=512, help="tokens of a window")
    options.add_argument("--steps", type=contest.count, default=2, help="training steps of a round")
    options.add_argument("--prompts", type=contest.count, default=4)
    options.add_argument("--samples", type=contest.count, default=4, help="of each prompt")
    options.add_argument("--prompt_length", type=contest.count, default=128)
    options.add_argument("--new_tokens", type=contest.count, default=64)
    options.add_argument("--temperature", type=float, default=0.8)
    options.add_argument("--top_p", type=float, default=0.95)
    options.add_argument("--seed", type=int, default=0, help="of weights, windows and prompts")
    arguments = options.parse_args()
    if arguments.tiny:  # once more: what is given holds
        options.set_defaults(**TINY_WORK)
        arguments = options.parse_args()
    modes = contest.members("modes", arguments.modes, ("train", "greedy", "sample"))
    if not arguments.tiny and not arguments.contender:
        contest.check_folders(vocabulary=arguments.vocabulary)
    variants = {mode: functools.partial(prepare, arguments, mode) for mode in modes}
    common.drive(
        __file__,
        arguments,
        variants,
        CONTENDERS,
        write=functools.partial(write, arguments),
        check=check,
        compare=agreement,
    )


if __name__ == "__main__":
    main()

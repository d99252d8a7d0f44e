"""What both sides of `train_step.py` and `decode.py` work on: CodeTask-CL records and a random CodeT5-small.

The records are tokenised with CodeT5's vocabulary and cut as CodeT5 does it. The weights are written once in Hugging
Face's layout and read by both sides, so that both can show the same loss before the clock starts.
"""

import argparse
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import contest
import numpy as np

# Longest source and target of each task, both with <s> and </s> (salesforce/CodeT5 sh/run_exp.py).
MAX_LENGTHS = {
    "codetask_concode": (320, 150),
    "codetask_translate": (320, 256),
    "codetask_summarize": (256, 128),
    "codetask_refine": (130, 120),
}
CODET5_SMALL = dict(
    vocab_size=32100, d_model=512, d_ff=2048, num_encoder_layers=6, num_decoder_layers=6, num_heads=8, head_dim=64
)
TINY = CODET5_SMALL | dict(d_model=32, d_ff=64, num_encoder_layers=2, num_decoder_layers=2, num_heads=2, head_dim=16)


def records(data_dir: str, vocabulary_dir: str, split: str) -> dict[str, list[dict]]:
    """{task: [{"id", "inputs", "targets"}]} of one split."""
    from codegen2_jax.data.codetask_cl import read_split
    from codegen2_jax.data.objectives import wrap
    from codegen2_jax.data.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_directory(vocabulary_dir)
    ids = {"bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id}
    tasks = {}
    for task, (source_length, target_length) in MAX_LENGTHS.items():
        examples = read_split(task, split, data_dir).examples
        sources = vocabulary.encode_batch([example.inputs for example in examples])
        targets = vocabulary.encode_batch([example.targets for example in examples])
        tasks[task] = [
            {
                "id": example.id,
                "inputs": wrap(np.asarray(source, np.int32), max_length=source_length, **ids),
                "targets": wrap(np.asarray(target, np.int32), max_length=target_length, **ids),
            }
            for example, source, target in zip(examples, sources, targets, strict=True)
        ]
    return tasks


def save(work: Path, content: dict) -> None:
    (work / "work.pickle").write_bytes(pickle.dumps(content))


def load(work: Path) -> dict:
    """What `save` wrote, in this run, in this temporary directory."""
    return pickle.loads((work / "work.pickle").read_bytes())


def write_model(work: Path, shape: dict, dropout_rate: float) -> int:
    """Random weights in work/model; returns the number of parameters."""
    import jax

    from codegen2_jax.interop.huggingface import save_t5
    from codegen2_jax.models.language_models import EncoderDecoder
    from codegen2_jax.models.t5 import T5Config

    model = EncoderDecoder(T5Config(**shape, dropout_rate=dropout_rate))
    params = jax.device_get(jax.jit(model.init_params)(jax.random.key(0)))
    save_t5(work / "model", model.config, params, dtype="float32")
    return model.parameters()


def pad(rows: list[np.ndarray], fill: int) -> np.ndarray:
    """int64 [len(rows), longest row]: the dynamic padding of a Hugging Face collator."""
    padded = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def torch_model(work: Path, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.T5ForConditionalGeneration.from_pretrained(work / "model")


# --------------------------------------------------------------------------------------------------------------- driver


def parser(description: str, *, batch_size: int, out: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data_dir", default="../shared/data/codetask_cl")
    options.add_argument("--vocabulary", default="../shared/data/tokenizers/codet5")
    options.add_argument("--contenders", default="jax,torch,torch-bf16")
    options.add_argument("--batch_size", type=int, default=batch_size)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--round_limit_s", type=float, default=120, help="when torch stops a round")
    options.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything runs")
    options.add_argument("--out", default=out)
    options.add_argument("--contender", help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return options


def contenders(jax: Callable, torch: Callable) -> dict[str, Callable[[Path, int], tuple]]:
    """Ours, theirs in float32, and theirs under bfloat16 autocast, by name."""
    return {
        "jax": jax,
        "torch": lambda work, threads: torch(work, threads, autocast=False),
        "torch-bf16": lambda work, threads: torch(work, threads, autocast=True),
    }


def drive(
    script: str,
    arguments: argparse.Namespace,
    variants: Mapping[str, Callable[[Path], dict]],
    contenders: Mapping[str, Callable[[Path, int], tuple]],
    compare: Callable[[dict], dict] = lambda results: {},
) -> None:
    """Serve as one contender, or run each variant's contest and write the report.

    variants: {name: prepare}; `prepare(work)` saves what the contenders read and returns facts, "examples" among them.
    compare: facts from {contender: {"ready": ..., "rounds": [...]}}, for the report.
    """
    if arguments.contender:
        contest.serve(*contenders[arguments.contender](arguments.work, arguments.threads))
        return
    names = arguments.contenders.split(",")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("contender", "work")}
    report: dict[str, Any] = {"machine": contest.machine(arguments.threads), "settings": settings, "variants": {}}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        report["parameters"] = write_model(work, TINY if arguments.tiny else CODET5_SMALL, dropout_rate=0.1)
        for variant, prepare in variants.items():
            facts = prepare(work)
            print(f"{variant}: {facts}", flush=True)
            race = {"amount": facts["examples"], "rounds": arguments.rounds, "threads": arguments.threads}
            results = contest.compete(script, names, work, **race)
            against = "torch" if "torch" in results else names[0]
            rows, text = contest.table(results, amount=facts["examples"], against=against)
            ready = {name: result["ready"] for name, result in results.items()}
            facts |= {"table": rows, "ready": ready, **compare(results)}
            report["variants"][variant] = facts
            print(f"\n{variant}, {facts['examples']} examples {compare(results)}\n{text}\n", flush=True)
    contest.write(Path(arguments.out), report)

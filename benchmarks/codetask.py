"""What both sides of `train_step.py` and `decode.py` work on: CodeTask-CL records and a random CodeT5-small.

The records are tokenised with CodeT5's vocabulary and cut as CodeT5 does it. The weights are written once in Hugging
Face's layout and read by both sides, so that both can show the same loss before the clock starts.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import common
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


def pad(rows: list[np.ndarray], fill: int) -> np.ndarray:
    """int64 [len(rows), longest row]: the dynamic padding of a Hugging Face collator."""
    padded = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def torch_model(work: Path, threads: int):
    return common.torch_model(work, threads, "T5ForConditionalGeneration")


# --------------------------------------------------------------------------------------------------------------- driver


def parser(description: str, *, batch_size: int, out: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    options = common.parser(description, contenders="jax,torch,torch-bf16", batch_size=batch_size, out=out)
    options.add_argument("--data_dir", default="../shared/data/codetask_cl")
    options.add_argument("--vocabulary", default="../shared/data/tokenizers/codet5")
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
    """`common.drive` with a random CodeT5-small."""
    if not arguments.contender:  # those read what was prepared
        contest.check_folders(data_dir=arguments.data_dir, vocabulary=arguments.vocabulary)

    def write(work: Path) -> int:
        from codegen2_jax.models.t5 import T5Config

        return common.write_model(work, T5Config(**(TINY if arguments.tiny else CODET5_SMALL), dropout_rate=0.1))

    common.drive(script, arguments, variants, contenders, write=write, compare=lambda _, results: compare(results))

"""What both sides of gpu.py work on: records, batches, prompts, and the word of a row that cannot be measured."""

import numpy as np
import steps

SHARPNESS = 6.0  # standard deviation of the logits that samples are drawn from


class LeftOut(Exception):
    """Why a row cannot be measured here."""


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

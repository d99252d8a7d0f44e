"""Generation on CodeTask-CL inputs: this package against transformers' `generate` on torch, on CPU.

  python benchmarks/decode.py --data_dir=../shared/data/codetask_cl --vocabulary=../shared/data/tokenizers/codet5

CodeT5-small's architecture with random weights: nothing ends early, so every row runs to --max_length and neither side
gains from short outputs (real targets of these tasks average 33 to 56 tokens). Greedy search and 5 beams over
validation inputs of all four tasks. Ours come in the evaluation batches (like lengths together), theirs in file order,
padded to the longest row of each batch. Contenders: jax (float32), torch (float32), torch-bf16 (autocast; where the
processor has no bfloat16 arithmetic it is emulated, 50 times slower, and its round ends at --round_limit_s).
About 20 minutes.
"""

import functools
import time
from pathlib import Path

import codetask
import common
import contest
import numpy as np


def jax_contender(work: Path, threads: int):
    contest.pin(threads)
    import jax

    from codegen2_jax.decoding.generate import generate
    from codegen2_jax.interop import huggingface
    from codegen2_jax.models.language_models import EncoderDecoder

    todo = common.load(work)
    config, params = huggingface.load(work / "model")
    params, model = jax.tree.map(jax.numpy.asarray, params), EncoderDecoder(config)
    options = {"max_length": todo["max_length"], "num_beams": todo["num_beams"]}
    compiled = jax.jit(lambda params, batch: generate(model, params, batch, **options))

    def run(batch):
        tokens_BT = np.asarray(compiled(params, {name: batch[name] for name in ("inputs_BS", "inputs_mask_BS")}))
        rows = zip(batch["number_B"], tokens_BT, batch["valid_B"], strict=True)
        return {int(number): row.tolist() for number, row, valid in rows if valid}

    shapes = {batch["inputs_BS"].shape: batch for batch in todo["batches"]}
    start = time.perf_counter()
    for batch in shapes.values():
        run(batch)
    compile_seconds = time.perf_counter() - start

    def round_() -> dict:
        start, outputs = time.perf_counter(), {}
        for batch in todo["batches"]:
            outputs |= run(batch)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "examples": len(outputs), "outputs": [outputs[i] for i in sorted(outputs)]}

    return round_, {"compile_seconds": round(compile_seconds, 1), "shapes": len(shapes)}


def torch_contender(work: Path, threads: int, autocast: bool):
    contest.pin(threads)
    import torch

    todo = common.load(work)
    model = codetask.torch_model(work, threads).eval()
    records, batch_size = todo["records"], todo["batch_size"]
    options = {"max_length": todo["max_length"], "num_beams": todo["num_beams"], "do_sample": False}

    def run(rows, **changes):
        inputs = codetask.pad([row["inputs"] for row in rows], -1)
        mask = torch.from_numpy((inputs >= 0).astype(np.int64))
        inputs = torch.from_numpy(np.maximum(inputs, 0))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return model.generate(input_ids=inputs, attention_mask=mask, **(options | changes)).tolist()

    run(records[:2], max_length=4)

    def round_() -> dict:
        start, outputs = time.perf_counter(), []
        for i in range(0, len(records), batch_size):
            outputs += run(records[i : i + batch_size])
            seconds = time.perf_counter() - start
            if seconds > todo["round_limit_s"]:
                break
        return {"seconds": seconds, "examples": len(outputs), "outputs": outputs}

    return round_, {}


CONTENDERS = codetask.contenders(jax_contender, torch_contender)


def prepare(arguments, num_beams: int, work: Path) -> dict:
    """The first rows of every task's validation split, in our evaluation batches and as plain records."""
    from codegen2_jax.data.loader import evaluation_batches

    tasks = codetask.records(arguments.data_dir, arguments.vocabulary, "valid")
    batches, records = [], []
    for task, rows in enumerate(tasks.values()):
        rows = rows[: arguments.rows_per_task]
        for batch in evaluation_batches(rows, task_id=task, batch_size=arguments.batch_size):
            batches.append(dict(batch) | {"number_B": batch["record_B"] + len(records)})
        records += rows
    content = {"batches": batches, "records": records, "batch_size": arguments.batch_size}
    content |= {"round_limit_s": arguments.round_limit_s}
    common.save(work, content | {"max_length": arguments.max_length, "num_beams": num_beams})
    return {"examples": len(records), "tokens_each": arguments.max_length}


def agreement(results: dict[str, dict]) -> dict:
    """Share of rows whose tokens equal those of torch in float32, up to the first </s> (id 2)."""
    if "torch" not in results:
        return {}

    def rows(name):
        outputs = results[name]["rounds"][0]["outputs"]
        return [row[: row.index(2)] if 2 in row else row for row in outputs]

    expected = rows("torch")  # a contender that ran into its time limit has only the first of them
    equal = {name: float(np.mean([a == b for a, b in zip(rows(name), expected, strict=False)])) for name in results}
    return {"rows_equal_to_torch": equal}


def main() -> None:
    options = codetask.parser(__doc__, batch_size=16, out="benchmarks/results/decode.json")
    options.add_argument("--num_beams", default="1,5")
    options.add_argument("--rows_per_task", type=contest.count, default=16)
    options.add_argument("--max_length", type=contest.count, default=64)
    arguments = options.parse_args()
    widths = contest.counts("num_beams", arguments.num_beams)
    searches = {f"{beams} beams": functools.partial(prepare, arguments, beams) for beams in widths}
    codetask.drive(__file__, arguments, searches, CONTENDERS, compare=agreement)


if __name__ == "__main__":
    main()

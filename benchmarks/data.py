"""Examples per second of both halves of the data path: SeqIO with caching, and the loader that reads the cache.

  python benchmarks/data.py                                    # PyTask-CL
  python benchmarks/data.py --tasks=codetask_cl --task_modules=tasks.codetask_cl

The peer is the pipeline that a SeqIO trainer runs on the same tasks and vocabulary: `seqio.get_dataset` with
`EncDecFeatureConverter` (fixed lengths, as SeqIO has them), shuffled, batched, read as numpy. Both give padded batches
of encoder inputs, decoder inputs and targets. Every contender runs in a process of its own, those that read in turns,
--rounds times, the order reversed every round; caching once. CPU seconds (of all its threads) and wall seconds count
from the second batch on. Prints a table of medians with slowest and fastest, writes JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest

CONTENDERS = ("caching", "seqio", "loader", "pretraining")


def measure(batches, seconds: float) -> dict:
    """Reads batches for about `seconds`, starting over when they end; counts examples and source + target tokens."""
    iterator = iter(batches)
    next(iterator)
    examples = tokens = 0
    wall, cpu = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - wall < seconds:
        try:
            batch = next(iterator)
        except StopIteration:
            iterator = iter(batches)
            continue
        examples += len(batch[0])
        tokens += int(batch[1])
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"examples": examples, "tokens": tokens, "wall_seconds": wall, "cpu_seconds": cpu}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_loader(arguments) -> dict:
    """Training batches from the cache through Grain, all tasks in one stream."""
    from codegen2_jax.data import cache
    from codegen2_jax.data.loader import TrainingBatches

    splits = [cache.open_split(arguments.cache_dir, task, "train") for task in arguments.task_names.split(",")]
    batches = TrainingBatches(splits, range(len(splits)), arguments.batch_size, seed=0)
    iterator = batches.iterator()
    real, padded = 0, 0
    for number in range(batches.batches_per_epoch):
        batch = batches.batch(number)
        real += int(batch["inputs_mask_BS"].sum() + batch["loss_mask_BT"].sum())
        padded += batch["inputs_mask_BS"].size + batch["loss_mask_BT"].size
    counted = ((b["inputs_BS"], b["inputs_mask_BS"].sum() + b["loss_mask_BT"].sum()) for b in iterator)
    return measure(counted, arguments.seconds) | {"real_share": real / padded, "shapes": batches.shapes}


def run_pretraining(arguments) -> dict:
    """Span corruption and denoising made on the fly from the tasks' targets."""
    from functools import partial

    from codegen2_jax.data import cache, objectives
    from codegen2_jax.data.loader import PretrainingBatches
    from codegen2_jax.data.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_directory(arguments.vocabulary)
    task = arguments.task_names.split(",")[0]
    split = cache.open_split(arguments.cache_dir, task, "train")
    windows = [{"targets": record["targets"][1:-1]} for record in split]
    facts = {"bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id}
    spans = partial(objectives.span_corruption, **facts, sentinel_ids=vocabulary.sentinel_ids)
    noise = partial(objectives.denoising, **facts, mask_id=vocabulary.mask_id, text_ids=vocabulary.text_ids)
    streams = {"spans": (windows, spans, 1.0, (256, 128)), "noise": (windows, noise, 1.0, (256, 256))}
    iterator = PretrainingBatches(streams, arguments.batch_size, seed=0).iterator()
    counted = ((b["inputs_BS"], b["inputs_mask_BS"].sum() + b["loss_mask_BT"].sum()) for b in iterator)
    return measure(counted, arguments.seconds)


def run_seqio(arguments) -> dict:
    """What a SeqIO trainer would read."""
    import importlib

    import numpy as np
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    for module in arguments.task_modules.split(","):
        importlib.import_module(module)
    name = "benchmarked"
    tasks = arguments.task_names.split(",")
    seqio.MixtureRegistry.add(name, [(task, 1.0) for task in tasks])
    source, target = arguments.max_lengths
    batches = seqio.get_dataset(
        name,
        task_feature_lengths={"inputs": source, "targets": target},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        seed=0,
    )
    batches = batches.batch(arguments.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    real, padded = 0, 0
    for _, batch in zip(range(20), batches, strict=False):
        real += np.count_nonzero(batch["encoder_input_tokens"]) + np.count_nonzero(batch["decoder_loss_weights"])
        padded += batch["encoder_input_tokens"].size + batch["decoder_loss_weights"].size
    counted = (
        (b["encoder_input_tokens"], (b["encoder_input_tokens"] > 0).sum() + (b["decoder_loss_weights"] > 0).sum())
        for b in batches
    )
    return measure(counted, arguments.seconds) | {"real_share": real / padded}


def run_caching(arguments) -> dict:
    """All splits of all tasks, from the source files to ArrayRecord, after the import of TensorFlow."""
    from codegen2_jax.data import cache_writing

    names, modules = arguments.tasks.split(","), arguments.task_modules.split(",")
    import seqio  # noqa: F401  (its seven seconds are no part of the throughput)

    wall, cpu = time.perf_counter(), cpu_seconds()
    infos = cache_writing.build(
        names, cache_dir=arguments.cache_dir, vocabulary_dir=arguments.vocabulary, task_modules=modules, progress=print
    )
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    entries = [entry for info in infos.values() for entry in info["splits"].values()]
    return {
        "examples": sum(entry["examples"] for entry in entries),
        "tokens": sum(sum(entry["tokens"]) for entry in entries),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "task_names": list(infos),
        "max_lengths": [max(info["max_lengths"][side] for info in infos.values()) for side in (0, 1)],
    }


def run_all(arguments) -> dict[str, list[dict]]:
    """{contender: its rounds}, each in a child process, in turn."""
    results: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    caching, *readers = CONTENDERS
    with tempfile.TemporaryDirectory() as scratch:
        turns = [reader for number in range(arguments.rounds) for reader in readers[:: -1 if number % 2 else 1]]
        for contender in [caching, *turns]:
            out = Path(scratch, f"{contender}.json")
            cached = results[caching][0] if results[caching] else {"task_names": [], "max_lengths": (1, 1)}
            command = [
                sys.executable,
                __file__,
                f"--contender={contender}",
                f"--out={out}",
                f"--tasks={arguments.tasks}",
            ]
            command += [f"--cache_dir={arguments.cache_dir or scratch + '/cache'}", f"--seconds={arguments.seconds}"]
            command += [f"--vocabulary={arguments.vocabulary}", f"--task_modules={arguments.task_modules}"]
            command += [f"--task_names={','.join(cached['task_names'])}", f"--batch_size={arguments.batch_size}"]
            command += ["--max_lengths", *map(str, cached["max_lengths"])]
            environment = os.environ | {
                "CODEGEN2_JAX_VOCABULARY": arguments.vocabulary,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]),
            }
            if code := subprocess.run(command, env=environment).returncode:
                raise SystemExit(f"error: {contender} ended with code {code}; see its message above.")
            results[contender].append(json.loads(out.read_text(encoding="utf-8")))
    return results


def rates(rounds: list[dict], seconds: str) -> tuple[float, float, float]:
    """Examples per second: median, slowest, fastest."""
    found = [one["examples"] / one[seconds] for one in rounds]
    return statistics.median(found), min(found), max(found)


def print_table(results: dict[str, list[dict]]) -> None:
    names = ("", "examples/s", "slowest - fastest", "per CPU second", "slowest - fastest", "real tokens among all")
    print(f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|")
    for name, rounds in results.items():
        cells = [name]
        for seconds in ("wall_seconds", "cpu_seconds"):
            median, slowest, fastest = rates(rounds, seconds)
            cells += [f"{median:,.0f}", f"{slowest:,.0f} - {fastest:,.0f}" if len(rounds) > 1 else ""]
        cells += [f"{rounds[0]['real_share']:.0%}" if "real_share" in rounds[0] else ""]
        print(f"| {' | '.join(cells)} |")
    print(f"loader from the cache against the SeqIO pipeline: {times_seqio(results):.1f} x per CPU second")


def times_seqio(results: dict[str, list[dict]]) -> float:
    """The loader's examples per CPU second, as a multiple of SeqIO's."""
    loader, seqio = (rates(results[name], "cpu_seconds")[0] for name in ("loader", "seqio"))
    return loader / seqio


def main() -> None:
    parser = contest.Parser(__doc__)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--tasks", default="pytask_cl", help="streams or tasks, comma separated")
    parser.add_argument("--task_modules", default="tasks.pytask_cl")
    vocabulary = root / "codegen2_jax" / "pretrained" / "nano_t5"
    parser.add_argument("--vocabulary", type=contest.folder, default=str(vocabulary))
    parser.add_argument("--cache_dir", default="", help="default: a temporary one")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each reading contender")
    parser.add_argument("--rounds", type=contest.count, default=3, help="of the reading contenders")
    parser.add_argument("--batch_size", type=contest.count, default=32)
    parser.add_argument("--out", default="benchmarks/results/data.json")
    for internal in ("--contender", "--task_names"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--max_lengths", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is None:
        if not 0 < arguments.seconds < float("inf"):
            contest.fail(f"--seconds={arguments.seconds:g} must be above 0 and finite.")
        settings = {name: getattr(arguments, name) for name in ("tasks", "task_modules", "batch_size", "seconds")}
        machine, results = contest.machine(os.cpu_count()), run_all(arguments)
        print_table(results)
        report = {"machine": machine, "settings": settings, "times_seqio": times_seqio(results), "contenders": results}
        contest.write(Path(arguments.out), report)
        return
    result = globals()[f"run_{arguments.contender}"](arguments)
    Path(arguments.out).write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # TensorFlow may hang when the interpreter ends


if __name__ == "__main__":
    main()

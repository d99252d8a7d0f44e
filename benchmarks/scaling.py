"""How cost grows with the work: step time and memory, tasks of a stream, caching and loading; slopes of log on log.

  python benchmarks/scaling.py                          # everything, about ten minutes on two idle cores
  python benchmarks/scaling.py --sweeps=batch,length --tiny

  batch, length, depth, width   a T5's training step, all weights; length is source and target together
  decoder_length                a decoder's step on windows: attention's square shows at the end
  pool, tasks                   a prompt pool of so many keys; so many tasks that share pools of 20 keys each
  vocabulary, vocabulary_blocks the head and its loss at once, and in blocks
  corpus_cache, corpus_loader   examples cached (SeqIO, tokenising, ArrayRecord) and read back in planned batches

Time is processor time of the whole process, medians of rounds (of the corpus one run each): a shared machine disturbs
it least. The report has the least and the most of the rounds too, and each sweep's machine and date. Memory is XLA's
account of the compiled step, and resident memory for the corpus. A slope of 1 is linear; where more is in the nature of
the work the table says so. Every sweep is written when it ends, and those that are not asked for stay in --out as they
are; --tiny writes nothing without --out. Draws results/scaling.png where matplotlib is installed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import contest
import numpy as np
import steps

from codegen2_jax import json_files

BASE = dict(vocab_size=4096, d_model=256, d_ff=1024, layers=4, num_heads=4, head_dim=64)
DECODER = dict(vocab_size=4096, d_model=256, layers=4, num_heads=4, head_dim=64, rotary_dim=32)
TINY = dict(vocab_size=256, d_model=32, d_ff=64, layers=2, num_heads=2, head_dim=16)
TINY_DECODER = dict(vocab_size=256, d_model=32, layers=2, num_heads=2, head_dim=16, rotary_dim=8)
KEYS_EACH = 20
# name -> (values, tiny values, the steepest slope of time that the work itself explains)
SWEEPS = {
    "batch": ((2, 4, 8, 16, 32), (2, 4), 1.0),
    "length": ((64, 128, 256, 512, 1024), (16, 32), 2.0),
    "depth": ((2, 4, 8, 16), (1, 2), 1.0),
    "width": ((128, 256, 512, 1024), (32, 64), 2.0),
    "decoder_length": ((128, 256, 512, 1024, 2048), (16, 32), 2.0),
    "pool": ((40, 160, 640, 2560), (40, 80), 1.0),
    "tasks": ((2, 4, 8, 16, 32), (2, 4), 1.0),
    "vocabulary": ((4096, 8192, 16384, 32768), (256, 512), 1.0),
    "vocabulary_blocks": ((4096, 8192, 16384, 32768), (256, 512), 1.0),
    "corpus_cache": ((500, 2000, 8000, 32000), (40, 80), 1.0),
    "corpus_loader": ((500, 2000, 8000, 32000, 128000), (200, 400), 1.0),
}
SLACK = 0.1  # what a slope may exceed the work's own by before it is called super-linear


def step_point(name: str, value: int, tiny: bool, rounds: int) -> dict:
    """CPU seconds and MiB of one training step."""
    decoder = name == "decoder_length"
    shape = dict((TINY_DECODER if tiny else DECODER) if decoder else (TINY if tiny else BASE))
    rows, source, target = (2, 16, 8) if tiny else (8, 128, 64)
    options: dict = {}
    if name == "batch":
        rows = value
    elif name == "length":
        source, target = value - value // 3, value // 3
    elif name == "depth":
        shape["layers"] = value
    elif name == "width":
        shape |= {"d_model": value, "d_ff": 4 * value, "num_heads": value // shape["head_dim"]}
    elif name.startswith("vocabulary"):
        shape["vocab_size"] = value
        options = {"loss_blocks": 8 if name.endswith("blocks") else 1}
    elif name in ("pool", "tasks"):
        return pool_point(name, value, shape, (rows, source, target), rounds)
    config = steps.config_of("tiny-decoder" if decoder else "tiny-t5", **shape)
    batch = steps.windows(config, 2, value) if decoder else steps.pairs(config, rows, source, target)
    memory = steps.memory_of(steps.shapes_of_step(config, batch, **options))
    return timed(steps.Step.of(config, **options), batch, rounds) | memory


def timed(step: steps.Step, batch: dict, rounds: int) -> dict:
    import jax

    jax.block_until_ready([step.run(batch) for _ in range(2)])  # else the first round would count these too
    found = steps.seconds_of(lambda: step.run(batch)["loss"], rounds=rounds)
    return {name: found[name] for name in ("cpu_seconds", "cpu_spread", "seconds")}


def pool_point(name: str, value: int, shape: dict, batch_shape: tuple[int, int, int], rounds: int) -> dict:
    """A pool's step: of `value` keys for four tasks, or of KEYS_EACH keys for each of `value` tasks."""
    tasks = steps.NUM_TASKS if name == "pool" else value
    # Prompts start as rows of the embedding, each its own: five times as many as keys.
    config = steps.config_of("tiny-t5", **shape | {"vocab_size": 4 * shape["vocab_size"]})
    batch = steps.pairs(config, *batch_shape, query=True)
    batch["task_B"] = np.arange(batch_shape[0], dtype=np.int32) % tasks
    before = dict(steps.POOL), steps.NUM_TASKS
    try:
        # Every task may choose from all keys; or each owns the 20 that it takes.
        own = {"assignment": "learned", "pool_size": value} if name == "pool" else {"assignment": "disjoint"}
        steps.POOL.update(own, top_k=KEYS_EACH)
        steps.NUM_TASKS = tasks
        memory = steps.memory_of(steps.shapes_of_step(config, batch, pool=True))
        return timed(steps.Step.of(config, pool=True), batch, rounds) | memory
    finally:
        steps.POOL.clear()
        steps.POOL.update(before[0])
        steps.NUM_TASKS = before[1]


# -------------------------------------------------------------------------------------------------------------- corpus


def loader_point(count: int) -> dict:
    """CPU seconds to plan batches over `count` records and to read them all once, and the memory that takes."""
    from codegen2_jax.data.loader import TrainingBatches

    quarter = math.ceil(count / 4)
    records = [row for rows in steps.records_like_codetask(32100, quarter).values() for row in rows][:count]
    held, used = contest.peak_gib(), steps.cpu_seconds()
    batches = TrainingBatches([records], [0], 32, seed=0, num_shapes=4)
    planned = steps.cpu_seconds() - used
    for number in range(batches.batches_per_epoch):
        batches.batch(number)
    taken = steps.cpu_seconds() - used
    added = (contest.peak_gib() - held) * 1024
    return {"cpu_seconds": taken, "plan_seconds": planned, "peak": round(max(added, 0.01), 2), "examples": len(records)}


def cache_point(count: int, vocabulary: str, scratch: str) -> dict:
    """CPU seconds to cache `count` examples from a JSON-lines file, after the import of TensorFlow."""
    from codegen2_jax.data import cache_writing, jsonl

    rng, words = np.random.default_rng(0), ["return", "value", "self", "(x)", "if", "not", "index", "+ 1", "name"]
    path = Path(scratch, f"{count}.jsonl")
    with path.open("w") as file:
        for number in range(count):
            draw = lambda n: " ".join(rng.choice(words, n))  # noqa: E731
            file.write(json.dumps({"text": f"{number} {draw(60)}", "title": f"{draw(15)} {number}"}) + "\n")
    tasks = jsonl.parse([{"name": f"grown_{count}", "train": str(path), "source": "text", "target": "title"}])
    os.environ.update(jsonl.environment(tasks))
    import seqio  # noqa: F401  (its seconds are no part of the growth)

    used, held = steps.cpu_seconds(), contest.peak_gib()
    cache_writing.build(
        [tasks[0].name],
        cache_dir=Path(scratch, f"cache_{count}"),
        vocabulary_dir=vocabulary,
        task_modules=["tasks.jsonl"],
        progress=lambda line: None,
    )
    added = (contest.peak_gib() - held) * 1024
    return {"cpu_seconds": steps.cpu_seconds() - used, "peak": round(max(added, 0.01), 2), "examples": count}


# -------------------------------------------------------------------------------------------------------------- driver


def point(name: str, value: int, arguments: argparse.Namespace) -> dict:
    """One measurement, in a process of its own: the last one's memory and compiled programs are not this one's."""
    task = {"name": name, "value": value, "tiny": arguments.tiny, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "point.json")
        task |= {"vocabulary": arguments.vocabulary, "scratch": scratch, "out": str(out)}
        command = [sys.executable, __file__, f"--point={json.dumps(task)}"]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if not out.exists():
            raise SystemExit(f"error: {name}={value} failed: {steps.last_error(done.stderr or done.stdout)}")
        return json.loads(out.read_text()) | {"value": value}


def serve(task: dict) -> None:
    name, value = task["name"], task["value"]
    if name == "corpus_cache":
        found = cache_point(value, task["vocabulary"], task["scratch"])
    elif name == "corpus_loader":
        found = loader_point(value)
    else:
        found = step_point(name, value, task["tiny"], task["rounds"])
    Path(task["out"]).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # TensorFlow may hang when the interpreter ends


def slopes(points: list[dict]) -> dict[str, float]:
    """Exponents of time and memory, and of time between the last two points, where constants weigh least."""
    values = [one["value"] for one in points]
    columns = {"time": "cpu_seconds", "memory": "peak"}
    found = {name: steps.slope(values, [one[key] for one in points]) for name, key in columns.items()}
    found["time at the end"] = steps.slope(values[-2:], [one["cpu_seconds"] for one in points[-2:]])
    return {name: round(value, 2) for name, value in found.items()}


def draw(results: dict, path: Path) -> None:
    """Time and memory against each quantity, on logarithmic axes, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no curves: pip install matplotlib draws them.")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    columns = min(4, len(results))
    lines = math.ceil(len(results) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3.4 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        values = [one["value"] for one in result["points"]]
        axis.loglog(values, [one["cpu_seconds"] for one in result["points"]], "o-", color="tab:blue")
        axis.set_title(f"{name}: time ^{result['slopes']['time']}, memory ^{result['slopes']['memory']}", fontsize=8)
        axis.set_ylabel("CPU s", color="tab:blue", fontsize=8)
        other = axis.twinx()
        other.loglog(values, [one["peak"] for one in result["points"]], "s--", color="tab:orange")
        other.set_ylabel("MiB", color="tab:orange", fontsize=8)
        axis.set_xticks(values, [str(value) for value in values], fontsize=7)
        for one in (axis, other):
            low, high = one.get_ylim()
            if high < 10 * low:  # a decade at least, so that what is flat looks flat
                middle = math.sqrt(low * high)
                one.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
            one.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            one.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            one.tick_params(labelsize=7)
            one.minorticks_off()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"drew {path}")


def main() -> None:
    tiny = "two small values each, to see that everything runs"
    options = common.Options(__doc__, out="benchmarks/results/scaling.json", tiny=tiny)
    root = Path(__file__).resolve().parents[1]
    options.add_argument("--sweeps", default=",".join(SWEEPS))
    vocabulary = root / "codegen2_jax" / "pretrained" / "nano_t5"
    options.add_argument("--vocabulary", type=contest.folder, default=str(vocabulary))
    options.add_argument("--rounds", type=contest.count, default=5)
    options.add_argument("--draw_only", action="store_true", help="the curves of --out once more")
    options.add_argument("--point", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.point:
        serve(json.loads(arguments.point))
    names = contest.members("sweeps", arguments.sweeps, SWEEPS)
    out = arguments.out and Path(arguments.out)
    stored = json.loads(out.read_text()) if out and out.exists() else {}
    results: dict[str, dict] = stored.get("sweeps", {})
    if arguments.draw_only:
        if not results:
            where = f"in {out}" if out else "without --out"
            contest.fail(f"--draw_only finds no sweeps {where}; measure first, or give their file by --out.")
        draw(results, out.with_suffix(".png"))
        return
    if stored and stored.get("tiny") != arguments.tiny:
        contest.fail(f"--out={out} holds {'full' if arguments.tiny else 'tiny'} sweeps; give another file.")
    print("| against | values | CPU seconds | MiB | slope of time | at the end | of memory | the work's own |")
    print("|---" * 8 + "|")
    for name in names:
        values, tiny_values, own = SWEEPS[name]
        points = [point(name, value, arguments) for value in (tiny_values if arguments.tiny else values)]
        found = slopes(points)
        # Its own machine: those that were there already may be of another.
        results[name] = {"points": points, "slopes": found, "own": own, "machine": contest.machine(2)}
        results[name]["super_linear"] = found["time at the end"] > own + SLACK
        span = [f"{one['cpu_seconds']:.3g}" for one in (points[0], points[-1])]
        sizes = [f"{one['peak']:.4g}" for one in (points[0], points[-1])]
        cells = [name, f"{points[0]['value']} - {points[-1]['value']}", " - ".join(span), " - ".join(sizes)]
        cells += [f"{found[key]:.2f}" for key in ("time", "time at the end", "memory")]
        print(f"| {' | '.join(cells)} | {own:.0f} |", flush=True)
        in_order = {name: results[name] for name in SWEEPS if name in results}
        report = {"machine": contest.machine(2), "tiny": arguments.tiny, "sweeps": in_order}
        if out:  # after every sweep, so that a later point that fails takes nothing away
            json_files.write(out, report)
    common.write_report(arguments.out, report)
    if out:
        draw(in_order, out.with_suffix(".png"))


if __name__ == "__main__":
    main()

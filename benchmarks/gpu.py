"""One GPU, every figure, one table: training, finetuning, a prompt pool, sampling, beside transformers on torch.

  bash benchmarks/gpu.sh                                          # what 8.5 minutes hold; again: the rows that are left
  bash benchmarks/gpu.sh --data_dir=DIR --vocabulary=DIR          # CodeTask-CL's records and CodeT5's tokenizer files
  bash benchmarks/gpu.sh --smoke                                  # everything, tiny, on a CPU: does it run?

  peak      a square product of random bfloat16 numbers, in JAX and in torch: what the GPU gives
  pretrain  CodeGen2-1B, AdamW, windows of 2,048 tokens in bfloat16, with cudnn's and xla's attention: tokens/s, and the
            share of the GPU's peak that the model's own FLOPs are (MFU; causal scores count half, recomputation not; of
            finetuning and pools padding too, since it is computed)
  finetune  CodeT5-small and -large, AdamW on all weights, on batches of CodeTask-CL, each of one task; without
            --data_dir on random tokens of the real lengths. Both sides train on the same records: ours in the loader's
            batches (like lengths together, three shapes), torch's shuffled, each batch padded to its longest row
  pool      PP-TF's pool (68 keys, 100 vectors) beside frozen weights, on the same batches. Torch computes the query
            with the encoder, without dropout; ours reads it
  sample    CodeGen2-1B in bfloat16, top-p 0.95 behind prompts of 128 tokens, batches of 1, 32 and 256. The weights are
            random, the head's scaled on both sides to logits of standard deviation 6: 2.2 nats a token, the top-p part
            mostly below 10 tokens, near to a trained model's. Unscaled they are almost even, and top-p keeps 33,000
            tokens, which no model in use makes it do

Torch attends by sdpa where transformers has it for the architecture (T5, not CodeGen) and is compiled, for samples as
transformers does it: a cache of fixed length, and each token a replayed CUDA graph. Where compiling fails or takes more
than 90 seconds it runs as it is. The note of a row says which. Rates are medians of 3 rounds, with slowest and fastest.

Every measurement is a process of its own, so that its peak of memory (of what arrays held, by each library's own
account) is its own and a failure is a row, not the end; the end of what a failed row said stands in the report, and the
exit code is then 1. The report (--out) is written after every row. A second call adds the rows that are missing, were
left out or failed to the report that is there; --again measures the rest anew as well. It must have the same settings,
versions and GPU: with others it ends with an error, so that no table mixes them. What --minutes do not reach is listed
as left out, and so are the rows of a library that is not installed. Torch runs where it sees the GPU (with --smoke: on
the CPU).
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.perf_counter()  # ahead of the imports that take seconds: --minutes count from the program's start

import contest  # noqa: E402
import gpu_jax  # noqa: E402
import gpu_report  # noqa: E402
import gpu_torch  # noqa: E402
import gpu_work  # noqa: E402
import steps  # noqa: E402

from codegen2_jax import json_files  # noqa: E402

REAL = dict(decoder="codegen2-1b", t5=("codet5-small", "codet5-large"), length=2048, rows=16, batch_size=32)
REAL |= dict(batches_per_task=3, samples=(1, 32, 256), prompt=128, new_tokens=128, square=8192, least=3.0)
REAL |= dict(records=2000, compile_limit=90)
SMOKE = dict(decoder="tiny-decoder", t5=("tiny-t5",), length=64, rows=2, batch_size=4)
SMOKE |= dict(batches_per_task=1, samples=(1, 2), prompt=8, new_tokens=4, square=256, least=0.0, records=40)
SMOKE |= dict(compile_limit=90)
NO_GPU, STOPPED = "JAX sees no GPU", "stopped after"
OUTPUT = 4000  # characters that are kept of what a failed row said


def plan(work: dict) -> dict[str, tuple[str, dict]]:
    """{row: (function, arguments)} in the order of their worth: pretraining, ours and torch's, before all others."""
    decoder = work["decoder"]
    pretrain = lambda attention, remat: ("jax_pretrain", {"attention": attention, "remat": remat})  # noqa: E731
    rows = {"peak, jax": ("jax_peak", {}), f"pretrain {decoder}, jax cudnn": pretrain("cudnn", "dots_no_batch")}
    rows[f"pretrain {decoder}, torch"] = ("torch_pretrain", {})
    rows[f"pretrain {decoder}, jax cudnn, remat none"] = pretrain("cudnn", "none")
    pairs = {
        model: {
            f"{'pool' if pool else 'finetune'} {model}, {side}": (f"{side}_pairs", {"model": model, "pool": pool})
            for pool in (False, True)
            for side in ("jax", "torch")
        }
        for model in work["t5"]
    }
    small, *larger = pairs.values()
    rows |= small
    for batch in work["samples"]:
        rows |= {f"sample {batch}, {side}": (f"{side}_sample", {"batch": batch}) for side in ("jax", "torch")}
    rows[f"pretrain {decoder}, jax xla"] = pretrain("xla", "dots_no_batch")
    rows[f"pretrain {decoder}, jax cudnn, remat full"] = pretrain("cudnn", "full")
    rows["peak, torch"] = ("torch_peak", {})
    for more in larger:
        rows |= more
    return rows


def chosen(rows: dict, asked: str) -> list[str]:
    """The names that contain one of the comma-separated parts, and the peak, which the others are measured by."""
    parts = [part.strip() for part in asked.split(",") if part.strip()]
    unknown = [part for part in parts if not any(part in name for name in rows)]
    if unknown:
        names = ", ".join(map(repr, unknown))
        contest.fail(f"--rows={asked}: no row's name contains {names}; rows: {'; '.join(rows)}.")
    return [name for name in rows if not parts or name == "peak, jax" or any(part in name for part in parts)]


def why(said: str, code: int) -> str:
    """What ended a process, in a line: a signal's name, where that was it, and the error that it told."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; it said: {steps.last_error(said)}"
    return steps.last_error(said)


def measured(function: str, arguments: dict, work: dict, limit_s: float) -> dict:
    """One row, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out, said = Path(scratch, "row.json"), Path(scratch, "said")
        task = json.dumps({"function": function, "arguments": arguments, "work": work, "out": str(out)})
        # JAX gives memory back and takes what it needs, so that the peak is the program's; 0.95 of all at most.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": "0.95"}
        environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its old name; JAX refuses both together
        platforms = os.environ.get("JAX_PLATFORMS", "")
        if work["smoke"] or function.startswith("torch"):
            environment["JAX_PLATFORMS"] = "cpu"
        elif platforms and "cpu" not in platforms.split(","):
            environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # where the weights of samples are drawn
        command = [sys.executable, __file__, f"--row={task}"]
        # A file, no pipe: the compiler's processes, which torch leaves for a moment, would hold a pipe open.
        with said.open("wb") as noise:
            try:
                done = subprocess.run(command, env=environment, stdout=noise, stderr=noise, timeout=limit_s)
            except subprocess.TimeoutExpired:
                reason = f"{STOPPED} {limit_s:.0f} s; --row_minutes gives more"
                return {"failed": reason, "output": said.read_text(errors="replace")[-OUTPUT:]}
        text = said.read_text(errors="replace")
        if done.returncode or not out.exists():
            return {"failed": why(text, done.returncode), "output": text[-OUTPUT:]}
        row = json.loads(out.read_text())
        if "left_out" in row and row["left_out"] == NO_GPU and text.strip():  # JAX says why, and goes on with the CPU
            row["told"] = steps.last_error(text)
        return row


def one_row(task: dict) -> dict:
    """What a row's own process does."""
    function, work = task["function"], task["work"]
    try:
        if function.startswith("torch"):
            torch, device = gpu_torch.torch_setup(work)
            device = torch.cuda.get_device_name() if device == "cuda" else device
        else:
            import jax

            device = jax.devices()[0].device_kind
            if jax.default_backend() == "cpu" and not work["smoke"]:
                raise gpu_work.LeftOut(NO_GPU)
        found = getattr(gpu_torch if function.startswith("torch") else gpu_jax, function)(work, **task["arguments"])
    except gpu_work.LeftOut as reason:
        return {"left_out": str(reason)}
    except ModuleNotFoundError as error:
        if not error.name:  # transformers' word for an import of its own that failed
            raise
        return {"left_out": f"{error.name} is not installed"}
    return found | ({"device": device, "date": time.strftime("%Y-%m-%d")} if "seconds" in found else {})


def is_done(row: dict) -> bool:
    """Measured, or nothing that could be measured here; others are tried again."""
    return "seconds" in row or "skipped" in row


def earlier(out: Path, work: dict, machine: dict) -> tuple[dict, dict]:
    """(rows, machine) of the report that is there, which must be one of the same settings and versions."""
    if not out.exists():
        return {}, machine
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        rows, before = report["rows"], report["machine"]
        then = report["settings"] | before["versions"]
    except (ValueError, KeyError, TypeError) as error:
        contest.fail(f"{out} is no report of this program ({error!r}); give another --out.")
    now = json.loads(json.dumps(work | machine["versions"]))
    other = [f"{name}={then.get(name)!r}" for name in now | then if now.get(name) != then.get(name)]
    if other:
        contest.fail(f"{out} was measured with {', '.join(other)}; give another --out, or delete it to start anew.")
    return rows, before


def check(arguments: argparse.Namespace) -> None:
    """Ends the program where an option cannot be meant, before a row takes its time to fail of it."""
    if bool(arguments.data_dir) != bool(arguments.vocabulary):
        contest.fail("--data_dir and --vocabulary belong together: records and the tokenizer they need.")
    if arguments.data_dir and arguments.smoke:
        contest.fail("--smoke trains tiny models on random records; give it no --data_dir.")
    if arguments.data_dir:
        contest.check_folders(data_dir=arguments.data_dir, vocabulary=arguments.vocabulary)
    for name, least in (("minutes", 0), ("row_minutes", 0.1), ("batch_rows", 1)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < math.inf:
            contest.fail(f"--{name}={value:g} must be at least {least} and finite.")


def main() -> None:
    options = contest.Parser(__doc__)
    options.add_argument("--smoke", action="store_true", help="everything tiny, on a CPU")
    options.add_argument("--data_dir", default="", help="CodeTask-CL's files; without: random tokens, real lengths")
    options.add_argument("--vocabulary", default="", help="directory of CodeT5's tokenizer files, with --data_dir")
    options.add_argument("--rows", default="", help="only rows whose name contains one of these, comma separated")
    options.add_argument("--again", action="store_true", help="measure rows anew that the report has")
    options.add_argument("--minutes", type=float, default=8.5, help="no longer, from the start of the program")
    options.add_argument("--row_minutes", type=float, default=3.0, help="no longer for one row, which fails then")
    options.add_argument("--batch_rows", type=int, help="windows of a pretraining step, default 16")
    options.add_argument("--out", help="default benchmarks/results/gpu.json; with --smoke nothing is written")
    options.add_argument("--row", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.row:
        task = json.loads(arguments.row)
        Path(task["out"]).write_text(json.dumps(one_row(task)))
        return
    check(arguments)
    work = dict(SMOKE if arguments.smoke else REAL)
    work |= {"smoke": arguments.smoke, "data_dir": arguments.data_dir, "vocabulary": arguments.vocabulary}
    if arguments.batch_rows is not None:
        work["rows"] = arguments.batch_rows
    out = Path(arguments.out) if arguments.out else None if arguments.smoke else Path("benchmarks/results/gpu.json")
    rows, machine = plan(work), contest.machine(os.cpu_count())
    names = chosen(rows, arguments.rows)
    results, machine = earlier(out, work, machine) if out else ({}, machine)
    names = [name for name in names if arguments.again or not is_done(results.get(name, {}))]
    failed = []
    # What failed before may fail again and take its time: behind what was not tried.
    for name in sorted(names, key=lambda name: "failed" in results.get(name, {})):
        left, start = arguments.minutes * 60 - (time.perf_counter() - BEGAN), time.perf_counter()
        if left <= 0:
            results.setdefault(name, {"left_out": "no time was left"})
            continue
        limit = min(left, arguments.row_minutes * 60)
        row = measured(*rows[name], work, limit)
        if row.get("failed", "").startswith(STOPPED) and limit == left:
            row = {"left_out": "no time was left to finish it"}
        if row.get("left_out") == NO_GPU:
            told = f" It said: {row['told']}" if "told" in row else ""
            contest.fail(f"{NO_GPU}; install codegen2_jax[cuda] or [cuda12], or use --smoke.{told}")
        before = gpu_report.device_of(results, name.split(", ")[1].split()[0])
        if "device" in row and before and row["device"] != before:
            contest.fail(f"{out} was measured on {before}, and this is {row['device']}; give another --out.")
        if is_done(row) or not is_done(results.get(name, {})):
            results[name] = row
        if "failed" in row:
            failed.append(name)
        results = {name: results[name] for name in rows if name in results}
        if out:  # at once: whatever ends the program later, this row is kept
            json_files.write(out, gpu_report.report_of(results, work, machine))
        rest = f"{arguments.minutes - (time.perf_counter() - BEGAN) / 60:.1f} minutes left"
        print(f"{name}: {gpu_report.said_of(row)}; {time.perf_counter() - start:.0f} s, {rest}", flush=True)
    results = {name: results[name] for name in rows if name in results}
    report = gpu_report.report_of(results, work, machine)
    found = report["machine"]
    print(f"\n{found['device']}, peak {found['peak_tflops']:.4g} TFLOP/s in bfloat16 ({found['peak_from']})")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{versions}; {gpu_report.dates_of(results)}")
    print(f"{report['table']}\n")
    if out:
        contest.write(out, report)
    if failed:
        print(f"error: {len(failed)} of {len(names)} rows failed: {'; '.join(failed)}.", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()

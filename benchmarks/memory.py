"""The most memory that a training step holds: a prompt pool beside frozen weights against all weights, CodeT5-small.

  python benchmarks/memory.py                       # about five minutes on two cores
  python benchmarks/memory.py --compiled_only       # one minute; nothing runs
  python benchmarks/memory.py --tiny

Both under the same settings, twice: as shipped, where activations and logits that both need weigh as much as what only
finetuning needs (gradients and two moments of every weight), and lean, as one sets it where memory is what is short:
gin_configs/presets/low_memory.gin (REMAT="full", the head and its loss in 8 blocks).

Two figures each. Compiled: arguments and temporaries of the step's program, donated buffers once, by XLA's own account.
Process: the resident memory at its highest, of a process that makes the state and takes three steps, less what the same
process held when the state was not made yet (Python, JAX and the compiler's libraries).
"""

import argparse
import json
import subprocess
import sys

import common
import contest
import steps

AIM = 0.5  # the pool's peak as a part of full finetuning's
# name -> changes of the configuration, blocks of the loss
SETTINGS = {"as shipped": ({}, None), "lean": ({"remat": "full"}, 8)}


def process_row(task: dict) -> dict:
    """Resident MiB that a few steps add."""
    import jax

    config = steps.config_of(task["model"], **task["changes"])
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(8)))
    before = contest.peak_gib()
    batch = steps.pairs(config, *task["shape"], query=task["pool"])
    step = steps.Step.of(config, pool=task["pool"], loss_blocks=task["loss_blocks"])
    for _ in range(3):
        metrics = step.run(batch)
    jax.block_until_ready(metrics)
    return {"before": round(before * 1024, 1), "added": round((contest.peak_gib() - before) * 1024, 1)}


def compiled_row(task: dict) -> dict:
    config = steps.config_of(task["model"], **task["changes"])
    batch = steps.pairs(config, *task["shape"], query=task["pool"])
    program = steps.shapes_of_step(config, batch, pool=task["pool"], loss_blocks=task["loss_blocks"])
    return steps.memory_of(program)


def compared(model: str, shape: tuple[int, int, int], setting: str, *, process: bool) -> dict:
    """{"finetune": its figures, "pool": its figures} under one of SETTINGS."""
    rows, (changes, loss_blocks) = {}, SETTINGS[setting]
    for name, pool in (("finetune", False), ("pool", True)):
        task = {"model": model, "shape": shape, "pool": pool, "loss_blocks": loss_blocks, "changes": changes}
        rows[name] = {"compiled": compiled_row(task)}
        if process:
            command = [sys.executable, __file__, f"--process={json.dumps(task)}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {name}, {setting}: {steps.last_error(done.stderr)}")
            rows[name]["process"] = json.loads(done.stdout)
    return rows


def ratios(rows: dict) -> dict[str, float]:
    """The pool's peaks as parts of finetuning's."""
    found = {"compiled": rows["pool"]["compiled"]["peak"] / rows["finetune"]["compiled"]["peak"]}
    if "process" in rows["pool"]:
        found["process"] = rows["pool"]["process"]["added"] / rows["finetune"]["process"]["added"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    options = common.Options(__doc__, out="benchmarks/results/memory.json")
    options.add_argument("--model", choices=steps.T5_SHAPES, default="codet5-small")
    shape = dict(type=contest.count, nargs=3, metavar=("ROWS", "SOURCE", "TARGET"))
    options.add_argument("--shape", **shape, default=(8, 256, 128))
    options.add_argument("--settings", default=",".join(SETTINGS))
    options.add_argument("--compiled_only", action="store_true", help="nothing runs, so a busy machine will do")
    options.add_argument("--process", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.process:
        print(json.dumps(process_row(json.loads(arguments.process))))
        return
    if arguments.tiny:  # once more: what is given holds
        options.set_defaults(model="tiny-t5", shape=(2, 16, 8))
        arguments = options.parse_args()
    model, shape, results = arguments.model, tuple(arguments.shape), {}
    settings = contest.members("settings", arguments.settings, SETTINGS)
    print("| MiB | arguments | temporaries | peak, compiled | added to the process |\n|---|---|---|---|---|")
    for setting in settings:
        rows = compared(model, shape, setting, process=not arguments.compiled_only)
        for name, row in rows.items():
            cells = [f"{row['compiled'][part]:,.0f}" for part in ("arguments", "temporaries", "peak")]
            added = f"{row['process']['added']:,.0f}" if "process" in row else "-"
            print(f"| {name}, {setting} | {' | '.join(cells)} | {added} |", flush=True)
        results[setting] = {"rows": rows, "pool_of_finetune": ratios(rows)}
    for setting, result in results.items():
        found = result["pool_of_finetune"]
        verdict = "met" if max(found.values()) <= AIM else "missed"
        print(f"{setting}: pool / finetune {found}; aim at most {AIM}: {verdict}")
    report = {"machine": steps.machine(2), "model": model, "shape": shape}
    common.write_report(arguments.out, report | {"settings": results})


if __name__ == "__main__":
    main()

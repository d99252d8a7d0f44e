"""The benchmark programs run: what they measure is right where it can be checked, and one call of each ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_prompt_pool_holds_at_most_half_of_what_full_finetuning_holds():
    """CodeT5-small on 8 x (256 + 128) tokens, set lean, by the compiled programs; nothing is allocated."""
    import memory

    rows = memory.compared("codet5-small", (8, 256, 128), "lean", process=False)
    assert memory.ratios(rows)["compiled"] <= memory.AIM
    # Weights, two moments and gradients of 60.5 M parameters are the least that finetuning holds.
    assert rows["finetune"]["compiled"]["peak"] > 4 * 4 * 60.4e6 / 2**20


def test_fewer_rows_are_tried_only_where_they_can_help():
    import pods

    state = {"parameters": 4, "optimizer": 8}  # and gradients of 4
    assert pods._needs_too_much_without_rows({"state_bytes_per_chip": state, "chip": {"hbm_bytes": 15}})
    assert not pods._needs_too_much_without_rows({"state_bytes_per_chip": state, "chip": {"hbm_bytes": 16}})


def test_gpu_sh_prints_a_table_and_writes_what_it_measured(tmp_path):
    out = tmp_path / "gpu.json"
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "--smoke", "--rows=jax xla,jax cudnn", f"--out={out}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    trained = report["rows"]["pretrain tiny-decoder, jax xla"]
    assert trained["tokens_per_second"] > 0 and np.isfinite(trained["loss"]) and trained["peak_gib"] > 0
    assert report["rows"]["pretrain tiny-decoder, jax cudnn"] == {
        "skipped": "cudnn needs an NVIDIA GPU, and this is a CPU"
    }
    assert "| pretrain tiny-decoder, jax xla |" in done.stdout and "skipped: cudnn needs" in done.stdout


def test_gpu_table_holds_ours_against_torch_and_says_what_is_missing():
    import gpu

    row = {"seconds": 1.0, "compile_seconds": 9.0, "tokens_per_second": 1000.0, "tflops": 500.0, "peak_gib": 3.0}
    results = {
        "sample 1, jax": row,
        "sample 1, torch": row | {"seconds": 2.5, "note": "eager"},
        "pretrain x, torch": {"failed": "out of memory"},
        "peak, torch": {"left_out": "no time was left"},
    }
    lines = gpu.table(results, 1000.0).splitlines()
    assert lines[2] == "| sample 1, jax | 1,000 tokens | 500.0 | 50.0% | 3.0 | 2.50 | 9 |  |"
    assert lines[4].endswith("failed: out of memory |") and lines[5].endswith("left_out: no time was left |")
    work = dict(gpu.REAL)
    assert all(hasattr(gpu, function) for function, _ in gpu.plan(work).values())
    assert gpu.peak_of({}, "NVIDIA H200") == (989, "data sheet")


def test_model_flops_are_those_of_the_formula():
    import steps

    config = steps.config_of("tiny-decoder")
    batch = steps.windows(config, 3, 10)
    width, inner = 64, 64
    block = 4 * width * inner + 8 * width * width + 4 * width + width + 2 * width  # matrices, biases, the norm
    weights = 2 * block + 2 * width + 512 * width
    expected = 3 * (2 * 30 * weights + 3 * 2 * (2 * 10 * 10 * inner))
    np.testing.assert_allclose(steps.model_flops(config, batch), expected, rtol=0.01)


def test_records_are_as_long_as_the_real_ones():
    import steps

    tasks = steps.records_like_codetask(1000, 400)
    known = json.loads(steps.LENGTHS.read_text())["tasks"]
    assert tasks.keys() == known.keys()
    for task, records in tasks.items():
        for side, name in (("inputs", "sources"), ("targets", "targets")):
            median = np.median([len(record[side]) for record in records])
            assert abs(median - known[task][name][8]) <= 2, (task, side)
    pairs = [(len(one["inputs"]), len(one["targets"])) for one in tasks["codetask_translate"]]
    assert np.corrcoef(np.asarray(pairs).argsort(0).argsort(0).T)[0, 1] > 0.7


def test_slopes():
    import scaling

    points = [{"value": n, "cpu_seconds": 3.0 * n**2, "peak": 7.0 * n} for n in (2, 4, 8)]
    assert scaling.slopes(points) == {"time": 2.0, "memory": 1.0, "time at the end": 2.0}
    asked = {"batch", "length", "depth", "width", "pool", "tasks", "corpus_cache", "corpus_loader"}
    assert asked <= set(scaling.SWEEPS)


def test_the_pools_ablation_takes_runs_of_its_own_flags_only(tmp_path, monkeypatch):
    """What is there already is for `sweep` to say, which knows runs by their configuration."""
    import pools

    asked = []

    def run(command, **_):
        asked.append(command)
        steps = command[-1].rpartition("=")[2]
        directory = tmp_path / "a" / steps
        directory.mkdir(parents=True, exist_ok=True)
        figures = {"retrieval_top1": float(steps), "effective_keys": 2.0}
        (directory / "retrieval.json").write_text(json.dumps({"summary": {"test": figures}}))
        (tmp_path / "a" / "sweep.json").write_text(json.dumps({"runs": [{"directory": str(directory)}]}))
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(pools.subprocess, "run", run)
    first, second = (pools.run("a", tmp_path, "tiny_ci", "0", [f"--gin.STEPS_PER_TASK={n}"]) for n in (5, 7))
    assert [one[0]["summary"]["test"]["retrieval_top1"] for one in (first, second)] == [5.0, 7.0]
    assert all("codegen2_jax.sweep" in command for command in asked)
    assert pools.table({"a": first})[2] == "| a | 5.000 | - | 2.000 | - |"


def test_the_pools_ablation_keeps_the_last_stage_and_nothing_as_large_as_the_pool():
    import pools

    stages = {"retrieval_top1": [[1.0], [0.5, 0.75]], "selection_overlap": [[[1.0]], [[1.0, 0.2], [0.2, 1.0]]]}
    pool_sized = {"key_usage": [[[0.1] * 100]] * 2, "key_plane": [[[0.0, 0.0]] * 100] * 2}
    (kept,) = pools.ends([{"diagnostics": stages | pool_sized, "summary": {}}])
    assert kept == {"retrieval_top1": [0.5, 0.75], "selection_overlap": [[1.0, 0.2], [0.2, 1.0]]}

"""The benchmark programs run: what they measure is right where it can be checked, and one call of each ends."""

import json
import os
import subprocess
import sys
import time
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


# ---------------------------------------------------------------------------------------------------- one GPU's report

MEASURED = {"seconds": 1.0, "compile_seconds": 9.0, "device": "cpu"}


@pytest.fixture
def gpu_run(monkeypatch):
    """Calls gpu.py's main with rows that take no time; gives the names that it measured, in order.

    rows: what a row gives in place of tokens per second, by its name; an exception is raised.
    """
    import gpu

    def run(*arguments, **rows):
        asked = []

        def measured(function, given, work, limit_s):
            names = [name for name, row in gpu.plan(work).items() if row == (function, given)]
            asked.extend(names)
            found = rows.get(names[0].replace(" ", "_").replace(",", ""), MEASURED | {"tokens_per_second": 10.0})
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(gpu, "measured", measured)
        monkeypatch.setattr(gpu, "BEGAN", time.perf_counter())
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", *arguments])
        gpu.main()
        return asked

    return run


def test_gpu_report_is_written_after_every_row_and_completed_by_the_next_call(tmp_path, gpu_run):
    import gpu

    out = tmp_path / "gpu.json"
    rows = list(gpu.plan(gpu.SMOKE))
    with pytest.raises(KeyboardInterrupt):
        gpu_run(f"--out={out}", peak_jax={"failed": "once"}, **{"pretrain_tiny-decoder_torch": KeyboardInterrupt()})
    report = json.loads(out.read_text())
    assert list(report["rows"]) == rows[:2] and report["machine"]["device"] == "cpu"
    assert f"| {rows[1]} | 10 tokens |" in report["table"] and "| failed: once |" in report["table"]

    assert gpu_run(f"--out={out}", "--minutes=0") == []  # what is left out then is measured by the next call
    assert json.loads(out.read_text())["rows"][rows[-1]] == {"left_out": "no time was left"}
    assert gpu_run(f"--out={out}") == [*rows[2:], rows[0]]  # not what is there; what failed, last
    assert list(json.loads(out.read_text())["rows"]) == rows
    assert gpu_run(f"--out={out}") == []
    assert gpu_run(f"--out={out}", "--rows=sample 1", "--again") == [rows[0], "sample 1, jax", "sample 1, torch"]


def test_gpu_report_of_other_settings_or_another_gpu_is_left_alone(tmp_path, gpu_run, capsys):
    out = tmp_path / "gpu.json"
    gpu_run(f"--out={out}", "--rows=peak, jax")
    before = out.read_text()
    capsys.readouterr()
    for arguments, row, words in (
        (["--batch_rows=3"], MEASURED, "was measured with rows=2; give another --out"),
        (["--again"], MEASURED | {"device": "NVIDIA H200"}, "was measured on cpu, and this is NVIDIA H200"),
    ):
        with pytest.raises(SystemExit) as ended:
            gpu_run(f"--out={out}", *arguments, peak_jax=row)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and words in error and error.count("\n") == 1
        assert out.read_text() == before


def test_gpu_rows_that_no_name_contains_are_an_error(tmp_path, gpu_run, capsys):
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as ended:
        gpu_run(f"--out={out}", "--rows=sample,pretran")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and not out.exists() and error.count("\n") == 1
    assert "contains 'pretran'" in error and "sample 1, torch" in error


def test_gpu_smoke_writes_nothing_unless_asked(tmp_path, monkeypatch, gpu_run):
    import gpu

    monkeypatch.chdir(tmp_path)
    assert gpu_run() == list(gpu.plan(gpu.SMOKE))
    assert not list(tmp_path.iterdir())


def test_gpu_rows_begin_with_pretraining_of_both_sides_and_end_with_the_large_model():
    import gpu

    names = list(gpu.plan(gpu.REAL))
    assert names[1:3] == ["pretrain codegen2-1b, jax cudnn", "pretrain codegen2-1b, torch"]
    assert all("codet5-large" in name for name in names[-4:])


def test_gpu_rows_of_a_library_that_is_not_installed_are_left_out(monkeypatch):
    import contest
    import gpu

    task = {"function": "torch_peak", "arguments": {}, "work": gpu.SMOKE | {"smoke": True}}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.one_row(task) == {"left_out": "torch is not installed"}

    def version(name):
        raise contest.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(contest.metadata, "version", version)
    assert contest.machine(1)["versions"]["torch"] is None


def test_gpu_torch_gets_the_records_of_our_batches_one_task_in_each():
    import gpu

    work = gpu.SMOKE | {"smoke": True, "data_dir": "", "vocabulary": "", "batches_per_task": 2}
    batches, records = gpu.batches_of(work, 512)
    ours = [(int(task), str(i)) for one in batches for task, i in zip(one["task_B"], one["record_B"], strict=True)]
    groups = gpu.shuffled(records, work["batch_size"])
    theirs = [(row["task"], row["id"]) for group in groups for row in group]
    assert sorted(theirs) == sorted(ours) and theirs != ours
    assert len(groups) == len(batches) == 8 and all(len(group) == 4 for group in groups)
    assert all(len({row["task"] for row in group}) == 1 for group in groups)
    assert all(len(set(batch["task_B"].tolist())) == 1 for batch in batches)


def test_gpu_torch_runs_uncompiled_where_compiling_fails():
    import gpu

    class Cuda:
        synchronize = reset_peak_memory_stats = staticmethod(lambda: None)
        max_memory_allocated = staticmethod(lambda: 2**30)

    class Torch:
        cuda = Cuda
        fails = True

        class compiler:  # noqa: N801  torch's name
            reset = staticmethod(lambda: None)

        @classmethod
        def compile(cls, function, dynamic):
            if cls.fails:
                raise RuntimeError("no compiler\nand more")
            return function

    calls, work = [], {"least": 0.0, "compile_limit": 1}
    run_of = lambda wrap: wrap(lambda: calls.append(1))  # noqa: E731
    found = gpu.torch_timed(run_of, work, Torch, "cuda")
    assert found["compiled"] == "not compiled (RuntimeError: no compiler)" and len(calls) == 5
    Torch.fails = False
    assert gpu.torch_timed(run_of, work, Torch, "cuda")["compiled"] == "compiled"
    Torch.compile = lambda function, dynamic: lambda: time.sleep(60)
    assert "TimeoutError: more than 1 s" in gpu.torch_timed(run_of, work, Torch, "cuda")["compiled"]


def test_gpu_heads_are_as_sharp_as_they_are_said_to_be():
    import gpu

    rng = np.random.default_rng(0)
    head_VD, state_D = rng.normal(size=(50_000, 64)) * 0.02, rng.normal(size=64)
    state_D /= np.sqrt(np.mean(state_D**2))
    assert abs(np.std(gpu.sharpened(head_VD) @ state_D) - gpu.SHARPNESS) < 0.1


def test_a_gpu_row_that_hangs_is_ended(monkeypatch, tmp_path):
    import gpu

    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "__file__", str(sleeper))
    row = gpu.measured("jax_peak", {}, {"smoke": True}, 0.5)
    assert row["failed"].startswith("stopped after")


def test_a_round_waits_for_all_but_the_newest_call():
    import steps

    class Result:
        waiting = []

        def __init__(self):
            self.waiting.append(self)

        def block_until_ready(self):
            if self in self.waiting:
                self.waiting.remove(self)
            return self

    longest = []
    steps.seconds_of(lambda: longest.append(len(Result.waiting)) or Result(), rounds=2, repeats=5)
    assert len(longest) == 10 and max(longest) == 1 and not Result.waiting


def test_batches_for_the_gpu_are_made_without_grain_and_array_record():
    names = ("grain", "array_record", "gin", "tensorboardX", "tensorflow", "seqio")
    program = f"import sys; sys.modules.update(dict.fromkeys({names}))\nimport gpu\n"
    program += "from codegen2_jax.data import cache\n"
    program += "work = gpu.SMOKE | dict(smoke=True, data_dir='', vocabulary='')\n"
    program += "print(len(gpu.batches_of(work, 512)[0]))"
    path = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "4\n", done.stderr

"""The benchmark programs run: what they measure is right where it can be checked, and one call of each ends."""

import importlib
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("setting", ["as shipped", "lean"])
def test_a_prompt_pool_holds_at_most_half_of_what_full_finetuning_holds(setting):
    """CodeT5-small on 8 x (256 + 128) tokens, by the compiled programs; nothing is allocated."""
    import memory

    rows = memory.compared("codet5-small", (8, 256, 128), setting, process=False)
    assert memory.ratios(rows)["compiled"] <= memory.AIM
    # Weights, two moments and gradients of 60.5 M parameters are the least that finetuning holds.
    assert rows["finetune"]["compiled"]["peak"] > 4 * 4 * 60.4e6 / 2**20


def test_fewer_rows_are_tried_only_where_they_can_help():
    import pods

    state = {"parameters": 4, "optimizer": 8}  # and gradients of 4
    assert pods._needs_too_much_without_rows({"state_bytes_per_chip": state, "chip": {"hbm_bytes": 15}})
    assert not pods._needs_too_much_without_rows({"state_bytes_per_chip": state, "chip": {"hbm_bytes": 16}})


def test_the_table_of_pods_is_that_of_its_results():
    import pods

    names = [row.name for row in pods.rows_of(pods.MODELS, pods.TOPOLOGIES)]
    assert len(set(names)) == len(names)
    stored = json.loads((BENCHMARKS / "results" / "pods.json").read_text())["rows"]
    assert set(stored) <= set(names)
    assert (BENCHMARKS / "results" / "pods.md").read_text() == pods.table(stored)


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
    import gpu_jax
    import gpu_report
    import gpu_torch

    row = {"seconds": 1.0, "compile_seconds": 9.0, "tokens_per_second": 1000.0, "tflops": 500.0, "peak_gib": 3.0}
    row |= {"spread": [0.8, 1.25], "date": "2026-01-02"}
    square = {name: value for name, value in row.items() if name != "tokens_per_second"}
    results = {
        "sample 1, jax": row,
        "sample 1, torch": row | {"seconds": 2.5, "note": "eager"},
        "pretrain x, torch": {"failed": "out of memory"},
        "peak, torch": {"left_out": "no time was left"},
        "peak, jax": square,
    }
    lines = gpu_report.table(results, 1000.0).splitlines()
    assert lines[2] == "| sample 1, jax | 1,000 tokens | 800 - 1,250 | 500.0 | 50.0% | 3.0 | 2.50 | 9 |  |"
    assert lines[4].endswith("failed: out of memory |") and lines[5].endswith("left_out: no time was left |")
    assert lines[6].startswith("| peak, jax | - | 400.0 - 625.0 TFLOP/s | 500.0 |")
    assert len({line.count("|") for line in lines}) == 1 and gpu_report.dates_of(results) == "2026-01-02"
    work = dict(gpu.REAL)
    assert all(hasattr(gpu_jax, name) or hasattr(gpu_torch, name) for name, _ in gpu.plan(work).values())
    assert gpu_report.peak_of({}, "NVIDIA H200") == (989, "data sheet")


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


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("train_step", "--no_such_flag=1", "unrecognized arguments: --no_such_flag=1"),
        ("train_step", "--modes=lora", "--modes names 'lora'; there are finetune, pool."),
        ("train_step", "--rounds=0", "argument --rounds: 0 must be a whole number, at least 1"),
        ("train_step", "--data_dir=none", "--data_dir=none is no directory."),
        ("decode", "--num_beams=1,x", "argument --num_beams: x must be a whole number"),
        ("decoder", "--contenders=torch,jx --tiny", "--contenders names 'jx'; there are jax, torch, jax-bf16"),
        ("decoder", "--vocabulary=none", "--vocabulary=none is no directory."),
        ("memory", "--settings=fat", "--settings names 'fat'; there are as shipped, lean."),
        ("memory", "--model=codegen2-1b", "argument --model: invalid choice: 'codegen2-1b'"),
        ("matmul", "--threads=0", "argument --threads: 0 must be"),
        ("startup", "--parts=", "--parts names nothing; there are import, help, first_step."),
        ("scaling", "--sweeps=batches", "--sweeps names 'batches'; there are batch, length"),
        ("data", "--seconds=0", "--seconds=0 must be above 0"),
        ("methods", "--methods=lora", "--methods names 'lora'; there are finetune"),
        ("pools", "--cells=none", "--cells names 'none'; there are assignment_balanced"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys, program, arguments, words):
    module = importlib.import_module(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        module.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: {words}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["lessons", "methods", "pools"])
def test_a_sweep_that_fails_ends_the_program_with_its_exit_code(monkeypatch, capsys, program):
    module = importlib.import_module(program)
    failed = subprocess.CompletedProcess([], 2, "", "error: unknown flag --x")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(sys, "argv", [f"{program}.py", "--x=1"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_what_is_given_beside_tiny_holds(monkeypatch, tmp_path):
    import common
    import decoder
    import memory

    seen = {}
    monkeypatch.setattr(common, "drive", lambda script, arguments, *_, **__: seen.update(vars(arguments)))
    monkeypatch.setattr(sys, "argv", ["decoder.py", "--tiny", "--rounds=7"])
    decoder.main()
    assert seen["rounds"] == 7 and seen["length"] == decoder.TINY_WORK["length"]

    row = {"compiled": dict.fromkeys(("arguments", "temporaries", "peak"), 1.0)}
    rows = {"finetune": row, "pool": row}
    compared = lambda model, shape, *_, **__: seen.update(model=model, shape=shape) or rows  # noqa: E731
    monkeypatch.setattr(memory, "compared", compared)
    monkeypatch.setattr(sys, "argv", ["memory.py", "--tiny", "--shape", "3", "4", "5"])
    memory.main()
    assert seen["shape"] == (3, 4, 5) and seen["model"] == "tiny-t5"


def test_data_contenders_take_turns_and_the_report_says_where_and_when(monkeypatch, tmp_path, capsys):
    import data

    order, rate = [], iter([4, 8, 2, 6, 16, 4])  # examples a second of seqio, loader, pretraining and back

    def run(command, **_):
        name = command[2].partition("=")[2]
        order.append(name)
        found = {"tokens": 1, "wall_seconds": 1.0, "cpu_seconds": 2.0}
        if name == "caching":
            found |= {"examples": 10, "task_names": ["a"], "max_lengths": [3, 4]}
        else:
            found |= {"examples": next(rate), "real_share": 0.5}
        Path(command[3].partition("=")[2]).write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(data.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["data.py", "--rounds=2", f"--out={tmp_path / 'data.json'}"])
    data.main()
    assert order == ["caching", "seqio", "loader", "pretraining", "pretraining", "loader", "seqio"]
    report = json.loads((tmp_path / "data.json").read_text())
    assert report["machine"]["date"] and report["settings"]["batch_size"] == 32
    assert report["times_seqio"] == 12 / 4 and len(report["contenders"]["loader"]) == 2
    assert "| loader | 12 | 8 - 16 | 6 | 4 - 8 | 50% |" in capsys.readouterr().out


def test_each_sweep_keeps_the_machine_it_was_measured_on(monkeypatch, tmp_path):
    import contest
    import scaling

    out = tmp_path / "scaling.json"
    monkeypatch.setattr(scaling, "point", lambda name, value, _: {"value": value, "cpu_seconds": value, "peak": value})
    monkeypatch.setattr(scaling, "draw", lambda *_: None)
    for date, sweep in (("2026-01-02", "batch"), ("2026-01-03", "length")):
        monkeypatch.setattr(contest, "machine", lambda threads, date=date: {"date": date})
        monkeypatch.setattr(sys, "argv", ["scaling.py", f"--sweeps={sweep}", f"--out={out}"])
        scaling.main()
    sweeps = json.loads(out.read_text())["sweeps"]
    assert [sweeps[name]["machine"]["date"] for name in ("batch", "length")] == ["2026-01-02", "2026-01-03"]


def test_rounds_of_processor_time_have_a_spread():
    import steps

    found = steps.seconds_of(lambda: np.zeros(1), rounds=3)
    assert found["cpu_spread"][0] <= found["cpu_seconds"] <= found["cpu_spread"][1]


def test_products_have_a_spread():
    import matmul

    median, slowest, fastest = matmul.rates_of(lambda: None, 1000)
    assert slowest <= median <= fastest


# ---------------------------------------------------------------------------------------------------- one GPU's report

MEASURED = {"seconds": 1.0, "spread": [1.0, 1.0], "compile_seconds": 9.0, "device": "cpu", "date": "2026-01-02"}


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
            asked_for = names[0].replace(" ", "_").replace(",", "")
            found = rows.get(asked_for, MEASURED | {"tokens_per_second": 10.0, "tflops": 1.0})
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


def test_gpu_rows_that_fail_make_the_exit_code_1_and_leave_the_others(tmp_path, gpu_run, capsys):
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as ended:
        gpu_run(f"--out={out}", "--rows=sample", sample_1_jax={"failed": "out of memory", "output": "a traceback"})
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err == "error: 1 of 5 rows failed: sample 1, jax.\n" and "| failed: out of memory |" in said.out
    rows = json.loads(out.read_text())["rows"]
    assert rows["sample 1, jax"]["output"] == "a traceback" and rows["sample 2, torch"]["tokens_per_second"] == 10.0


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("raise ValueError('too large')", "ValueError: too large", "Traceback"),
        ("import os, signal\nprint('half way')\nos.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL", "half way"),
    ],
)
def test_a_gpu_row_that_fails_says_why_and_keeps_the_end_of_what_it_said(monkeypatch, tmp_path, program, code, words):
    import gpu

    failing = tmp_path / "failing.py"
    failing.write_text(f"import sys\n{program}\nsys.stdout.flush()\n")
    monkeypatch.setattr(gpu, "__file__", str(failing))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    row = gpu.measured("jax_peak", {}, {"smoke": True}, 60)
    assert row["failed"].startswith(code) and words in row["output"]


def test_gpu_rows_get_memory_as_they_need_it_whatever_the_environment_says(monkeypatch, tmp_path):
    """JAX refuses the old name of its limit beside the new one."""
    import gpu

    names = ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"]
    names += ["JAX_PLATFORMS"]
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    teller = tmp_path / "teller.py"
    teller.write_text(
        "import json, os, sys\nout = json.loads(sys.argv[1].partition('=')[2])['out']\n"
        f"open(out, 'w').write(json.dumps([os.environ.get(name) for name in {names}]))\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(teller))
    for name in names[:2]:
        monkeypatch.setenv(name, "0.5")
    assert gpu.measured("jax_peak", {}, {"smoke": False}, 60) == ["0.95", None, "false", "cuda,cpu"]
    assert gpu.measured("torch_peak", {}, {"smoke": False}, 60)[-1] == "cpu"  # one library at a time on the device


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--batch_rows=0", "--batch_rows=0 must be at least 1"),
        ("--row_minutes=0", "--row_minutes=0 must be at least 0.1"),
        ("--minutes=nan", "--minutes=nan must be at least 0 and finite"),
        ("--minutes=many", "invalid float value"),
        ("--data_dir=here", "belong together"),
        ("--data_dir=. --vocabulary=.", "random records; give it no --data_dir"),
    ],
)
def test_gpu_options_that_cannot_be_meant_are_an_error_of_one_line(tmp_path, gpu_run, capsys, option, words):
    with pytest.raises(SystemExit) as ended:
        gpu_run(f"--out={tmp_path / 'gpu.json'}", *option.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_gpu_where_jax_sees_none_the_program_says_what_jax_said(monkeypatch, tmp_path, gpu_run, capsys):
    import gpu

    teller = tmp_path / "teller.py"
    teller.write_text(
        "import json, sys\nout = json.loads(sys.argv[1].partition('=')[2])['out']\n"
        f"open(out, 'w').write(json.dumps(dict(left_out={gpu.NO_GPU!r})))\n"
        "print('the driver is too old')\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(teller))
    row = gpu.measured("jax_peak", {}, {"smoke": True}, 60)
    with pytest.raises(SystemExit) as ended:
        gpu_run(f"--out={tmp_path / 'gpu.json'}", peak_jax=row)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.endswith("It said: the driver is too old\n")


def test_gpu_records_must_be_there_before_a_row_is_measured(monkeypatch, tmp_path, capsys):
    import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--data_dir={tmp_path}/none", f"--vocabulary={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: --data_dir={tmp_path}/none is no directory.\n"


def test_gpu_samples_weights_are_drawn_on_the_host(monkeypatch):
    """Drawing them takes more than twice their memory, which could be the peak of a row that samples."""
    import gpu
    import gpu_jax
    import jax

    from codegen2_jax.models.decoder_only import DecoderOnly

    drawn, init_params = [], DecoderOnly.init_params
    seen = lambda self, key: drawn.append(jax.config.jax_default_device) or init_params(self, key)  # noqa: E731
    monkeypatch.setattr(DecoderOnly, "init_params", seen)
    found = gpu_jax.jax_sample(gpu.SMOKE | {"smoke": True}, 1)
    assert drawn == [jax.local_devices(backend="cpu")[0]] and found["tokens_per_second"] > 0


def test_gpu_torch_samples_on_one_static_cache_where_transformers_compiles(monkeypatch):
    """On a GPU transformers compiles decoding for a static cache alone; one, so that its graph is recorded once."""
    import gpu
    import gpu_torch
    import torch
    import transformers

    caches, generate = [], transformers.GenerationMixin.generate

    def seen(model, *arguments, **options):
        caches.append(options.get("past_key_values"))
        return generate(model, *arguments, **options)

    def timed(run_of, work, torch, device, **_):
        for wrap in (torch.compile, gpu_torch.as_it_is):
            run = run_of(wrap)
            run(), run()
        return {"seconds": 1.0, "compiled": ""}

    monkeypatch.setattr(transformers.GenerationMixin, "generate", seen)
    monkeypatch.setattr(gpu_torch, "torch_timed", timed)
    gpu_torch.torch_sample(gpu.SMOKE | {"smoke": True}, 2)
    assert type(caches[0]).__name__ == "StaticCache" and caches[0] is caches[1] and caches[2:] == [None, None]
    assert torch.get_default_device().type == "cpu"


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
    import gpu_work

    work = gpu.SMOKE | {"smoke": True, "data_dir": "", "vocabulary": "", "batches_per_task": 2}
    batches, records = gpu_work.batches_of(work, 512)
    ours = [(int(task), str(i)) for one in batches for task, i in zip(one["task_B"], one["record_B"], strict=True)]
    groups = gpu_work.shuffled(records, work["batch_size"])
    theirs = [(row["task"], row["id"]) for group in groups for row in group]
    assert sorted(theirs) == sorted(ours) and theirs != ours
    assert len(groups) == len(batches) == 8 and all(len(group) == 4 for group in groups)
    assert all(len({row["task"] for row in group}) == 1 for group in groups)
    assert all(len(set(batch["task_B"].tolist())) == 1 for batch in batches)


def test_gpu_torch_runs_uncompiled_where_compiling_fails():
    import gpu_torch

    held, at_reset = [], []  # what a call holds on the device, and how much of it was left when peaks were reset

    class Held:
        pass

    class Cuda:
        synchronize = staticmethod(lambda: None)
        reset_peak_memory_stats = staticmethod(lambda: at_reset.append(sum(one() is not None for one in held)))
        max_memory_allocated = staticmethod(lambda: 2**30)

        class Event:
            record = synchronize = lambda self: None

    class Torch:
        cuda = Cuda
        fails = True

        class compiler:  # noqa: N801  torch's name
            reset = staticmethod(lambda: None)

        @classmethod
        def compile(cls, function, dynamic):
            def failing():
                activations = Held()
                held.append(weakref.ref(activations))
                raise RuntimeError("no compiler\nand more")

            return failing if cls.fails else function

    calls, work = [], {"least": 0.0, "compile_limit": 1}
    run_of = lambda wrap: wrap(lambda: calls.append(1))  # noqa: E731
    found = gpu_torch.torch_timed(run_of, work, Torch, "cuda")
    assert found["compiled"] == "not compiled (RuntimeError: no compiler)" and len(calls) == 5
    assert len(held) == 1 and at_reset == [0, 0]  # before the work, and when nothing of the failure is left
    Torch.fails = False
    assert gpu_torch.torch_timed(run_of, work, Torch, "cuda")["compiled"] == "compiled"
    Torch.compile = lambda function, dynamic: lambda: time.sleep(60)
    assert "TimeoutError: more than 1 s" in gpu_torch.torch_timed(run_of, work, Torch, "cuda")["compiled"]


def test_gpu_heads_are_as_sharp_as_they_are_said_to_be():
    import gpu_work

    rng = np.random.default_rng(0)
    head_VD, state_D = rng.normal(size=(50_000, 64)) * 0.02, rng.normal(size=64)
    state_D /= np.sqrt(np.mean(state_D**2))
    assert abs(np.std(gpu_work.sharpened(head_VD) @ state_D) - gpu_work.SHARPNESS) < 0.1


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
    program = f"import sys; sys.modules.update(dict.fromkeys({names}))\nimport gpu, gpu_work\n"
    program += "from codegen2_jax.data import cache\n"
    program += "work = gpu.SMOKE | dict(smoke=True, data_dir='', vocabulary='')\n"
    program += "print(len(gpu_work.batches_of(work, 512)[0]))"
    path = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "4\n", done.stderr

"""What benchmarks leave behind: a small run never takes the place of what was measured, and a failure of nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
WITH_TINY = ("decode", "decoder", "memory", "roofline", "roofline_decode", "scaling", "train_step")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Importable, and far from the results that lie under the working directory."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scaling(monkeypatch):
    """The program with points that cost nothing, and a way to call it: scaling(flags...)."""
    import scaling

    def point(name, value, arguments):
        if name == "width":
            raise SystemExit(f"error: {name}={value} failed: out of memory")
        return {"value": value, "cpu_seconds": float(value), "peak": 7.0}

    drawn = []
    monkeypatch.setattr(scaling, "point", point)
    monkeypatch.setattr(scaling, "draw", lambda results, path: drawn.append((list(results), str(path))))

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["scaling.py", *flags])
        scaling.main()

    run.drawn = drawn
    return run


def sweeps_of(path):
    return list(json.loads(Path(path).read_text())["sweeps"])


def test_a_tiny_run_writes_nothing_by_default(scaling, tmp_path, capsys):
    scaling("--sweeps=batch,length", "--tiny")
    assert not list(tmp_path.iterdir()) and not scaling.drawn
    assert capsys.readouterr().out.splitlines()[-1] == "--tiny: nothing is written; --out=FILE keeps the report."
    scaling("--sweeps=batch", "--tiny", "--out=own.json")
    assert sweeps_of("own.json") == ["batch"] and scaling.drawn == [(["batch"], "own.png")]


def test_a_full_run_goes_where_the_results_are(scaling):
    scaling("--sweeps=length")
    scaling("--sweeps=batch")
    assert sweeps_of("benchmarks/results/scaling.json") == ["batch", "length"]


@pytest.mark.parametrize("name", WITH_TINY)
def test_every_benchmark_with_a_tiny_run_takes_its_file_from_one_place(name):
    """`common.Options` knows when there is no default, `common.write_report` what to do then."""
    text = (BENCHMARKS / f"{name}.py").read_text()
    assert "contest.write(" not in text and "ArgumentParser(" not in text and '"--out"' not in text
    assert f'"benchmarks/results/{name}' in text
    assert {file.stem for file in BENCHMARKS.glob("*.py") if '"--tiny"' in file.read_text()} == {"common"}


def test_a_file_is_named_after_the_other_options(monkeypatch):
    import common

    options = common.Options("A benchmark.", out="results/of_{model}.json")
    options.add_argument("--model", default="small")
    assert options.parse_args(["--model=large"]).out == "results/of_large.json"
    assert options.parse_args(["--tiny"]).out is None
    assert options.parse_args(["--tiny", "--out=x.json"]).out == "x.json"
    assert "by default results/of_{model}.json, with --tiny nowhere" in " ".join(options.format_help().split())


def test_a_tiny_run_of_a_program_leaves_no_file(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--tiny", "--compiled_only", "--settings=lean"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing is written" in done.stdout and not list(tmp_path.iterdir())


def test_a_point_that_fails_takes_no_finished_sweep_away(scaling):
    with pytest.raises(SystemExit, match="width=128 failed: out of memory"):
        scaling("--sweeps=batch,length,width,pool", "--out=own.json")
    assert sweeps_of("own.json") == ["batch", "length"]


def test_tiny_and_full_sweeps_do_not_share_a_file(scaling, capsys):
    scaling("--sweeps=batch", "--out=own.json")
    before = Path("own.json").read_bytes()
    with pytest.raises(SystemExit, match="^2$"):
        scaling("--sweeps=batch", "--tiny", "--out=own.json")
    assert capsys.readouterr().err == "error: --out=own.json holds full sweeps; give another file.\n"
    assert Path("own.json").read_bytes() == before


def test_curves_without_sweeps_are_refused_in_one_line(scaling, capsys):
    for flag, where in (("--out=none.json", "in none.json"), ("--tiny", "without --out")):
        with pytest.raises(SystemExit, match="^2$"):
            scaling("--draw_only", flag)
        assert capsys.readouterr().err.startswith(f"error: --draw_only finds no sweeps {where}; measure first, or give")
    scaling("--sweeps=batch", "--tiny", "--out=own.json")
    scaling("--draw_only", "--out=own.json")
    assert scaling.drawn[-1] == (["batch"], "own.png")

"""The ablation of CodeGen2's five lessons: 48 cells and three more, each what its name says, and all can be lowered."""

import importlib
import re
from pathlib import Path

import gin
import jax
import numpy as np
import pytest

from codegen2_jax import cli
from codegen2_jax.data import infilling

CELLS = [
    f"{arch}-{objective}-{data}-e{epochs}"
    for arch in ("causal", "prefix")
    for objective in ("clm", "span", "mix", "psm")
    for data in ("pl", "nl", "mix")
    for epochs in (1, 5)
]
MORE = ["prefix-ul2-pl-e1", "prefix-ul2fixed-pl-e1", "causal-mixwin-pl-e1"]
OBJECTIVES = {
    "clm": infilling.CausalLM(),
    "span": infilling.SpanCorruption(max_spans=8),
    "mix": infilling.Mixture(corrupt=infilling.SpanCorruption(max_spans=8)),
    "psm": infilling.PrefixSuffixMiddle(),
    "ul2": infilling.UL2(),
    "ul2fixed": infilling.UL2(fixed=True),
    "mixwin": infilling.Mixture(corrupt=infilling.SpanCorruption(max_spans=8, scope="window")),
}
SOURCES = {"pl": {"documents_python": 1.0}, "nl": {"documents_text": 1.0}}
SOURCES["mix"] = SOURCES["pl"] | SOURCES["nl"]
# A smaller network than nano: what is lowered is the same, only faster.
SIZES = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "head_dim": 8, "rotary_dim": 4}
SMALL = [f"codegen.CodeGenConfig.{name} = {value}" for name, value in SIZES.items()]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Cells differ in their data more than in their programs; equal ones are compiled once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("programs")), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def job_of(cell, *bindings):
    line = ["train", f"--gin_file=ablation/{cell}.gin", *(f"--gin_bindings={binding}" for binding in bindings)]
    return cli.build(cli.read(cli.parse_flags(line, "")), cli.parse_flags(line, ""))[0]


def test_the_matrix_is_complete():
    found = {path.stem for path in (cli.PACKAGED / "ablation").glob("*-*.gin")}
    assert found == {*CELLS, *MORE} and len(CELLS) == 48


@pytest.mark.parametrize("cell", [*CELLS, *MORE])
def test_a_cell_is_what_its_name_says_and_can_be_lowered(cell, capsys):
    arch, objective, data, epochs = re.fullmatch(r"(\w+)-(\w+)-(\w+)-e(\d)", cell).groups()
    job = job_of(cell)
    assert job.source.prefix_lm in ((True,) if arch == "prefix" else (None, False))
    assert job.data.objective == (
        infilling.PrefixLM(objective=OBJECTIVES[objective]) if arch == "prefix" else OBJECTIVES[objective]
    )
    assert {source.task: source.rate for source in job.data.sources} == SOURCES[data]
    assert job.num_steps == 600 * int(epochs)
    gin.clear_config()
    small = job_of(cell, *SMALL, "BATCH_SIZE = 8", "SEQUENCE_LENGTH = 16")
    capsys.readouterr()
    small.dry_run()
    assert "batch               8 x 15 target tokens" in capsys.readouterr().out


CODE, TEXT = 2.44e6, (0.65e6, 0.32e6)  # tokens of documents_python; of documents_text with and without BOOLQ_DIR


@pytest.mark.parametrize("data", ["pl", "nl", "mix"])
@pytest.mark.parametrize("epochs", [1, 5])
def test_headers_say_how_often_a_cell_sees_its_data(data, epochs):
    """Steps are the same for all data, for equal compute: only those of the code are epochs of what a cell reads."""
    job = job_of(f"causal-clm-{data}-e{epochs}")
    tokens = job.num_steps * job.batch_size * job.data.sequence_length
    assert round(tokens / CODE) == epochs
    share = 0.5 if data == "mix" else 1.0
    few, many = (round(share * tokens / size) for size in TEXT)
    steps = f"the steps of {epochs} epoch{'s' * (epochs > 1)} of the code"
    said = {
        "pl": f"# code; {epochs} epoch{'s' * (epochs > 1)}.",
        "nl": f"# natural language; {steps}, {few} to {many} of the text.",
        "mix": "# code and natural language, half the windows each; "
        f"{steps}: {epochs / 2} of it, {few} to {many} of the text.",
    }
    for path in (cli.PACKAGED / "ablation").glob(f"*-{data}-e{epochs}.gin"):
        assert said[data] in path.read_text(encoding="utf-8").splitlines(), path.name


def test_cells_of_one_data_set_differ_in_nothing_but_what_their_names_say():
    """The same steps, rows, windows, rates, seeds and initial weights: what is compared is compared fairly."""
    first = job_of("causal-clm-pl-e1")
    gin.clear_config()
    other = job_of("prefix-mix-pl-e1")
    for name in ("num_steps", "batch_size", "seed", "optimizer", "z_loss", "accumulation_steps"):
        assert getattr(first, name) == getattr(other, name)
    assert first.source.config == other.source.config and first.data.sources == other.data.sources
    assert first.data.sequence_length == other.data.sequence_length


@pytest.fixture
def lessons(monkeypatch):
    """benchmarks/lessons.py, whose neighbours are on its path when it runs."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("lessons")


FILES = 25
INFILLING = ("holes", "middles", "continued", "near")


def records(code, holes, order=1, *, seeds=3, form="infill"):
    """evaluation.json of each seed: bits per byte of code and in holes, files of unequal length around them.

    order: -1 turns around which files are hard.
    """
    sizes, rng = np.arange(FILES) * 10 + 50, np.random.default_rng(1)
    spread_F = (1 + 0.3 * rng.standard_normal(FILES))[::order]
    found = []
    for seed in range(seeds):
        record = {"settings": {"form": form}, "exact": {"asked": 200, "right": 20 + seed}}
        for part, bits in (("code", code), ("text", 2.0), *((part, holes) for part in INFILLING)):
            nats = (bits + 0.001 * seed) * spread_F / np.average(spread_F, weights=sizes) * sizes * np.log(2)
            record[part] = {"nats": nats.tolist(), "bytes": sizes.tolist()}
        found.append(record)
    return found


def verdicts(lessons, **bits):
    """{(lesson, what is measured): entry} for cells {objective: (code, holes)}."""
    cells = {f"causal-{name}-pl-e1": records(*values) for name, values in bits.items()}
    entries = lessons.verdicts(cells)
    return {(entry["lesson"], entry["part"]): entry for entry in entries}


def test_what_the_paper_found_is_reproduced_where_the_figures_say_so(lessons):
    found = verdicts(lessons, clm=(1.50, 3.0), psm=(1.60, 2.0), span=(1.70, 1.8), mix=(1.55, 2.1))
    assert {name: entry["verdict"] for name, entry in found.items()} == dict.fromkeys(
        [(lesson, part) for lesson in ("2", "3") for part in ("code", "holes", "middles")], "reproduced"
    )
    assert found["2", "code"]["value"] == pytest.approx(-0.1)
    assert found["3", "code"]["value"] == pytest.approx(1.55 - (1.5 + 1.7) / 2)
    assert found["3", "holes"]["value"] == pytest.approx(2.1 - (3.0 + 1.8) / 2)


def test_the_opposite_is_contradicted_and_no_difference_is_inconclusive(lessons):
    found = verdicts(lessons, clm=(1.60, 2.0), psm=(1.50, 3.0), span=(1.60, 2.0), mix=(1.65, 2.0, -1))
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        ("2", "code"): "contradicted",
        ("2", "holes"): "contradicted",
        ("2", "middles"): "contradicted",
        ("3", "code"): "inconclusive",
        ("3", "holes"): "inconclusive",
        ("3", "middles"): "inconclusive",
    }


def test_verdicts_take_three_seeds_and_all_cells_of_a_claim(lessons):
    assert set(verdicts(lessons, clm=(1.5, 3.0), psm=(1.6, 2.0))) == {("2", "code"), ("2", "holes"), ("2", "middles")}
    few = {f"causal-{name}-pl-e1": records(1.5, 2.0, seeds=2) for name in ("clm", "psm")}
    assert {entry["verdict"] for entry in lessons.verdicts(few)} == {"no verdict: fewer than three seeds"}


def test_the_table_shows_means_over_seeds_and_the_files_say_all(lessons, tmp_path):
    found = {"causal-mix-pl-e1": records(1.5, 2.0), "causal-clm-pl-e1": records(1.4, 3.0, form="left_to_right")}
    del found["causal-clm-pl-e1"][0]["exact"]
    text = lessons.report(found, "0,1,2", ["--gin.NUM_STEPS=5"], tmp_path / "out" / "lessons")
    row = next(line for line in text.splitlines() if "causal-mix" in line)
    assert row.startswith("| causal-mix-pl-e1 | 1.501 ± 0.00") and "| 10.5 % | infill |" in row
    assert "--gin.NUM_STEPS=5" in text and (tmp_path / "out" / "lessons.md").read_text() == text + "\n"
    assert '"NUM_STEPS' not in text and "NUM_STEPS" in (tmp_path / "out" / "lessons.json").read_text()

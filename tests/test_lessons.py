"""The ablation of CodeGen2's five lessons: 48 cells and three more, each what its name says, and all can be lowered."""

import re

import gin
import jax
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
    small = job_of(cell, *SMALL, "BATCH_SIZE = 2", "SEQUENCE_LENGTH = 16")
    capsys.readouterr()
    small.dry_run()
    assert "batch               2 x 15 target tokens" in capsys.readouterr().out


def test_cells_of_one_data_set_differ_in_nothing_but_what_their_names_say():
    """The same steps, rows, windows, rates, seeds and initial weights: what is compared is compared fairly."""
    first = job_of("causal-clm-pl-e1")
    gin.clear_config()
    other = job_of("prefix-mix-pl-e1")
    for name in ("num_steps", "batch_size", "seed", "optimizer", "z_loss", "accumulation_steps"):
        assert getattr(first, name) == getattr(other, name)
    assert first.source.config == other.source.config and first.data.sources == other.data.sources
    assert first.data.sequence_length == other.data.sequence_length

"""A job's step, compiled for slices that are not here: on every topology that scripts and presets name."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codegen2_jax import cli, precompile
from codegen2_jax.errors import DoesNotFitError
from codegen2_jax.sharding import estimates, hlo, topologies

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu (pip install '.[precompile]')"
)
ROOT = Path(__file__).resolve().parent.parent
# A CodeGen2 so small that a step compiles in seconds; its sequences are as long as a lane is wide.
SMALL = [
    "--gin_file=pretraining/codegen2.gin",
    "--gin_file=models/tiny_codegen.gin",
    *(f"--gin.{name}={value}" for name, value in {"NUM_STEPS": 10, "LEARNING_RATE": 0.1, "WARMUP_STEPS": 1}.items()),
    "--gin.SEQUENCE_LENGTH=129",
    "--gin.codegen.CodeGenConfig.vocab_size=512",
    "--gin.codegen.CodeGenConfig.d_model=64",
    "--gin.initialisation.ModelSource.dtype='bfloat16'",
    "--gin.initialisation.ModelSource.remat='full'",
]


def named_topologies() -> list[str]:
    """Every slice that a script names ("v5p:4x4x4") or a preset is for (v5p_4x4x4.gin)."""
    found = {f"{path.stem.replace('_', ':')}" for path in (ROOT / "gin_configs" / "scale").glob("v[0-9]*_*x*.gin")}
    for path in (ROOT / "tpu_scripts").rglob("*"):
        if path.is_file():
            found |= set(re.findall(r"\bv[0-9]\w*:[0-9]+(?:x[0-9]+)+", path.read_text(encoding="utf-8")))
    return sorted(found)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    for variable in topologies.ENVIRONMENT:
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # put back behind the test
    topologies.prepare()


def job(*arguments: str):
    return cli.describe(["precompile", *SMALL, *arguments])[0]


def called(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = precompile.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def test_topologies_are_found():
    assert {"v5p:4x4x4", "v5p:4x4x8", "v4:4x4x8"} <= set(named_topologies())


@pytest.mark.parametrize("name", named_topologies())
def test_a_small_model_compiles_for(name):
    """State cut over fsdp, rows over all chips, heads over model: memory is read, and weights are gathered."""
    topology = topologies.parse(name)
    mesh = f"{{'data': -1, 'fsdp': {min(8, topology.num_chips // 2)}, 'model': 2}}"
    small = job(f"--gin.MESH={mesh}", f"--gin.BATCH_SIZE={topology.num_chips}")
    built = small.built_for(topologies.devices(topology))
    compiled = built.train_step.lower(built.state, built.batch).compile()
    memory = estimates.memory(compiled)
    assert 0 < memory["total"] < topology.chip.hbm_bytes
    program = hlo.read(compiled.as_text(), devices=topology.num_chips)
    assert program.unknown_loops == []
    kinds = {one.kind for one in program.collectives()}
    assert kinds & {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}


@functools.cache
def small_record() -> tuple[int, str, str]:
    out = Path(os.environ["PYTEST_PRECOMPILE_OUT"])
    given = (*SMALL, "--gin.MESH={'fsdp': -1}", "--gin.BATCH_SIZE=8", "--topology=v6e:2x2", f"--out={out}")
    options = "--gin.COMPILER_OPTIONS={'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}"
    return called(*given, options, "--decode", "--decode_shape=4,128,64")


@pytest.fixture
def record(tmp_path_factory, monkeypatch):
    """(exit code, output, record) of one run of the command, made once."""
    place = tmp_path_factory.getbasetemp() / "precompile.json"
    monkeypatch.setenv("PYTEST_PRECOMPILE_OUT", str(place))
    code, out, err = small_record()
    return code, out + err, json.loads(place.read_text())


def test_the_record_holds_what_was_asked(record):
    code, text, found = record
    assert code == 0 and found["fits"] and found["advice"] == []
    assert (found["topology"], found["chips"]) == ("v6e:2x2", 4)
    assert found["mesh"] == {"data": 1, "fsdp": 4, "model": 1}
    assert found["rows"] == 8 and found["tokens_per_step"] == 8 * 128
    memory = found["memory"]
    parts = memory["arguments"] + memory["temporaries"] + memory["output"] - memory["alias"] + memory["code"]
    assert memory["total"] == parts < memory["chip"] == found["chip"]["hbm_bytes"]
    assert memory["alias"] > 0.9 * memory["output"], "the state is donated"
    state = found["state_bytes_per_chip"]
    assert state["optimizer"] == pytest.approx(2 * state["parameters"], rel=0.01), "AdamW has two moments"
    assert memory["arguments"] >= sum(state.values())
    seconds, flops = found["seconds"], found["flops_per_chip"]
    assert set(seconds["floors"]) == {"compute", "memory", "interconnect"} and seconds["bound"] in seconds["floors"]
    assert seconds["step"] >= max(seconds["floors"].values()) and 0 < seconds["utilisation"] < 1
    assert seconds["utilisation"] <= seconds["utilisation_if_all_overlaps"]
    assert flops["model"] < flops["compiled"], "rematerialisation computes more than the model needs"
    # two layers, eleven products where one is computed again, two rows a chip, 4 heads, a tile of 128 by 128, filled up
    assert flops["kernels"] == 2 * 11 * 2 * (2 * 4) * 128**3 and found["unknown_kernels"] == []
    assert flops["compiled"] - flops["kernels"] == pytest.approx(flops["xla_extrapolated"], rel=0.25)
    assert seconds["step"] >= seconds["xla"] + seconds["kernels"] > seconds["xla"]
    for one in found["collectives"]:
        assert set(one) == {"kind", "group", "overlaps", "count", "payload_bytes", "sent_bytes"}
        assert one["sent_bytes"] > 0
    for line in ("memory per chip", "FLOPs per chip", "in kernels", "XLA's estimate", "utilisation", "compiled in"):
        assert line in text
    assert set(found["versions"]) == {"jax", "jaxlib", "libtpu"}
    assert found["compiler_options"] == {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
    assert "xla_jf_spmd_threshold_for_windowed_einsum_mib = 1000000" in text


def test_an_option_that_the_compiler_does_not_know_is_named():
    code, _, err = called(*SMALL, "--gin.COMPILER_OPTIONS={'xla_no_such': 1}", "--topology=v6e:2x2")
    assert code == 2 and "xla_no_such" in err and "tpu" in err and "Traceback" not in err


def test_decoding_is_compiled_too(record):
    decode = record[2]["decode"]
    assert decode["fits"] and (decode["rows"], decode["prompt_tokens"], decode["new_tokens"]) == (4, 128, 64)
    # two layers, keys and values, one row a chip, prompt and new positions, 4 heads of 8, two bytes each
    assert decode["cache_bytes_per_chip"] >= 2 * 2 * (128 + 64) * 32 * 2
    assert decode["tokens_per_second"] > 0 and decode["step"]["seconds"]["bound"] in ("memory", "interconnect")


def test_the_extrapolation_is_the_cost_of_the_unrolled_program():
    """Four layers, unrolled and compiled whole, cost what one and two say."""
    from codegen2_jax.training import ahead_of_time

    devices = topologies.devices(topologies.parse("v6e:2x2"))
    build = functools.partial(job("--gin.MESH={'fsdp': -1}", "--gin.BATCH_SIZE=16").built_for, devices)
    whole = build(num_layers=4, unrolled=True)
    program, _ = ahead_of_time.compiled(whole.train_step.lower(whole.state, whole.batch))
    exact = estimates.cost_of(program, hlo.read(program.as_text(), devices=4))
    with ThreadPoolExecutor(2) as workers:
        guessed = ahead_of_time.step_cost(build, build(num_layers=4).config, lambda line: None, workers)()
    assert guessed.flops == pytest.approx(exact.flops, rel=0.02)
    assert guessed.bytes_accessed == pytest.approx(exact.bytes_accessed, rel=0.15)
    assert guessed.seconds == pytest.approx(exact.seconds, rel=0.15)


def test_a_step_that_does_not_fit_ends_with_advice(monkeypatch, tmp_path):
    """The same step on a chip with a hundredth of the memory: exit code 8, one line, and numbers."""
    small = dataclasses.replace(topologies.CHIPS["v6e"], hbm_bytes=2e5)
    monkeypatch.setitem(topologies.CHIPS, "v6e", small)
    out = tmp_path / "found.json"
    code, _, err = called(*SMALL, "--gin.BATCH_SIZE=16", "--topology=v6e:2x2", f"--out={out}")
    assert code == DoesNotFitError.exit_code == 8
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    found = json.loads(out.read_text())
    assert found["fits"] is False and found["memory"]["total"] > 2e5
    assert all(one in line for one in found["advice"]) and "'fsdp': -1" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5q:4x4x4"], "did you mean"),
        (["--topology=v5p:4x4x4", "--devices=65"], "v5p:4x4x4 has 64"),
        (["--topology=v5p:4x4x4", "--lengths=3,4"], "gin files say"),
        (["--topology=v5p:4x4x4", "--decode_shape=1,2,3"], "without --decode"),
        (["--topology=v5e:2x2", "--decode", "--decode_shape=3,8,8"], "multiple of it"),
        (["--topology=v5e:2x2", "--decode", "--decode_shape=4,120,2000"], "120 + 2000 tokens exceed"),
        (["--topology=v5e:2x2", "--devices=3"], "2 and 4 are"),
        (["--topology=v5p:4x4x4", "--out=/no/such/place/x.json"], "no directory"),
        (["--topology=v5p:4x4x4", "--gin.BATCH_SIZE=3"], "BATCH_SIZE"),
        (["--topology=v5p:4x4x4", "--gin.BATCHSIZE=3"], "BATCH_SIZE"),
        (["--topology=v5p:4x4x4", "--model_dir=runs/x"], "--model_dir is for a single training run"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    code, _, err = called(*SMALL, *arguments)
    assert code == 2
    assert message in err and err.strip().count("\n") == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin_file=classification/boolq.gin"], "the gin files are of Classification"),
        (["--gin_file=evaluation/humaneval.gin"], "the gin files are of Suite"),
        (["--gin_file=pp_tf.gin", "--gin.RETRIEVAL_ONLY=True"], "RETRIEVAL_ONLY trains keys alone"),
    ],
)
def test_files_without_a_step_to_compile_are_refused(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("BOOLQ_DIR", str(tmp_path))
    code, _, err = called("--topology=v5e:2x2", *arguments)
    assert code == 2
    assert message in err and err.strip().count("\n") == 0, err


def test_the_advice_fits_when_it_is_followed():
    """A chip with six tenths of what 16 rows take: the parts and the batch that are named take less than it has."""
    from codegen2_jax.training import ahead_of_time, fitting

    topology = topologies.parse("v6e:2x2")
    devices = topologies.devices(topology)

    def record(*arguments):
        built = job("--gin.MESH={'fsdp': -1}", *arguments).built_for(devices)
        program, _ = ahead_of_time.compiled(built.train_step.lower(built.state, built.batch))
        return ahead_of_time.header(built, topology) | {"memory": estimates.memory(program)}

    whole = record("--gin.BATCH_SIZE=64")
    room = int(0.6 * whole["memory"]["total"])
    whole["memory"]["chip"] = room
    lines = fitting.advice(whole)
    settings = re.findall(r"--gin\.(?:ACCUMULATION_STEPS|BATCH_SIZE)=\d+", " ".join(lines))
    assert len(settings) == 2 and 64 % int(settings[0].partition("=")[2]) == 0 and "MESH" not in " ".join(lines)
    assert record("--gin.BATCH_SIZE=64", settings[0])["memory"]["total"] <= room
    assert record(settings[1])["memory"]["total"] <= room


def test_the_state_is_cut_where_whole_copies_of_it_do_not_fit():
    """Advice on a mesh that holds the state four times, and none on one where "model" cuts it already."""
    from codegen2_jax.training import fitting

    record = {
        "memory": {"total": 40 * 2**30, "chip": 16 * 2**30, "code": 0},
        "state_bytes_per_chip": {"parameters": 8 * 2**30, "optimizer": 16 * 2**30},
        **{"mesh": {"data": 4, "fsdp": 2, "model": 2}, "rows": 8, "batch_parts": 8, "accumulation_steps": 1},
        **{"parameters": 100, "trainable_parameters": 100, "remat": "full", "topology": "v5e:4x4", "chips": 16},
    }
    [line] = [line for line in fitting.advice(record) if "MESH" in line]
    assert "'model': 2" in line and "leaves 6.00 GiB" in line
    cut = {**record, "mesh": {"data": 1, "fsdp": 8, "model": 2}}
    assert not [line for line in fitting.advice(cut) if "MESH" in line]


def test_xla_has_an_estimate_for_a_prompt_pool():
    """The selection of prompts has calls of its own without one (estimates.UNMODELLED)."""
    from codegen2_jax.training import ahead_of_time

    stream, _ = cli.describe(["precompile", "--gin_file=pp_tf.gin", "--gin_file=models/tiny_t5.gin"])
    devices = topologies.devices(topologies.parse("v5e:2x2"))
    built = stream.built_for(devices, num_encoder_layers=1, num_decoder_layers=1, unrolled=True)
    program, _ = ahead_of_time.compiled(built.train_step.lower(built.state, built.batch))
    assert estimates.cost_of(program, hlo.read(program.as_text(), devices=4)).seconds > 0


def test_a_stream_of_tasks_is_lowered_without_data_or_weights(tmp_path):
    """PP-TF on a T5: nothing is read, only the prompts' state has moments."""
    arguments = ["--gin_file=pp_tf.gin", "--gin_file=models/tiny_t5.gin", f"--model_dir={tmp_path / 'run'}"]
    stream, _ = cli.describe(["precompile", *arguments])
    built = stream.built_for(topologies.devices(topologies.parse("v5e:2x2")), lengths=(320, 256))
    assert built.batch["inputs_BS"].shape == (16, 320) and built.batch["query_BD"].shape == (16, 32)
    assert "model" not in built.state.trainable
    built.train_step.lower(built.state, built.batch)
    assert not (tmp_path / "run").exists()


def test_a_model_whose_weights_are_not_here_has_its_shape(monkeypatch):
    """CodeT5-small, 60.5 million parameters and a pool of prompts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ("pp_tf", "models/codet5_small", "models/codet5_small_shape")
    stream, _ = cli.describe(["precompile", *(f"--gin_file={name}.gin" for name in names)])
    built = stream.built_for(topologies.devices(topologies.parse("v5e:2x2")))
    assert built.learner.model.parameters() == 60_492_288
    built.train_step.lower(built.state, built.batch)


def test_an_absent_tpu_is_not_tried(program_environment):
    """libtpu without a TPU: an ordinary command says nothing of it, and JAX runs on the CPU."""
    environment = {name: value for name, value in program_environment.items() if name != "JAX_PLATFORMS"}
    program = "from codegen2_jax import cli; cli.guarded(lambda: print(__import__('jax').default_backend()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("cpu", "")

"""The command that generates: in a process of its own, and each mistake in one line."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax import generate
from codegen2_jax.decoding import command
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.text import complete
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.training.initialisation import ModelSource


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A saved CodeGen that writes small letters, and sometimes <eom> and <|endoftext|>."""
    where = tmp_path_factory.mktemp("model")
    vocabulary = byte_vocabulary(where)
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 8, "head_dim": 4, "rotary_dim": 4}
    model = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, **sizes))
    params = jax.jit(model.init_params)(jax.random.key(0))
    letters = np.asarray(vocabulary.encode("abcdefghijklmnopqrstuvwxyz") + [vocabulary.eom_id, vocabulary.eos_id])
    params["head_bias"] = params["head_bias"].at[letters].add(20.0).at[vocabulary.eom_id].add(1.5)
    huggingface.save(where, model.config, params, "float32")
    return where


@pytest.fixture
def run(directory, capsys, monkeypatch):
    """The command in this process: (exit code, standard output, standard error)."""

    def run(*arguments, stdin="", model=directory):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin.encode())))
        code = generate.main(["--model", str(model), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_devices_that_share_the_weights_write_the_same(run):
    """With the cache cut by heads; and a number of devices that is not there is the user's mistake."""
    asked = ("--prompt", "def f(x):\n", "--temperature", "0", "--max_new_tokens", "12")
    assert run(*asked, "--model_parallel", 8)[:2] == run(*asked)[:2]
    code, _, error = run(*asked, "--model_parallel", 16)
    assert code == 2 and error.endswith("error: 16 devices were asked for, and there are 8; give 1 to 8.\n")


PROMPTS = ["def f(x):\n", "# <mask_1> is text\n"]
PLACES = [(p, k) for p in (1, 2) for k in (1, 2, 3)]
OPTIONS = ["--temperature", "1.0", "--max_new_tokens", "40", "--seed", "5", "--stop", "qu", "zz"]


def test_records_hold_all_that_makes_them_again(run, directory, tmp_path, program_environment):
    code, printed, _ = run("--prompt", *PROMPTS, "--n", 3, "--format", "jsonl", *OPTIONS)
    rows = records(printed)
    assert code == 0 and len(rows) == 6
    assert [(row["prompt_number"], row["sample"]) for row in rows] == [(p, k) for p in range(2) for k in range(3)]
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len({row["finish_reason"] for row in rows}) > 1
    loaded = ModelSource(init_from=str(directory)).load()
    assert {row["model_digest"] for row in rows} == {loaded.digest} and rows[0]["model"] == str(directory)
    settings = Generation.of({name: rows[0][name] for name in Generation.__dataclass_fields__})
    again = complete(loaded.model, loaded.params, loaded.vocabulary, PROMPTS, settings)
    assert [sample.text for samples in again for sample in samples] == [row["completion"] for row in rows]
    assert rows[0]["truncation"] == "none" and rows[0]["stop_ids"] == [256] and rows[0]["stop"] == ["qu", "zz"]

    out = tmp_path / "samples.jsonl"
    code, printed, warned = run("--prompt", *PROMPTS, "--n", 3, "--format", "jsonl", *OPTIONS, "--out", out)
    assert code == 0 and printed == "" and f"wrote {out}" in warned and records(out.read_text("utf-8")) == rows

    code, printed, warned = run("--prompt", *PROMPTS, "--n", 3, *OPTIONS)
    heads = [f"--- prompt {p}, sample {k}, {row['finish_reason']}" for (p, k), row in zip(PLACES, rows, strict=True)]
    assert printed == "".join(f"{head}\n{row['completion']}\n" for head, row in zip(heads, rows, strict=True))
    assert warned.splitlines()[-1] == "6 of 6 samples"

    # The first sample again, alone, from standard input, in a process of its own, shown while it grows.
    command = [sys.executable, "-m", "codegen2_jax.generate", "--model", str(directory), *OPTIONS]
    environment = program_environment | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, input=PROMPTS[0], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == rows[0]["completion"] + "\n" and len(done.stdout) > 20
    assert done.stderr.splitlines() == ["stop ids: 256 <|endoftext|>"]


def test_infilling_shows_no_sentinel_and_keeps_all_around_the_holes(run, tmp_path):
    parts = ("def f(x):\r\n    y = ", "\n    z = ", "\n    return z  # <|endoftext|> <sep>\n")
    file = tmp_path / "hole.py"
    file.write_bytes("{}<mask_1>{}<mask_2>{}".format(*parts).encode())
    options = ["--n", 4, "--temperature", 1.0, "--max_new_tokens", 90]
    code, printed, warned = run("--infill", "--file", file, "--format", "jsonl", *options)
    assert code == 0 and warned.splitlines()[0] == "stop ids: 256 <|endoftext|>, 300 <eom>"
    rows = records(printed)
    for row in rows:
        first, second = row["answers"]
        assert row["completion"] == parts[0] + first + parts[1] + second + parts[2]
        assert row["prompt"] == list(parts)
        assert not set("<>_") & set(first + second)
    assert any(all(row["closed"]) for row in rows)
    code, printed, _ = run("--prefix", "a <mask_1>", "--suffix", " b", "--max_new_tokens", 30)
    assert code == 0 and printed.startswith("a <mask_1>") and printed.endswith(" b\n")


def test_an_encoder_decoder_answers(run):
    code, printed, _ = run("--prompt", "return the sum", "--temperature", 0, "--max_new_tokens", 8, model="nano_t5")
    assert code == 0 and "sum" in printed
    code, _, error = run("--prefix", "a", "--suffix", "b", model="nano_t5")
    assert code == 2 and "encoder-decoder" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temp", "0.2"], "unrecognized arguments: --temp 0.2"),
        (["--temperature", "warm"], "argument --temperature: invalid float value: 'warm'"),
        (["--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["--temperature", "1e-40", "--prompt", "x"], "give 0 (greedy), or 1e-06 to 1e+06"),
        (["--temperature", "1e40", "--prompt", "x"], "temperature=1e+40 is out of range"),
        (["--temperature", "nan", "--prompt", "x"], "temperature=nan is out of range"),
        (["--num_beams", "2", "--temperature", "0", "--length_penalty", "nan"], "length_penalty=nan is out of range"),
        (["--num_beams", "2", "--temperature", "0", "--length_penalty", "inf"], "must lie in [-8, 8]"),
        (["--top_p", "2", "--prompt", "x"], "top_p=2.0 is out of range"),
        (["--n", "0", "--prompt", "x"], "n=0 is out of range"),
        (["--num_beams", "4", "--prompt", "x"], "set temperature=0"),
        (["--prompt", "x", "--file", "y"], "--prompt and --file exclude one another"),
        (["--file", "nowhere.py"], "cannot read nowhere.py"),
        (["--infill", "--prompt", "no hole"], "has no <mask_1>"),
        (["--infill", "--prompt", "<mask_1>", "--stop", "x"], "an infilled answer ends with <eom> only"),
        (["--prefix", "a", "--truncation", "codex"], "is for prompts"),
        (["--prompt", "x", "--truncation", "codegen"], "choose one of codegen1, codex, none"),
        (["--prompt", "x", "--out", "nowhere/at/all.jsonl"], "make it first"),
        (["--prompt", "x", "--dtype", "float64"], "float64"),
        (["--prompt", "x", "a\udcff"], "a prompt is no UTF-8 at character 2"),
        (["--prefix", "\udcff"], "a prompt is no UTF-8 at character 1"),
        (["--prompt", "x", "--stop", "\udcff"], "a stop text is no UTF-8"),
        (["--prompt", "x" * 2000], "2048 positions; cut it to 1920 tokens"),
    ],
)
def test_mistakes_are_one_line(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed, error = run(*arguments)
    lines = [line for line in error.splitlines() if not line.startswith("stop ids:")]
    assert code == 2 and printed == "" and len(lines) == 1, error
    assert lines[0].startswith("error: ") and message in lines[0]


def test_a_model_that_is_not_there(run):
    code, _, error = run("--prompt", "x", model="/nowhere/at/all")
    assert code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1


def test_a_file_that_cannot_be_written_costs_no_sample(run, tmp_path, monkeypatch):
    """It is told before the model is loaded; and where it comes later, the samples are on standard output."""
    code, printed, error = run("--prompt", "x", "--out", tmp_path, model="/nowhere/at/all")
    assert (code, printed) == (2, "") and f"cannot write {tmp_path}: Is a directory" in error
    out = tmp_path / "samples.txt"
    command._check_writable(out)
    assert not out.exists()
    out.write_text("mine")
    command._check_writable(out)
    assert out.read_text() == "mine"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.Path, "write_text", full)
    code, printed, error = run("--prompt", "x", "--max_new_tokens", 6, "--out", out)
    assert code == 2 and len(printed) > 3 and "the samples are on standard output" in error

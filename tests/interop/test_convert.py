"""The command: what it says, what it writes, what it refuses; and how much memory it takes."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codegen2_jax import convert
from codegen2_jax.data.decoder_vocabularies import train_codegen_vocabulary
from codegen2_jax.interop import conversion, huggingface
from codegen2_jax.interop.huggingface import load, resolve_directory, save
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly

CONFIG = CodeGenConfig(
    vocab_size=400, d_model=32, num_layers=2, num_heads=8, head_dim=4, rotary_dim=2, d_ff=128, max_positions=256,
    bos_token_id=3, eos_token_id=3, pad_token_id=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(DecoderOnly(CONFIG).init_params)(jax.random.key(0)))


@pytest.fixture
def model(tmp_path, params):
    save(tmp_path / "model", CONFIG, params, dtype="float16", mp_num=8)
    return tmp_path / "model"


def command(capsys, *arguments):
    code = convert.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def forget_layout(directory):
    """As an export of somebody else, which says nothing of its shards."""
    weights = load_file(directory / "model.safetensors")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((directory / "config.json").read_text())
    del raw["codegen2_jax"]
    (directory / "config.json").write_text(json.dumps(raw))


def test_there_and_back_is_the_same(model, tmp_path, capsys):
    code, out, err = command(capsys, "--from", model, "--to", tmp_path / "four")
    assert (code, err) == (0, "")
    parameters = f"{DecoderOnly(CONFIG).parameters():,} parameters in float16"
    assert "CodeGenConfig" in out and parameters in out and "config.json, generation_config.json, model.saf" in out
    assert "qkv layout: 8 shards, by metadata mp_num of the weights (8 shards); codegen2_jax.mp_num" in out
    assert "not verified: no tokenizer" in out
    code, _, _ = command(capsys, "--from", tmp_path / "four", "--to", tmp_path / "eight", "--export_mp_num", 8)
    assert code == 0
    assert files(tmp_path / "eight") == files(model)
    assert files(tmp_path / "four")["model.safetensors"] != files(model)["model.safetensors"]
    command(capsys, "--from", model, "--to", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "four")


def test_what_is_shipped_comes_out_as_it_is(tmp_path, capsys):
    assert command(capsys, "--from", "nano_t5", "--to", tmp_path / "out")[0] == 0
    ours, theirs = files(tmp_path / "out"), files(resolve_directory("nano_t5"))
    assert ours.pop("generation_config.json")
    assert ours.keys() == theirs.keys() - {"README.md", "corpus.sha256", "pretraining.json"}
    assert all(theirs[name] == content for name, content in ours.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cast_is_made_on_request(model, tmp_path, capsys, dtype):
    assert command(capsys, "--from", model, "--to", tmp_path / "out", "--dtype", dtype)[0] == 0
    _, loaded = load(tmp_path / "out", dtype=None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_the_original_configuration_is_kept_on_request(model, tmp_path, capsys):
    raw = (model / "config.json").read_bytes()
    command(capsys, "--from", model, "--to", tmp_path / "out", "--keep_original_config")
    assert (tmp_path / "out" / "config.original.json").read_bytes() == raw
    assert load(tmp_path / "out")[0] == CONFIG


def test_an_unknown_layout_is_an_error_and_the_flag_its_remedy(model, tmp_path, capsys):
    forget_layout(model)
    code, out, err = command(capsys, "--from", model, "--to", tmp_path / "out")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "--mp_num=4" in err
    assert not (tmp_path / "out").exists()
    assert command(capsys, "--from", model, "--to", tmp_path / "out", "--mp_num", 8)[0] == 0
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out")[1], load(model, mp_num=8)[1])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--to", "x"], "--from"),
        (["--from", "nano_t5", "--to", "{full}"], "is not empty"),
        (["--from", "{model}", "--to", "{model}", "--overwrite"], "is where the model lies"),
        (["--from", "nano_t5", "--to", "{new}", "--mp_num", "4"], "is for CodeGen"),
        (["--from", "nano_t5", "--to", "{new}", "--verify_layout"], "is for CodeGen"),
        (["--from", "{model}", "--to", "{new}", "--verify_layout"], "needs a tokenizer"),
        (["--from", "{model}", "--to", "{new}", "--dtype", "int8"], "int8"),
        (["--from", "nano-t5", "--to", "{new}"], "did you mean 'nano_t5'"),
        (["--from", "{full}", "--to", "{new}"], "config.json does not exist"),
        (["--from", "{model}", "--to", "{new}", "--export_mp_num", "3"], "does not divide"),
        (["--from", "nano_t5", "--to", "{new}", "--export_mp_num", "8"], "--export_mp_num=8 is for CodeGen"),
        (["--from", "{file}.bin", "--to", "{new}", "--keep_original_config"], "--keep_original_config keeps a config"),
        (["--from", "{model}", "--to", "{file}/x"], "is a file, so no directory"),
        (["--from", "{model}", "--to", "/proc/x"], "/proc/x cannot be read or written"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, capsys, arguments, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = files(model)
    (tmp_path / "file").touch()
    (tmp_path / "file.bin").touch()
    places = {"full": tmp_path / "full", "model": model, "new": tmp_path / "new", "file": tmp_path / "file"}
    code, _, err = command(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2 and err.count("\n") == 1 and words in err
    assert files(tmp_path / "full") == {"notes.txt": b"mine"} and files(model) == before


def test_overwriting_is_asked_for(model, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert command(capsys, "--from", model, "--to", tmp_path / "full", "--overwrite")[0] == 0
    assert load(tmp_path / "full")[0] == CONFIG and (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_numbers_that_are_none_are_named(tmp_path, params, capsys):
    broken = jax.tree.map(np.array, params)
    broken["decoder"]["layers"]["mlp"]["wi"][1, 0, 0] = np.nan
    save(tmp_path / "model", CONFIG, broken)
    code, _, err = command(capsys, "--from", tmp_path / "model", "--to", tmp_path / "out")
    assert code == 2 and "decoder/layers/mlp/wi of layer 1 holds NaN" in err
    assert not (tmp_path / "out" / "model.safetensors").exists()


# -------------------------------------------------------------------------------------------------------- verification


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary")
    return path, train_codegen_vocabulary([conversion.SAMPLE] * 3, 400, 10, path)


def test_an_untrained_model_is_not_judged_unless_asked(model, vocabulary, tmp_path, capsys):
    huggingface.copy_tokenizer(vocabulary[0], model)
    code, out, _ = command(capsys, "--from", model, "--to", tmp_path / "out")
    assert code == 0 and "not verified: the weights look untrained" in out
    assert {"tokenizer.json", "tokenizer_config.json"} <= files(tmp_path / "out").keys()
    code, _, err = command(capsys, "--from", model, "--to", tmp_path / "other", "--verify_layout")
    assert code == 2 and "cannot tell the qkv layout" in err


def test_a_trained_model_tells_a_right_layout_from_a_wrong_one(vocabulary, params, tmp_path, capsys):
    """A model that knows the sample by heart, read rightly and wrongly."""
    ids = np.asarray(vocabulary[1].encode(conversion.SAMPLE), np.int32)
    trained = memorise(CONFIG, params, ids)
    save(tmp_path / "model", CONFIG, trained, dtype="float32", mp_num=8)
    huggingface.copy_tokenizer(vocabulary[0], tmp_path / "model")
    forget_layout(tmp_path / "model")
    arguments = ["--from", tmp_path / "model", "--to", tmp_path / "out", "--mp_num"]
    code, _, err = command(capsys, *arguments, 4)
    assert code == 2 and "cannot tell the qkv layout: mp_num=4" in err and not (tmp_path / "out").exists()
    code, out, _ = command(capsys, *arguments, 8)
    assert code == 0 and "qkv layout verified: mean loss" in out
    assert command(capsys, *arguments[:3], tmp_path / "unsure", "--mp_num", 4, "--no-verify_layout")[0] == 0


def memorise(config, params, ids):
    """A few steps of Adam on one text."""
    import optax

    model, optimiser = DecoderOnly(config), optax.adam(1e-2)
    batch = {
        "tokens_BT": ids[None, :-1],
        "positions_BT": np.arange(len(ids) - 1, dtype=np.int32)[None],
        "segments_BT": np.ones((1, len(ids) - 1), np.int32),
        "bidirectional_BT": np.zeros((1, len(ids) - 1), bool),
    }

    def loss(params):
        logits_TV = model.logits(params, batch)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits_TV, ids[1:]).mean()

    def step(state, _):
        value, gradient = jax.value_and_grad(loss)(state[0])
        updates, inner = optimiser.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), inner), value

    (params, _), losses = jax.jit(lambda s: jax.lax.scan(step, s, None, length=80))((params, optimiser.init(params)))
    assert losses[-1] < 1.0
    return jax.device_get(params)


# -------------------------------------------------------------------------------------------------------------- memory

PROGRAM = '''
import sys, tracemalloc
from pathlib import Path
import numpy as np
from codegen2_jax.interop import huggingface
from codegen2_jax.interop.layouts import Parts, lookup
from codegen2_jax.models.codegen import CodeGenConfig

root = Path(sys.argv[1])
config = CodeGenConfig(vocab_size=2048, d_model=1024, num_layers=6, num_heads=8, head_dim=128, rotary_dim=64, d_ff=4096,
                       bos_token_id=0, eos_token_id=0, pad_token_id=0)
block = np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)
shapes = {"q": (1024, 8, 128), "k": (1024, 8, 128), "v": (1024, 8, 128), "o": (8, 128, 1024), "wi": (1024, 4096),
          "wo": (4096, 1024), "wi_bias": (4096,), "embedding": (2048, 1024), "head": (2048, 1024), "head_bias": (2048,)}

def read(place, layer):
    shape = shapes.get(place[-1], (1024,)) if place[-1] != "wo_bias" else (1024,)
    return block.reshape(-1)[: int(np.prod(shape))].reshape(shape)

dtype = lambda place, layer: np.dtype(np.float32)
huggingface.write_model(root / "model", config, Parts(read=read, dtype=dtype), None, mp_num=8)
size = (root / "model" / "model.safetensors").stat().st_size

def peak(work):
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found

def resident():  # the most so far; resource.getrusage would count the parent's
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def count(parts):
    for *_, array in parts:
        assert array.nbytes
        del array  # or the consumer would hold it while the next is made

model = huggingface.open_model(root / "model")
print(size)
print(peak(lambda: count(huggingface.iterate(root / "model"))))
print(peak(lambda: count(huggingface.leaves(root / "model"))))
print(peak(lambda: huggingface.write_model(root / "four", config, model.parts(), None)))
print(peak(lambda: huggingface.write_model(root / "half", config, model.parts(), "bfloat16")))
before = resident()
print(peak(lambda: huggingface.load(root / "model")))
print(resident() - before)
'''


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_memory_is_bounded_by_the_result_and_one_weight(tmp_path):
    """319 MB of weights, the largest 17 MB: reading and converting hold one at a time, loading the result besides."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path), "PATH": ""}
    line = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment | {"JAX_PLATFORMS": "cpu"}, timeout=300)
    assert done.returncode == 0, done.stderr
    size, iterated, leaf, converted, cast, loaded, resident = (int(number) / 1e6 for number in done.stdout.split())
    print(f"file {size:.0f} MB; peaks: iterate {iterated:.0f}, leaves {leaf:.0f}, convert {converted:.0f}, "
          f"cast {cast:.0f}, load {loaded:.0f} (resident + {resident:.0f})")  # fmt: skip
    largest, stacked = 4 * 4096 * 1024 / 1e6, 4 * 6 * 4096 * 1024 / 1e6
    assert size > 300
    assert iterated < 3 * largest
    assert leaf < stacked + 2 * largest
    assert converted < 3 * largest and cast < 3 * largest
    assert loaded < size + 2 * largest
    assert resident < size + 2 * largest

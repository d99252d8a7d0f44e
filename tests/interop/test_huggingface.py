"""T5 in and out of Hugging Face's layout: exact, complete, and one line when something is wrong."""

import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop import layouts, names, t5_weights
from codegen2_jax.interop.huggingface import load, resolve_directory, save
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config

SHAPE = dict(
    vocab_size=61, d_model=16, d_ff=24, num_encoder_layers=2, num_decoder_layers=3, num_heads=2, head_dim=4,
    dropout_rate=0.1,
)  # fmt: skip
TIED = T5Config(**SHAPE)
UNTIED = T5Config(**SHAPE, tie_word_embeddings=False, feed_forward="gated-gelu")


@pytest.fixture(scope="module")
def params():
    key = jax.random.key(1)
    return {config: jax.device_get(jax.jit(EncoderDecoder(config).init_params)(key)) for config in (TIED, UNTIED)}


@pytest.fixture
def saved(tmp_path, params):
    save(tmp_path / "model", TIED, params[TIED], dtype="float32")
    return tmp_path / "model"


def change(directory, edit):
    """Rewrite the weights after `edit` (a function on their dictionary)."""
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path, params, config, dtype):
    save(tmp_path / "a", config, params[config], dtype=dtype)
    loaded_config, loaded = load(tmp_path / "a", dtype=None)
    assert (loaded_config.tie_word_embeddings, loaded_config.scales_outputs) == (config.tie_word_embeddings,) * 2
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(layouts.DTYPES[dtype])}
    save(tmp_path / "b", loaded_config, loaded, dtype=None)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    _, as_float32 = load(tmp_path / "a")
    for ours, original in zip(jax.tree.leaves(as_float32), jax.tree.leaves(params[config]), strict=True):
        rounded = np.asarray(original, layouts.DTYPES[dtype]).astype(np.float32)
        np.testing.assert_array_equal(ours, rounded)


def test_the_tree_is_the_models_own(saved, params):
    config, loaded = load(saved)
    shapes = EncoderDecoder(config).param_shapes
    assert jax.tree.structure(loaded) == jax.tree.structure(shapes)
    assert [leaf.shape for leaf in jax.tree.leaves(loaded)] == [leaf.shape for leaf in jax.tree.leaves(shapes)]
    assert len(load_file(saved / "model.safetensors")) == 5 + 8 * 2 + 13 * 3


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_files_of_transformers_come_back_byte_for_byte(tmp_path, tied):
    torch_t5 = pytest.importorskip("torch_t5")
    torch_t5.save_random_t5(tmp_path / "theirs", tied=tied)
    save(tmp_path / "ours", *load(tmp_path / "theirs", dtype=None), dtype=None)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_transformers_reads_our_files_with_equal_logits(tmp_path, params, config):
    torch_t5 = pytest.importorskip("torch_t5")
    save(tmp_path, config, params[config], dtype="float32")
    batch = torch_t5.random_batch(source_length=9, target_length=6, vocab_size=61)
    model = torch_t5.load(tmp_path)
    _, theirs = torch_t5.reference_loss(model, batch)
    ours = jax.jit(EncoderDecoder(config).logits)(params[config], batch)
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert (model.config.eos_token_id, model.config.decoder_start_token_id) == (2, 0)


# ------------------------------------------------------------------------------------------------------- other layouts


def split(directory, parts=3):
    """Turn one file into shards and an index, as large models are stored."""
    weights = load_file(directory / "model.safetensors")
    shards = [f"model-{part + 1:05d}-of-{parts:05d}.safetensors" for part in range(parts)]
    weight_map = {name: shards[i % parts] for i, name in enumerate(sorted(weights))}
    for shard in shards:
        save_file({name: weights[name] for name in weights if weight_map[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


def test_shards_equal_the_single_file(saved):
    _, single = load(saved)
    split(saved)
    _, sharded = load(saved)
    jax.tree.map(np.testing.assert_array_equal, sharded, single)


def test_weights_in_another_shard_than_the_index_says_are_named(saved):
    split(saved)
    save_file({"other": np.zeros(1, np.float32)}, saved / "model-00002-of-00003.safetensors")
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "model-00002-of-00003.safetensors lacks")


def test_a_missing_shard_is_named(saved):
    split(saved)
    (saved / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "model-00002-of-00003.safetensors")


def test_an_index_may_not_point_outside(saved):
    split(saved)
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    index["weight_map"]["shared.weight"] = "../elsewhere.safetensors"
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        load(saved)


def test_repeated_tables_of_old_files_are_dropped_and_different_ones_are_not(saved, params):
    def repeat(weights):
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights["shared.weight"].copy()
        weights[t5_weights.IGNORED[0]] = np.zeros((32, 2), np.float32)

    change(saved, repeat)
    config, loaded = load(saved)
    assert config.tie_word_embeddings
    jax.tree.map(np.testing.assert_array_equal, loaded, params[TIED])

    def untie(weights):
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1.0

    change(saved, lambda weights: (repeat(weights), untie(weights)))
    config, loaded = load(saved)
    assert not config.tie_word_embeddings and config.scales_outputs  # as transformers: the flag scales, the file unties
    np.testing.assert_array_equal(loaded["head"], loaded["embedding"] + 1.0)

    change(saved, lambda weights: weights.update({"encoder.embed_tokens.weight": weights["shared.weight"] + 1.0}))
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "unexpected: encoder.embed_tokens.weight")


# -------------------------------------------------------------------------------------------------------------- errors


def test_missing_and_unexpected_weights_are_listed(saved):
    def edit(weights):
        del weights["decoder.block.1.layer.1.EncDecAttention.k.weight"]
        del weights["encoder.final_layer_norm.weight"]
        weights["decoder.block.0.layer.0.SelfAttention.q.bias"] = np.zeros(8, np.float32)

    change(saved, edit)
    with pytest.raises(UserError) as error:
        load(saved)
    missing = "missing: decoder.block.1.layer.1.EncDecAttention.k.weight; encoder.final_layer_norm.weight"
    assert_one_line(error, missing, "unexpected: decoder.block.0.layer.0.SelfAttention.q.bias")


def test_misshapen_and_integer_weights_are_listed(saved):
    def edit(weights):
        weights["shared.weight"] = weights["shared.weight"][:-1].copy()
        weights["encoder.final_layer_norm.weight"] = np.ones(16, np.int32)

    change(saved, edit)
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "shared.weight (60, 16) float32, not (61, 16)", "final_layer_norm.weight (16,) int32")


def test_a_transposed_square_weight_would_be_seen(saved, params):
    """Square weights cannot be caught by shape: the values must be in their places."""
    weights = load_file(saved / "model.safetensors")
    q_DNH = params[TIED]["decoder"]["layers"]["attention"]["q"][2]
    np.testing.assert_array_equal(weights["decoder.block.2.layer.0.SelfAttention.q.weight"][4 * 1 + 3], q_DNH[:, 1, 3])
    o_NHD = params[TIED]["encoder"]["layers"]["attention"]["o"][1]
    np.testing.assert_array_equal(weights["encoder.block.1.layer.0.SelfAttention.o.weight"][:, 4 * 1 + 3], o_NHD[1, 3])


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_a_truncated_file_is_one_line(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "model.safetensors", "copy it again")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ["config.json", "JSON"]),
        ("[]", ["model_type 'list'"]),
        ('{"model_type": "codet5p"}', ["'codet5p'", "only 't5'"]),
        ('{"model_type": "t5", "vocab_size": 61}', ["d_model", "d_kv"]),
    ],
)
def test_a_config_that_is_no_t5_is_one_line(saved, text, words):
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, *words)


@pytest.mark.parametrize(
    "key, value, word",
    [
        ("d_model", "16", "d_model"),
        ("dropout_rate", "a", "config.json"),
        ("feed_forward_proj", "gated-silu", "gated-silu"),
        ("num_layers", 0, "num_encoder_layers=0"),
    ],
)
def test_a_config_value_that_cannot_be_is_one_line(saved, key, value, word):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, word)


def test_files_that_are_not_there_are_one_line(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "model.safetensors", "pytorch_model.bin")
    (saved / "config.json").unlink()
    with pytest.raises(UserError) as error:
        load(saved)
    assert_one_line(error, "config.json")


def test_an_unknown_dtype_is_refused(tmp_path, params):
    with pytest.raises(UserError, match="int8"):
        save(tmp_path, TIED, params[TIED], dtype="int8")


# --------------------------------------------------------------------------------------------------------- directories


def test_names_resolve_to_directories(saved, tmp_path, monkeypatch):
    assert resolve_directory(saved) == saved and resolve_directory(str(saved)) == saved
    monkeypatch.setitem(names.PACKAGED, "nano_t5", saved)
    assert resolve_directory("nano_t5") == saved
    monkeypatch.setitem(names.PACKAGED, "nano_t5", tmp_path / "absent")
    with pytest.raises(UserError, match="nano_t5"):
        resolve_directory("nano_t5")


@pytest.mark.parametrize("name, suggestion", [("nano-t5", "'nano_t5'"), ("codet5-small", "'Salesforce/codet5-small'")])
def test_unknown_names_are_met_with_a_suggestion(name, suggestion):
    with pytest.raises(UserError) as error:
        resolve_directory(name)
    assert_one_line(error, repr(name), f"did you mean {suggestion}")


def test_the_hub_cache_is_used_offline_and_its_absence_is_one_line(saved, tmp_path):
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE and its cache directory once."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(saved, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    program = (
        "from codegen2_jax.interop.huggingface import resolve_directory\n"
        "from codegen2_jax.errors import UserError\n"
        "print(resolve_directory('someone/tiny'))\n"
        "try:\n    resolve_directory('Salesforce/codet5-smal')\n"
        "except UserError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "HOME": str(tmp_path), "PATH": ""}
    environment |= {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == str(repository / "snapshots" / revision)
    assert "'Salesforce/codet5-smal'" in second and "did you mean 'Salesforce/codet5-small'" in second


def test_reading_weights_imports_no_torch(saved):
    program = (
        "import sys\nfrom codegen2_jax.interop.huggingface import load\n"
        f"load({str(saved)!r})\nassert not {{'torch', 'transformers'}} & set(sys.modules)\n"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "HOME": str(saved), "PATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=300)


def test_bfloat16_is_read_without_loss(tmp_path, params):
    save(tmp_path, TIED, params[TIED])  # bfloat16 is the default
    assert load_file(tmp_path / "model.safetensors")["shared.weight"].dtype == ml_dtypes.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"

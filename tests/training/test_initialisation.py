"""Where a run's weights come from: shards of fused weights, which only the user may know, reach the model."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop.huggingface import save
from codegen2_jax.interop.names import PACKAGED
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.training.initialisation import ModelSource, place_params

CONFIG = CodeGenConfig(
    vocab_size=4096, d_model=32, num_layers=2, num_heads=8, head_dim=4, rotary_dim=2, d_ff=64, max_positions=64
)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(DecoderOnly(CONFIG).init_params)(jax.random.key(0)))


@pytest.fixture(scope="module")
def silent(params, tmp_path_factory):
    """A directory with qkv weights in 8 shards, of which nothing beside them says so."""
    directory = tmp_path_factory.mktemp("models") / "silent"
    save(directory, CONFIG, params, dtype="float32", mp_num=8, vocabulary=PACKAGED["nano_codegen2"])
    save_file(load_file(directory / "model.safetensors"), directory / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((directory / "config.json").read_text())
    raw.pop("head_dim", None)
    del raw["codegen2_jax"]
    (directory / "config.json").write_text(json.dumps(raw))
    return str(directory)


def test_nothing_is_guessed(silent):
    with pytest.raises(UserError, match="mp_num"):
        ModelSource(init_from=silent).load()


def test_what_the_user_says_is_how_the_weights_are_read(silent, params):
    loaded = ModelSource(init_from=silent, mp_num=8).load()
    assert loaded.model.parameters() == DecoderOnly(CONFIG).parameters()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for found in (loaded.params, place_params(loaded, jax.tree.map(lambda _: here, params), seed=0)):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), params)
    other = jax.tree.leaves(ModelSource(init_from=silent, mp_num=4).load().params)
    differ = [not np.array_equal(one, two) for one, two in zip(other, jax.tree.leaves(params), strict=True)]
    assert sum(differ) == 3, "q, k and v lie elsewhere, all else is the same"


def test_a_dry_run_takes_it_too(silent):
    assert ModelSource(init_from=silent, mp_num=8).without_weights().model.config.d_model == 32
    with pytest.raises(UserError, match="mp_num"):
        ModelSource(init_from=silent).without_weights()


def test_it_is_refused_where_no_weights_are_fused():
    with pytest.raises(UserError, match="is for CodeGen"):
        ModelSource(init_from="nano_t5", mp_num=4).load()

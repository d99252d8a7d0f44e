"""A small file that describes a huge model is refused before anything is made of the description."""

import json
import struct
import time

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.interop.llama2c import open_llama2c
from codegen2_jax.interop.safetensors_files import Stored, write_safetensors
from codegen2_jax.interop.weight_files import open_weights

MANY = 100_000  # layers: a second's worth of rows, where 10^9 would take all memory
CODEGEN = {
    **{"model_type": "codegen", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 4},
    "codegen2_jax": {"mp_num": 4},
}
LLAMA = {
    **{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 1, "num_attention_heads": 4},
}
T5 = {"model_type": "t5", "vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
ABSURD = [
    (CODEGEN, {"n_layer": MANY}, "num_layers=100000, its files hold 1 weights"),
    (CODEGEN, {"n_embd": 4 * 10**3000}, "d_model=4000"),
    (CODEGEN, {"vocab_size": 10**4000}, "vocab_size=1000"),
    (LLAMA, {"num_hidden_layers": MANY}, "num_layers=100000, its files hold 1 weights"),
    (LLAMA, {"head_dim": 10**4000, "num_attention_heads": 10**4000}, "num_heads=1000"),
    (T5, {"num_layers": MANY, "num_decoder_layers": 1}, "num_encoder_layers=100000"),
    (T5, {"num_decoder_layers": MANY}, "num_decoder_layers=100000"),
]


@pytest.mark.parametrize("base, changes, words", ABSURD, ids=lambda value: next(iter(value)))
def test_a_configuration_beyond_its_files_is_one_line(tmp_path, base, changes, words):
    weight = Stored((64, 16), np.dtype(np.float32), lambda: np.zeros((64, 16), np.float32))
    write_safetensors(tmp_path / "model.safetensors", [("x", weight)], {})
    (tmp_path / "config.json").write_text(json.dumps(base | changes))
    with pytest.raises(UserError) as error:
        huggingface.open_model(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_llama2c_header_beyond_its_file_is_one_line(tmp_path):
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", 8, 8, MANY, 2, 2, 8, 8) + bytes(1000))
    with pytest.raises(UserError, match="1028 bytes, too few"):
        open_llama2c(tmp_path / "model.bin")


def test_an_index_of_many_shards_is_read_in_one_pass(tmp_path):
    shard_of = {f"w{i}": f"{i}.safetensors" for i in range(20_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    begin = time.process_time()
    with pytest.raises(UserError, match="no intact safetensors file"):
        open_weights(tmp_path)
    assert time.process_time() - begin < 5, "comparing every name with every shard takes a minute"

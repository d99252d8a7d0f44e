"""A typo in config.json is one line, before a weight is read."""

import json

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.interop.safetensors_files import Stored, write_safetensors

CODEGEN = {
    **{"model_type": "codegen", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 8},
    "codegen2_jax": {"mp_num": 4},
}
LLAMA = {
    **{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32},
    **{"num_hidden_layers": 1, "num_attention_heads": 4},
}
T5 = {"model_type": "t5", "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
DAMAGED = [
    (CODEGEN, {"model_type": ["codegen"]}, "model_type ['codegen']"),
    (CODEGEN, {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon='1e-5' is no finite number"),
    (CODEGEN, {"layer_norm_epsilon": None}, "layer_norm_epsilon=None"),
    (CODEGEN, {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan"),
    (CODEGEN, {"rotary_dim": 8.0}, "rotary_dim=8.0"),
    (CODEGEN, {"vocab_size": 64, "eos_token_id": 1.5}, "eos_token_id=1.5"),
    (LLAMA, {"rope_theta": "abc"}, "rope_theta 'abc', which is no number"),
    (LLAMA, {"rope_theta": 10**400}, "wrong type"),
    (LLAMA, {"rope_theta": 0}, "rope_theta=0.0"),
    (LLAMA, {"rope_parameters": "default"}, "rope_parameters 'default'"),
    (LLAMA, {"rope_parameters": {"rope_theta": "abc"}}, "rope_theta 'abc'"),
    (LLAMA, {"rms_norm_eps": "x"}, "rms_norm_epsilon='x'"),
    (LLAMA, {"num_key_value_heads": 2.0}, "num_kv_heads=2.0"),
    (T5, {"layer_norm_epsilon": "x"}, "layer_norm_epsilon='x'"),
]


@pytest.mark.parametrize("base, changes, words", DAMAGED, ids=lambda value: next(iter(value)))
def test_a_damaged_value_is_one_line(tmp_path, base, changes, words):
    weight = Stored((64, 32), np.dtype(np.float32), lambda: np.zeros((64, 32), np.float32))
    write_safetensors(tmp_path / "model.safetensors", [("x", weight)], {})
    (tmp_path / "config.json").write_text(json.dumps(base | changes))
    with pytest.raises(UserError) as error:
        huggingface.open_model(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)

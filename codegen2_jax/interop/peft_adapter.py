"""Soft prompts as adapters of huggingface/peft (`tuners/prompt_tuning`, version 0.21), one block of vectors each."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import Stored, write_safetensors
from codegen2_jax.models.t5 import T5Config

WEIGHTS, CONFIG, KEY = "adapter_model.safetensors", "adapter_config.json", "prompt_embeddings"


def save_prompt(directory: str | Path, prompt_PD: Any, config: Any, *, base_model: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` reads.

    prompt_PD: P vectors of a shared prompt or of one task, float32. config: of the model that they were trained for.
    base_model: directory or Hub name of that model's weights, kept for the reader.

    For a T5 the vectors stand before the encoder's input, here and there. peft's own default there, two submodules,
    wants a table of 2P vectors and uses the first P; with one it is ours as it is.
    """
    prompt_PD = np.asarray(prompt_PD, np.float32)
    if prompt_PD.ndim != 2 or prompt_PD.shape[1] != config.d_model or not len(prompt_PD):
        shape = f"[P, {config.d_model}]"
        raise UserError(f"a prompt of shape {prompt_PD.shape} is no {shape}; give the vectors of one task.")
    is_t5 = isinstance(config, T5Config)
    content = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": len(prompt_PD),
        "token_dim": config.d_model,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_decoder_layers if is_t5 else config.num_layers,
        "prompt_tuning_init": "RANDOM",  # the other choice wants a tokenizer, and the vectors are replaced anyway
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensor = Stored(prompt_PD.shape, prompt_PD.dtype, lambda: prompt_PD)
    write_safetensors(directory / WEIGHTS, [(KEY, tensor)], {"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

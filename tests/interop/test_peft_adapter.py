"""A soft prompt as an adapter of peft: the same logits behind it as with the prompt here."""

import json
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop.huggingface import load
from codegen2_jax.interop.peft_adapter import save_prompt
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder

torch_decoders = pytest.importorskip("torch_decoders")
torch_t5 = pytest.importorskip("torch_t5")
torch = torch_decoders.torch
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what peft imports
    peft = pytest.importorskip("peft", reason="reading adapters needs peft (extra [peft])")
LENGTH = 5


def prompt(width, seed=0):
    return np.random.default_rng(seed).normal(size=(LENGTH, width)).astype(np.float32)


def with_adapter(model, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, directory).eval()


@pytest.mark.parametrize("family", ["codegen", "llama"])
def test_a_decoder_answers_as_with_our_prompt(tmp_path, family):
    getattr(torch_decoders, family)().save_pretrained(tmp_path / "model")
    config, params = load(tmp_path / "model", mp_num=4 if family == "codegen" else None)
    prompt_PD, tokens_BT = prompt(config.d_model), torch_decoders.tokens(length=12)
    save_prompt(tmp_path / "adapter", prompt_PD, config, base_model=str(tmp_path / "model"))
    model = torch_decoders.load(tmp_path / "model")
    without = torch_decoders.their_logits(model, tokens_BT)
    adapted = with_adapter(model, tmp_path / "adapter")
    assert adapted.active_peft_config.num_virtual_tokens == LENGTH
    mask = torch.ones(tokens_BT.shape, dtype=torch.long)
    with torch.no_grad():
        theirs = adapted(input_ids=torch.tensor(tokens_BT).long(), attention_mask=mask).logits.numpy()[:, LENGTH:]
    pairs = {
        "inputs_BS": tokens_BT[:, :4],
        "inputs_mask_BS": np.ones((3, 4), bool),
        "decoder_inputs_BT": tokens_BT[:, 4:],
    }
    prompt_BPD = np.broadcast_to(prompt_PD, (3, *prompt_PD.shape))
    ours = jax.jit(DecoderOnly(config).logits)(params, pairs, prompt_BPD)
    np.testing.assert_allclose(ours, theirs[:, 4:], rtol=0, atol=1e-5)
    assert np.abs(theirs - without).max() > 1e-2


def test_a_t5_reads_the_prompt_before_its_source(tmp_path):
    """With one submodule. With peft's default of two it wants as many vectors again, and leaves those unused."""
    torch_t5.save_random_t5(tmp_path / "model", tied=True)
    config, params = load(tmp_path / "model")
    prompt_PD, batch = prompt(config.d_model), torch_t5.random_batch(source_length=9, target_length=6)
    save_prompt(tmp_path / "adapter", prompt_PD, config, base_model=str(tmp_path / "model"))

    def theirs(directory):
        model = with_adapter(torch_t5.load(tmp_path / "model"), directory)
        with torch.no_grad():
            return model(
                input_ids=torch.tensor(batch["inputs_BS"]).long(),
                attention_mask=torch.tensor(batch["inputs_mask_BS"]).long(),
                decoder_input_ids=torch.tensor(batch["decoder_inputs_BT"]).long(),
                decoder_inputs_embeds=None,
                labels=torch.tensor(batch["targets_BT"]).long(),
            ).logits.numpy()

    prompt_BPD = np.broadcast_to(prompt_PD, (3, *prompt_PD.shape))
    ours = jax.jit(EncoderDecoder(config).logits)(params, batch, prompt_BPD)
    np.testing.assert_allclose(ours, theirs(tmp_path / "adapter"), rtol=0, atol=1e-5)

    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    assert content["num_transformer_submodules"] == 1
    path.write_text(json.dumps(content | {"num_transformer_submodules": 2}))
    doubled = {"prompt_embeddings": np.concatenate([prompt_PD, prompt(config.d_model, seed=1)])}
    save_file(doubled, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(ours, theirs(tmp_path / "adapter"), rtol=0, atol=1e-5)


def test_the_same_prompt_gives_the_same_files(tmp_path):
    torch_decoders.llama().save_pretrained(tmp_path / "model")
    config, _ = load(tmp_path / "model")
    for name in ("a", "b"):
        save_prompt(tmp_path / name, prompt(config.d_model), config, base_model="m")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    content = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (content["num_virtual_tokens"], content["token_dim"], content["task_type"]) == (LENGTH, 32, "CAUSAL_LM")


@pytest.mark.parametrize("shape", [(3, 31), (32,), (2, 3, 32), (0, 32)])
def test_a_prompt_of_another_shape_is_refused(tmp_path, shape):
    torch_decoders.llama().save_pretrained(tmp_path / "model")
    config, _ = load(tmp_path / "model")
    with pytest.raises(UserError, match=r"is no \[P, 32\]"):
        save_prompt(tmp_path / "adapter", np.zeros(shape), config, base_model="m")

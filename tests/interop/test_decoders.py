"""CodeGen and Llama in and out of Hugging Face's layout: logits as transformers has them, bytes as they were."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface, layouts
from codegen2_jax.interop.huggingface import load, save
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.llama import LlamaConfig

torch_decoders = pytest.importorskip("torch_decoders")
BAR = 1e-5
LLAMAS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "grouped": {"num_key_value_heads": 2},
    "grouped tied wide heads": {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": 6},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
}


def assert_parity(config, params, model, tokens_BT=None):
    tokens_BT = torch_decoders.tokens() if tokens_BT is None else tokens_BT
    theirs, ours = torch_decoders.their_logits(model, tokens_BT), torch_decoders.our_logits(config, params, tokens_BT)
    assert 1.0 < np.abs(theirs).max() < 20.0
    print(f"max abs logit difference {np.abs(ours - theirs).max():.2e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=BAR)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


def edit_config(directory, **changes):
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({name: raw[name] for name in raw if raw[name] != "absent"}))


@pytest.fixture(scope="module")
def codegen(tmp_path_factory):
    """(directory of 4 shards, directory of 8 shards, the library's model)."""
    model, root = torch_decoders.codegen(), tmp_path_factory.mktemp("codegen")
    for shards in (4, 8):
        model.save_pretrained(root / str(shards))
    path = root / "8" / "model.safetensors"
    save_file(torch_decoders.regroup(load_file(path), 8), path, metadata={"format": "pt"})
    return root / "4", root / "8", model


# -------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("shards", [4, 8])
def test_codegen_has_transformers_logits(codegen, shards):
    config, params = load(codegen[shards // 4 - 1], mp_num=shards)
    assert_parity(config, params, codegen[2])


def test_eight_shards_become_four_for_the_library(codegen, tmp_path):
    """It reads files of 4 shards only, and would read 8 without a word."""
    config, params = load(codegen[1], mp_num=8)
    save(tmp_path / "ours", config, params, dtype="float32")
    assert_parity(config, params, torch_decoders.load(tmp_path / "ours"))
    theirs = load_file(codegen[0] / "model.safetensors")
    for name, weight in load_file(tmp_path / "ours" / "model.safetensors").items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.mark.parametrize("n_inner, rotary_dim", [(40, 8), (None, 2)])
def test_codegen_of_another_shape(tmp_path, n_inner, rotary_dim):
    model = torch_decoders.codegen(n_inner=n_inner, rotary_dim=rotary_dim, seed=1)
    model.save_pretrained(tmp_path)
    config, params = load(tmp_path, mp_num=4)
    assert (config.d_ff, config.rotary_dim, config.head_dim) == (n_inner or 256, rotary_dim, 8)
    assert_parity(config, params, model)


def test_codegen_from_torchs_own_file_and_its_buffers_are_dropped(codegen, tmp_path, caplog):
    torch, model = torch_decoders.torch, codegen[2]
    state = dict(model.state_dict())
    for i in range(2):
        state[f"transformer.h.{i}.attn.causal_mask"] = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(3, dtype=torch.uint8)
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e9)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((codegen[0] / "config.json").read_text())
    with caplog.at_level(logging.INFO, "codegen2_jax"):
        config, params = load(tmp_path, mp_num=4)
    assert [record.message for record in caplog.records if "dropped 6 buffers" in record.message]
    assert len(caplog.records) == 1
    assert_parity(config, params, model)


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_has_transformers_logits_in_and_out(tmp_path, name):
    model = torch_decoders.llama(**LLAMAS[name])
    model.save_pretrained(tmp_path / "theirs")
    config, params = load(tmp_path / "theirs")
    assert ("head" not in params) == config.tie_word_embeddings == LLAMAS[name].get("tie_word_embeddings", False)
    assert config.num_kv_heads == model.config.num_key_value_heads and config.head_dim == model.config.head_dim
    assert_parity(config, params, model)
    save(tmp_path / "ours", config, params, dtype="float32")
    exported = torch_decoders.load(tmp_path / "ours")
    assert exported.config.rope_parameters == model.config.rope_parameters
    assert_parity(config, params, exported)


def wrong_order(params):
    attention = params["decoder"]["layers"]["attention"]
    return {**attention, "k": attention["v"], "v": attention["k"]}


def wrong_rotary(params):
    """Channels in the order that halves would need."""
    attention = params["decoder"]["layers"]["attention"]
    order = np.concatenate([np.arange(4).reshape(2, 2).T.ravel(), np.arange(4, 8)])
    return {**attention, "q": attention["q"][..., order], "k": attention["k"][..., order]}


@pytest.mark.parametrize("mistake", ["shards 4 as 8", "shards 8 as 4", "q k v", "halves", "head bias"])
def test_every_mistake_shows(codegen, mistake):
    """Negative controls: the bar above can fail."""
    four, eight, model = codegen
    config, params = load(four, mp_num=4)
    if mistake.startswith("shards"):
        config, params = load(four, mp_num=8) if mistake == "shards 4 as 8" else load(eight, mp_num=4)
    elif mistake == "head bias":
        params["head_bias"] = np.zeros_like(params["head_bias"])
    else:
        change = wrong_order if mistake == "q k v" else wrong_rotary
        params["decoder"]["layers"]["attention"] = change(params)
    tokens_BT = torch_decoders.tokens()
    difference = torch_decoders.our_logits(config, params, tokens_BT) - torch_decoders.their_logits(model, tokens_BT)
    assert np.abs(difference).max() > 1e-2


def test_codegen_continues_as_transformers_does(codegen):
    config, params = load(codegen[0], mp_num=4)
    model, tokens_BT, steps = DecoderOnly(config), torch_decoders.tokens(rows=2, length=9), 64
    theirs = codegen[2].generate(
        torch_decoders.torch.tensor(tokens_BT).long(),
        max_new_tokens=steps, do_sample=False, use_cache=True, eos_token_id=None,
    )  # fmt: skip
    logits_BV, encoded, mask_BS = jax.jit(model.prefill)(params, tokens_BT, np.ones(tokens_BT.shape, bool))
    decoder = model.decoder_params(params)
    cache = model.start_decoding(decoder, encoded, mask_BS, max_length=steps)
    step, chosen = jax.jit(model.decode_step), []
    for position in range(steps):
        chosen.append(np.asarray(logits_BV.argmax(-1)))
        logits_B1V, cache = step(decoder, cache, chosen[-1][:, None], position)
        logits_BV = logits_B1V[:, 0]
    np.testing.assert_array_equal(np.stack(chosen, 1), theirs[:, tokens_BT.shape[1] :].numpy())


# ---------------------------------------------------------------------------------------------------------- round trip


def assert_same_tensors(ours, theirs):
    ours, theirs = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (weight.dtype, weight.shape), name
        assert ours[name].tobytes() == weight.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["4 shards", "8 shards", "untied", "tied"])
def test_bytes_come_back(codegen, tmp_path, kind, dtype):
    shards = int(kind[0]) if "shards" in kind else None
    if shards:
        theirs = load_file(codegen[shards // 4 - 1] / "model.safetensors")
        raw = (codegen[0] / "config.json").read_text()
    else:
        torch_decoders.llama(**LLAMAS[kind]).save_pretrained(tmp_path / "llama")
        theirs = load_file(tmp_path / "llama" / "model.safetensors")
        raw = (tmp_path / "llama" / "config.json").read_text()
    (tmp_path / "theirs").mkdir()
    cast = {name: weight.astype(layouts.DTYPES[dtype]) for name, weight in theirs.items()}
    save_file(cast, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "theirs" / "config.json").write_text(raw)
    config, params = load(tmp_path / "theirs", dtype=None, mp_num=shards)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(layouts.DTYPES[dtype])}
    for name in ("a", "b"):
        save(tmp_path / name, config, params, dtype=None, mp_num=shards)
    assert_same_tensors(tmp_path / "a", tmp_path / "theirs")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    # And what we wrote says itself how it is to be read.
    again, reread = load(tmp_path / "a", dtype=None)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, reread, params)


def test_the_trees_are_the_models_own(codegen, tmp_path):
    torch_decoders.llama(num_key_value_heads=2).save_pretrained(tmp_path)
    for config, params in (load(codegen[0], mp_num=4), load(tmp_path)):
        shapes = DecoderOnly(config).param_shapes
        assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert huggingface.open_model(tmp_path).parameters() == DecoderOnly(load(tmp_path)[0]).parameters()


def test_leaves_and_parts_are_the_tree(codegen):
    _, params = load(codegen[1], mp_num=8)
    leaves = dict(huggingface.leaves(codegen[1], mp_num=8))
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    assert leaves.keys() == flat.keys()
    for place, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, flat[place])
    seen = set()
    for place, layer, part in huggingface.iterate(codegen[1], mp_num=8):
        np.testing.assert_array_equal(part, flat[place] if layer is None else flat[place][layer])
        seen.add((place, layer))
    assert len(seen) == 5 + 2 * 10  # 8 weights a layer, one of them three of ours


def test_settings_of_ours_come_back(codegen, tmp_path):
    config, params = load(codegen[0], mp_num=4)
    config = dataclasses.replace(config, prefix_lm=True, attend_across_documents=False, decoder_start_token_id=7)
    save(tmp_path, config, params)
    assert load(tmp_path)[0] == config


def test_a_head_that_differs_unties(tmp_path):
    torch_decoders.llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    assert load(tmp_path)[0].tie_word_embeddings
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    config, params = load(tmp_path)
    assert not config.tie_word_embeddings
    np.testing.assert_array_equal(params["head"], params["embedding"] + 1)


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A CodeGen with the vocabulary of the published ones and ids as wrong as theirs."""
    path = tmp_path_factory.mktemp("published")
    torch_decoders.codegen(vocab_size=51200, n_embd=16, n_head=8, rotary_dim=2, n_layer=1).save_pretrained(path)
    edit_config(path, eos_token_id=2, bos_token_id=1, pad_token_id="absent", head_dim="absent", n_positions=2048)
    return path


def test_wrong_ids_of_published_models_are_replaced_with_one_warning(published, tmp_path, caplog):
    config, params = load(published, mp_num=4)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "bos_token_id 1 -> 50256, eos_token_id 2 -> 50256" in caplog.text
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (50256,) * 3
    assert config.decoder_start_token_id is None  # <sep> where the vocabulary has one
    save(tmp_path, config, params)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((tmp_path / name).read_text())
        assert [raw[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [50256] * 3, name
    caplog.clear()
    assert load(tmp_path)[0] == config and not caplog.records
    generation = torch_decoders.load(tmp_path).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (50256, 50256)


def test_an_export_with_eight_shards_carries_the_mark_that_others_go_by(tmp_path):
    config = CodeGenConfig(
        vocab_size=5, d_model=1024, num_layers=1, num_heads=8, head_dim=128, rotary_dim=64, d_ff=8,
    )  # fmt: skip
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), DecoderOnly(config).param_shapes)
    for shards, mark in ((8, 128), (4, None), (None, None)):
        save(tmp_path, config, params, mp_num=shards)
        raw = json.loads((tmp_path / "config.json").read_text())
        assert (raw.get("head_dim"), raw["codegen2_jax"]["mp_num"]) == (mark, shards or 4)
        assert load(tmp_path)[0] == config


def test_shapes_without_a_place_in_their_layout_are_refused(tmp_path, caplog):
    shape = dict(vocab_size=5, d_model=12, num_layers=1, num_heads=2, d_ff=8, rotary_dim=2)
    config = CodeGenConfig(**shape, head_dim=4)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), DecoderOnly(config).param_shapes)
    with pytest.raises(UserError, match="num_heads=2 of head_dim=4 are not d_model=12"):
        save(tmp_path, config, params)
    config = CodeGenConfig(**shape, head_dim=6)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), DecoderOnly(config).param_shapes)
    with pytest.raises(UserError, match="mp_num=8 for the export does not divide num_heads=2"):
        save(tmp_path, config, params, mp_num=8)
    save(tmp_path, config, params)  # what nobody else can read is still kept
    assert "transformers' CodeGen cannot read it" in caplog.text
    assert load(tmp_path)[0] == config


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, ["rope_parameters", "'llama3'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "'linear'"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "'linear'"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"num_key_value_heads": 3}, ["num_kv_heads=3"]),
        ({"hidden_size": "absent"}, ["lacks hidden_size"]),
        ({"num_attention_heads": 0}, ["config.json"]),
        ({"hidden_size": "32"}, ["config.json"]),
        ({"vocab_size": 98}, ["(97, 32)", "(98, 32)"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_llama_that_is_none_of_ours_is_one_line(tmp_path, changes, words):
    torch_decoders.llama().save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_older_configurations_are_read(tmp_path):
    torch_decoders.llama().save_pretrained(tmp_path)
    absent = dict.fromkeys(("rope_parameters", "head_dim", "num_key_value_heads", "eos_token_id"), "absent")
    edit_config(tmp_path, **absent, rope_theta=5000.0, rope_scaling=None, pad_token_id=-1, bos_token_id=None)
    config, _ = load(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert (config.rope_theta, config.head_dim, config.num_kv_heads) == (5000.0, 4, 8)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 2, None)


def test_a_mark_for_shards_is_for_codegen_only(tmp_path):
    torch_decoders.llama().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--mp_num=4 is for CodeGen"):
        load(tmp_path, mp_num=4)


def test_numbers_too_large_for_float16_are_not_made_infinite(codegen, tmp_path):
    config, params = load(codegen[0], mp_num=4)
    params["embedding"][0, 0] = 1e5
    with pytest.raises(UserError, match="transformer.wte.weight holds numbers beyond 65504"):
        save(tmp_path, config, params, dtype="float16")
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.partial"))

"""In how many shards a CodeGen's fused weights lie: what decides, what contradicts, and what the loss says."""

import json
import math

import jax
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface, qkv_layout
from codegen2_jax.interop.layouts import Source
from codegen2_jax.interop.qkv_layout import decide, fused, verify_layout
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly

CONFIG = CodeGenConfig(vocab_size=31, d_model=32, num_layers=2, num_heads=8, head_dim=4, rotary_dim=2, d_ff=48)


def shape(layers, width, heads):
    return CodeGenConfig(
        d_model=width, num_layers=layers, num_heads=heads, head_dim=width // heads, rotary_dim=32, d_ff=4 * width
    )



EVIDENCE = {  # name: (changes of Source, config.json, text of a modeling file, shards, what is named)
    "flag": ({"mp_num": 8}, {}, None, 8, "--mp_num (8"),
    "metadata": ({"metadata": {"mp_num": "8"}}, {}, None, 8, "metadata mp_num"),
    "config": ({}, {"codegen2_jax": {"mp_num": 4}}, None, 4, "codegen2_jax.mp_num"),
    "modeling": ({}, {}, "class A:\n        # mp_num = 4\n        mp_num = 8  # TPU\n", 8, "in modeling_codegen.py"),
    "head_dim 128": ({}, {"head_dim": 128}, None, 8, "head_dim=128"),
    "head_dim 256": ({}, {"head_dim": 256}, None, 8, "head_dim=256"),
    "all": ({"mp_num": 8, "metadata": {"mp_num": "8"}}, {"head_dim": 128}, "mp_num = 8\n", 8, "head_dim=128"),
    "flag between two": ({"mp_num": 4}, {"head_dim": 128}, "mp_num = 4\n", 4, "mp_num = 4 in modeling"),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_what_decides(tmp_path, name):
    source, raw, text, expected, named = EVIDENCE[name]
    if text is not None:
        (tmp_path / "modeling_codegen.py").write_text(text)
    found, because = decide(CONFIG, raw, Source(name=str(tmp_path), directory=tmp_path, **source))
    assert found == expected and any(named in line for line in because)


CONTRADICTIONS = {
    "silence": ({}, {}, None, "nothing tells"),
    "a shape alone": ({}, {"n_embd": 32}, None, "its shape alone does not"),
    "a head_dim that marks nothing": ({}, {"head_dim": 64}, None, "nothing tells"),
    "a comment": ({}, {}, "    # mp_num = 8\n", "nothing tells"),
    "flag against metadata": ({"mp_num": 4, "metadata": {"mp_num": "8"}}, {}, None, "--mp_num=4 contradicts"),
    "flag against head_dim": ({"mp_num": 4}, {"head_dim": 128}, None, "head_dim=128 in config.json (8 shards)"),
    "metadata against modeling": ({"metadata": {"mp_num": "8"}}, {}, "mp_num = 4\n", "give --mp_num=4 or 8"),
    "modeling against itself": ({}, {}, "mp_num = 4\n  mp_num = 8\n", "mp_num = 4 in modeling_codegen.py"),
    "a number that is none": ({"metadata": {"mp_num": "eight"}}, {}, None, "'eight'"),
    "a number that does not divide": ({"mp_num": 16}, {}, None, "mp_num=16"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_silence_and_contradictions_are_one_line(tmp_path, name):
    source, raw, text, words = CONTRADICTIONS[name]
    if text is not None:
        (tmp_path / "modeling_codegen.py").write_text(text)
    with pytest.raises(UserError) as error:
        decide(CONFIG, raw, Source(name="m", directory=tmp_path, **source))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, sizes, expected",
    [
        ("Salesforce/codegen-350M-mono", (20, 1024, 16), 4),
        ("Salesforce/codegen2-1B", (16, 2048, 16), 8),
        ("Salesforce/codegen2-1B_P", (16, 2048, 16), 8),
        ("Salesforce/codegen2-3_7B_P", (16, 4096, 16), 8),
        ("Salesforce/codegen2-7B_P", (32, 4096, 16), 4),
        ("Salesforce/codegen2-16B_P", (34, 6144, 24), 4),
        ("Salesforce/codegen2-1B_P", (16, 4096, 16), None),  # the name with another shape
        ("Somebody/codegen2-1B_P", (16, 2048, 16), None),
    ],
)
@pytest.mark.parametrize("where", ["cache", "config"])
def test_published_names_count_with_their_shape_only(tmp_path, name, sizes, expected, where):
    directory = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "0" if where == "cache" else tmp_path
    raw = {} if where == "cache" else {"_name_or_path": name}
    source = Source(name=str(directory), directory=directory)
    if expected is None:
        with pytest.raises(UserError, match="nothing tells"):
            decide(shape(*sizes), raw, source)
    else:
        assert decide(shape(*sizes), raw, source)[0] == expected


def test_a_modeling_file_is_read_and_never_run(tmp_path):
    marker = tmp_path / "ran"
    text = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nmp_num = 8\n"
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), DecoderOnly(CONFIG).param_shapes)
    huggingface.save(tmp_path, CONFIG, params, mp_num=8)
    (tmp_path / "modeling_codegen.py").write_text(text)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}, "trust_remote_code": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert huggingface.open_model(tmp_path).mp_num == 8
    assert not marker.exists()
    huggingface.save(tmp_path / "out", *huggingface.load(tmp_path))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


# --------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_rows_are_shards_of_q_v_k(shards):
    """Against the rule written out in loops, with numbers that say where they belong."""
    row, D, N, H = fused("w", CONFIG, shards, (), 0), 32, 8, 4
    w, position = np.zeros((3 * D, D)), 0
    for shard in range(shards):
        for which in (0, 2, 1):  # q, v, k
            for head in range(shard * N // shards, (shard + 1) * N // shards):
                for channel in range(H):
                    w[position] = 10_000 * which + 100 * head + channel + np.arange(D) / D
                    position += 1
    for which, part in enumerate(row.to_ours(w)):
        for head in range(N):
            for channel in range(H):
                expected = 10_000 * which + 100 * head + channel + np.arange(D) / D
                np.testing.assert_array_equal(part[:, head, channel], expected)
    np.testing.assert_array_equal(row.to_theirs(*row.to_ours(w)), w)


def test_four_forms_of_the_same_order_agree():
    """Blocks of rows as OpenNMT takes them, and eight shards regrouped to four."""
    w = np.random.default_rng(0).normal(size=(96, 32))
    for shards in (4, 8):
        order = np.arange(3 * shards).reshape(shards, 3).T.flatten()
        q, v, k = w.reshape(3 * shards, 32 // shards, 32)[order].reshape(3, 32, 32)
        for ours, theirs in zip(fused("w", CONFIG, shards, (), 0).to_ours(w), (q, k, v), strict=True):
            np.testing.assert_array_equal(ours, theirs.T.reshape(32, 8, 4))
    regrouped = w.reshape(4, 2, 3, 4, 32).swapaxes(1, 2).reshape(96, 32)
    parts = zip(fused("w", CONFIG, 8, (), 0).to_ours(w), fused("w", CONFIG, 4, (), 0).to_ours(regrouped), strict=True)
    for eight, four in parts:
        np.testing.assert_array_equal(eight, four)


# ------------------------------------------------------------------------------------------------------- verification


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(DecoderOnly(CONFIG).init_params)(jax.random.key(0)))


def test_the_other_reading_is_what_the_file_would_give(tmp_path, params):
    huggingface.save(tmp_path, CONFIG, params, dtype="float32")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["codegen2_jax"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = huggingface.open_model(tmp_path)
    row = fused("w", CONFIG, 8, ("decoder", "layers", "attention"), 1)
    expected = row.to_ours(model.stored["transformer.h.1.attn.qkv_proj.weight"].read())
    found = qkv_layout.relaid(params, CONFIG, 4, 8)
    for name, part in zip("qkv", expected, strict=True):
        np.testing.assert_array_equal(found["decoder"]["layers"]["attention"][name][1], part)
    back = qkv_layout.relaid(found, CONFIG, 8, 4)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    "right, wrong, passes", [(0.34, 8.93, True), (2.0, 2.9, False), (8.93, 0.34, False), (math.nan, 9, False)]
)
def test_one_nat_decides(params, right, wrong, passes):
    q = params["decoder"]["layers"]["attention"]["q"]

    def loss(tree):
        return right if np.array_equal(tree["decoder"]["layers"]["attention"]["q"], q) else wrong

    if passes:
        assert verify_layout(loss, params, CONFIG, 4) == {4: right, 8: wrong}
        assert verify_layout(loss, params, CONFIG, 8) == {8: right, 4: wrong}
    else:
        with pytest.raises(UserError, match="cannot tell"):
            verify_layout(loss, params, CONFIG, 4)

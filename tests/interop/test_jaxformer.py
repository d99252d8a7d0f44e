"""Checkpoints of jaxformer: written here as its source writes them, read, and the same logits as in transformers."""

import io
import json
import zipfile

import numpy as np
import pytest

from codegen2_jax import convert

torch_decoders = pytest.importorskip("torch_decoders")

SIZES = {
    "model_vocab_size": 97, "model_dim": 64, "model_layers": 2, "model_heads": 8, "model_head_dim": 8,
    "model_seq_len": 96, "model_pe_rotary_dims": 4, "tpu_cores": 4,
}  # fmt: skip


def tree_of(model, dtype=np.float32):
    """jaxformer's parameters that are this CodeGen of transformers, nested as Haiku nests them."""
    weights = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    bias = np.linspace(-1, 1, 64, dtype=np.float32)

    def stacked(name):
        return np.stack([weights[f"transformer.h.{layer}.{name}"].T for layer in range(2)])

    linear = lambda name: {"w": stacked(f"{name}.weight"), "b": stacked(f"{name}.bias")}  # noqa: E731
    tree = {
        "transformer": {
            "block/~/ln": {"scale": stacked("ln_1.weight"), "offset": stacked("ln_1.bias")},
            "block/~/ff/~/proj_out": linear("mlp.fc_out"),
            "block/~/ff/~/proj_in": linear("mlp.fc_in"),
            "block/~/attn/~/proj_qkv": {"w": stacked("attn.qkv_proj.weight")},
            "block/~/attn/~/proj_out": {"w": stacked("attn.out_proj.weight")},
        },
        "embed": {"embedding_sharded/~/proj": {"w": weights["transformer.wte.weight"] - bias, "b": bias}},
        "proj": {
            "projection/~/linear": {"w": weights["lm_head.weight"].T, "b": weights["lm_head.bias"]},
            "projection/~/layer_norm": {
                "scale": weights["transformer.ln_f.weight"], "offset": weights["transformer.ln_f.bias"]
            },
        },
    }  # fmt: skip
    import jax

    return [np.ascontiguousarray(leaf, dtype) for leaf in jax.tree.leaves(tree)]


def write(directory, leaves, sizes=SIZES):
    (directory / "model").mkdir(parents=True)
    (directory / "ckpt.json").write_text(json.dumps({"step": 7, "process_count": 1}))
    with (directory / "model" / "0.npz").open("wb") as file:
        np.savez(file, *leaves)
    (directory / "sizes.json").write_text(json.dumps(sizes | {"opt_lr_max": 1e-4}))
    return directory


@pytest.fixture(scope="module")
def model():
    return torch_decoders.codegen()


def command(capsys, source, target, *more, config="sizes.json"):
    configured = [f"--jaxformer_config={source / config}"] if config else []
    code = convert.main(["--from", str(source), "--to", str(target), *configured, *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_transformers_gives_the_logits_of_what_was_saved(model, tmp_path, capsys):
    source = write(tmp_path / "checkpoint", tree_of(model))
    code, out, err = command(capsys, source, tmp_path / "out")
    assert (code, err) == (0, "") and "jaxformer checkpoint" in out and "4 shards" in out
    tokens_BT = torch_decoders.tokens(length=16)
    ours = torch_decoders.their_logits(torch_decoders.load(tmp_path / "out"), tokens_BT)
    np.testing.assert_allclose(ours, torch_decoders.their_logits(model, tokens_BT), rtol=0, atol=1e-4)


def test_the_cores_of_the_training_are_the_shards(model, tmp_path, capsys):
    source = write(tmp_path / "eight", tree_of(model), SIZES | {"tpu_cores": 8})
    code, out, _ = command(capsys, source, tmp_path / "out")
    assert code == 0 and "qkv layout: 8 shards" in out
    code, _, err = command(capsys, source, tmp_path / "other", "--mp_num=5")
    assert code == 2 and err.count("\n") == 1


def test_bfloat16_without_a_name_is_read(model, tmp_path, capsys):
    import ml_dtypes

    source = write(tmp_path / "half", [leaf.astype(ml_dtypes.bfloat16) for leaf in tree_of(model)])
    code, out, _ = command(capsys, source, tmp_path / "out")
    assert code == 0 and "parameters in bfloat16" in out


def test_what_is_missing_or_damaged_is_one_line(model, tmp_path, capsys):
    leaves = tree_of(model)
    source = write(tmp_path / "whole", leaves)

    def refusal(source, **more):
        code, _, err = command(capsys, source, tmp_path / "out", **more)
        assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
        return err

    err = refusal(source, config=None)
    assert "add --jaxformer_config" in err and "jaxformer/hf/convert.py" in err
    (source / "other.json").write_text(json.dumps(SIZES | {"model_layers": 3}))
    assert "transformer/attn/proj_out/w is (2, 64, 64), not (3, 64, 64)" in refusal(source, config="other.json")
    (source / "half.json").write_text(json.dumps({"model_dim": 64}))
    assert "lacks 'model_vocab_size'" in refusal(source, config="half.json")
    (source / "odd.json").write_text(json.dumps(SIZES | {"model_head_dim": 9}))
    assert "fits no CodeGen" in refusal(source, config="odd.json")
    assert "holds 13 arrays" in refusal(write(tmp_path / "few", leaves[:-1]))
    assert "is no configuration of jaxformer" in refusal(source, config="missing.json")

    content = (source / "model" / "0.npz").read_bytes()
    cut = write(tmp_path / "cut", leaves)
    (cut / "model" / "0.npz").write_bytes(content[: len(content) // 2])
    assert "no intact .npz file" in refusal(cut)
    packed = write(tmp_path / "packed", leaves)
    np.savez_compressed(packed / "model" / "0.npz", *leaves)
    assert "is compressed" in refusal(packed)
    objects = write(tmp_path / "objects", leaves)
    np.savez(objects / "model" / "0.npz", *leaves[:-1], np.array([print], dtype=object))
    assert "dtype |O" in refusal(objects)
    columns = write(tmp_path / "columns", [*leaves[:1], np.asfortranarray(leaves[1]), *leaves[2:]])
    assert "lies by columns" in refusal(columns)


def test_an_array_that_claims_more_than_it_has_is_refused(model, tmp_path, capsys):
    leaves = tree_of(model)
    source = write(tmp_path / "liar", leaves)
    with zipfile.ZipFile(source / "model" / "0.npz", "w") as archive:
        for number, leaf in enumerate(leaves):
            file = io.BytesIO()
            np.save(file, leaf[:1] if number == 1 else leaf)
            data = file.getvalue()
            if number == 1:
                data = data.replace(b"(1, 64)", b"(97, 64)"[: len(b"(1, 64)") + 1], 1).replace(b"  \n", b" \n", 1)
            archive.writestr(f"arr_{number}.npy", data)
    code, _, err = command(capsys, source, tmp_path / "out")
    assert code == 2 and "does not fill" in err


def test_the_flag_is_refused_for_other_models(tmp_path, capsys):
    code = convert.main(["--from", "nano_t5", "--to", str(tmp_path / "out"), "--jaxformer_config=x.json"])
    assert code == 2 and "is for a checkpoint of jaxformer" in capsys.readouterr().err

"""Exports in several files: what transformers reads, what comes back, and what an earlier export leaves behind."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from codegen2_jax import convert
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.interop.safetensors_files import Stored
from codegen2_jax.interop.weight_shards import parse_size, write_weights

INDEX = "model.safetensors.index.json"


def stored(sizes):
    """Tensors of these numbers of float32, in this order, counted up."""
    made = {name: np.arange(size, dtype=np.float32) + number for number, (name, size) in enumerate(sizes.items())}
    return [(name, Stored(array.shape, array.dtype, lambda array=array: array)) for name, array in made.items()]


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), ("0.5KB", 500), ("1000", 1000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "0", "1e9", "5G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)


def test_a_shard_ends_before_it_would_be_too_large(tmp_path):
    """In the order given; a tensor that alone is too large has a file of its own."""
    written = write_weights(tmp_path, stored({"d": 2, "c": 2, "b": 9, "a": 1}), {"format": "pt"}, 16)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert written == [*names, INDEX]
    assert [sorted(load_file(tmp_path / name)) for name in names] == [["c", "d"], ["b"], ["a"]]
    content = json.loads((tmp_path / INDEX).read_text())
    assert content["metadata"] == {"total_parameters": 14, "total_size": 56}
    assert content["weight_map"] == {"d": names[0], "c": names[0], "b": names[1], "a": names[2]}
    np.testing.assert_array_equal(load_file(tmp_path / names[1])["b"], np.arange(9, dtype=np.float32) + 2)


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    log = []
    tensors = [
        (str(n), Stored((4,), np.dtype(np.float32), lambda n=n: log.append(n) or np.full(4, n, np.float32)))
        for n in range(6)
    ]
    write_weights(tmp_path, tensors, {"format": "pt"}, 40)
    assert log == list(range(6))  # each read once, when its turn to be written has come


def test_an_earlier_export_leaves_nothing_that_would_be_read_for_this_one(tmp_path):
    tensors = stored({"a": 4, "b": 4, "c": 4})
    (tmp_path / "pytorch_model.bin").write_bytes(b"somebody else's")
    write_weights(tmp_path, tensors, {"format": "pt"}, None)
    for most, kept in ((16, 3), (32, 2), (16, 3), (None, 1)):
        write_weights(tmp_path, tensors, {"format": "pt"}, most)
        found = sorted(path.name for path in tmp_path.glob("model*"))
        assert len([name for name in found if name.endswith(".safetensors")]) == kept
        assert (INDEX in found) == (most is not None)
    assert (tmp_path / "pytorch_model.bin").is_file()


@pytest.mark.parametrize("family", ["codegen", "llama"])
def test_transformers_reads_the_shards_and_they_come_back_byte_for_byte(tmp_path, capsys, family):
    torch_decoders = pytest.importorskip("torch_decoders")
    torch = torch_decoders.torch
    getattr(torch_decoders, family)().to(torch.float16).save_pretrained(tmp_path / "whole")
    mp_num = ["--mp_num=4"] if family == "codegen" else []
    step = lambda *words: convert.main(["--from", *map(str, words)])  # noqa: E731
    assert step(tmp_path / "whole", "--to", tmp_path / "shards", "--max_shard_size=20KB", *mp_num) == 0
    assert INDEX in capsys.readouterr().out
    shards = list((tmp_path / "shards").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "shards" / "model.safetensors").exists()
    for path in shards:
        weights = load_file(path)
        assert len(weights) == 1 or sum(weight.nbytes for weight in weights.values()) <= 20_000
    content = json.loads((tmp_path / "shards" / INDEX).read_text())
    total = sum(math.prod(weight.shape) for path in shards for weight in load_file(path).values())
    assert content["metadata"] == {"total_parameters": total, "total_size": 2 * total}

    tokens_BT = torch_decoders.tokens(rows=1, length=12)
    whole, parts = (torch_decoders.load(tmp_path / name, torch.float32) for name in ("whole", "shards"))
    theirs = torch_decoders.their_logits(whole, tokens_BT)
    np.testing.assert_array_equal(theirs, torch_decoders.their_logits(parts, tokens_BT))

    # Back into one file, and out of what transformers itself cuts.
    assert step(tmp_path / "shards", "--to", tmp_path / "back") == 0
    assert step(tmp_path / "whole", "--to", tmp_path / "direct", *mp_num) == 0
    assert files(tmp_path / "back") == files(tmp_path / "direct")
    parts.to(torch.float16).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    _, ours = huggingface.load(tmp_path / "theirs", None, mp_num=4 if mp_num else None)
    _, expected = huggingface.load(tmp_path / "whole", None, mp_num=4 if mp_num else None)
    for (place, one), (other_place, other) in zip(_flat(ours), _flat(expected), strict=True):
        assert place == other_place and one.tobytes() == other.tobytes()


def _flat(tree, place=()):
    if not isinstance(tree, dict):
        return [(place, tree)]
    return [leaf for name in sorted(tree) for leaf in _flat(tree[name], (*place, name))]


def test_the_same_shards_are_the_same_bytes(tmp_path, capsys):
    for name in ("a", "b"):
        words = ["--from", "nano_t5", "--to", str(tmp_path / name), "--max_shard_size=4MB"]
        assert convert.main(words) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert convert.main(["--from", "nano_t5", "--to", str(tmp_path / "c"), "--max_shard_size=4 apples"]) == 2
    assert "'4 apples' is no size" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_a_model_that_is_still_to_be_converted_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"convert --from smollm2_135m --to .*smollm2_135m"):
        huggingface.resolve_directory(tmp_path / "smollm2_135m")
    with pytest.raises(UserError, match=r"there is no directory 'runs/smollm2_135m' yet"):
        huggingface.resolve_directory("runs/smollm2_135m")  # no name of the Hub

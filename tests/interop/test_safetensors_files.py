"""safetensors read and written without the library: the library's own bytes, and one line for every file that lies."""

import json
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import DTYPES, Stored, open_safetensors, write_safetensors
from codegen2_jax.interop.weight_files import open_weights

KINDS = [*(np.float64, np.float32, np.float16, ml_dtypes.bfloat16), *(f"i{n}" for n in (8, 4, 2, 1)), "u1", np.bool_]


def stored(tensors):
    return [(name, Stored(array.shape, array.dtype, lambda array=array: array)) for name, array in tensors.items()]


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    found = {f"{k}.{np.dtype(kind).name}": rng.integers(0, 2, (3, k + 1)).astype(kind) for k, kind in enumerate(KINDS)}
    odd = {"scalar": np.asarray(1.5, np.float32), "empty": np.zeros((0, 4), np.float16), "ü\"\\n": np.ones(3, "f4")}
    return found | odd


def test_our_file_is_the_librarys_byte_for_byte(tmp_path, tensors):
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", stored(dict(reversed(tensors.items()))), {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_read_is_what_the_library_reads(tmp_path, tensors):
    save_file(tensors, tmp_path / "file", metadata={"format": "pt", "mp_num": "4"})
    found, metadata = open_safetensors(tmp_path / "file")
    assert metadata == {"format": "pt", "mp_num": "4"}
    for name, array in load_file(tmp_path / "file").items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].read().tobytes() == array.tobytes() == tensors[name].tobytes()


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    save_file({"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}, tmp_path / "file")
    found, _ = open_safetensors(tmp_path / "file")
    with (tmp_path / "file").open("r+b") as file:
        file.seek(-16, 2)
        file.write(np.full(4, 7, np.float32).tobytes())
    np.testing.assert_array_equal(found["b"].read(), np.full(4, 7))
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-4])
    with pytest.raises(UserError, match="changed while it was read"):
        found["b"].read()


def write(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(first, last, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}
BAD = {
    "overlap": {"a": entry(0, 8), "b": entry(4, 12)},
    "hole": {"a": entry(0, 4, (1,)), "b": entry(8, 16)},
    "out of range": {"a": entry(0, 8), "b": entry(8, 24, (4,))},
    "rest": {"a": entry(0, 8)},
    "negative": {"a": entry(-8, 0), "b": entry(0, 16, (4,))},
    "backwards": {"a": entry(8, 0), "b": entry(0, 16, (4,))},
    "shape and length differ": {"a": entry(0, 8, (3,)), "b": entry(8, 16)},
    "negative shape": {"a": entry(0, 8, (-1, -2)), "b": entry(8, 16)},
    "huge shape": {"a": entry(0, 8, (2**62, 2**62)), "b": entry(8, 16)},
    "shape of floats": {"a": entry(0, 8, (2.0,)), "b": entry(8, 16)},
    "shape of booleans": {"a": entry(0, 8, (True, 2)), "b": entry(8, 16)},
    "unknown dtype": {"a": entry(0, 8, dtype="F31"), "b": entry(8, 16)},
    "dtype of another kind": {"a": entry(0, 8, dtype=["F32"]), "b": entry(8, 16)},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}, "b": entry(8, 16)},
    "an entry that is none": {"a": 3, "b": entry(0, 16, (4,))},
    "metadata": {"__metadata__": {"format": 3}, **GOOD},
    "metadata that is none": {"__metadata__": "pt", **GOOD},
    "a list": [1, 2],
    "a name twice": b'{"a":%b,"a":%b}' % ((b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}',) * 2),
    "no JSON": b"{",
    "no UTF-8": b"\xff{}",
    "nested": b"[" * 200_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_lies_is_one_line(tmp_path, name):
    write(tmp_path / "model.safetensors", GOOD)
    assert len(open_weights(tmp_path)[0]) == 2
    write(tmp_path / "model.safetensors", BAD[name])
    with pytest.raises(UserError) as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value) and "no intact safetensors file" in str(error.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 1000])
def test_a_header_of_absurd_length_is_not_read(tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match=f"its header would be {length} bytes"):
        open_weights(tmp_path)


def test_every_dtype_of_the_format_has_its_width():
    for name, dtype in DTYPES.items():
        bits = re.search(r"\d+", name)
        assert np.dtype(dtype).itemsize == (int(bits[0]) // 8 if bits else 1), name


# -------------------------------------------------------------------------------------------------------------- indices


def index(directory, shard):
    text = json.dumps({"metadata": {}, "weight_map": {"a": shard, "b": shard}})
    (directory / "model.safetensors.index.json").write_text(text)


SHARDS = ["../out/w.safetensors", "/etc/passwd", "..", ".", "", "sub/w.safetensors", "a\\b", "w\0", 3, None, ["w"]]


@pytest.mark.parametrize("shard", SHARDS, ids=repr)
def test_an_index_leads_nowhere_else(tmp_path, shard):
    for name in ("in", "out", "in/sub"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out" / "w.safetensors", GOOD)
    write(tmp_path / "in" / "sub" / "w.safetensors", GOOD)
    index(tmp_path / "in", shard)
    with pytest.raises(UserError) as error:
        open_weights(tmp_path / "in")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": {}}}', "[" * 200_000])
def test_an_index_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="is no weight index"):
        open_weights(tmp_path)


def test_links_out_of_the_directory_are_not_followed(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out" / "w.safetensors", GOOD)
    for name in ("model.safetensors", "w.safetensors"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "out" / "w.safetensors")
    with pytest.raises(UserError, match="leads outside its directory"):
        open_weights(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").unlink()
    index(tmp_path / "in", "w.safetensors")
    with pytest.raises(UserError, match="leads outside its directory"):
        open_weights(tmp_path / "in")
    (tmp_path / "in" / "w.safetensors").unlink()
    write(tmp_path / "in" / "data", GOOD)
    (tmp_path / "in" / "w.safetensors").symlink_to("data")
    assert len(open_weights(tmp_path / "in")[0]) == 2
    (tmp_path / "link").symlink_to(tmp_path / "in")  # the directory itself may be named by a link
    assert len(open_weights(tmp_path / "link")[0]) == 2

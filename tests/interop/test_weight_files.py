"""Torch's files without torch: the same numbers, and nothing that a pickle might ask for is run."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop.weight_files import open_torch, open_weights

torch = pytest.importorskip("torch", reason="torch (extra [test]) writes the files that are read here")


def read_torch(path):
    return {name: tensor.read() for name, tensor in open_torch(path)[0].items()}


def refused(path, *words):
    with pytest.raises(UserError) as error:
        read_torch(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message


def write_pickle(path, content, storages=()):
    """A zip archive as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Storage:
    def __init__(self, key, count):
        self.pid = ("storage", torch.FloatStorage, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


def tensor_file(path, *, offset=0, size=(2, 3), stride=(3, 1), count=6, data=bytes(24), key="0"):
    arguments = (Storage(key, count), offset, size, stride, False, None)
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"weight": Call(torch._utils._rebuild_tensor_v2, *arguments)})
    write_pickle(path, buffer.getvalue(), [data])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_equal_torchs(tmp_path, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {"whole": base, "transposed": base.T, "part": base[1:3, ::2], "scalar": base[2, 3], "empty": base[:0]}
    module = torch.nn.Linear(3, 2).to(torch.float32)
    torch.save({**tensors, **module.state_dict()}, tmp_path / "w.bin")
    weights = read_torch(tmp_path / "w.bin")
    assert weights.keys() == tensors.keys() | {"weight", "bias"}
    for name, tensor in tensors.items():
        as_bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert weights[name].shape == tuple(tensor.shape) and weights[name].tobytes() == as_bytes, name
        assert str(weights[name].dtype) == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(weights["weight"], module.weight.detach().numpy())


def test_a_state_dict_with_its_metadata_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    weights, _ = open_weights(tmp_path)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(weights[name].read(), tensor.numpy())


def test_a_t5_in_torch_files_equals_the_same_in_safetensors(tmp_path):
    torch_t5 = pytest.importorskip("torch_t5")
    import jax

    from codegen2_jax.interop.huggingface import load

    torch_t5.save_random_t5(tmp_path, tied=True)
    config, expected = load(tmp_path)
    torch.save(torch_t5.load(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    found, params = load(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


CALLS = [(os.system, ("touch {}",)), (eval, ("open('{}', 'w').close()",)), (os.mkdir, ("{}",))]


@pytest.mark.parametrize("function, arguments", CALLS)
def test_a_pickle_that_calls_something_is_refused_before_it_runs(tmp_path, function, arguments):
    target = tmp_path / "ran"
    arguments = [argument.format(target) for argument in arguments]
    write_pickle(tmp_path / "evil.bin", pickle.dumps({"weight": Call(function, *arguments)}, protocol=2))
    refused(tmp_path / "evil.bin", f".{function.__name__}")
    assert not target.exists()
    pickle.loads(zipfile.ZipFile(tmp_path / "evil.bin").read("archive/data.pkl"))
    assert target.exists(), "read in the usual way it does run"


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"size": (3, 3)},
        {"stride": (4, 1)},
        {"offset": -1},
        {"stride": (-3, 1)},
        {"size": (2, 3), "stride": (1,)},
        {"size": (1000, 1000), "stride": (0, 0)},
        {"count": 7},
        {"data": bytes(20)},
        {"key": "../../data.pkl"},
        {"key": "1"},
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, changes):
    tensor_file(tmp_path / "good.bin")
    assert read_torch(tmp_path / "good.bin")["weight"].shape == (2, 3)
    tensor_file(tmp_path / "bad.bin", **changes)
    refused(tmp_path / "bad.bin")


def test_other_things_than_weights_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2), "epoch": 3}, tmp_path / "a.bin")
    refused(tmp_path / "a.bin", "something else")
    torch.save(torch.zeros(2), tmp_path / "b.bin")
    refused(tmp_path / "b.bin", "something else")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.bin")
    refused(tmp_path / "c.bin", "torch.nn.modules.linear.Linear")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    refused(tmp_path / "d.bin", "before 1.6")
    refused(tmp_path / "absent.bin")


@pytest.mark.parametrize("keep", [0, 10, 500, -30])
def test_a_truncated_file_is_one_line(tmp_path, keep):
    torch.save({"weight": torch.zeros(300)}, tmp_path / "w.bin")
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:keep])
    refused(tmp_path / "w.bin", "truncated")


# ----------------------------------------------------------------------------------------------- pickles that are worse


def assemble(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PICKLES = {
    # (None, {"__defaults__": ()}) set on what stands for torch's function
    "sets attributes of a function": assemble(REBUILD, b"N}U\x0c__defaults__)s\x86b"),
    "sets attributes of a storage's type": assemble(b"ctorch\nFloatStorage\n", b"N}U\x05dtypeU\x01xs\x86b"),
    "sets attributes of a class": assemble(b"ccollections\nOrderedDict\n", b"N}U\x04keys)s\x86b"),
    "asks for 64 GiB": assemble(b"}r\xff\xff\xff\xff"),
    "names a place by text": assemble(b"}p99999999999\n"),
    "calls a type": assemble(b"ctorch\nFloatStorage\n)R"),
    "rebuilds over a number": assemble(REBUILD, b"(K\x01K\x00)))\x88N tR".replace(b" ", b"")),
    "imports by parts": assemble(b"cos.path\nsystem\n"),
    "imports a submodule": b"\x80\x04\x8c\x05torch\x8c\x0a_C.Storage\x93.",
    "instantiates": assemble(b"(ios\nsystem\n"),
    "makes an object": assemble(b"ccollections\nOrderedDict\n)\x81}U\x05itemsNsb"),
    "uses an extension": assemble(b"\x82\x01"),
    "is empty": b"",
    "has no end": b"\x80\x02}",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_is_no_dictionary_of_tensors_is_one_line(tmp_path, name):
    write_pickle(tmp_path / "evil.bin", PICKLES[name])
    refused(tmp_path / "evil.bin")
    tensor_file(tmp_path / "good.bin")
    assert read_torch(tmp_path / "good.bin")["weight"].shape == (2, 3)


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    tensor_file(tmp_path / "good.bin")
    content = zipfile.ZipFile(tmp_path / "good.bin")
    for packed in ("archive/data/0", "archive/data.pkl"):
        with zipfile.ZipFile(tmp_path / "bad.bin", "w") as archive:
            for name in content.namelist():
                kind = zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED
                archive.writestr(name, content.read(name), kind)
        refused(tmp_path / "bad.bin", "compressed")


def test_tensors_are_read_when_they_are_asked_for(tmp_path):
    torch.save({"a": torch.ones(30_000), "b": torch.zeros(30_000)}, tmp_path / "w.bin")  # more than one buffer
    tensors, _ = open_torch(tmp_path / "w.bin")
    data = bytearray((tmp_path / "w.bin").read_bytes())
    at = data.find(np.ones(30_000, np.float32).tobytes())
    data[at] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    np.testing.assert_array_equal(tensors["b"].read(), np.zeros(30_000))
    with pytest.raises(UserError, match="damaged"):
        tensors["a"].read()

"""Torch's files without torch: the same numbers, and nothing that a pickle might ask for is run."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.interop.weight_files import read_torch, read_weights

torch = pytest.importorskip("torch", reason="torch (extra [test]) writes the files that are read here")


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
    weights = read_weights(tmp_path)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())


def test_a_t5_in_torch_files_equals_the_same_in_safetensors(tmp_path):
    torch_t5 = pytest.importorskip("torch_t5")
    import jax

    from codegen2_jax.interop.huggingface import load_t5

    torch_t5.save_random_t5(tmp_path, tied=True)
    config, expected = load_t5(tmp_path)
    torch.save(torch_t5.load(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    found, params = load_t5(tmp_path)
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

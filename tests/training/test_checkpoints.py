"""A checkpoint that is not right is not used: real files, real faults, real signals."""

import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from codegen2_jax.errors import NoValidCheckpointError, StorageError, UserError
from codegen2_jax.sharding import partitioning
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.manifests import leaf_digest

# What a failed read of Orbax leaves behind may end in any later test, as a complaint that an event loop is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(seed: int) -> dict:
    """NumPy and JAX leaves of several dtypes, and the tuples of an optimizer."""
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32), "b": jnp.full((5,), seed, jnp.bfloat16)}
    return {
        "params": params,
        "opt": optax.adamw(1e-3).init(params),
        "key": jax.random.key(seed),
        "usage": rng.integers(0, 9, (3, 4)).astype(np.int32),
        "ready": rng.random(7) > 0.5,
        "none_yet": np.zeros((0, 3), np.int32),
        "step": np.int32(seed),
    }


def abstract(state):
    """What a restore is given: shapes, dtypes and shardings, no values."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x, state
    )


def raw(leaf) -> tuple:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert [raw(leaf) for leaf in jax.tree.leaves(left)] == [raw(leaf) for leaf in jax.tree.leaves(right)]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with steps 10 and 20, to be copied and damaged."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpointer(directory) as checkpoints:
        checkpoints.save(10, make_state(10), {"stage": 1})
        checkpoints.save(20, make_state(20), {"stage": 2})
    return directory


@pytest.fixture
def copy(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def test_an_empty_directory_gives_none(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest_meta() is None
        assert checkpoints.restore_latest(make_state(0)) is None


def test_the_newest_step_comes_back_bit_for_bit(copy):
    with Checkpointer(copy) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert checkpoints.latest_meta() == (20, {"stage": 2})
        step, state, meta = checkpoints.restore_latest(abstract(make_state(0)))
    assert (step, meta) == (20, {"stage": 2})
    assert_same(state, make_state(20))
    np.testing.assert_array_equal(jax.random.normal(state["key"], (3,)), jax.random.normal(jax.random.key(20), (3,)))
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(0)), strict=True):
        assert isinstance(leaf, jax.Array) == isinstance(wanted, jax.Array)


def test_any_layout_saves_and_any_layout_restores(tmp_path):
    """Saved over 4 x 2 devices, restored over 2 x 4, over one device and as NumPy, with the same digests."""
    value = jnp.arange(64.0).reshape(8, 8)

    def sharded(shape, spec):
        data, model = shape
        mesh = partitioning.make_mesh({"data": data, "model": model}, devices=jax.devices()[: data * model])
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(value, sharded((4, 2), ("data", "model")))}, {})
        for sharding in (sharded((2, 4), ("model", "data")), sharded((1, 1), ())):
            target = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}
            _, state, _ = checkpoints.restore_latest(target)
            assert state["w"].sharding == sharding
            np.testing.assert_array_equal(state["w"], value)
        _, state, _ = checkpoints.restore_latest({"w": np.zeros((8, 8), np.float32)})
        assert isinstance(state["w"], np.ndarray)


def test_keep_leaves_the_newest_steps(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 30, 4):
            checkpoints.save(step, {"x": np.float32(step)}, {})
            assert checkpoints.steps()[-1] == max(checkpoints.steps())
        assert checkpoints.steps() == [4, 30]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["30", "4"]
    with pytest.raises(UserError, match="keep=0"):
        Checkpointer(tmp_path, keep=0)


def test_the_same_step_again_replaces_it(copy):
    with Checkpointer(copy) as checkpoints:
        checkpoints.save(20, make_state(21), {"stage": 3})
        step, state, meta = checkpoints.restore_latest(abstract(make_state(0)))
    assert (step, meta) == (20, {"stage": 3})
    assert_same(state, make_state(21))
    assert sorted(entry.name for entry in copy.iterdir()) == ["10", "20"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(copy):
    (copy / "20").rename(copy / "20.replaced")
    with Checkpointer(copy) as checkpoints:
        assert checkpoints.restore_latest(abstract(make_state(0)))[0] == 20
    shutil.copytree(copy / "20", copy / "20.replaced")
    Checkpointer(copy).close()
    assert sorted(entry.name for entry in copy.iterdir()) == ["10", "20"]


def test_start_up_cleaning_stays_in_the_folder_and_follows_no_links(copy, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "precious").write_text("x")
    (copy / "30.orbax-checkpoint-tmp").mkdir()
    (copy / "30.orbax-checkpoint-tmp" / "link").symlink_to(outside)
    (copy / "40.orbax-checkpoint-tmp").symlink_to(outside)
    (copy / "50").symlink_to(outside)
    (copy / "notes").mkdir()
    with Checkpointer(copy) as checkpoints:
        assert checkpoints.steps() == [10, 20]
    assert not (copy / "30.orbax-checkpoint-tmp").exists()
    assert (outside / "precious").read_text() == "x" and (outside / "deep").is_dir()
    assert (copy / "notes").is_dir()


def test_a_reader_changes_nothing(copy):
    (copy / "30.orbax-checkpoint-tmp").mkdir()
    flip_a_data_bit(copy / "20", random.Random(0))
    before = sorted(str(path) for path in copy.rglob("*"))
    with Checkpointer(copy, read_only=True) as checkpoints:
        checkpoints.restore_latest(abstract(make_state(0)))
    assert sorted(str(path) for path in copy.rglob("*")) == before
    with Checkpointer(copy / "missing", read_only=True) as checkpoints:
        assert checkpoints.restore_latest(make_state(0)) is None
    assert not (copy / "missing").exists()


def test_another_configuration_is_an_error_not_damage(copy):
    other = {**make_state(0), "usage": np.zeros((3, 5), np.int32), "extra": np.zeros(2)}
    del other["ready"]
    with Checkpointer(copy) as checkpoints:
        with pytest.raises(UserError, match=r"missing \['extra'\], unexpected \['ready'\].*usage int32\[3, 4\] for"):
            checkpoints.restore_latest(other)
        assert checkpoints.steps() == [10, 20]


def test_a_target_may_depend_on_the_stage_and_may_be_partial(copy):
    seen = []

    def target(step, meta):
        seen.append((step, meta["stage"]))
        return {"params": {"w": np.zeros((64, 32), np.float32)}}

    with Checkpointer(copy) as checkpoints:
        _, state, _ = checkpoints.restore_latest(target, partial=True)
    assert seen == [(20, 2)]
    assert_same(state, {"params": {"w": make_state(20)["params"]["w"]}})


def test_digests_depend_on_name_dtype_shape_and_every_bit_only():
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    digest = leaf_digest("w", value)
    assert digest == leaf_digest("w", jnp.asarray(value)) == leaf_digest("w", np.asfortranarray(value))
    assert digest == leaf_digest("w", value.astype(">f4"))
    flipped = value.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    others = [
        leaf_digest("v", value),
        leaf_digest("w", value.reshape(4, 3)),
        leaf_digest("w", value.view(np.int32)),
        leaf_digest("w", flipped),
        leaf_digest("w", value[:, ::-1]),
    ]
    assert len({digest, *others}) == 6


def test_digests_of_bfloat16_keys_and_signed_zeros():
    host, device = np.ones(3, ml_dtypes.bfloat16), jnp.ones(3, jnp.bfloat16)
    assert leaf_digest("b", host) == leaf_digest("b", device)
    assert leaf_digest("b", host) != leaf_digest("b", np.ones(3, np.float16))
    key = jax.random.key(7)
    assert leaf_digest("k", key) == leaf_digest("k", np.asarray(jax.random.key_data(key)))
    assert leaf_digest("z", np.float32(0.0)) != leaf_digest("z", np.float32(-0.0))
    # a constant, so that a change of the format cannot pass unseen: sha256(b"b|bfloat16|(3,)|" + b"\x80\x3f" * 3)
    assert leaf_digest("b", host) == "84adae95485647eb024fd05d2e58cac8d6af3dc799e15d00872aa80d31140244"


def data_files(step: Path) -> list[Path]:
    """The files that hold arrays and the manifest; what else Orbax writes may be unused."""
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size > 0)


def flip_a_data_bit(step: Path, rng: random.Random) -> str:
    file = max((step / "state").rglob("*"), key=lambda path: path.stat().st_size if "/d/" in str(path) else -1)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file.name


def inject(step: Path, kind: str, rng: random.Random) -> str:
    files = data_files(step)
    file = rng.choices(files, [path.stat().st_size for path in files])[0]
    content = bytearray(file.read_bytes())
    if kind == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "sector":
        start = rng.randrange(0, len(content), 512)
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif kind == "truncate":
        del content[rng.randrange(len(content)) :]
    elif kind == "empty":
        content.clear()
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(content)
    return f"{kind} in {file.relative_to(step)}"


def test_every_fault_is_seen_or_harmless(two_steps, tmp_path, caplog):
    """Ten faults at random places of step 20: it comes back right, or step 10 does and 20 is in quarantine."""
    rng = random.Random(2)
    fallbacks = 0
    for number in range(10):
        directory = Path(shutil.copytree(two_steps, tmp_path / str(number)))
        fault = inject(directory / "20", ("bit", "bit", "sector", "truncate", "delete")[number % 5], rng)
        caplog.clear()
        with Checkpointer(directory) as checkpoints:
            step, state, meta = checkpoints.restore_latest(abstract(make_state(0)))
        assert step in (10, 20), fault
        assert meta == {"stage": step // 10}, fault
        assert_same(state, make_state(step))
        assert (directory / "quarantine" / "20").is_dir() == (step == 10), fault
        assert ("checkpoint 20 is damaged" in caplog.text) == (step == 10), fault
        fallbacks += step == 10
        shutil.rmtree(directory)
    assert fallbacks >= 3  # else the faults were no test


def test_a_flipped_bit_that_orbax_does_not_see_names_the_leaf(copy, caplog):
    """In the middle of the largest data file: the digest, not Orbax, must be what stops at least one of four."""
    named = 0
    for seed in range(4):
        shutil.rmtree(copy / "20")
        with Checkpointer(copy) as checkpoints:
            checkpoints.save(20, {"w": np.random.default_rng(seed).normal(size=(64, 64))}, {})
            flip_a_data_bit(copy / "20", random.Random(seed))
            checkpoints.restore_latest(lambda step, _: {"w": np.zeros((64, 64))} if step == 20 else make_state(0))
        shutil.copytree(copy / "quarantine" / "20", copy / "20")
        named += "leaf w does not match its digest" in caplog.text
    assert named


def test_meta_and_step_number_are_covered(copy):
    manifest = copy / "20" / "meta" / "metadata"
    text = manifest.read_text()
    manifest.write_text(text.replace('"stage": 2', '"stage": 7'))
    assert manifest.read_text() != text
    with Checkpointer(copy, read_only=True) as checkpoints:
        assert checkpoints.latest_meta() == (10, {"stage": 1})
    shutil.rmtree(copy / "20")
    shutil.copytree(copy / "10", copy / "20")  # a valid step under another's name
    with Checkpointer(copy) as checkpoints:
        assert checkpoints.restore_latest(make_state(0))[0] == 10


def test_nothing_valid_is_never_a_fresh_start(copy):
    for step in ("10", "20"):
        flip_a_data_bit(copy / step, random.Random(1))
        shutil.rmtree(copy / step / "meta")
    for _ in range(2):  # the second time only the quarantine is left
        with Checkpointer(copy) as checkpoints, pytest.raises(NoValidCheckpointError, match="quarantine"):
            checkpoints.restore_latest(make_state(0))
    assert sorted(entry.name for entry in (copy / "quarantine").iterdir()) == ["10", "20"]


def test_a_second_damaged_step_of_the_same_number_keeps_the_first(copy):
    for _ in range(2):
        with Checkpointer(copy) as checkpoints:
            checkpoints.save(20, make_state(20), {})
            shutil.rmtree(copy / "20" / "meta")
            assert checkpoints.restore_latest(make_state(0))[0] == 10
    assert sorted(entry.name for entry in (copy / "quarantine").iterdir()) == ["20", "20.1"]


def test_a_save_is_quick(tmp_path):
    """A tiny state in well under a second; the bound leaves room for a busy machine."""
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0), {})
        times = []
        for step in range(1, 6):
            began = time.perf_counter()
            checkpoints.save(step, make_state(step), {})
            times.append(time.perf_counter() - began)
    assert min(times) < 1.0, times


SAVE_FOREVER = """
import sys
import numpy as np
from codegen2_jax.training.checkpoints import Checkpointer
checkpoints = Checkpointer(sys.argv[1])
for step in range(10_000):
    checkpoints.save(step // 2, {"w": np.full((200, 100), step // 2, np.float32), "n": np.int32(step)}, {"n": step})
    print(step, flush=True)
"""


def start(script: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], **options)


def test_sigkill_during_saves_leaves_a_valid_newest_step(tmp_path):
    """Every step is saved twice, so that kills fall into replacements too."""
    rng = random.Random(3)
    children = [start(SAVE_FOREVER, tmp_path / str(number)) for number in range(3)]
    for number, child in enumerate(children):
        directory = tmp_path / str(number)
        with child:
            child.stdout.readline()
            time.sleep(rng.uniform(0.1, 0.5))
            child.send_signal(signal.SIGKILL)
            printed = [0, *(int(line) for line in child.stdout.read().split())]
        with Checkpointer(directory) as checkpoints:
            step, state, meta = checkpoints.restore_latest({"w": np.zeros((200, 100), np.float32), "n": np.int32(0)})
            left = {entry.name for entry in directory.iterdir()}
            assert left == {str(kept) for kept in checkpoints.steps()}
        assert meta["n"] in (printed[-1], printed[-1] + 1)  # the commit may come before the line
        assert int(state["n"]) == meta["n"] and meta["n"] // 2 == step
        np.testing.assert_array_equal(state["w"], np.full((200, 100), step, np.float32))


FILE_LIMIT = """
import resource, signal, sys
import numpy as np
from codegen2_jax.errors import StorageError
from codegen2_jax.training.checkpoints import Checkpointer
checkpoints = Checkpointer(sys.argv[1])
noise = np.random.default_rng(0).normal(size=(300, 300))
checkpoints.save(1, {"w": noise}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(int(sys.argv[2]), {"w": noise + 1}, {})
except StorageError as error:
    print("StorageError", error.exit_code)
print(*checkpoints.steps())
step, state, _ = checkpoints.restore_latest({"w": noise})
print(step, bool((state["w"] == noise).all()))
"""


@pytest.mark.parametrize("step", [1, 2])
def test_a_refused_write_is_known_at_once_and_older_steps_stay(tmp_path, step):
    """A limit on file size stands for the full disk: the same error path, without a file system of our own."""
    child = start(FILE_LIMIT, tmp_path, step)
    lines = child.communicate(timeout=120)[0].splitlines()
    assert child.returncode == 0
    assert lines == ["StorageError 6", "1", "1 True"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_too_little_room_is_said_before_the_save(tmp_path):
    huge = np.broadcast_to(np.float32(0), (shutil.disk_usage(tmp_path).total // 4, 1))
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(StorageError, match="free; make room"):
            checkpoints.check_space(huge.nbytes)


def test_a_bucket_address_is_refused_rather_than_made_a_folder():
    with pytest.raises(UserError, match="gs://bucket/run"):
        Checkpointer("gs://bucket/run")


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
index = int(sys.argv[1])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=index)
import numpy as np
from codegen2_jax.sharding import partitioning
from codegen2_jax.training.checkpoints import Checkpointer

layout = partitioning.make_layout()
rows = np.arange(24, dtype=np.float32).reshape(8, 3)
batch = partitioning.put_batch(layout, {"rows": rows[layout.process_rows(8)]})
assert batch["rows"].shape == (8, 3)
total = jax.jit(lambda x: x.sum(), out_shardings=partitioning.replicated(layout))(batch["rows"])
assert float(total) == rows.sum()

shardings = {"w": partitioning.batch_sharding(layout), "key": partitioning.replicated(layout)}
make = lambda scale: {"w": scale * jax.numpy.arange(64.0).reshape(8, 8), "key": jax.random.key(3)}
init = partitioning.init_sharded(make, shardings)
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), init(0.0))
with Checkpointer(sys.argv[3]) as checkpoints:
    checkpoints.save(1, init(1.0), {"n": 1})
    checkpoints.save(2, init(2.0), {"n": 2})
    checkpoints.save(3, init(3.0), {"n": 3})
    if index == 0:
        manifest = Path(sys.argv[3], "3", "meta", "metadata")
        manifest.write_text(manifest.read_text().replace('"n": 3', '"n": 4'))
    step, state, meta = checkpoints.restore_latest(target)
    assert (step, meta) == (2, {"n": 2}), step
    for shard in state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * np.arange(64.0).reshape(8, 8)[shard.index])
print("done", flush=True)
"""


def test_two_processes_save_one_checkpoint_and_agree_on_the_step(tmp_path, program_environment):
    """Each holds half of the rows; one process then reads what the two wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"env": program_environment, "stderr": subprocess.PIPE}
    children = [start(TWO_PROCESSES, index, port, tmp_path / "run", **options) for index in range(2)]
    ends = [child.communicate(timeout=120) for child in children]
    assert all(end[0].endswith("done\n") for end in ends), ends
    assert (tmp_path / "run" / "quarantine" / "3").is_dir()
    with Checkpointer(tmp_path / "run") as checkpoints:
        step, state, _ = checkpoints.restore_latest({"w": np.zeros((8, 8), np.float32), "key": jax.random.key(0)})
    assert step == 2
    assert_same(state, {"w": 2 * np.arange(64, dtype=np.float32).reshape(8, 8), "key": jax.random.key(3)})

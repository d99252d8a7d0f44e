"""The mesh, the table, and that nothing is replicated or split by accident. Eight CPU devices (conftest.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning

AXES = {"embedding": ("vocab", "embed"), "mlp": {"w": ("layers", "embed", "mlp")}, "count": ()}


def shapes(vocab=16, mlp=8):
    return {
        "embedding": jax.ShapeDtypeStruct((vocab, 4), jnp.float32),
        "mlp": {"w": jax.ShapeDtypeStruct((2, 4, mlp), jnp.float32)},
        "count": jax.ShapeDtypeStruct((), jnp.int32),
    }


@pytest.mark.parametrize(
    "shape, expected",
    [
        (None, (8, 1, 1)),
        ({"data": 4, "model": 2}, (4, 1, 2)),
        ({"data": 2, "fsdp": 2, "model": 2}, (2, 2, 2)),
        ({"fsdp": 8}, (1, 8, 1)),
        ({"data": 1, "fsdp": -1, "model": 2}, (1, 4, 2)),
    ],
)
def test_mesh_has_the_sizes_asked_for_and_auto_axes(shape, expected):
    mesh = partitioning.make_mesh(shape)
    assert tuple(mesh.shape.values()) == expected
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert len({device.id for device in mesh.devices.flat}) == 8


def test_mesh_over_some_devices():
    mesh = partitioning.make_mesh({"model": 2, "data": 1}, devices=jax.devices()[2:4])
    assert [device.id for device in mesh.devices.flat] == [2, 3]


@pytest.mark.parametrize(
    "shape",
    [{"data": -1, "fsdp": 3}, {"data": -1, "model": -1}, {"data": 0}, {"tensor": 8}, (4, 2), {"data": 8.5}],
)
def test_mesh_that_does_not_cover_the_devices_is_the_users_error(shape):
    with pytest.raises(UserError, match="mesh"):
        partitioning.make_mesh(shape)


def test_spec_follows_the_table():
    assert partitioning.spec_for("w", ("vocab", "embed")) == P("model", "fsdp")
    assert partitioning.spec_for("q", ("layers", "embed", "heads", "head_dim")) == P(None, "fsdp", "model", None)
    assert partitioning.spec_for("x", ("batch", "length", "mlp")) == P(("data", "fsdp"), None, "model")
    assert partitioning.spec_for("scalar", ()) == P()


def test_an_unknown_axis_is_never_replicated():
    with pytest.raises(ValueError, match=r"decoder/w: no sharding rule for \['expert'\]"):
        partitioning.spec_for("decoder/w", ("expert", "embed"))


@pytest.mark.parametrize("logical_axes", [("heads", "mlp"), ("batch", "embed")])
def test_one_mesh_axis_twice_names_the_leaf(logical_axes):
    with pytest.raises(UserError, match="decoder/w: .*two dimensions on one mesh axis"):
        partitioning.spec_for("decoder/w", logical_axes)


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"lenght": "model"}, "'lenght', which is no logical axis; known: embed"),
        ({"length": "tensor"}, "'length' on 'tensor'; name data, fsdp, model"),
        ({"length": 3}, "'length' on 3; name data, fsdp, model"),
        ({"batch": ("data", "data")}, "each once at most"),
        ("length", "AXES 'length' is no dictionary"),
    ],
)
def test_a_changed_row_names_axes_that_exist(axes, message):
    with pytest.raises(UserError, match=message):
        partitioning.make_layout(axes=axes)


def test_several_axes_may_be_a_list():
    layout = partitioning.make_layout({"data": 2, "fsdp": 4}, {"batch": ["data", "fsdp"]})
    assert layout == partitioning.make_layout({"data": 2, "fsdp": 4}) and layout.batch_parts == 8


def test_changed_rows_that_collide_name_the_leaf():
    layout = partitioning.make_layout({"model": 8}, {"embed": "model"})
    with pytest.raises(UserError, match="embedding: .*two dimensions on one mesh axis"):
        partitioning.shardings(layout, AXES, shapes())


def test_shardings_split_what_the_table_says():
    layout = partitioning.make_layout({"data": 2, "fsdp": 2, "model": 2})
    tree = partitioning.shardings(layout, AXES, shapes())
    assert jax.tree.structure(tree) == jax.tree.structure(shapes())
    assert tree["embedding"].spec == P("model", "fsdp")
    assert tree["mlp"]["w"].spec == P(None, "fsdp", "model")
    assert tree["count"].is_fully_replicated
    assert tree["mlp"]["w"].shard_shape((2, 4, 8)) == (2, 2, 4)


def test_a_dimension_that_does_not_divide_names_leaf_size_and_axis():
    message = "mlp/w: dimension 'mlp' of size 6 does not divide by mesh axis 'model' of size 4"
    with pytest.raises(UserError, match=message):
        partitioning.shardings(partitioning.make_layout({"data": 2, "model": 4}), AXES, shapes(mlp=6))


def test_trees_that_differ_and_wrong_ranks_are_errors():
    layout = partitioning.make_layout({"data": 4, "model": 2})
    with pytest.raises(ValueError, match=r"arrays without logical axes: \['extra'\]"):
        partitioning.shardings(layout, AXES, {**shapes(), "extra": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with pytest.raises(ValueError, match=r"axes without an array: \['count'\]"):
        partitioning.shardings(layout, AXES, {name: leaf for name, leaf in shapes().items() if name != "count"})
    with pytest.raises(ValueError, match="embedding: 1 logical axes"):
        partitioning.shardings(layout, {**AXES, "embedding": ("vocab",)}, shapes())


def test_put_batch_keeps_values_and_splits_rows():
    layout = partitioning.make_layout({"data": 2, "fsdp": 2, "model": 2})
    batch = {"inputs_BS": np.arange(24, dtype=np.int32).reshape(8, 3), "task_B": np.arange(8, dtype=np.int32)}
    assert layout.process_rows(8).tolist() == list(range(8))
    placed = partitioning.put_batch(layout, batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        assert placed[name].dtype == array.dtype
        assert placed[name].sharding.is_equivalent_to(partitioning.batch_sharding(layout), array.ndim)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}


def test_put_batch_says_when_rows_do_not_divide():
    layout = partitioning.make_layout({"data": 2, "fsdp": 2, "model": 2})
    with pytest.raises(UserError, match="inputs_BS: 6 rows do not divide by mesh axis 'data' x 'fsdp' of size 4"):
        partitioning.put_batch(layout, {"inputs_BS": np.zeros((6, 3), np.int32)})
    with pytest.raises(UserError, match="batch_size: 6 rows do not divide"):
        layout.process_rows(6)
    assert layout.rounded_up(6) == 8


def test_the_state_is_born_sharded_with_the_values_of_the_unsharded_one():
    layout = partitioning.make_layout({"data": 2, "fsdp": 2, "model": 2})

    def init(key):
        return {
            "embedding": jnp.arange(64.0).reshape(16, 4),
            "mlp": {"w": jax.random.uniform(key, (2, 4, 8))},
            "count": jnp.zeros((), jnp.int32),
        }

    key = jax.random.key(0)
    wanted = partitioning.shardings(layout, AXES, jax.eval_shape(init, key))
    state = partitioning.init_sharded(init, wanted)(key)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert len(state["count"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, state, init(key))

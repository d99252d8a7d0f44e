"""Positions of a row are dealt evenly, and come back to where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from codegen2_jax.models.dealt_positions import Dealing


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_every_device_has_as_many_pairs(devices):
    order = Dealing(devices).order(24 * devices)
    assert sorted(order) == list(range(24 * devices))
    pairs = (order + 1).reshape(devices, -1).sum(axis=1)  # a position sees itself and those before it
    assert len(set(pairs)) == 1


@pytest.mark.parametrize(("sizes", "names"), [((3,), "a"), ((8,), "a"), ((2, 4), ("a", "b")), ((4, 2), "a")])
def test_what_is_dealt_stands_in_that_order_and_comes_back(sizes, names):
    axes = ("a", "b")[: len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes), devices=devices)
    dealing = Dealing(sizes[0] if names == "a" else int(np.prod(sizes)), names)
    x_BT = jnp.arange(2 * 48).reshape(2, 48)

    def on_each(function):
        spec = PartitionSpec(None, names)
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))

    dealt_BT = on_each(lambda x_BT: dealing.deal(x_BT, 1))(x_BT)
    np.testing.assert_array_equal(dealt_BT, x_BT[:, dealing.order(48)])
    np.testing.assert_array_equal(on_each(lambda x_BT: dealing.collect(x_BT, 1))(dealt_BT), x_BT)

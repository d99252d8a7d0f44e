"""Names of TPU slices, and devices of slices that are not there."""

import importlib.util
import os

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning, topologies

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu (pip install '.[precompile]')"
)


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        (" V5P:4x4x8 ", "v5p:4x4x8", 128),
        ("v5litepod:16x16", "v5e:16x16", 256),
        ("trillium:2x4", "v6e:2x4", 8),
        ("v6e:1x1", "v6e:1x1", 1),
        ("v4:2x2x4", "v4:2x2x4", 16),
    ],
)
def test_a_name_is_read(text, name, chips):
    topology = topologies.parse(text)
    assert (topology.name, topology.num_chips) == (name, chips)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("v5p", "v5p:4x4x4"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v5e:4x4x4", "v5e:4x4"),
        ("v5q:4x4x4", "did you mean v5"),
        ("v6e:32x32", "up to 256 chips"),
        ("v5p:3x3x3", "even"),
        ("v5p:4x4xx", "no shape"),
        ("", "Generations: v4, v5e, v5p, v6e"),
    ],
)
def test_a_wrong_name_is_one_line_with_names_that_are_right(text, hint):
    with pytest.raises(UserError, match=hint) as raised:
        topologies.parse(text)
    assert "\n" not in str(raised.value)


def test_every_shape_that_is_offered_is_read():
    for chip in topologies.CHIPS.values():
        for shape in chip.shapes:
            assert topologies.parse(f"{chip.name}:{shape}").num_chips <= chip.max_chips


def test_whole_cubes_and_sides_of_a_pod_are_rings():
    assert topologies.parse("v5p:4x4x8").wraps == [True] * 3
    assert topologies.parse("v5p:2x4x4").wraps == [False] * 3
    assert topologies.parse("v6e:8x16").wraps == [False, True, False]


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:4x4x4", "v6e:16x16"])
def test_a_device_is_a_chip(name, monkeypatch):
    for variable in topologies.ENVIRONMENT:
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # put back behind the test
    topologies.prepare()
    topology = topologies.parse(name)
    assert len(topologies.devices(topology)) == topology.num_chips
    assert len(topologies.devices(topology, 1)) == 1
    if topology.num_chips > 1:  # sizes that are no products of the torus's sides
        mesh = partitioning.make_mesh({"data": -1, "model": 2}, topologies.devices(topology))
        assert mesh.shape["data"] * 2 == topology.num_chips
    with pytest.raises(UserError, match=f"has {topology.num_chips}"):
        topologies.devices(topology, topology.num_chips + 1)

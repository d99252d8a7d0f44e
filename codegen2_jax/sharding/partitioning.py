"""Where every array lives: the mesh, one table from logical axes to mesh axes, and the shardings that follow.

A weight names its axes by meaning ("vocab", "heads"); `AXIS_RULES` says which of them a mesh splits. An axis the table
does not know is an error, never "replicated": a new weight that is silently copied to every device is found out only
when memory runs out. After the logical axis rules of google-research/t5x `t5x/partitioning.py`, without its fallbacks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codegen2_jax.errors import UserError

DATA_AXIS = "data"  # examples of a batch
MODEL_AXIS = "model"  # heads, MLP width and vocabulary of a weight

# logical axis -> mesh axis; None means that every device holds the whole dimension
AXIS_RULES: dict[str, str | None] = {
    "batch": DATA_AXIS,
    "vocab": MODEL_AXIS,
    "heads": MODEL_AXIS,
    "kv_heads": MODEL_AXIS,
    "mlp": MODEL_AXIS,
    "embed": None,
    "head_dim": None,
    "layers": None,  # scanned over: splitting it would gather one layer per step
    "buckets": None,
    "length": None,
    "prompt": None,
    "prompt_token": None,
    "query": None,
    "classes": None,
}


def make_mesh(
    shape: Mapping[str, int] | Sequence[int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of axes ("data", "model") over the devices.

    Args:
        shape: {"data": n, "model": m} or (n, m); None puts all devices on "data". A size of -1 takes what is left.
        devices: default all devices of all processes. As many as n * m must be given, neither more nor fewer.

    Axes are Auto: the Explicit ones that `jax.make_mesh` makes by default turn sharding constraints into assertions.
    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if shape is None:
        shape = (len(devices), 1)
    if not isinstance(shape, Mapping):
        if len(shape) != 2:
            raise UserError(f"mesh shape {tuple(shape)} has {len(shape)} sizes; give two, (data, model).")
        shape = dict(zip((DATA_AXIS, MODEL_AXIS), shape, strict=True))
    unknown = sorted(set(shape) - {DATA_AXIS, MODEL_AXIS})
    if unknown:
        raise UserError(f"mesh axes {unknown} are not known; a mesh has {DATA_AXIS!r} and {MODEL_AXIS!r}.")
    sizes = [int(shape.get(axis, 1)) for axis in (DATA_AXIS, MODEL_AXIS)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -sizes[0] * sizes[1])
    if min(sizes) < 1 or sizes[0] * sizes[1] != len(devices):
        raise UserError(
            f"mesh data={shape.get(DATA_AXIS, 1)} x model={shape.get(MODEL_AXIS, 1)} does not cover {len(devices)} "
            "devices; the sizes must multiply to that number (-1 for one of them takes what is left)."
        )
    return jax.make_mesh(sizes, (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def spec_for(
    name: str, logical_axes: Sequence[str], rules: Mapping[str, str | None] | None = None
) -> PartitionSpec:
    """The PartitionSpec of the leaf `name`, one logical axis per dimension; () for a scalar.

    Raises ValueError for an axis without a rule and for two dimensions that land on one mesh axis.
    """
    rules = AXIS_RULES if rules is None else rules
    unknown = [axis for axis in logical_axes if axis not in rules]
    if unknown:
        raise ValueError(f"{name}: no sharding rule for {unknown}; add it to AXIS_RULES (known: {sorted(rules)}).")
    mesh_axes = [rules[axis] for axis in logical_axes if rules[axis] is not None]
    if len(mesh_axes) != len(set(mesh_axes)):
        raise ValueError(f"{name}: {tuple(logical_axes)} puts two dimensions on one mesh axis ({mesh_axes}).")
    return PartitionSpec(*(rules[axis] for axis in logical_axes))


def leaf_name(path: Sequence[Any]) -> str:
    """The name of a leaf, "model/encoder/attention/query", from a path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _is_axes(node: Any) -> bool:
    """A tuple of axis names is a leaf of the axes tree; so is the empty tuple of a scalar."""
    return isinstance(node, tuple) and all(isinstance(axis, str) for axis in node)


def shardings(mesh: Mesh, axes_tree: Any, shapes_tree: Any, rules: Mapping[str, str | None] | None = None) -> Any:
    """The tree of NamedSharding for a tree of arrays.

    Args:
        mesh: from `make_mesh`, or an AbstractMesh with the same axis names.
        axes_tree: nested dicts whose leaves are tuples of logical axis names, one per dimension.
        shapes_tree: the same tree of arrays or `jax.ShapeDtypeStruct`.

    Raises ValueError when a leaf of one tree is missing in the other or has another number of dimensions, and
    UserError when a dimension does not divide by its mesh axis: the mesh is the user's choice.
    """
    axes_by_name = {
        leaf_name(path): axes for path, axes in jax.tree_util.tree_leaves_with_path(axes_tree, is_leaf=_is_axes)
    }
    shape_leaves, structure = jax.tree_util.tree_flatten_with_path(shapes_tree)
    shapes_by_name = {leaf_name(path): leaf.shape for path, leaf in shape_leaves}
    if set(axes_by_name) != set(shapes_by_name):
        raise ValueError(
            f"arrays without logical axes: {sorted(set(shapes_by_name) - set(axes_by_name))}; "
            f"axes without an array: {sorted(set(axes_by_name) - set(shapes_by_name))}."
        )
    return jax.tree.unflatten(
        structure,
        [_leaf_sharding(mesh, name, axes_by_name[name], shape, rules) for name, shape in shapes_by_name.items()],
    )


def _leaf_sharding(mesh, name, logical_axes, shape, rules) -> NamedSharding:
    if len(logical_axes) != len(shape):
        raise ValueError(f"{name}: {len(logical_axes)} logical axes {logical_axes} for shape {tuple(shape)}.")
    spec = spec_for(name, logical_axes, rules)
    for logical_axis, mesh_axis, size in zip(logical_axes, spec, shape, strict=True):
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"{name}: dimension {logical_axis!r} of size {size} does not divide by mesh axis {mesh_axis!r} of "
                f"size {mesh.shape[mesh_axis]}; choose a mesh whose {mesh_axis!r} size divides it."
            )
    return NamedSharding(mesh, spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over "data", every other dimension whole; fits arrays of any rank from 1."""
    return NamedSharding(mesh, PartitionSpec(AXIS_RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device; fits any rank."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays, rows split over "data".

    Args:
        batch: name -> array of shape (B / processes, ...); process h holds the rows that lie on its devices.

    Returns name -> global array of shape (B, ...). Which row lies where does not enter a loss that is a sum over rows.
    Raises UserError when the rows do not divide by the data axis.
    """
    sharding = batch_sharding(mesh)
    data_size = mesh.shape[DATA_AXIS]
    single_process = jax.process_count() == 1
    placed = {}
    for name, array in batch.items():
        rows = len(array) * (1 if single_process else jax.process_count())
        if rows % data_size:
            raise UserError(
                f"batch {name}: {rows} rows do not divide by mesh axis {DATA_AXIS!r} of size {data_size}; make "
                "BATCH_SIZE a multiple of it or the axis smaller."
            )
        # device_put is the faster way to the same array when one process owns every device
        placed[name] = (
            jax.device_put(array, sharding)
            if single_process
            else jax.make_array_from_process_local_data(sharding, np.asarray(array))
        )
    return placed


def init_sharded(init_fn: Callable[..., Any], out_shardings: Any) -> Callable[..., Any]:
    """`init_fn`, jitted so that its results are born with `out_shardings` (a matching tree, or one for all leaves).

    Scalars made outside a jitted function sit on device 0 alone, and the first step after a restore then refuses them.
    """
    return jax.jit(init_fn, out_shardings=out_shardings)

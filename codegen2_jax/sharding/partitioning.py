"""Where every array lives: the mesh, one table from logical axes to mesh axes, and the shardings that follow.

A weight names its axes by meaning ("vocab", "heads"), and so does an activation ("batch", "sequence"); `AXIS_RULES`
says which of them a mesh splits. An axis the table does not know is an error, never "replicated": a new weight that is
silently copied to every device is found out only when memory runs out. After the logical axis rules of
google-research/t5x `t5x/partitioning.py`, without its fallbacks.

A `Layout` is a mesh and a table. Its `constrain` is what a model is given for its activations (models/placement.py).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codegen2_jax.errors import UserError

DATA_AXIS = "data"  # rows of a batch; every device holds the weights whole
FSDP_AXIS = "fsdp"  # rows too, and the weights: each layer's are gathered when it runs (ZeRO, arXiv 1910.02054)
MODEL_AXIS = "model"  # heads, MLP width and vocabulary: tensor parallelism (Megatron-LM, arXiv 1909.08053)
MESH_AXES = (DATA_AXIS, FSDP_AXIS, MODEL_AXIS)  # the last varies fastest, so that its devices are neighbours

Rule = str | tuple[str, ...] | None

# logical axis -> mesh axis, or several that split it one after the other; None: every device holds the whole dimension
AXIS_RULES: dict[str, Rule] = {
    # weights, and the moments of the optimizer, which lie like them
    "embed": FSDP_AXIS,
    "norm": None,  # scales and biases as wide as the model: too small to be worth a gather
    "layers": None,  # scanned over: splitting it would gather one layer per step
    "buckets": None,
    "prompt": None,
    "prompt_token": None,
    "query": None,
    "classes": None,  # of a classifier's head
    # both: the heads, MLP columns and vocabulary entries of a weight, and of the activation that it makes
    "vocab": MODEL_AXIS,
    "heads": MODEL_AXIS,
    "kv_heads": MODEL_AXIS,
    "group": None,  # query heads that share a key head
    "mlp": MODEL_AXIS,
    "head_dim": None,
    # activations, and what decoding keeps
    "batch": (DATA_AXIS, FSDP_AXIS),
    "sequence": None,  # positions between the blocks; on "model" or "fsdp" for long contexts (docs/scale.md)
    "length": None,  # positions inside a block: queries, MLP, logits
    "keys": None,  # positions that are attended to, of a cache too
    "features": None,  # the width of an activation
    "beam": None,  # beams or samples of a row
}


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of axes ("data", "fsdp", "model") over the devices.

    Args:
        shape: sizes by axis, such as {"data": 1, "fsdp": 64}; an axis that is not named has size 1, and -1 takes what
            is left. None puts all devices on "data".
        devices: default all devices of all processes. As many as the sizes' product must be given.

    Axes are Auto: the Explicit ones that `jax.make_mesh` makes by default turn sharding constraints into assertions.
    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = {DATA_AXIS: -1} if shape is None else shape
    if not isinstance(shape, Mapping) or not all(isinstance(size, int) for size in shape.values()):
        raise UserError(f"mesh {shape!r} is no dictionary of sizes; write {{'data': 1, 'fsdp': -1, 'model': 1}}.")
    unknown = [axis for axis in shape if axis not in MESH_AXES]
    if unknown:
        raise UserError(f"mesh axes {unknown} are not known; a mesh has {', '.join(MESH_AXES)}.")
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        given = " x ".join(f"{axis}={shape.get(axis, 1)}" for axis in MESH_AXES)
        raise UserError(
            f"mesh {given} does not cover {len(devices)} devices; the sizes must multiply to that number (-1 for one "
            "of them takes what is left)."
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    try:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # sizes that are no products of a torus's sides: two axes share a side
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)


def first_devices(count: int) -> list[jax.Device]:
    """The first devices of this process; UserError where there are fewer."""
    devices = jax.local_devices()
    if not 1 <= count <= len(devices):
        raise UserError(f"{count} devices were asked for, and there are {len(devices)}; give 1 to {len(devices)}.")
    return devices[:count]


def _parts(rule: Rule) -> tuple[str, ...]:
    return () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)


def changed_rules(changes: Mapping[str, Rule] | None) -> dict[str, Rule]:
    """`AXIS_RULES` with some rows changed, several mesh axes as a tuple or a list.

    Raises UserError for an axis, logical or of the mesh, that does not exist, and for one that a row names twice.
    """
    if not isinstance(changes or {}, Mapping):
        raise UserError(f"AXES {changes!r} is no dictionary; write {{'sequence': 'model', 'batch': ('data', 'fsdp')}}.")
    rules = dict(AXIS_RULES)
    for logical_axis, rule in (changes or {}).items():
        if logical_axis not in AXIS_RULES:
            raise UserError(f"AXES names {logical_axis!r}, which is no logical axis; known: {', '.join(AXIS_RULES)}.")
        rule = tuple(rule) if isinstance(rule, list) else rule
        known = isinstance(rule, str | tuple | None) and all(axis in MESH_AXES for axis in _parts(rule))
        if not known or len(set(_parts(rule))) < len(_parts(rule)):
            axes = ", ".join(MESH_AXES)
            raise UserError(f"AXES puts {logical_axis!r} on {rule!r}; name {axes}, each once at most, or None.")
        rules[logical_axis] = rule
    return rules


def spec_for(name: str, logical_axes: Sequence[str], rules: Mapping[str, Rule] | None = None) -> PartitionSpec:
    """The PartitionSpec of the leaf `name`, one logical axis per dimension; () for a scalar.

    Raises ValueError for an axis without a rule, and UserError for two dimensions that land on one mesh axis.
    """
    rules = AXIS_RULES if rules is None else rules
    unknown = [axis for axis in logical_axes if axis not in rules]
    if unknown:
        raise ValueError(f"{name}: no sharding rule for {unknown}; add it to AXIS_RULES (known: {sorted(rules)}).")
    mesh_axes = [part for axis in logical_axes for part in _parts(rules[axis])]
    if len(mesh_axes) != len(set(mesh_axes)):
        raise UserError(
            f"{name}: {tuple(logical_axes)} puts two dimensions on one mesh axis ({mesh_axes}); change a row of AXES."
        )
    return PartitionSpec(*(rules[axis] for axis in logical_axes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the table that says what it splits. Hashable, so that a jitted function may be made for it.

    rules: (logical axis, rule) of every logical axis.
    """

    mesh: Mesh
    rules: tuple[tuple[str, Rule], ...] = tuple(AXIS_RULES.items())

    def sharding(self, name: str, logical_axes: Sequence[str], shape: Sequence[int]) -> NamedSharding:
        """The sharding of one array. UserError when a dimension does not divide by the mesh axes that split it."""
        if len(logical_axes) != len(shape):
            raise ValueError(f"{name}: {len(logical_axes)} logical axes {tuple(logical_axes)} for {tuple(shape)}.")
        spec = spec_for(name, logical_axes, dict(self.rules))
        for logical_axis, rule, size in zip(logical_axes, spec, shape, strict=True):
            devices = math.prod(self.mesh.shape[axis] for axis in _parts(rule))
            if size % devices:
                raise UserError(
                    f"{name}: dimension {logical_axis!r} of size {size} does not divide by mesh axis "
                    f"{' x '.join(map(repr, _parts(rule)))} of size {devices}; choose a MESH whose size divides it, or "
                    f"AXES = {{{logical_axis!r}: None}}."
                )
        return NamedSharding(self.mesh, spec)

    def constrain(self, x: jax.Array, logical_axes: Sequence[str]) -> jax.Array:
        """An activation, laid out by the table; on one device itself."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding("an activation", logical_axes, x.shape))

    def parts(self, logical_axis: str) -> int:
        """Parts into which a dimension of this meaning is cut."""
        return math.prod(self.mesh.shape[axis] for axis in _parts(dict(self.rules)[logical_axis]))

    @property
    def batch_parts(self) -> int:
        """Parts into which the rows of a batch are cut."""
        return self.parts("batch")

    @property
    def logit_parts(self) -> int:
        """Parts into which the logits of a batch are cut: by rows, positions and the vocabulary."""
        axes = {axis for dimension in ("batch", "length", "vocab") for axis in _parts(dict(self.rules)[dimension])}
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def check_rows(self, what: str, rows: int, *, setting: str = "BATCH_SIZE") -> None:
        """Raises UserError when so many rows do not divide among the devices; setting: what decides the rows."""
        if rows % self.batch_parts:
            axes = " x ".join(map(repr, _parts(dict(self.rules)["batch"])))
            raise UserError(
                f"{what}: {rows} rows do not divide by mesh axis {axes} of size {self.batch_parts}; make {setting} a "
                "multiple of it or the axis smaller."
            )

    def check_batch(self, rows: int, parts: int) -> None:
        """`check_rows` for a batch that is computed in so many parts, one after the other."""
        self.check_rows(f"each of {parts} micro-batches" if parts > 1 else "batch_size", rows // parts)

    def rounded_up(self, rows: int) -> int:
        """The next number of rows that divides among the devices, for batches that may be filled with padding."""
        return -(-rows // self.batch_parts) * self.batch_parts

    def process_rows(self, batch_size: int) -> np.ndarray:
        """int64: the rows of a global batch that this process has to read, in ascending order.

        Those that lie on its devices; where a row is cut along other axes, several processes read it. Raises UserError
        when the rows do not divide by the mesh.
        """
        sharding = batch_sharding(self)
        self.check_rows("batch_size", batch_size)
        local = sharding.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in local]))


def make_layout(
    mesh: Mapping[str, int] | None = None,
    axes: Mapping[str, Rule] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """The layout of a run: `mesh` as `make_mesh` takes it, `axes` the rows of the table that the run changes."""
    return Layout(make_mesh(mesh, devices), tuple(changed_rules(axes).items()))


def leaf_name(path: Sequence[Any]) -> str:
    """The name of a leaf, "model/encoder/attention/query", from a path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _is_axes(node: Any) -> bool:
    """A tuple of axis names is a leaf of the axes tree; so is the empty tuple of a scalar."""
    return isinstance(node, tuple) and all(isinstance(axis, str) for axis in node)


def shardings(layout: Layout, axes_tree: Any, shapes_tree: Any) -> Any:
    """The tree of NamedSharding for a tree of arrays.

    Args:
        layout: its mesh may be an AbstractMesh with the same axis names.
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
        structure, [layout.sharding(name, axes_by_name[name], shape) for name, shape in shapes_by_name.items()]
    )


def batch_sharding(layout: Layout) -> NamedSharding:
    """Rows cut as the table says, every other dimension whole; fits arrays of any rank from 1."""
    return NamedSharding(layout.mesh, PartitionSpec(dict(layout.rules)["batch"]))


@dataclasses.dataclass(frozen=True)
class Split:
    """Runs a function on each device's own part of its arguments: for kernels that XLA cannot cut by itself."""

    layout: Layout

    def parts(self, logical_axis: str) -> int:
        """Parts into which a dimension of this meaning is cut."""
        return self.layout.parts(logical_axis)

    def sharding(self, *logical_axes: str | None) -> NamedSharding:
        """Of an array; None: every device holds that dimension whole."""
        rules = {None: None, **dict(self.layout.rules)}
        return NamedSharding(self.layout.mesh, PartitionSpec(*(rules[axis] for axis in logical_axes)))

    def __call__(self, function: Callable, in_specs: tuple, out_spec: Any) -> Callable:
        """The function on parts, for arguments and a result that are cut so (trees of PartitionSpec)."""
        mesh = self.layout.mesh
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_spec, check_vma=False)


def replicated(layout: Layout) -> NamedSharding:
    """The whole array on every device; fits any rank."""
    return NamedSharding(layout.mesh, PartitionSpec())


def put_batch(layout: Layout, batch: Mapping[str, np.ndarray], *, whole: bool = False) -> dict[str, jax.Array]:
    """A host batch -> global arrays, rows cut as the table says.

    Args:
        batch: name -> array whose first dimension is the rows: with one process all of them; with several this
            process's, those of `Layout.process_rows` in their order.
        whole: every process gives all rows, as it does when it evaluates.

    Returns name -> global array of shape (B, ...); row i is row i of the global batch on any number of processes.
    Raises UserError when the rows do not divide by the mesh.
    """
    sharding = batch_sharding(layout)
    single_process = jax.process_count() == 1
    placed = {}
    for name, array in batch.items():
        if single_process or whole:
            layout.check_rows(f"batch {name}", len(array))
            # device_put is the faster way to the same array when one process owns every device
            placed[name] = jax.device_put(array, sharding) if single_process else put_whole(sharding, array)
        else:
            placed[name] = jax.make_array_from_process_local_data(sharding, np.asarray(array))
    return placed


def put_whole(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """A host array that every process has -> the global array, without a word between processes."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index]))


def host_pieces(value: Any, limit: int = 2**28) -> Iterator[np.ndarray]:
    """A global array as host arrays that follow one another along axis 0, each of about `limit` bytes at most.

    Every process gets all of them, and must ask for all: a piece is gathered when it is asked for.
    """
    if not isinstance(value, jax.Array) or value.is_fully_replicated or value.size == 0 or value.ndim == 0:
        yield np.asarray(value)
        return
    rows = max(1, min(len(value), limit * len(value) // value.nbytes))
    gather = jax.jit(
        lambda x, start, rows: jax.lax.dynamic_slice_in_dim(x, start, rows),
        static_argnums=2,
        out_shardings=NamedSharding(value.sharding.mesh, PartitionSpec()),
    )
    for start in range(0, len(value), rows):
        if value.is_fully_addressable:
            yield np.asarray(value[start : start + rows] if rows < len(value) else value)
        else:
            yield np.asarray(gather(value, np.int32(start), min(rows, len(value) - start)))


def to_host(value: Any) -> np.ndarray:
    """The whole of a global array on this host, wherever it lies; all processes must ask for it."""
    pieces = list(host_pieces(value))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def init_sharded(init_fn: Callable[..., Any], out_shardings: Any) -> Callable[..., Any]:
    """`init_fn`, jitted so that its results are born with `out_shardings` (a matching tree, or one for all leaves).

    Scalars made outside a jitted function sit on device 0 alone, and the first step after a restore then refuses them.
    """
    return jax.jit(init_fn, out_shardings=out_shardings)

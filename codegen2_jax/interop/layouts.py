"""How foreign weights and ours correspond: a table of rows per family, and what is done with any such table.

Foreign linear weights are [out, in], ours [in, out] with heads apart and layers stacked on axis 0. A row says which of
our arrays are in one foreign weight (three where a file fuses q, k and v), and how to get from each side to the other.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import Stored

LOG = logging.getLogger(__name__)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
OURS = "codegen2_jax"  # the key of config.json under which we keep what the format has no place for

# What our configurations call the sizes that a file's weights must bear out.
SIZES = (
    *("vocab_size", "d_model", "num_layers", "num_encoder_layers", "num_decoder_layers"),
    *("num_heads", "num_kv_heads", "head_dim", "d_ff"),
)

Place = tuple[str, ...]
"""The keys that lead to an array of our tree."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One foreign weight.

    Attributes:
      name, shape: theirs.
      places: of the arrays of ours that it holds; `layer`: their index on axis 0, None where they are not stacked.
      to_ours: (theirs) -> one array per place, views where possible; to_theirs: the way back.
    """

    name: str
    shape: tuple[int, ...]
    places: tuple[Place, ...]
    layer: int | None
    to_ours: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_theirs: Callable[..., np.ndarray]


def same(name: str, shape: tuple[int, ...], place: Place, layer: int | None = None) -> Row:
    """A weight that both sides hold alike."""
    return Row(name=name, shape=shape, places=(place,), layer=layer, to_ours=lambda w: (w,), to_theirs=lambda w: w)


def transposed(name: str, shape: tuple[int, int], place: Place, layer: int) -> Row:
    """A linear weight [out, in]."""
    back = lambda w: w.T  # noqa: E731
    return Row(name=name, shape=shape, places=(place,), layer=layer, to_ours=lambda w: (w.T,), to_theirs=back)


def into_heads(name: str, width: int, heads: int, head_dim: int, place: Place, layer: int) -> Row:
    """q, k or v, [N * H, D]; ours [D, N, H]."""
    return Row(
        name=name,
        shape=(heads * head_dim, width),
        places=(place,),
        layer=layer,
        to_ours=lambda w: (w.T.reshape(width, heads, head_dim),),
        to_theirs=lambda w: w.reshape(width, heads * head_dim).T,
    )


def out_of_heads(name: str, width: int, heads: int, head_dim: int, place: Place, layer: int) -> Row:
    """The attention's output, [D, N * H]; ours [N, H, D]."""
    return Row(
        name=name,
        shape=(width, heads * head_dim),
        places=(place,),
        layer=layer,
        to_ours=lambda w: (w.T.reshape(heads, head_dim, width),),
        to_theirs=lambda w: w.reshape(heads * head_dim, width).T,
    )


# ------------------------------------------------------------------------------------------------------ a foreign model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where foreign weights were found, and what is known of them beside their configuration.

    Attributes:
      name: for messages. directory: of the files, None for a single file. metadata: of the weight files.
      mp_num: the number of shards in fused weights, where the caller says it.
    """

    name: str
    directory: Path | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mp_num: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """A model in somebody else's files: its configuration, and its weights, read when they are asked for.

    At any time at most one foreign weight is in memory beside what the caller keeps.

    Attributes:
      name: where it is. config: ours. rows: one per weight, all of them present and of the right shape.
      notes: what was concluded while opening it, one line each, for people. mp_num: of fused weights, else None.
    """

    name: str
    config: Any
    rows: list[Row]
    stored: Mapping[str, Stored]
    notes: tuple[str, ...] = ()
    mp_num: int | None = None

    def iterate(self, dtype: Any = np.float32) -> Iterator[tuple[Place, int | None, np.ndarray]]:
        """(place, layer or None, array) of everything, weight by weight; dtype=None keeps each weight's own."""
        for row in self.rows:
            for place, part in zip(row.places, row.to_ours(self.stored[row.name].read()), strict=True):
                yield place, row.layer, np.asarray(part, dtype or part.dtype, order="C")
                del part  # before the next weight is read

    def leaves(self, dtype: Any = np.float32) -> Iterator[tuple[Place, np.ndarray]]:
        """(place, array) of every leaf of our tree, the layers stacked, one leaf (or q, k and v) after another."""
        for places, rows in _grouped(self.rows).items():
            kept = dtype or _common([self.stored[row.name].dtype for row in rows])
            arrays: list[np.ndarray] = []
            for row in rows:
                self._read_into(arrays, row, len(rows), kept)
            while arrays:
                yield places[-len(arrays)], arrays.pop(0)

    def _read_into(self, arrays: list[np.ndarray], row: Row, layers: int, dtype: Any) -> None:
        """Reads a weight into its place; a function, so that it is gone from memory before the next is read."""
        parts = row.to_ours(self.stored[row.name].read())
        if row.layer is None:
            arrays += [np.asarray(part, dtype, order="C") for part in parts]
            return
        if not arrays:
            arrays += [np.empty((layers, *part.shape), dtype) for part in parts]
        for array, part in zip(arrays, parts, strict=True):
            array[row.layer] = part

    def params(self, dtype: Any = np.float32) -> dict[str, Any]:
        """The whole tree as numpy arrays."""
        tree: dict[str, Any] = {}
        for place, array in self.leaves(dtype):
            insert(tree, place, array)
        return tree

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(row.shape)) for row in self.rows)

    def dtypes(self) -> list[str]:
        """The dtypes of its weights."""
        return sorted({str(self.stored[row.name].dtype) for row in self.rows})

    def parts(self) -> "Parts":
        """Its arrays for `their_weights`: those of one foreign weight at a time."""
        rows = {(place, row.layer): row for row in self.rows for place in row.places}
        held: dict[str, tuple[np.ndarray, ...]] = {}

        def read(place: Place, layer: int | None) -> np.ndarray:
            row = rows[place, layer]
            if row.name not in held:
                held.clear()
                held[row.name] = row.to_ours(self.stored[row.name].read())
            return held[row.name][row.places.index(place)]

        return Parts(read=read, dtype=lambda place, layer: self.stored[rows[place, layer].name].dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Our arrays one by one, each without the axis of layers: read(place, layer) and dtype(place, layer)."""

    read: Callable[[Place, int | None], np.ndarray]
    dtype: Callable[[Place, int | None], np.dtype]


def parts_of(params: Mapping[str, Any]) -> Parts:
    """The arrays of a tree; of a tree on a device one leaf at a time comes to the host."""
    held: dict[Place, np.ndarray] = {}

    def read(place: Place, layer: int | None) -> np.ndarray:
        if place not in held:
            held.clear()
            held[place] = np.asarray(lookup(params, place))
        return held[place] if layer is None else held[place][layer]

    return Parts(read=read, dtype=lambda place, layer: np.dtype(lookup(params, place).dtype))


def their_weights(rows: list[Row], parts: Parts, dtype: str | None = None) -> Iterator[tuple[str, Stored]]:
    """(name, tensor) under foreign names and in foreign layouts, in `dtype` or each in its own."""
    for row in rows:
        kept = np.dtype(DTYPES[dtype]) if dtype else _common([parts.dtype(place, row.layer) for place in row.places])
        yield row.name, Stored(row.shape, kept, lambda row=row, kept=kept: _theirs(row, parts, kept))


def _theirs(row: Row, parts: Parts, dtype: np.dtype) -> np.ndarray:
    theirs = row.to_theirs(*(parts.read(place, row.layer) for place in row.places))
    assert theirs.shape == row.shape, (row.name, theirs.shape, row.shape)
    with np.errstate(over="ignore"):
        cast = np.asarray(theirs, dtype, order="C")
    if dtype == np.float16 != theirs.dtype and np.isinf(cast).sum() > np.isinf(theirs).sum():
        raise UserError(f"{row.name} holds numbers beyond 65504, the largest of float16; write bfloat16 or float32.")
    return cast


def _grouped(rows: list[Row]) -> dict[tuple[Place, ...], list[Row]]:
    groups: dict[tuple[Place, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.places, []).append(row)
    return groups


def _common(dtypes: list[np.dtype]) -> np.dtype:
    """The one that holds all of them: float32 where 16-bit types differ."""
    return dtypes[0] if len(set(dtypes)) == 1 else np.dtype(np.float32)


# --------------------------------------------------------------------------------------------------------------- checks


def check(source: str, rows: list[Row], stored: Mapping[str, Stored], described_by: str = "config.json") -> None:
    """Raises UserError that lists the weights that are missing, unexpected, misshapen or of no float type."""
    expected = {row.name for row in rows}
    missing, unexpected = sorted(expected - set(stored)), sorted(set(stored) - expected)
    parts = [f"missing: {listed(missing)}"] if missing else []
    parts += [f"unexpected: {listed(unexpected)}"] if unexpected else []
    if parts:
        raise UserError(f"{source} does not hold the weights its {described_by} describes; {'. '.join(parts)}.")
    wrong = [
        f"{row.name} {stored[row.name].shape} {stored[row.name].dtype}, not {row.shape}"
        for row in rows
        if stored[row.name].shape != row.shape or stored[row.name].dtype not in DTYPES.values()
    ]
    if wrong:
        raise UserError(
            f"{source}: weights do not fit {described_by}: {listed(wrong)}; is {described_by} another model's?"
        )


def check_sizes(source: str, config: Any, stored: Mapping[str, Stored]) -> None:
    """Raises UserError for more layers than there are weights, or a width beyond all their numbers.

    Before the table of rows is made: its length follows a number that anybody can write into a configuration.
    """
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    for name in SIZES:
        limit, what = (len(stored), "weights") if name.endswith("layers") else (numbers, "numbers")
        value = getattr(config, name, 0)
        if value > limit:
            raise UserError(
                f"{source} describes {name}={value}, its files hold {limit} {what} in all; is its configuration "
                "another model's? Correct it, or copy both again."
            )


def without(stored: Mapping[str, Stored], pattern: str, source: str) -> dict[str, Stored]:
    """The tensors but for buffers that old files hold beside the weights; what is dropped is logged in one line."""
    dropped = dict.fromkeys(name for name in stored if re.fullmatch(pattern, name))
    if dropped:
        LOG.info("%s: dropped %d buffers that are no weights (%s).", source, len(dropped), listed([*dropped], 2))
    return {name: tensor for name, tensor in stored.items() if name not in dropped}


def equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors are the same, bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.read().tobytes() == b.read().tobytes()


def listed(names: list[str], most: int = 20) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def insert(tree: dict[str, Any], place: Place, value: Any) -> None:
    """Puts a value into nested dictionaries."""
    for part in place[:-1]:
        tree = tree.setdefault(part, {})
    tree[place[-1]] = value


def lookup(tree: Any, place: Place) -> Any:
    """The value at a place of nested dictionaries."""
    for part in place:
        tree = tree[part]
    return tree


# ------------------------------------------------------------------------------------------------------- configurations


def required(raw: Mapping[str, Any], names: tuple[str, ...], source: str) -> None:
    """Raises UserError if a configuration lacks one of the names."""
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; they are never inferred, so add them.")


def first_id(value: Any, otherwise: Any) -> Any:
    """A number of a configuration, which may be absent or (end tokens) a list."""
    value = value[0] if isinstance(value, list) and value else value
    return otherwise if value is None or isinstance(value, list) else value


def ours_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What we wrote into a decoder's configuration at export: settings of DecoderConfig that theirs has no name for."""
    found = raw.get(OURS)
    if not isinstance(found, Mapping):
        return {}
    kinds = {"prefix_lm": bool, "attend_across_documents": bool, "decoder_start_token_id": int}
    return {name: found[name] for name, kind in kinds.items() if type(found.get(name)) is kind}


def ours_for(config: Any) -> dict[str, Any]:
    """The same for writing."""
    return {name: getattr(config, name) for name in ("prefix_lm", "attend_across_documents", "decoder_start_token_id")}

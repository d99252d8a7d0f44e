"""TPU slices that are not there: their names, what a chip can do, and devices to compile for.

libtpu holds the compiler for every TPU generation and runs it on any Linux machine. A slice is written as its
generation and its shape in chips, "v5p:4x4x4".

Peaks and bandwidths are those of Google's pages on each generation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e,
"key specifications", read 2026-11).
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from codegen2_jax.errors import UserError

GB, GIB = 1e9, 2**30
# What libtpu reads: no query of a cloud's metadata server (which a laptop waits for), a host to find in its place, no
# lock (nothing is run, so several may compile at once), and its own log files nowhere.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a generation.

    Attributes:
      hbm_bytes: its memory. peak_flops: bfloat16 FLOPs a second. hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second over all its links to other chips, one way (half of what Google calls
        bidirectional).
      dimensions: of the torus that the chips of a pod form. max_chips: of one slice.
      shapes: slices that are offered, for suggestions; others whose sides are offered compile too.
      cores: TensorCores, which JAX shows as one device.
    """

    name: str
    hbm_bytes: float
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dimensions: int
    max_chips: int
    shapes: tuple[str, ...]
    cores: int = 1


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 275e12, 1228 * GB, 300 * GB, 3, 4096, _CUBES, cores=2),
        Chip("v5e", 16 * GIB, 197e12, 819 * GB, 200 * GB, 2, 256, _SQUARES),
        Chip("v5p", 95 * GIB, 459e12, 2765 * GB, 600 * GB, 3, 6144, _CUBES, cores=2),
        Chip("v6e", 32 * GIB, 918e12, 1640 * GB, 400 * GB, 2, 256, _SQUARES),
    )
}
# Other names that are in use for a generation.
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "v6": "v6e", "v5": "v5p"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a generation and its shape in chips."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def wraps(self) -> list[bool]:
        """Along which of three sides the chips form a ring: whole cubes of 4x4x4 (v4, v5p), or a pod's side of 16.

        What libtpu assumes by itself is no ring, and then a gather over 64 chips becomes a sum of zeros.
        """
        if self.chip.dimensions == 3:
            return [all(side % 4 == 0 for side in self.shape)] * 3
        return [side == 16 for side in self.shape] + [False]


def parse(text: str) -> Topology:
    """The slice that "v5p:4x4x4" names; UserError with the nearest names for anything else."""
    generation, colon, sides = text.strip().lower().partition(":")
    chip = CHIPS.get(ALIASES.get(generation, generation))
    if chip is None:
        raise UserError(f"topology {text!r}: no TPU {generation!r} is known; {_meant(text)}")
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise UserError(f"topology {text!r} has no shape in chips; {_meant(text)}")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != chip.dimensions:
        raise UserError(
            f"topology {text!r} has {len(shape)} sides, a {chip.name} pod is a torus of {chip.dimensions}; "
            f"{_meant(text)}"
        )
    count = math.prod(shape)
    on_one_host = sides in chip.shapes
    if count > chip.max_chips or not (on_one_host or (shape[0] % 2 == 0 and shape[1] % 2 == 0)):
        raise UserError(
            f"topology {text!r}: {chip.name} has slices of up to {chip.max_chips} chips whose first two sides are "
            f"even; {_meant(text)}"
        )
    return Topology(chip, shape)


def _meant(text: str) -> str:
    """The names most like a wrong one, and what there is."""
    generation, _, sides = text.strip().lower().partition(":")
    generation = ALIASES.get(generation, generation)
    near = difflib.get_close_matches(generation, CHIPS, n=1, cutoff=0.4)
    chips = [CHIPS[name] for name in ([generation] if generation in CHIPS else near)] or list(CHIPS.values())
    names = [f"{chip.name}:{shape}" for chip in chips for shape in chip.shapes]
    found = difflib.get_close_matches(f"{chips[0].name}:{sides}", names, n=3, cutoff=0.5) if sides else []
    found = found or [f"{chip.name}:{chip.shapes[min(4, len(chip.shapes) - 1)]}" for chip in chips]
    return f"did you mean {', '.join(found)}? Generations: {', '.join(CHIPS)}."


def prepare() -> None:
    """Sets what JAX and libtpu read when they start; call it before JAX is imported.

    JAX itself runs on the CPU, so that an accelerator that is there is left to others. Raises UserError without libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu, its compiler; pip install 'codegen2_jax[precompile]'.")
    assert "jax" not in sys.modules or os.environ.get("JAX_PLATFORMS") == "cpu", "JAX was imported before prepare()."
    os.environ.update(ENVIRONMENT)
    os.environ["JAX_PLATFORMS"] = "cpu"


def devices(topology: Topology, count: int | None = None) -> Sequence[Any]:
    """The devices of a slice, to lower and compile for; the first `count` of them, default all.

    A chip is one device, whatever its TensorCores: what JAX shows on the machines themselves.
    """
    from jax.experimental import topologies

    bounds = [1, 1, 1] if topology.num_chips == 1 else [2, 2, 1]
    options = {"chip_config_name": "megacore"} if topology.chip.cores == 2 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, chips_per_host_bounds=bounds, wrap=topology.wraps, **options
        ).devices
    except Exception as error:  # JaxRuntimeError, and whatever an older or newer libtpu raises
        reason = " ".join(str(error).split())
        raise UserError(f"libtpu has no topology {topology.name}: {reason[:200]} {_meant(topology.name)}") from error
    count = len(found) if count is None else count
    if not 1 <= count <= len(found):
        raise UserError(f"--devices={count} is out of range; {topology.name} has {len(found)}.")
    if not _is_box(found[:count]):
        boxes = [size for size in range(1, len(found) + 1) if _is_box(found[:size])]
        raise UserError(
            f"--devices={count}: the first {count} chips of {topology.name} are no whole box, which a mesh needs; "
            f"{max(size for size in boxes if size < count)} and {min(size for size in boxes if size > count)} are."
        )
    return found[:count]


def _is_box(chips: Sequence[Any]) -> bool:
    """Whether these chips fill a box of the torus from its corner."""
    sides = [max(places) + 1 for places in zip(*(chip.coords for chip in chips), strict=True)]
    return math.prod(sides) == len(chips)

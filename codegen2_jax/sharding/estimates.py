"""What a compiled program costs on one chip: memory, work, words between chips, and the seconds that follow.

XLA's estimate (`cost_analysis()["optimal_seconds"]`) covers arithmetic and the chip's own memory. It leaves out the
time that a collective spends between chips: a gather of 1 GiB over 64 chips of a v5p adds what reading and writing it
takes, and no more. It counts the body of a loop once and of a Pallas kernel nothing, and takes a second off for every
custom call of `UNMODELLED`, which costs nothing and has no estimate. So here

* costs are taken of programs without the loop over layers, of one and of two of them, and extrapolated:
  value(1) + (L - 1) (value(2) - value(1)), for each kind of layer;
* what is then counted once of other loops (a head in blocks, a batch in parts) scales the sum by the matrix products of
  all their runs. Not before: a loop outside the layers would scale one layer and two of them by different factors;
* the work of kernels is added at the peak rate, so that their time is a lower bound (sharding/kernels.py);
* the time of collectives is added: the bytes that a chip sends over all its links. Those that the chip waits for add to
  the step; the others may hide behind it.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from codegen2_jax.sharding import hlo
from codegen2_jax.sharding.topologies import Chip

# Their estimate is -1 s each: views (of several buffers as one, of a part of one), and the ends of what a v5p gives to
# its SparseCores. A program with six of them would be six seconds too fast.
UNMODELLED = ("ConcatBitcast", "ZeroCrop", "PrepareAsyncCallStart", "PrepareAsyncCallDone")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program on one chip: flops and bytes by XLA's count, seconds by its estimate (None: none).

    products: FLOPs of the matrix products, a loop's body counted once as XLA does. all_products: as often as it runs.
    """

    flops: float
    bytes_accessed: float
    seconds: float | None
    products: float
    all_products: float

    def plus(self, other: "Cost", times: float) -> "Cost":
        """This and `times` the other."""

        def total(name):
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else mine + times * theirs

        return Cost(**{field.name: total(field.name) for field in dataclasses.fields(self)})

    def with_loops(self) -> "Cost":
        """The whole, as if loops took of everything what they take of the matrix products."""
        scale = self.all_products / self.products if self.products else 1.0
        seconds = None if self.seconds is None else self.seconds * scale
        products = self.all_products
        return Cost(self.flops * scale, self.bytes_accessed * scale, seconds, products, products)


def cost_of(compiled: Any, program: hlo.Program) -> Cost:
    """XLA's own figures, which count the body of a loop once (`Cost.with_loops` counts all)."""
    found = compiled.cost_analysis()
    found = found[0] if isinstance(found, list) else found
    seconds = found.get("optimal_seconds", -1.0) + program.count_calls(*UNMODELLED)
    return Cost(
        flops=found.get("flops", 0.0),
        bytes_accessed=found.get("bytes accessed", 0.0),
        seconds=seconds if seconds > 0 else None,
        products=program.flops(once=True),
        all_products=program.flops(),
    )


def extrapolated(one_of_each: Cost, with_two: Mapping[str, Cost], depths: Mapping[str, int]) -> Cost:
    """The cost at full depth, loops in full. with_two: by kind of layer, the cost with two; depths: how many."""
    total = one_of_each
    for kind, depth in depths.items():
        layer = with_two[kind].plus(one_of_each, -1.0)
        total = total.plus(layer, depth - 1)
    return total.with_loops()


def memory(compiled: Any) -> dict[str, int]:
    """Bytes on one chip. alias: the part of the output that lies in the place of an argument; total counts it once."""
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "output": found.output_size_in_bytes,
        "alias": found.alias_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    total = parts["arguments"] + parts["temporaries"] + parts["output"] - parts["alias"] + parts["code"]
    return {**parts, "total": total}


def collectives(program: hlo.Program) -> list[dict[str, Any]]:
    """A row for each kind, group size and overlap: count, bytes of the whole arrays, bytes that a chip sends."""
    rows: dict[tuple, dict] = defaultdict(lambda: {"count": 0, "payload_bytes": 0.0, "sent_bytes": 0.0})
    for one in program.collectives():
        row = rows[one.kind, one.group, one.overlaps]
        row["count"] += int(one.count)
        row["payload_bytes"] += one.payload * one.count
        row["sent_bytes"] += one.sent
    keys = ("kind", "group", "overlaps")
    found = [dict(zip(keys, key, strict=True)) | row for key, row in rows.items()]
    return sorted(found, key=lambda row: -row["sent_bytes"])


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one step on one chip, every loop in full.

    model: what the model needs. products: of the program's own matrix products. kernels: of those inside its kernels,
    which are in no estimate of XLA's.
    """

    model: float
    products: float
    kernels: float

    @property
    def compiled(self) -> float:
        """All that the program multiplies."""
        return self.products + self.kernels


def seconds(cost: Cost, flops: Flops, rows: list[dict[str, Any]], chip: Chip) -> dict[str, Any]:
    """The times of a step, its bound, and the model-FLOPs utilisation that they allow.

    rows: of `collectives`. Utilisation is the share of the chip's bfloat16 peak: `utilisation` with the waiting that
    stands in the program, `utilisation_if_all_overlaps` where the slower of both alone counts.
    """
    sent = sum(row["sent_bytes"] for row in rows)
    waiting = sum(row["sent_bytes"] for row in rows if not row["overlaps"])
    floors = {
        "compute": flops.compiled / chip.peak_flops,
        "memory": cost.bytes_accessed / chip.hbm_bandwidth,
        "interconnect": sent / chip.ici_bandwidth,
    }
    # Without an estimate of XLA's, what cannot be undercut: said by `xla` being None.
    in_kernels = flops.kernels / chip.peak_flops
    estimated = floors["memory"] if cost.seconds is None else cost.seconds + in_kernels
    busy = max(estimated, floors["compute"])
    step = max(busy + waiting / chip.ici_bandwidth, floors["interconnect"])
    best = max(busy, floors["interconnect"])
    return {
        "xla": cost.seconds,
        "kernels": in_kernels,
        "floors": floors,
        "bound": max(floors, key=floors.get),
        "collectives_waited_for": waiting / chip.ici_bandwidth,
        "step": step,
        "utilisation": _share(flops.model, step, chip),
        "utilisation_if_all_overlaps": _share(flops.model, best, chip),
    }


def _share(flops: float, over: float, chip: Chip) -> float:
    return flops / (chip.peak_flops * over) if over > 0 else math.nan

"""Reads a compiled program: its collectives and its matrix products, each as often as the program runs it.

XLA's own cost analysis counts the body of a loop once. Here a loop's body counts as often as its condition allows,
which for the loops that JAX makes (`scan`, `fori_loop` over a fixed range) stands in the program as a constant.

The text of a program (`compiled.as_text()`) is a list of computations, each a list of instructions
`%name = type opcode(%operands), attribute=value, ...`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes that a chip sends, as a multiple of (n - 1) / n times the bytes of `payload`; n chips in a group. Those of the
# ring algorithms, which send least.
COLLECTIVES = {
    "all-gather": 1.0,
    "all-reduce": 2.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "ragged-all-to-all": 1.0,
    "collective-permute": 1.0,
    "collective-broadcast": 1.0,
}
WIDTHS = {"pred": 8, "token": 0, "opaque": 0, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_LOOP = re.compile(r"\b(condition|body)=%?([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


class Instruction(NamedTuple):
    """name, type and opcode as the text has them; operands: names; attributes: all behind the operands."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Collective(NamedTuple):
    """A collective instruction of a program.

    kind: a key of COLLECTIVES. count: how often it runs. group: chips that take part in one.
    payload: bytes of the whole array (gathered, reduced, before it is scattered), on one chip, each time.
    sent: bytes that one chip sends in all its runs, by the algorithm that sends least.
    overlaps: whether other work may run meanwhile; otherwise the chip waits for it.
    """

    kind: str
    count: float
    group: int
    payload: int
    sent: float
    overlaps: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """The text of a compiled program, read.

    computations: instructions by computation. entry: the name of the one that runs. devices: chips it runs on.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    devices: int

    @functools.cached_property
    def _named(self) -> dict[str, Instruction]:
        return {one.name: one for body in self.computations.values() for one in body}

    def type_of(self, name: str) -> str:
        """What an instruction gives, "bf16[2,3]{1,0}" or a tuple of such."""
        return self._named[name].type

    def runs(self, *, once: bool = False) -> Iterator[tuple[Instruction, float, bool]]:
        """Every instruction that runs, those of a fusion too: (instruction, number of times, whether in a fusion).

        In a fusion: also in what XLA starts and ends apart. once: the body of a loop counts once, as XLA counts it.
        """
        yield from self._runs(self.entry, 1.0, False, once)

    def _runs(
        self, name: str, times: float, fused: bool, once: bool = True
    ) -> Iterator[tuple[Instruction, float, bool]]:
        for one in self.computations.get(name, ()):
            yield one, times, fused
            if one.opcode == "while":
                body = dict(_LOOP.findall(one.attributes))["body"]
                yield from self._runs(body, times if once else times * (self.trips(one) or 1), fused, once)
            elif not one.opcode.endswith(("-done", "-update")) and _kind(one) is None:
                inside = fused or one.opcode in ("fusion", "async-start")
                for called in _CALLED.findall(one.attributes):
                    for computation in re.findall(r"[\w.\-]+", called):
                        yield from self._runs(computation, times, inside, once)

    def trips(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs: what XLA noted, else by its counter; None: unknown.

        The counter is the part of the loop's state that the condition compares with a constant. It starts at a constant
        and the body adds one; XLA's own loops, in which it hides collectives, count in twos.
        """
        noted = re.search(r'known_trip_count[\\":{ ]*n[\\": ]*(\d+)', loop.attributes)
        if noted:
            return int(noted[1])
        parts = dict(_LOOP.findall(loop.attributes))
        inside = [one for one, _, _ in self._runs(parts["condition"], 1.0, False)]
        limits = [int(one.operands[0]) for one in inside if _is_integer_constant(one)]
        compares = [one for one in inside if one.opcode == "compare"]
        if not len(limits) == len(compares) == 1 or "direction=LT" not in compares[0].attributes:
            return None
        elements = [one for one in inside if one.opcode == "get-tuple-element"]
        place = int(re.search(r"index=(\d+)", elements[0].attributes)[1]) if len(elements) == 1 else None
        first = self._constant(self._element(loop.operands[0], place)) or 0
        last = self._element(self.computations[parts["body"]][-1].name, place)
        steps = [self._constant(name) for name in last.operands] if last and last.opcode == "add" else []
        step = next((step for step in steps if step), 1)
        return max(0, -(-(limits[0] - first) // step))

    def _element(self, name: str, place: int | None) -> Instruction | None:
        """The instruction that makes one part of a tuple."""
        made = self._named.get(name)
        if place is None or made is None or made.opcode != "tuple":
            return None
        return self._named.get(made.operands[place])

    def _constant(self, one: "Instruction | str | None") -> int | None:
        """The value of an integer constant, through copies and names."""
        one = self._named.get(one) if isinstance(one, str) else one
        while one is not None and one.opcode in ("copy", "bitcast", "convert"):
            one = self._named.get(one.operands[0])
        return int(one.operands[0]) if one is not None and _is_integer_constant(one) else None

    @property
    def unknown_loops(self) -> list[str]:
        """Loops whose number of runs does not stand in the program; their bodies are counted once."""
        return [one.name for one, _, _ in self.runs() if one.opcode == "while" and self.trips(one) is None]

    def collectives(self) -> list[Collective]:
        """All collectives; one that XLA split counts once, into a start and an end or into a chain of fusions.

        In a chain each fusion holds the whole instruction, under one channel, and moves a part of it.
        """
        found, chained = [], set()
        for one, times, fused in self.runs():
            if _kind(one) is None:
                continue
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            if fused and channel and "chain_id=" in one.attributes:
                if channel[1] in chained:
                    continue
                chained.add(channel[1])
            found.append(self._collective(one, times, fused))
        return found

    def _collective(self, one: Instruction, times: float, fused: bool) -> Collective:
        kind, group = _kind(one), self._group(one)
        payload = num_bytes(one.type)
        if one.opcode == "all-gather-start":  # its type holds the operands too
            payload = payload * group // (group + 1)
        elif one.opcode == "collective-permute-start":  # operands, results and two words of its own
            payload = (payload - 8) // 2
        elif kind == "reduce-scatter":
            payload *= group
        share = 1.0 if kind.startswith("collective-") else (group - 1) / group
        overlaps = fused or one.opcode.endswith("-start")
        return Collective(kind, times, group, payload, COLLECTIVES[kind] * payload * share * times, overlaps)

    def _group(self, one: Instruction) -> int:
        """Chips in a group of a collective: by a list, by [groups, size]<=[...], or by axes of a mesh."""
        text = one.attributes
        axes = re.search(r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\]\s*\{([^}]*)\}", text)
        if axes:
            sizes = {name: int(size) for name, size in re.findall(r"['\"]?([\w.\-]+)['\"]?=(\d+)", axes[1])}
            parts = re.findall(r"['\"]?([A-Za-z_][\w.\-]*)['\"]?(?::\(\d+\)(\d+))?", axes[2])
            return math.prod(int(size) if size else sizes.get(name, 1) for name, size in parts) or 1
        iota = re.search(r"replica_groups=\[([\d,]+)\]<=", text)
        if iota:
            return int(iota[1].split(",")[-1])
        listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
        if listed:
            return len(listed[1].split(","))
        return self.devices

    def count_calls(self, *targets: str) -> int:
        """Custom calls of these names, the body of a loop taken once."""
        calls = [one.attributes for one, _, _ in self.runs(once=True) if one.opcode == "custom-call"]
        return sum(f'custom_call_target="{target}"' in call for call in calls for target in targets)

    def flops(self, *, once: bool = False) -> float:
        """FLOPs of all matrix products (`dot`, and `convolution`, which TPUs make of it), 2 for a multiply and add.

        once: with the body of every loop counted once.
        """
        products = ("dot", "convolution")
        return sum(times * self._product(one) for one, times, _ in self.runs(once=once) if one.opcode in products)

    def _product(self, one: Instruction) -> float:
        left, right, result = (_shape(self._named[name].type) for name in (*one.operands[:2], one.name))
        if one.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)[1]
            return 2.0 * math.prod(result) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
        text = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
        left_labels, right_labels, result_labels = text.groups()
        total = 2.0 * result[result_labels.index("b")] * result[result_labels.index("f")]
        total *= right[right_labels.index("i")]
        window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", one.attributes) or [""])[0]))
        for place, label in enumerate(sorted(set(result_labels) - {"b", "f"})):
            labelled = ((left, left_labels), (right, right_labels), (result, result_labels))
            total *= _valid_positions(*(sizes[labels.index(label)] for sizes, labels in labelled), window, place)
        return total


def _valid_positions(left: int, kernel: int, result: int, window: dict[str, str], place: int) -> int:
    """Pairs of an output and a kernel position of one window dimension that meet an element and no padding."""

    def given(name, default):
        return (window[name].split("x") if name in window else [])[place : place + 1] or [default]

    stride, left_dilation, kernel_dilation = (
        int(given(name, "1")[0]) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    low = int(given("pad", "0_0")[0].split("_")[0])
    last = (left - 1) * left_dilation
    count = 0
    for position in range(kernel):
        offset = position * kernel_dilation - low
        if left_dilation == 1:  # output o meets o * stride + offset, which must lie in 0 .. last
            first_output = max(0, -(offset // stride))
            last_output = min(result - 1, (last - offset) // stride)
            count += max(0, last_output - first_output + 1)
        else:
            places = (output * stride + offset for output in range(result))
            count += sum(0 <= at <= last and at % left_dilation == 0 for at in places)
    return count


def _is_integer_constant(one: Instruction) -> bool:
    return one.opcode == "constant" and bool(re.match(r"[su](32|64)\[\]", one.type))


def _kind(one: Instruction) -> str | None:
    kind = one.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _shape(text: str) -> tuple[int, ...]:
    found = _ARRAY.search(text)
    return tuple(int(size) for size in found[2].split(",") if size) if found else ()


def num_bytes(text: str) -> int:
    """Bytes of a type, "bf16[2,3]{1,0}" or a tuple of such."""
    total = 0
    for name, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", text)):
        bits = WIDTHS.get(name) or next((int(digits) for digits in re.findall(r"\d+", name)[:1]), 0)
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8 if name != "token" else 0
    return total


def read(text: str, *, devices: int) -> Program:
    """The text of a compiled program as a `Program`."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(found[1], found[2]))
    return Program({name: tuple(body) for name, body in computations.items()}, entry, devices)


def _instruction(name: str, rest: str) -> Instruction:
    """Parts `type opcode(operands), attributes`; a tuple's type holds spaces and brackets of its own."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ") - 1
    kind, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside = re.sub(r"/\*[^*]*\*/", "", rest[:end])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or ((inside,) if inside else ())
    return Instruction(name, kind, opcode.strip(), operands, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1

"""What to change when a step does not fit the memory of a chip, with numbers, and the table of what it takes."""

from collections.abc import Mapping
from typing import Any

from codegen2_jax.sharding.topologies import CHIPS

GIB = 2**30
SHRINKING = 0.75  # of the room for activations: a part of them, such as a layer's gathered weights, has no rows


def advice(record: Mapping[str, Any]) -> list[str]:
    """Lines, the cheapest change first, for a record of `ahead_of_time.examine` that does not fit."""
    memory, chip, mesh = record["memory"], record["memory"]["chip"], record["mesh"]
    state = sum(record["state_bytes_per_chip"].values())
    share = record["rows"] // record["batch_parts"]  # rows of a step that one chip computes
    rows = share // record["accumulation_steps"]  # of them at a time
    found = []
    fixed = state + memory["code"]
    working, room = memory["total"] - fixed, chip - fixed
    # Gradients lie among the temporaries and do not shrink with the batch.
    gradients = record["state_bytes_per_chip"]["parameters"] * record["trainable_parameters"] // record["parameters"]
    activations = working - gradients
    if record["remat"] == "none" and activations > 0:
        found.append(
            f"keep fewer activations, which take about {activations / GIB:.1f} GiB: "
            "--gin.initialisation.ModelSource.remat='\"full\"'"
        )
    if activations > 0:
        # In parts, the gradients of one lie beside the sum of those before.
        in_parts, at_once = (int(SHRINKING * rows * (room - copies * gradients) / activations) for copies in (2, 1))
        if 1 <= in_parts < rows:
            steps = next(count for count in range(1, share + 1) if share % count == 0 and share // count <= in_parts)
            found.append(f"compute it in parts of {share // steps} rows a chip: --gin.ACCUMULATION_STEPS={steps}")
        if 1 <= at_once < rows:
            smaller = at_once * record["batch_parts"] * record["accumulation_steps"]
            found.append(f"take about {at_once} rows a chip at a time instead of {rows}: --gin.BATCH_SIZE={smaller}")
    if mesh["data"] > 1:
        setting = f"--gin.MESH=\"{{'fsdp': -1, 'model': {mesh['model']}}}\""
        left = gib(state // mesh["data"])
        found.append(f"cut the state ({gib(state)} a chip) over all chips: {setting} leaves {left}")
    if rows <= 1 and activations > 0 and mesh["model"] == 1:
        found.append("one row a chip is left: cut the model too, --gin.MESH=\"{'fsdp': -1, 'model': 4}\"")
    generation = record["topology"].partition(":")[0]
    larger = [name for name in CHIPS if CHIPS[name].hbm_bytes > memory["total"]]
    need = f"{memory['total'] / GIB:.1f} GiB a chip"
    if larger:
        found.append(f"take chips with room for {need}: {', '.join(larger)}; or more chips of {generation}")
    else:
        found.append(f"take more chips: no generation has {need}")
    return found


def advice_without_program(record: Mapping[str, Any]) -> list[str]:
    """What to change where the compiler itself gave up, and only the state's size is known."""
    state = sum(record["state_bytes_per_chip"].values())
    lines = [f"the state is {gib(state)} a chip alone: more chips, or --gin.MESH=\"{{'fsdp': -1}}\", if that is much"]
    if record["remat"] == "none":
        lines.append("--gin.initialisation.ModelSource.remat='\"full\"'")
    lines.append(f"fewer rows than {record['rows']} (--gin.BATCH_SIZE), or more parts (--gin.ACCUMULATION_STEPS)")
    return lines


def table(record: Mapping[str, Any]) -> str:
    """A record to read."""
    memory, seconds, flops = record["memory"], record["seconds"], record["flops_per_chip"]
    given = record["compiler_options"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    batch = f"{record['rows']} rows, {record['tokens_per_step']:,} tokens"
    if record["accumulation_steps"] > 1:
        batch += f", in {record['accumulation_steps']} parts"
    used = memory["total"] / memory["chip"]
    state = record["state_bytes_per_chip"]
    rows = [
        ("topology", f"{record['topology']}, {record['chips']} chips, mesh {mesh}"),
        ("parameters", f"{record['parameters']:,} ({record['trainable_parameters']:,} trained)"),
        ("batch", f"{batch}; remat {record['remat']}, computed in {record['dtype']}"),
        *((("compiler", ", ".join(f"{name} = {value}" for name, value in given.items())),) if given else ()),
        ("", ""),
        ("memory per chip", f"{gib(memory['total'])} of {gib(memory['chip'])} ({used:.0%})"),
        ("  arguments", f"{gib(memory['arguments'])}, of them weights {gib(state['parameters'])}, "
         f"optimizer {gib(state['optimizer'])}"),
        ("  temporaries", gib(memory["temporaries"])),
        ("  output", f"{gib(memory['output'])}, {gib(memory['alias'])} of it in place of arguments"),
        ("", ""),
        ("FLOPs per chip", f"{flops['model']:.3e} by the model's formula"),
        ("", f"{flops['compiled']:.3e} in the program's matrix products"),
        *((("", f"{flops['kernels']:.3e} of it in kernels, which XLA does not count"),) if flops["kernels"] else ()),
        ("", f"{flops['xla_extrapolated']:.3e} by XLA's count, extrapolated"),
        ("bytes per chip", f"{record['bytes_accessed_per_chip']:.3e} of its memory, read and written"),
    ]
    for one in record["collectives"]:
        how = "overlapped" if one["overlaps"] else "waited for"
        text = f"{one['count']:>5} over {one['group']} chips, {one['payload_bytes'] / 1e9:.2f} GB, "
        rows.append((f"  {one['kind']}", f"{text}{one['sent_bytes'] / 1e9:.2f} GB sent by a chip, {how}"))
    floors = ", ".join(f"{name} {milliseconds(value)}" for name, value in seconds["floors"].items())
    xla = "none" if seconds["xla"] is None else milliseconds(seconds["xla"])
    rows += [
        ("", ""),
        ("floors", f"{floors}; bound by {seconds['bound']}"),
        ("XLA's estimate", f"{xla}: arithmetic and the chip's memory; without the time between chips"),
        *((("kernels", f"{milliseconds(seconds['kernels'])} at the chip's peak"),) if flops["kernels"] else ()),
        ("collectives", f"{milliseconds(seconds['collectives_waited_for'])} waited for, all links of a chip in use"),
        ("step", f"{milliseconds(seconds['step'])}, {record['tokens_per_second']:,.0f} tokens/s"),
        ("utilisation", f"{seconds['utilisation']:.1%} of the bfloat16 peak by model FLOPs; "
         f"{seconds['utilisation_if_all_overlaps']:.1%} if every collective overlapped"),
        ("compiled in", f"{record['compile_seconds']:.0f} s, with {gib(record['peak_host_bytes'])} here"),
    ]
    if record["unknown_loops"]:
        rows.append(("note", f"{len(record['unknown_loops'])} loops of unknown length are counted once"))
    if record["unknown_kernels"]:
        rows.append(("note", f"kernels of unknown work are not counted: {', '.join(record['unknown_kernels'])}"))
    return "\n".join(f"{name:<17}{text}".rstrip() for name, text in rows)


def gib(count: float) -> str:
    """Bytes to read."""
    return f"{count / GIB:.2f} GiB"


def milliseconds(seconds: float) -> str:
    """A time to read; whole seconds as such."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"

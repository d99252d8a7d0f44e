"""What gpu.py's rows say together: the GPU's peak, rates with their spread, ours against torch's, as a table."""

# Dense bfloat16 products, TFLOP/s, by a part of the device's name (the makers' data sheets).
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "B200": 2250}


def peak_of(results: dict, device: str) -> tuple[float, str]:
    """(TFLOP/s, where from): the maker's figure by the device's name, else the measured square product."""
    known = next((peak for name, peak in PEAKS.items() if name in device), None)
    if known:
        return known, "data sheet"
    return results.get("peak, jax", {}).get("tflops", float("nan")), "measured product"


def device_of(results: dict, side: str = "") -> str | None:
    """What the rows, or those of "jax" or "torch", ran on."""
    return next((row["device"] for name, row in results.items() if "device" in row and side in name), None)


def dates_of(results: dict) -> str:
    """The days on which the rows were measured."""
    return ", ".join(sorted({row["date"] for row in results.values() if "date" in row})) or "nothing was measured"


def report_of(results: dict, work: dict, machine: dict) -> dict:
    device = device_of(results) or "unknown"
    peak, origin = peak_of(results, device)
    facts = machine | {"device": device, "peak_tflops": peak, "peak_from": origin}
    return {"machine": facts, "settings": work, "rows": results, "table": table(results, peak)}


def rate_of(row: dict) -> tuple[str | None, float]:
    """(of what, how many per second)."""
    unit = next((unit for unit in ("tokens", "examples") if f"{unit}_per_second" in row), None)
    return unit, row.get(f"{unit}_per_second", 0.0)


def said_of(row: dict) -> str:
    """A row in a few words: its rate, or why it has none."""
    unit, rate = rate_of(row)
    if unit:
        return f"{rate:,.0f} {unit}/s"
    if "tflops" in row:
        return f"{row['tflops']:.1f} TFLOP/s"
    return next(f"{key}: {row[key]}" for key in ("failed", "skipped", "left_out") if key in row)


def spread_of(row: dict) -> str:
    """The slowest and the fastest round: of the rate, or of TFLOP/s where there is none."""
    unit, rate = rate_of(row)
    fastest, slowest = (row["seconds"] / seconds * (rate if unit else row["tflops"]) for seconds in row["spread"])
    return f"{slowest:,.0f} - {fastest:,.0f}" if unit else f"{slowest:.1f} - {fastest:.1f} TFLOP/s"


def table(results: dict, peak: float) -> str:
    """Rows as text: rates, the share of the peak, memory, and ours against torch's row of the same work."""
    names = ["work", "per second", "slowest - fastest", "TFLOP/s", "of peak", "peak GiB", "x torch", "compile s"]
    lines = ["| " + " | ".join([*names, "note"]) + " |", "|" + "---|" * (len(names) + 1)]
    for name, row in results.items():
        if "seconds" not in row:
            lines.append(f"| {name} | - | - | - | - | - | - | - | {said_of(row)} |")
            continue
        unit, rate = rate_of(row)
        other = results.get(f"{name.split(', ')[0]}, torch", {})
        ratio = other.get("seconds", 0) and row["seconds"] and other["seconds"] / row["seconds"]
        cells = [name, f"{rate:,.0f} {unit}" if unit else "-", spread_of(row)]
        cells += [f"{row['tflops']:.1f}", f"{row['tflops'] / peak:.1%}"] if "tflops" in row else ["-", "-"]
        cells += [f"{row['peak_gib']:.1f}" if "peak_gib" in row else "-"]
        cells += [f"{ratio:.2f}" if ratio and ", jax" in name else "-", f"{row['compile_seconds']:.0f}"]
        lines.append("| " + " | ".join([*cells, row.get("note", "")]) + " |")
    return "\n".join(lines)

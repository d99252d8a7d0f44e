"""What the runs of a sweep say together: means over seeds and orders with 95 % intervals, as a table and as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax import json_files
from codegen2_jax.continual.sweep import Cell
from codegen2_jax.reporting.tables import Column, Estimate, Table, estimate, to_csv

MOST_SHOWN = 4  # figures of runs that have none of those


def write(cells: Sequence[Cell], place: Path, failed: Mapping[int, str]) -> str:
    """Writes sweep.json (every figure) and sweep.csv (the table) into `place`; returns the table as text.

    failed: {number of a cell: why it has no result}.
    """
    groups = _groups(cells)
    figures = {name: _figures(records) for name, records in groups.items()}
    place.mkdir(parents=True, exist_ok=True)
    content = {
        "runs": [
            {"settings": cell.settings, "directory": str(cell.directory), "config_digest": cell.digest,
             "complete": cell.record() is not None, "error": failed.get(number)}
            for number, cell in enumerate(cells)
        ],
        "groups": [
            {"settings": dict(name), "runs": len(records), "figures": figures[name]}
            for name, records in groups.items()
        ],
    }  # fmt: skip
    json_files.write(place / "sweep.json", content)
    table = _table(groups, figures)
    (place / "sweep.csv").write_text(to_csv(table), encoding="utf-8")
    return "\n".join([*_lines(table), f"wrote {place / 'sweep.json'} and {place / 'sweep.csv'}"])


def _groups(cells: Sequence[Cell]) -> dict[tuple, list[dict]]:
    """{settings that are no repetition: records of the complete runs}, in the order of the sweep."""
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        name = tuple((macro, value) for macro, value in cell.settings.items() if macro not in cell.repetitions)
        record = cell.record()
        groups.setdefault(name, []).extend([record] if record is not None else [])
    return groups


def _figures(records: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """{split: {figure of the summary: {"mean", "half_width_95", "values"}}}; figures that every run has."""
    found: dict[str, dict[str, Any]] = {}
    if not records:
        return found
    for split, summary in records[0]["summary"].items():
        for name, value in summary.items():
            values = [record["summary"].get(split, {}).get(name) for record in records]
            if isinstance(value, list) or any(one is None for one in values):
                continue
            both = estimate(values)
            if both is not None:
                entry = {"mean": both.mean, "half_width_95": both.half_width, "values": values}
                found.setdefault(split, {})[name] = entry
    return found


def _table(groups: dict[tuple, list[dict]], figures: dict[tuple, dict]) -> Table:
    macros = [macro for macro, _ in next(iter(groups))]
    there = [(split, name) for found in figures.values() for split, names in found.items() for name in names]
    scores = [one for one in _scores(there) if one in there]
    shown = scores or list(dict.fromkeys(there))[:MOST_SHOWN]
    columns = [*(Column(macro) for macro in macros), Column("runs")]
    columns += [Column(name, split, f"{name} ({split})", digits=2 if scores else 3) for split, name in shown]
    rows = []
    for name, records in groups.items():
        row: list[Any] = [*(value for _, value in name), len(records)]
        for split, figure in shown:
            entry = figures[name].get(split, {}).get(figure)
            row.append(None if entry is None else Estimate(entry["mean"], entry["half_width_95"]))
        rows.append(row)
    return Table(columns, rows)


def _scores(there: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is asked of a stream first: (split, figure); of valid where test was not scored (EVAL_SPLITS)."""
    split = "test" if "test" in {split for split, _ in there} else "valid"
    metric = "bleu" if (split, "average_bleu") in there else "exact_match"
    averages = [(split, f"average_{name}") for name in ("bleu", "exact_match")]
    return [*averages, ("valid", f"forget_paper_{metric}")]


def _lines(table: Table) -> list[str]:
    cells = [[column.csv_name for column in table.columns]]
    cells += [
        [_text(cell, column.digits) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(table.columns))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def _text(cell: Any, digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        half = "" if cell.half_width is None else f" +- {cell.half_width:.{digits}f}"
        return f"{cell.mean:.{digits}f}{half}"
    return str(cell)

"""The report as files: one self-contained index.html, and PNG and CSV of every figure beside it.

The page opens offline: style, figures and CSV are inside it. The same runs give the same bytes.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.reporting import evaluations, finished_runs, pretraining_runs, pretraining_sections, studies
from codegen2_jax.reporting.drawing import Rendered, render
from codegen2_jax.reporting.exhibits import Exhibit, Report, Section
from codegen2_jax.reporting.sections import make_report
from codegen2_jax.reporting.style import style_sheet
from codegen2_jax.reporting.tables import Cell, Column, Estimate, Table, to_csv

PAGE = "index.html"
FIGURES = "figures"
LISTING = "files.json"  # in FIGURES: what this program wrote there
SMALLEST_SCALE = 0.72  # a figure narrower than this share of its size scrolls in its box instead of shrinking on
TALL_ROWS = 24
EMPTY = "\N{EN DASH}"


def write(directories: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the report of these run directories into `out` and returns the page's path.

    A directory of an evaluation may stand among them, alone too; one that holds both gives both.
    """
    report = report_of(directories)
    place = Path(out)
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; name a directory by --out.")
    try:
        exhibits = _exhibits(report.sections)
        drawn = {
            exhibit.name: render(exhibit.drawing, name=exhibit.name, alt=exhibit.alt)
            for exhibit in exhibits
            if exhibit.drawing is not None
        }
        files = {f"{exhibit.name}.csv": to_csv(exhibit.table).encode() for exhibit in exhibits}
        files |= {f"{name}.png": picture.png for name, picture in drawn.items()}
        _write_figures(place / FIGURES, files)
        page = place / PAGE
        page.write_text(_page(report, drawn), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}); name another directory by --out.") from error
    return page


def report_of(directories: Sequence[str | Path]) -> Report:
    """The content: of the runs, by their kind, and behind it of the studies and evaluations among the directories."""
    measured = evaluations.load([Path(directory) for directory in directories])
    studied = [Path(directory) for directory in directories if studies.is_study(Path(directory))]
    alone = {one.directory for one in measured if not (one.directory / finished_runs.SCORES_FILE).is_file()}
    trained = [directory for directory in directories if Path(directory) not in alone.union(studied)]
    groups = studies.load(studied)
    if groups and not trained:
        report = studies.make_report(groups)
    elif measured and not trained:
        return evaluations.make_report(measured)
    else:
        report = _report_of_runs(trained)
        more = studies.sections(groups) if groups else []
        report = dataclasses.replace(report, sections=[*report.sections, *more])
    return dataclasses.replace(report, sections=[*report.sections, *evaluations.sections(measured)])


def _report_of_runs(directories: Sequence[str | Path]) -> Report:
    """By the kind of the runs; UserError where there are several kinds."""
    kinds = [pretraining_runs.is_pretraining(directory) for directory in directories]
    if kinds and all(kinds):
        return pretraining_sections.make_report(pretraining_runs.load(directories))
    if any(kinds):
        one, other = directories[kinds.index(True)], directories[kinds.index(False)]
        raise UserError(f"{one} is a pretraining run and {other} is none; report them apart.")
    runs = finished_runs.load(directories)
    return make_report(finished_runs.gather(runs))


def _write_figures(folder: Path, files: dict[str, bytes]) -> None:
    """Writes the files, and removes those of an earlier report that this one does not have; others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / LISTING
    try:
        earlier = json.loads(listing.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        earlier = []
    # Both are listed until the old ones are gone, so that a report that is cut short forgets none.
    listing.write_text(json.dumps(sorted({*earlier, *files})) + "\n", encoding="utf-8")
    for name in set(earlier) - set(files):
        (folder / Path(name).name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listing.write_text(json.dumps(sorted(files)) + "\n", encoding="utf-8")


def _exhibits(sections: Sequence[Section]) -> list[Exhibit]:
    found = [part for section in sections for part in section.parts if isinstance(part, Exhibit)]
    names = [exhibit.name for exhibit in found]
    assert len(set(names)) == len(names), "two exhibits would share a file"
    return found


def _page(report: Report, drawn: dict[str, Rendered]) -> str:
    title, findings, sections = report.title, report.findings, report.sections
    links = [("findings", "In short")] * bool(findings) + [(section.name, section.title) for section in sections]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}: {escape(', '.join(report.names))}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>\n{style_sheet()}</style>",
        "</head>",
        "<body>",
        '<div class="frame">',
        "<header>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(report.lead)}</p>',
        '<dl class="facts">',
        *(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts.items()),
        "</dl>",
        "</header>",
        '<div class="columns">',
        '<nav aria-label="Contents">',
        "<h2>Contents</h2>",
        "<ol>",
        *(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links),
        "</ol>",
        "</nav>",
        "<main>",
    ]
    if findings:
        lines += ['<section id="findings">', "<h2>In short</h2>", '<ul class="findings">']
        lines += [*(f"<li>{escape(text)}</li>" for text in findings), "</ul>", "</section>"]
    for section in sections:
        lines += [f'<section id="{section.name}">', f"<h2>{escape(section.title)}</h2>"]
        lines += [*_parts(section.parts, drawn), "</section>"]
    lines += [
        "</main>",
        "</div>",
        f"<footer>Drawn from {report.source} by codegen2_jax.report. Every figure is also a PNG and a "
        f"CSV in the folder {FIGURES} beside this page.</footer>",
        "</div>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _parts(parts: Sequence, drawn: dict[str, Rendered]) -> list[str]:
    """The parts as HTML; narrow figures that follow one another stand side by side where there is room."""
    lines: list[str] = []
    open_pair = False
    for part in parts:
        narrow = isinstance(part, Exhibit) and part.name in drawn and drawn[part.name].width <= 640
        if open_pair and not narrow:
            lines.append("</div>")
        if narrow and not open_pair:
            lines.append('<div class="pair">')
        open_pair = narrow
        if isinstance(part, Exhibit):
            lines += _figure(part, drawn.get(part.name))
        elif isinstance(part, tuple):
            lines.append(f'<p><a href="{escape(part[1])}">{escape(part[0])}</a></p>')
        elif part.startswith("# "):
            lines.append(f"<h3>{escape(part[2:])}</h3>")
        else:
            lines.append(f"<p>{escape(part)}</p>")
    return lines + ["</div>"] * open_pair


def _figure(exhibit: Exhibit, drawing: Rendered | None) -> list[str]:
    label = escape(exhibit.title)
    lines = ['<figure class="card">', f'<div class="name">{label}</div>']
    table = _table(exhibit.table)
    tall = " tall" if len(exhibit.table.rows) > TALL_ROWS else ""
    box = f'<div class="scroll{tall}" tabindex="0" role="group" aria-label="{label}: numbers">'
    encoded = base64.b64encode(to_csv(exhibit.table).encode()).decode()
    link = f'<a download="{exhibit.name}.csv" href="data:text/csv;charset=utf-8;base64,{encoded}">as CSV</a>'
    if drawing is None:
        lines += [box, *table, "</div>", f"<figcaption>{escape(exhibit.caption)} This table {link}.</figcaption>"]
        return [*lines, "</figure>"]
    smallest, widest = round(drawing.width * SMALLEST_SCALE), round(drawing.width * 1.12)
    sizes = f"min-width: {smallest}px; max-width: {widest}px"
    lines += [
        f'<div class="scroll" tabindex="0" role="group" aria-label="{label}"><div style="{sizes}">',
        drawing.svg,
        "</div></div>",
        f"<figcaption>{escape(exhibit.caption)}</figcaption>",
        "<details>",
        "<summary>Numbers</summary>",
        box,
        *table,
        "</div>",
        f"<p>These numbers {link}.</p>",
        "</details>",
        "</figure>",
    ]
    return lines


def _table(table: Table) -> list[str]:
    cells = [[row[number] for row in table.rows] for number in range(len(table.columns))]
    words = [{type(cell) for cell in column} - {type(None)} == {str} for column in cells]
    head = "".join(
        f'<th scope="col"{_class(is_words)}>{_breakable(column.heading)}{_detail(column)}</th>'
        for column, is_words in zip(table.columns, words, strict=True)
    )
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    first = min(table.reference, default=None)
    for number, row in enumerate(table.rows):
        kind = ""
        if number in table.reference:
            kind = ' class="reference first"' if number == first else ' class="reference"'
        cells = [
            f'<th scope="row">{_cell(cell, column)}</th>'
            if position == 0
            else f"<td{_class(w)}>{_cell(cell, column)}</td>"
            for position, (cell, column, w) in enumerate(zip(row, table.columns, words, strict=True))
        ]
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return [*lines, "</tbody>", "</table>"]


def _class(is_words: bool) -> str:
    return ' class="words"' if is_words else ""


def _detail(column: Column) -> str:
    return f"<small>{_breakable(column.detail)}</small>" if column.detail else ""


def _breakable(name: str) -> str:
    """Names with underscores may go on in the next line of a narrow column."""
    return escape(name).replace("_", "_<wbr>")


def _cell(cell: Cell, column: Column) -> str:
    if cell is None or cell != cell:
        return EMPTY
    if isinstance(cell, Estimate):
        half = cell.half_width
        interval = "" if half is None else f' <span class="interval">&plusmn; {half:,.{column.digits}f}</span>'
        return f"{_fixed(cell.mean, column.digits)}{interval}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return _fixed(cell, column.digits) if isinstance(cell, float) else escape(str(cell))


def _fixed(value: float, digits: int) -> str:
    """Without the minus sign of a value that rounds to 0."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text

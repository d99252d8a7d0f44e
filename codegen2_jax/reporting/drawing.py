"""How a figure becomes bytes: one set of colours for light and dark, SVG for the page, PNG for papers.

A figure is drawn once, in the light colours. In its SVG each of them becomes a CSS variable, so that one drawing is
readable on a light and on a dark page; text takes the font of the page.
"""

import dataclasses
import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PNG_DPI = 160
MAX_SHADE = 0.6  # opacity of the strongest cell: text stays readable on it in both colour schemes


@dataclasses.dataclass(frozen=True)
class Colour:
    """A colour of a light page and what it is on a dark one. The light ones must differ: they are found by value."""

    light: str
    dark: str


COLOURS = {
    "text": Colour("#1c2530", "#e4e8ee"),
    "muted": Colour("#5c6877", "#a3aebb"),
    "line": Colour("#d8dee6", "#36404c"),
    "shade": Colour("#2e6fba", "#5b9ff0"),
    "series-1": Colour("#2463a6", "#7fb4f0"),
    "series-2": Colour("#c4561b", "#f29b68"),
    "series-3": Colour("#2b8653", "#70cc98"),
    "series-4": Colour("#8e4a9e", "#d09de1"),
    "series-5": Colour("#9a7000", "#e0bd55"),
    "series-6": Colour("#16808f", "#63cad8"),
    "series-7": Colour("#b83a5e", "#f28ca7"),
    "series-8": Colour("#4f5d2f", "#b9c98c"),
}
TEXT, MUTED, LINE, SHADE = (COLOURS[name].light for name in ("text", "muted", "line", "shade"))
SERIES = tuple(colour.light for name, colour in COLOURS.items() if name.startswith("series-"))
LEGEND_INCHES = (0.45, 0.072)  # of an entry: its sign and the space around it, and a letter
MOST_TICKS = 12  # labels along an axis of many cells
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
EMPTY = "\N{EN DASH}"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": TEXT,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "codegen2_jax",
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure: `draw` fills an empty matplotlib figure of width x height inches."""

    draw: Callable[[Figure], None]
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Rendered:
    """svg stands inline in a page that defines the CSS variables; png is a file on white. Width in CSS pixels."""

    svg: str
    png: bytes
    width: int


def render(drawing: Drawing, *, name: str, alt: str) -> Rendered:
    """Both forms of a figure; `name` makes the identifiers of its parts unique in a page. The same bytes each time."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(drawing.width, drawing.height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
        drawing.draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Rendered(_inline(svg.getvalue(), name, alt, drawing), png.getvalue(), round(drawing.width * 96))


def colour_of(number: int) -> str:
    """The colour of the series with this number; beyond the palette colours return with other dashes and markers."""
    return SERIES[number % len(SERIES)]


def dashes_of(number: int) -> str:
    """The line style of the series with this number."""
    return DASHES[number // len(SERIES) % len(DASHES)]


def marker_of(number: int) -> str:
    """The marker of the series with this number; it tells series apart where colours do not."""
    return MARKERS[number % len(MARKERS)]


def heat_map(
    axes: Axes,
    cells: list[list[tuple[float, str]]],
    *,
    rows: list[str],
    columns: list[str],
) -> None:
    """A grid of cells, each (shade in [0, 1], text); a shade of NaN is an empty cell, which gets no fill."""
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for i, row in enumerate(cells):
        for j, (shade, text) in enumerate(row):
            empty = shade != shade
            if not empty:
                alpha = MAX_SHADE * min(max(shade, 0.0), 1.0)
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=SHADE, alpha=alpha, linewidth=0))
            if text:
                axes.text(j, i, text, ha="center", va="center", color=MUTED if empty else TEXT)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelcolor=TEXT)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)


def shaded(axes: Axes, shade_RC: np.ndarray, *, rows: list[str], columns: list[str]) -> None:
    """A grid of many cells as one picture, without numbers in it; NaN is an empty cell, labels are thinned."""
    red_green_blue = matplotlib.colors.to_rgb(SHADE)  # an opacity shows on either page
    alpha_RC = np.nan_to_num(np.clip(shade_RC, 0.0, 1.0))
    picture_RC4 = np.concatenate([np.broadcast_to(red_green_blue, (*alpha_RC.shape, 3)), alpha_RC[..., None]], axis=-1)
    axes.imshow(picture_RC4, aspect="auto", interpolation="nearest")
    for names, place in ((rows, axes.set_yticks), (columns, axes.set_xticks)):
        every = -(-len(names) // MOST_TICKS)
        place(range(0, len(names), every), names[::every])
    axes.tick_params(length=0, labelcolor=MUTED)


def grid(axes: Axes, axis: str = "y") -> None:
    """Quiet lines to read values by."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0)


def legend_above(figure: Figure, axes: Axes, *, columns: int = 4) -> None:
    """The legend of `axes` in rows above everything, as many columns as fit; "copy" comes last, as it is no method."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        order = sorted(range(len(labels)), key=lambda number: labels[number] == "copy")
        handles, labels = [handles[number] for number in order], [labels[number] for number in order]
        widest = LEGEND_INCHES[0] + LEGEND_INCHES[1] * max(map(len, labels))
        columns = max(1, min(columns, int(figure.get_figwidth() / widest)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.4)


def css_variables(scheme: str) -> str:
    """'--text: #1c2530; ...' for "light" or "dark"."""
    return " ".join(f"--{name}: {getattr(colour, scheme)};" for name, colour in COLOURS.items())


def _inline(svg: str, name: str, alt: str, drawing: Drawing) -> str:
    """matplotlib's SVG file as an element of an HTML page."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>\s*", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    # Groups that nothing refers to lose their names; the others get one that no other figure of the page has.
    svg = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+"', "<g", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for colour_name, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{colour_name})")
    box = f'viewBox="0 0 {drawing.width * 72:g} {drawing.height * 72:g}"'
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    opening = f'<svg {box} role="img" aria-label="{label}" class="drawing">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    return re.sub(r"\n\s*", "\n", svg)

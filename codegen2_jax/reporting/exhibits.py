"""What a page is made of: sections with their words, figures and tables. No HTML here, see `html_page`."""

import dataclasses
from collections.abc import Mapping, Sequence

from codegen2_jax.reporting.drawing import Drawing
from codegen2_jax.reporting.tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A figure with its numbers, or a table that stands alone (`drawing` None). `name` is also its file's."""

    name: str
    title: str
    caption: str
    table: Table
    drawing: Drawing | None = None
    alt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """`parts`: paragraphs (str), links (text, address), headings ("#" first) and exhibits, in order."""

    name: str
    title: str
    parts: Sequence[str | tuple[str, str] | Exhibit]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page: names are those of what it compares, facts stand under its title, findings before its sections.

    source: the files that it was drawn from.
    """

    title: str
    names: Sequence[str]
    lead: str
    facts: Mapping[str, str]
    findings: Sequence[str]
    sections: Sequence[Section]
    source: str = "scores.json and metrics.jsonl"

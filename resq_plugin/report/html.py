"""One HTML file with everything in it: table, figures, settings and machine."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.extras import need
from resq_plugin.files import write_text
from resq_plugin.report.rows import Row, check_rows, row_label, table_of
from resq_plugin.report.style import COLOURS, LOOKS, Look, colours_of

__all__ = ["ReportFigure", "ReportTable", "figure_of", "is_report", "write_report"]

GENERATOR = '<meta name="generator" content="resq-plugin">'
"""A line in the head of every report, by which it is known as ours."""

_TEMPLATE = "report.html.j2"
_WIDE = ("Agreement", "GBOPs", "τ", "T")
"""Columns of results that a phone leaves out; the accuracy and what is saved stay in sight."""
_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        path: a PNG, SVG or MP4; it is copied into the HTML.
        title: also the text for those who cannot see it.
        caption: what it shows and how to read it.
        looks: the same for dark pages and for phones, where there is such a file.
    """

    path: Path
    title: str
    caption: str = ""
    looks: Mapping[Look, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportTable:
    """A table of a report.

    Attributes:
        title: headline.
        headings: of the columns; the first two are text.
        lines: cells, as text.
        caption: how to read it.
        wide: numbers of the columns that phones leave out.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str = ""
    wide: Sequence[int] = ()


def figure_of(draw: Callable[[Path, Look], Path], path: Path, title: str, caption: str = "") -> ReportFigure:
    """Draw a figure in every look.

    Args:
        draw: draws it to a path in a look.
        path: the .svg of the plain look; the others lie beside it.
        title: also the text for those who cannot see it.
        caption: what it shows and how to read it.
    """
    looks = {look: draw(path.with_name(f"{path.stem}{look.suffix}{path.suffix}"), look) for look in LOOKS}
    return ReportFigure(looks.pop(Look()), title, caption, looks)


def is_report(path: Path) -> bool:
    """Whether a file is a report of ours, which another may replace."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return GENERATOR in file.read(1000)
    except OSError:
        return False


def write_report(
    path: Path,
    title: str,
    rows: Sequence[Row],
    figures: Sequence[ReportFigure],
    details: Mapping[str, Mapping[str, object]],
    *,
    summary: str = "",
    tables: Sequence[ReportTable] = (),
) -> Path:
    """Write one self-contained HTML file: no scripts, no links, images embedded.

    Args:
        path: the file to write; folders above it are made.
        title: headline.
        rows: results, see `resq_plugin.report.rows`.
        figures: in the order they are shown.
        details: heading to names and values, e.g. ``{"Settings": {...}, "Machine": describe_machine()}``.
        summary: what was found, in a sentence or two.
        tables: further ones, below the figures.

    Returns:
        The path.

    Raises:
        MissingExtraError: jinja2 is not installed.
        ReportError: a row is incomplete, a figure cannot be read, or the file cannot be written.
    """
    check_rows(rows)
    jinja2 = need("jinja2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files("resq_plugin.report").joinpath(_TEMPLATE).read_text("utf-8"))
    # Float, at 32 × 32 bits, would leave no room for the others, so it gets no bar.
    largest = max((row["relative_bops"] for row in rows if row["scheme"] != "float"), default=1.0)
    headings, lines = table_of(rows)
    table = [
        {
            "cells": line,
            "scheme": row["scheme"],
            "extra": row_label(row).partition(", ")[2],
            "first": index == 0 or rows[index - 1]["scheme"] != row["scheme"],
            "bar": 0.0 if row["scheme"] == "float" else 100 * row["relative_bops"] / largest,
        }
        for index, (row, line) in enumerate(zip(rows, lines, strict=True))
    ]
    html = template.render(
        title=title,
        summary=summary,
        headings=headings,
        table=table,
        wide=[name for name in _WIDE if name in headings and rows[0]["metric"] != name.lower()],
        figures=[_figure(item) for item in figures],
        tables=tables,
        details=details,
        generator=GENERATOR,
        colours=COLOURS,
        dark_colours=colours_of(Look(dark=True)),
    )
    write_text(path, html, ReportError)
    return path


def _figure(item: ReportFigure) -> dict[str, Any]:
    data = _embed(item.path)
    values: dict[str, Any] = {"title": item.title, "caption": item.caption, "film": "", "data": data, "sources": []}
    if item.path.suffix == ".mp4":
        return {**values, "film": data}
    for look, path in item.looks.items():
        conditions = ["(max-width: 600px)"] * look.narrow + ["(prefers-color-scheme: dark)"] * look.dark
        values["sources"].append({"media": " and ".join(conditions), "data": _embed(path)})
    return values


def _embed(path: Path) -> str:
    kind = _TYPES.get(path.suffix)
    if kind is None:
        msg = f"the figure {path} is of no kind that a page shows; pass {', '.join(_TYPES)}."
        raise ReportError(msg)
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except OSError as error:
        msg = f"cannot read the figure {path}: {error.strerror or error}; pass files that exist."
        raise ReportError(msg) from error

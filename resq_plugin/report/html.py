"""One HTML file with everything in it: table, figures, settings and machine."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from resq_plugin.errors import ReportError
from resq_plugin.extras import need
from resq_plugin.report.rows import Row, check_rows, table_of
from resq_plugin.report.style import COLOURS

__all__ = ["ReportFigure", "write_report"]

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        path: a PNG; it is copied into the HTML.
        title: also the text for those who cannot see it.
        caption: what it shows and how to read it.
    """

    path: Path
    title: str
    caption: str = ""


def write_report(
    path: Path,
    title: str,
    rows: Sequence[Row],
    figures: Sequence[ReportFigure],
    details: Mapping[str, Mapping[str, object]],
    *,
    summary: str = "",
) -> Path:
    """Write one self-contained HTML file: no scripts, no links, images embedded.

    Args:
        path: the file to write; folders above it are made.
        title: headline.
        rows: results, see `resq_plugin.report.rows`.
        figures: in the order they are shown.
        details: heading to names and values, e.g. ``{"Settings": {...}, "Machine": describe_machine()}``.
        summary: what was found, in a sentence or two.

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
        figures=[{"title": item.title, "caption": item.caption, "data": _embed(item.path)} for item in figures],
        details=details,
        colours=COLOURS,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; name a file in a folder you may write to."
        raise ReportError(msg) from error
    return path


def _embed(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        msg = f"cannot read the figure {path}: {error.strerror or error}; pass PNG files that exist."
        raise ReportError(msg) from error

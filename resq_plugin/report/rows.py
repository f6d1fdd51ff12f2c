"""Rows of results: what every figure, table and report is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from resq_plugin.errors import ReportError, nearest
from resq_plugin.report.style import NAMES, SCHEMES

__all__ = ["KEYS", "Row", "check_rows", "rich_table", "row_label", "table_of"]

Row = Mapping[str, Any]
"""One result with `KEYS`, and optionally ``threshold``, ``reference``, ``weights``, ``trained``, ``by_distance``."""

KEYS = ("scheme", "precision", "interval", "accuracy", "metric", "agreement", "gbops_per_frame", "relative_bops")


def check_rows(rows: Sequence[Row]) -> None:
    """Raise unless every row has the keys and a known scheme.

    Raises:
        ReportError: there is no row, or one lacks a key or has an unknown scheme.
    """
    if not rows:
        msg = f"there are no rows to report; pass dicts with {', '.join(KEYS)}."
        raise ReportError(msg)
    for index, row in enumerate(rows):
        missing = [key for key in KEYS if key not in row]
        if missing:
            msg = f"row {index} has no {', '.join(missing)}; every row needs {', '.join(KEYS)}."
            raise ReportError(msg)
        if row["scheme"] not in SCHEMES:
            hint = nearest(str(row["scheme"]), SCHEMES)
            msg = f"row {index} has scheme={row['scheme']!r}; write one of {', '.join(map(repr, SCHEMES))}.{hint}"
            raise ReportError(msg)


def row_label(row: Row, *, interval: bool = True, threshold: bool = True) -> str:
    """Return a name of a row for a legend, with T and τ unless they are left out.

    >>> row_label({"scheme": "dynamic", "precision": "W8A8->W4A{0,4,8}", "interval": 3, "threshold": 0.1})
    'Dynamic-ResQ W8A8→W4A{0,4,8}, τ=0.1, T=3'
    >>> row_label({"scheme": "float", "precision": "float", "interval": 1})
    'Float'
    """
    if row["scheme"] == "float":
        return NAMES["float"]
    parts = [f"{_scheme(row)} {_precision(row)}"]
    if threshold and row.get("threshold") is not None:
        parts.append(f"τ={row['threshold']:g}")
    if interval and row["interval"] > 1:
        parts.append(f"T={row['interval']}")
    return ", ".join(parts)


def _precision(row: Row) -> str:
    return str(row["precision"]).replace("->", "→")


def _scheme(row: Row) -> str:
    return NAMES[row["scheme"]] + (" + QAT" if row.get("trained") else "")


def table_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the headings of a table and the cells of every row, as text; shares in percent.

    Where no row has a threshold there is no τ; agreement is left out where nobody measured it or it is the metric;
    weights and references are told where they differ.

    >>> row = dict(scheme="resq", precision="W8A8->W4A4", interval=3, accuracy=91.26, metric="mIoU", agreement=98.4,
    ...     gbops_per_frame=4.8, relative_bops=0.5)
    >>> headings, table = table_of([row])
    >>> headings
    ('Scheme', 'Precision', 'T', 'mIoU', 'Agreement', 'GBOPs', 'Saved %')
    >>> table
    [('ResQ', 'W8A8→W4A4', '3', '91.3', '98.4', '4.80', '50.0')]
    """
    metrics = sorted({str(row["metric"]) for row in rows})
    columns: dict[str, Callable[[Row], str]] = {
        "Scheme": lambda row: _scheme(row).replace(" quantization", ""),
        "Precision": _precision,
        "Weights": lambda row: str(row.get("weights") or ""),
        "Reference": lambda row: str(row.get("reference") or ""),
        "τ": lambda row: "" if row.get("threshold") is None else f"{row['threshold']:g}",
        "T": lambda row: str(row["interval"]),
        "/".join(metrics): lambda row: _number(row["accuracy"]),
        "Agreement": lambda row: "" if row["agreement"] is None else _number(row["agreement"]),
        "GBOPs": lambda row: _number(row["gbops_per_frame"], 2 if row["gbops_per_frame"] < 100 else 0),
        "Saved %": lambda row: "–" if row["scheme"] == "float" else _number(100 - 100 * row["relative_bops"]),
    }
    columns.pop("agreement", None)
    if all(row["agreement"] is None for row in rows):
        del columns["Agreement"]
    for heading in ("Weights", "Reference"):
        if len({row.get(heading.lower()) for row in rows} - {None, ""}) < 2:
            del columns[heading]
    if all(row.get("threshold") is None for row in rows):
        del columns["τ"]
    return tuple(columns), [tuple(cell(row) for cell in columns.values()) for row in rows]


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def rich_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Return the rows as a table for the terminal, one section per scheme.

    Raises:
        ReportError: a row is incomplete.
    """
    check_rows(rows)
    caption = "GBOPs per frame; bit operations saved against W8A8\nframe by frame; agreement with the float model in %"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    headings, lines = table_of(rows)
    for index, heading in enumerate(headings):
        is_name = index < 2 or heading in ("Weights", "Reference")  # names fold where there is no room; numbers never
        justify: Any = "left" if is_name else "right"
        table.add_column(heading, justify=justify, no_wrap=not is_name, overflow="fold")
    for index, (row, line) in enumerate(zip(rows, lines, strict=True), start=1):
        is_last = index == len(rows) or rows[index]["scheme"] != row["scheme"]
        table.add_row(*line, end_section=is_last)
    return table

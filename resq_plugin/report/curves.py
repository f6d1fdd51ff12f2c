"""Rows of results as curves: which belong together, what they are called, how they look."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from resq_plugin.report.rows import Row, row_label
from resq_plugin.report.style import SCHEMES, Look, colours_of

__all__ = ["curve_label", "float_look", "group_curves", "looks_of", "varies"]

LIGHT = Look()


def float_look(look: Look = LIGHT) -> dict[str, Any]:
    """Options of the line of the float model."""
    return {"color": colours_of(look)["float"], "linestyle": (0, (6, 3)), "linewidth": 1.2}


_MARKERS = ("o", "s", "D", "^", "v", "h", "<", ">")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))


def group_curves(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows into curves of rising cost, ordered by scheme; float is none.

    Rows of one scheme, precision, training, reference, weights and threshold that differ in T make a curve; what is
    left over makes one over thresholds.
    """
    rows = [row for row in rows if row["scheme"] != "float"]
    by_threshold = _group(rows, ("scheme", "precision", "trained", "reference", "weights", "threshold"))
    curves = [group for group in by_threshold if len(group) > 1]
    single = [group[0] for group in by_threshold if len(group) == 1]
    curves += _group(single, ("scheme", "precision", "trained", "reference", "weights", "interval"))
    # In the order of the rows: the first of a scheme gets its plainest marker.
    order = {id(row): index for index, row in enumerate(rows)}
    curves.sort(key=lambda curve: (SCHEMES.index(curve[0]["scheme"]), order[id(curve[0])]))
    return [sorted(curve, key=lambda row: float(row["gbops_per_frame"])) for curve in curves]


def _group(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return list(groups.values())


def varies(curve: Sequence[Row], key: str) -> bool:
    """Whether the rows of a curve differ in a key."""
    return len({row.get(key) for row in curve}) > 1


def curve_label(curve: Sequence[Row]) -> str:
    """Name of a curve in a legend: all that its rows have in common."""
    over_thresholds = varies(curve, "threshold")
    label = row_label(curve[0], interval=not varies(curve, "interval"), threshold=not over_thresholds)
    if over_thresholds:
        values = [row["threshold"] for row in curve]
        label += f", τ={min(values):g}…{max(values):g}"
    return label


def looks_of(curves: Iterable[tuple[str, int]], look: Look = LIGHT) -> list[dict[str, Any]]:
    """Return the options of matplotlib's ``plot`` for curves, each given by its scheme and its number of points.

    The colour is the scheme's; marker and dashes tell curves of one scheme apart.
    """
    markers = {scheme: itertools.cycle(_MARKERS) for scheme in SCHEMES}
    dashes = {scheme: itertools.cycle(_DASHES) for scheme in SCHEMES}
    looks: list[dict[str, Any]] = []
    for scheme, points in curves:
        if scheme == "float":
            looks.append(float_look(look))
            continue
        line = next(dashes[scheme]) if points > 1 else "none"
        options = {
            "color": colours_of(look)[scheme],
            "clip_on": False,
            "marker": next(markers[scheme]),
            "linestyle": line,
        }
        if scheme == "frame":  # large and hollow, so that points on top of each other are all seen
            options |= {"markerfacecolor": "none", "markersize": 8, "markeredgewidth": 1.5}
        else:
            options |= {"markeredgecolor": "#1a1d24" if look.dark else "white", "markeredgewidth": 0.8}
        looks.append(options)
    return looks

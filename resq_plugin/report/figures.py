"""The paper's figures 7 and 9 (curves), made of rows of results. The ones with images are in `images`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.report.curves import LIGHT, curve_label, float_look, group_curves, looks_of, varies
from resq_plugin.report.rows import Row, check_rows
from resq_plugin.report.style import SCHEMES, Look, colours_of, figure

__all__ = ["Series", "accuracy_by_distance", "accuracy_over_bops"]

_WIDE = 8
"""Largest over smallest cost from which the cost axis is logarithmic."""

_NEAR = 3.0
"""Points of agreement below the best row that the panel of agreement shows."""

_LEGEND_ROW = 0.2
"""Height in inches."""


@dataclass(frozen=True)
class Series:
    """One curve of `accuracy_by_distance`.

    Attributes:
        label: its name in the legend.
        scheme: ``float``, ``frame``, ``resq`` or ``dynamic``, which sets the colour.
        values: accuracy in percent at distance 0, 1, 2, ... frames from the keyframe.
    """

    label: str
    scheme: str
    values: Sequence[float]


def accuracy_over_bops(
    rows: Sequence[Row], path: Path, *, title: str = "Accuracy over bit operations", look: Look = LIGHT
) -> Path:
    """Draw accuracy over cost (Fig. 7): one curve per scheme and precision, points along it are intervals T.

    Rows of one scheme and precision that also agree in ``threshold``, ``reference`` and ``weights`` make one curve;
    thresholds with a single row make one together. Float is a dashed line at its accuracy, as its cost would squeeze
    all others together. A second panel shows the agreement with float of the best rows, which tells apart what
    accuracy on few frames cannot.

    Args:
        rows: results, see `resq_plugin.report.rows`.
        path: the .png or .svg to write.
        title: of the figure.
        look: of the page it is for.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: a row is incomplete, there is none besides float, or the file cannot be written.
    """
    check_rows(rows)
    curves = group_curves(rows)
    if not curves:
        msg = "there are only float rows; accuracy over bit operations needs at least one of frame, resq, dynamic."
        raise ReportError(msg)
    both = rows[0]["metric"] != "agreement" and _worth_a_panel(curves)
    panels, columns = 2 if both else 1, 1 if look.narrow else 3
    legend = _LEGEND_ROW * -(-(len(curves) + 1) // columns)
    width, height = (4.1, 3.1 * panels) if look.narrow else (10.0 if both else 7.6, 4.0)
    with figure(path, width, height + legend, look) as drawing:
        axes = (
            drawing.subplots(panels, 1, squeeze=False)[:, 0]
            if look.narrow
            else drawing.subplots(1, panels, squeeze=False)[0]
        )
        _draw(axes[0], rows, curves, "accuracy", look)
        axes[0].set_title(title)
        axes[0].margins(x=0.06, y=0.08)
        axes[0].set_ylabel(f"{rows[0]['metric']} [%]")
        if both:
            _draw(axes[1], rows, curves, "agreement", look)
            axes[1].set_title("Agreement with float, the best rows")
            axes[1].set_ylabel("agreement [%]")
            _show_best(axes[1], curves)
        handles, labels = axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.6, columnspacing=1.6)
    return path


def _worth_a_panel(curves: Sequence[Sequence[Row]]) -> bool:
    """Whether the panel of the best rows would have more than one point."""
    rows = list(itertools.chain.from_iterable(curves))
    best = max(float(row["agreement"]) for row in rows)
    return sum(float(row["agreement"]) >= best - _NEAR for row in rows) > 1


def accuracy_by_distance(
    series: Sequence[Series],
    path: Path,
    *,
    metric: str = "mIoU",
    title: str = "",
    look: Look = LIGHT,
    x: str = "Distance from the keyframe [frames]",
) -> Path:
    """Draw accuracy over the distance from the last keyframe (Fig. 9).

    Args:
        series: the curves.
        path: the PNG to write.
        metric: what the values are.
        title: of the figure.
        look: of the page it is for.
        x: what values are over.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: there is no curve, one has no value or an unknown scheme, or the file cannot be written.
    """
    if not series or not all(curve.values and curve.scheme in SCHEMES for curve in series):
        found = [(curve.label, curve.scheme, len(curve.values)) for curve in series]
        msg = f"curves (label, scheme, values) are {found}; give at least one, each with values and one of {SCHEMES}."
        raise ReportError(msg)
    columns = 1 if look.narrow else 2
    size = 4.1 if look.narrow else 7.6, 3.4 + _LEGEND_ROW * -(-len(series) // columns)
    with figure(path, *size, look) as drawing:
        axes = drawing.add_subplot()
        looks = looks_of(((curve.scheme, len(curve.values)) for curve in series), look)
        for curve, options in zip(series, looks, strict=True):
            axes.plot(range(len(curve.values)), curve.values, label=curve.label, **options)
        longest = max(len(curve.values) for curve in series)
        axes.set_xticks(range(0, longest, -(-longest // 12)))
        axes.margins(x=0.03, y=0.1)
        axes.set_xlabel(x)
        axes.set_ylabel(f"{metric} [%]")
        axes.set_title(title or "Accuracy by distance from the keyframe")
        drawing.legend(loc="outside lower center", ncols=columns, handlelength=2.6)
    return path


def _draw(axes: Any, rows: Sequence[Row], curves: Sequence[Sequence[Row]], key: str, look: Look) -> None:
    """Draw one key of the rows over their cost."""
    for index, row in enumerate(row for row in rows if row["scheme"] == "float"):
        axes.axhline(row[key], label="Float" if index == 0 else None, **float_look(look))
    looks = looks_of(((str(curve[0]["scheme"]), len(curve)) for curve in curves), look)
    for curve, options in zip(curves, looks, strict=True):
        costs = [row["gbops_per_frame"] for row in curve]
        clipped = {**options, "clip_on": key == "agreement"}  # the panel of agreement shows the best rows only
        axes.plot(costs, [row[key] for row in curve], label=curve_label(curve), **clipped)
        if varies(curve, "interval"):
            _name_intervals(axes, curve, key, look)
    costs = [row["gbops_per_frame"] for curve in curves for row in curve]
    if max(costs) > _WIDE * min(costs):
        _logarithmic(axes, costs)
    axes.set_xlabel("GBOPs per frame (fewer is better)")


def _show_best(axes: Any, curves: Sequence[Sequence[Row]]) -> None:
    """Limit a panel of agreement to the best rows and their costs, with a margin."""
    rows = list(itertools.chain.from_iterable(curves))
    best = max(float(row["agreement"]) for row in rows)
    shown = [row for row in rows if row["agreement"] >= best - _NEAR]
    low = min(float(row["agreement"]) for row in shown)
    axes.set_ylim(low - 0.1 * (100 - low) - 0.05, 100 + 0.05 * (100 - low) + 0.02)
    costs = [float(row["gbops_per_frame"]) for row in shown]
    if axes.get_xscale() == "log":
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
    else:
        margin = 0.07 * (max(costs) - min(costs)) or 0.1 * max(costs)
        axes.set_xlim(min(costs) - margin, max(costs) + margin)


def _name_intervals(axes: Any, curve: Sequence[Row], key: str, look: Look) -> None:
    """Write T at the points of a curve; above for Dynamic-ResQ, which tends to lie above the others."""
    offset, side = ((0, 6), "bottom") if curve[0]["scheme"] == "dynamic" else ((4, -6), "top")
    for index, row in enumerate(curve):
        axes.annotate(
            str(row["interval"]) if 0 < index < len(curve) - 1 else f"T={row['interval']}",
            (row["gbops_per_frame"], row[key]),
            offset,
            textcoords="offset points",
            ha="center",
            va=side,
            fontsize=7.5,
            color=colours_of(look)[str(row["scheme"])],
            annotation_clip=True,
        )


def _logarithmic(axes: Any, costs: Sequence[float]) -> None:
    """Logarithmic cost axis with plain numbers at 1, 2, 5 of every decade."""
    axes.set_xscale("log")
    steps = [factor * 10.0**power for power in range(-6, 9) for factor in (1, 2, 5)]
    shown = [step for step in steps if min(costs) / 1.5 <= step <= max(costs) * 1.5]
    axes.set_xticks(shown, [f"{step:g}" for step in shown])
    axes.minorticks_off()

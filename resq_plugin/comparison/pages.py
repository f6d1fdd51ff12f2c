"""The figures and tables of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from resq_plugin.comparison.showcase import Showcase
from resq_plugin.cost import Cost
from resq_plugin.report import (
    Look,
    ReportFigure,
    ReportTable,
    Row,
    Series,
    accuracy_by_distance,
    accuracy_over_bops,
    error_maps,
    figure_of,
    layer_chart,
    row_label,
    worst_layers,
    write_film,
    write_strip,
)

__all__ = ["draw_report"]


def draw_report(
    rows: Sequence[Row], showcase: Showcase | None, folder: Path
) -> tuple[list[ReportFigure], list[ReportTable]]:
    """Draw every figure there is data for.

    Args:
        rows: of the comparison.
        showcase: pictures, if there are any.
        folder: where the files go.
    """
    figures, tables = [], []
    if showcase is not None:
        film = write_film(folder / "compare.mp4", showcase.columns)
        text = "The cheapest good setting of each scheme, on the frames after those that calibrated."
        figures.append(ReportFigure(film, "Side by side", text))
    figures.append(
        figure_of(
            lambda path, look: accuracy_over_bops(rows, path, look=look),
            folder / "accuracy_over_bops.svg",
            "Accuracy over bit operations",
            "Up and to the left is better; T is the interval, τ the threshold.",
        )
    )
    figures += _distances(rows, folder)
    if showcase is not None:
        figures += _shown(showcase, folder)
        if showcase.errors:
            picture = showcase.columns["Video"][showcase.errors_at]
            figures.append(
                figure_of(
                    lambda path, look: error_maps(picture, showcase.errors, path, look=look),
                    folder / "error_maps.png",
                    "Where outputs differ from float",
                    f"Error of the output on frame {showcase.errors_at}, a residual frame of ResQ, beside the frame "
                    "quantization that costs about as much (Fig. 1 of the paper): one scale for all, and dark is "
                    "equal. BOPs are of those of W8A8.",
                )
            )
        if showcase.layers:
            figures.append(
                figure_of(
                    lambda path, look: layer_chart(showcase.layers, path, look=look),
                    folder / "layers.svg",
                    "Residuals against frames, layer by layer",
                    "Why it works (Fig. 2 of the paper): residuals have a smaller variance, and at the same bits a "
                    "smaller error.",
                )
            )
            tables.append(worst_layers(showcase.layers))
        if showcase.cost is not None:
            tables.append(_modules(showcase.cost))
    return figures, tables


def _curves(series: Sequence[Series], path: Path, title: str, caption: str, x: str) -> ReportFigure:
    def draw(target: Path, look: Look) -> Path:
        return accuracy_by_distance(series, target, metric="agreement", title=title, look=look, x=x)

    return figure_of(draw, path, title, caption)


def _distances(rows: Sequence[Row], folder: Path) -> list[ReportFigure]:
    longest = max(row["interval"] for row in rows)
    series = [
        Series(row_label(row), row["scheme"], [math.nan if v is None else v for v in row["agreement_by_distance"]])
        for row in rows
        if row["interval"] == longest > 1
    ]
    if not series:
        return []
    caption = "How far a keyframe carries: share of the output that is as the float model's."
    name = folder / "agreement_by_distance.svg"
    return [_curves(series, name, "Agreement by distance", caption, "Distance from the keyframe [frames]")]


def _shown(showcase: Showcase, folder: Path) -> list[ReportFigure]:
    figures = []
    if showcase.over_time:
        schemes = {"Frame": "frame", "ResQ": "resq", "Dynamic-ResQ": "dynamic"}
        series = [Series(name, schemes[name.split()[0]], values) for name, values in showcase.over_time.items()]
        caption = "Agreement with float of every frame of the film; ResQ starts anew at each keyframe."
        figures.append(_curves(series, folder / "agreement_over_time.svg", "Agreement over time", caption, "Frame"))
    count = len(next(iter(showcase.columns.values())))
    frames = sorted({0, 1, min(showcase.interval - 1, count - 1), count - 1})
    strip = write_strip(folder / "strip.png", showcase.columns, frames)
    caption = (
        "A keyframe, the frame after it, and later ones; bits are those of the activations, averaged over layers."
    )
    figures.append(ReportFigure(strip, "Frame by frame", caption))
    return figures


def _modules(cost: Cost) -> ReportTable:
    parts = sorted(cost.by_module(2), key=lambda part: -part.bops_per_frame)
    lines = [
        (
            part.name,
            part.precision,
            f"{part.bops_per_frame / 1e9:.2f}",
            f"{100 * part.bops_per_frame / (cost.bops_per_frame or 1):.1f}",
            f"{part.state_bytes / 1e6:.2f}",
        )
        for part in parts[:12]
    ]
    headings = ("Module", "Precision", "GBOPs per frame", "Share %", "State MB")
    return ReportTable("Bit operations by module", headings, lines, "Of the row of ResQ that is shown.", (1, 4))

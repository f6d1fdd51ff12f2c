"""Residuals against frames, layer by layer (Fig. 2), as a figure and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.evaluation import LayerError
from resq_plugin.report.curves import LIGHT
from resq_plugin.report.html import ReportTable
from resq_plugin.report.style import Look, colours_of, figure

__all__ = ["layer_chart", "worst_layers"]

SHOWN = 8


def layer_chart(layers: Sequence[LayerError], path: Path, *, look: Look = LIGHT) -> Path:
    """Draw variance and quantization error of frames and residuals over the layers, in the order they run (Fig. 2).

    Args:
        layers: in order.
        path: the .png or .svg to write.
        look: of the page it is for.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: there is no layer, or the file cannot be written.
    """
    if not layers:
        msg = "there is no layer with a residual path to draw."
        raise ReportError(msg)
    colours = colours_of(look)
    places = range(1, len(layers) + 1)
    with figure(path, 4.1 if look.narrow else 7.6, 4.6, look) as drawing:
        upper, lower = drawing.subplots(2, 1, sharex=True)
        for axes, kind, title in (
            (upper, "variance", "Variance of the input"),
            (lower, "error", "Error, ‖z − ẑ‖ / ‖z‖"),
        ):
            for name, scheme in (("frame", "frame"), ("residual", "resq")):
                values = [max(float(getattr(layer, f"{name}_{kind}")), 1e-12) for layer in layers]
                options: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.0, "color": colours[scheme]}
                axes.plot(places, values, label=f"{name}s", **options)
            axes.set_yscale("log")
            axes.set_title(title)
        lower.set_xlabel("Layer, in the order they run")
        upper.legend(loc="best")
    return path


def worst_layers(layers: Sequence[LayerError]) -> ReportTable:
    """The layers whose residual path errs most, and why."""
    worst = sorted(layers, key=lambda layer: -layer.residual_error)[:SHOWN]
    lines = [
        (
            layer.name,
            f"quantized {layer.cause}",
            f"{100 * layer.residual_error:.1f}",
            f"{100 * layer.frame_error:.1f}",
            f"{layer.residual_variance / max(layer.frame_variance, 1e-30):.3f}",
        )
        for layer in worst
    ]
    headings = ("Layer", "Mostly", "Error %", "As frames %", "Variance ratio")
    caption = (
        "Each layer on float inputs, so that it answers for itself: error of its residual path, error with whole "
        "frames at the same bits, and variance of residuals over that of frames. exclude=(...) keeps a layer in "
        "float, overrides={...} gives it more bits."
    )
    return ReportTable("Layers that err most", headings, lines, caption, (3, 4))

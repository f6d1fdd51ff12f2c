"""The front and a plan as figures; they need ``pip install 'resq-plugin[report]'``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resq_plugin.planning.plan import LayerPlan, Point
from resq_plugin.planning.target import Choice
from resq_plugin.report import Look, colours_of, figure

__all__ = ["draw_front", "draw_layers"]

BITS = ("#d9dde4", "#b8d4ea", "#7fb2d9", "#3f86bd", "#1b4f8a", "#0d2c54")
"""Light for few bits."""
ROW = 0.17
"""Height of a layer in inches."""
NAME = 24
"""Longest name of a layer on a phone."""


def draw_front(
    front: Sequence[Point],
    chosen: Point | None,
    metric: str,
    float_accuracy: float,
    path: Path,
    *,
    look: Look | None = None,
) -> Path:
    """Draw accuracy on the held-out frames and predicted divergence over bit operations.

    Args:
        front: of a search.
        chosen: the plan that was asked for, if any.
        metric: name of the accuracy.
        float_accuracy: of the float model.
        path: the .png or .svg to write.
        look: of the page it is for.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: the file cannot be written.
    """
    look = look or Look()
    colours = colours_of(look)
    known = sorted((p.verified.relative, p.verified.accuracy) for p in front if p.verified is not None)
    with figure(path, *((4.1, 6.2) if look.narrow else (8.4, 3.6)), look) as drawing:
        left, right = drawing.subplots(*((2, 1) if look.narrow else (1, 2)))
        left.axhline(float_accuracy, color=colours["float"], linestyle=(0, (6, 3)), linewidth=1.2, label="float")
        left.plot(
            *zip(*[(100 * x, y) for x, y in known], strict=True), "o", color=colours["dynamic"], label="measured"
        )
        if chosen is not None and chosen.verified is not None:
            place = 100 * chosen.verified.relative, chosen.verified.accuracy
            left.plot(*place, "o", markersize=12, markerfacecolor="none", color=colours["frame"], label="the plan")
        left.set(title="On held-out frames", xlabel="bit operations, % of W8A8", ylabel=f"{metric}, %", xscale="log")
        left.legend()
        right.plot(
            [100 * point.relative for point in front],
            [point.error for point in front],
            color=colours["dynamic"],
            label="predicted",
        )
        found = [point.verified for point in front if point.verified is not None]
        measured = [(100 * each.relative, each.divergence) for each in found if each.divergence is not None]
        if measured:
            right.plot(*zip(*measured, strict=True), "o", color=colours["dynamic"], label="measured")
        right.set(title="Divergence from float", xlabel="bit operations, % of W8A8", xscale="log", yscale="log")
        right.legend()
    return path


def draw_layers(layers: Sequence[LayerPlan], path: Path, *, look: Look | None = None) -> Path:
    """Draw bits per layer, and its part of the bit operations and of the error.

    Args:
        layers: of a plan, in the order of their calls.
        path: the .png or .svg to write.
        look: of the page it is for; a phone's leaves out the parts and shortens names from the left.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: the file cannot be written.
    """
    look = look or Look()
    names = [_short(layer.name) if look.narrow else layer.name for layer in layers]
    with figure(path, 4.1 if look.narrow else 9.6, 1.2 + ROW * len(layers), look) as drawing:
        panels = [drawing.subplots()] if look.narrow else drawing.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        bits = panels[0]
        cells = [_cells(layer.choice) for layer in layers]
        widths = sorted({value for row in cells for value in row[:3]})
        colour = {
            width: BITS[index * (len(BITS) - 1) // max(len(widths) - 1, 1)] for index, width in enumerate(widths)
        }
        for y, (keyframe, weight, activation, text) in enumerate(cells):
            for x, value in enumerate((keyframe, weight, activation)):
                bits.barh(y, 0.94, left=x, height=0.86, color=colour[value])
            for x, shown in enumerate((str(keyframe), str(weight), text)):
                dark = widths.index((keyframe, weight, activation)[x]) > len(widths) / 2
                bits.text(x + 0.47, y, shown, ha="center", va="center", fontsize=6, color="white" if dark else "black")
        titles = ("keyframe", "residual weights", "residual activations")
        bits.set_xticks([0.47, 1.47, 2.47], [text.replace(" ", "\n") if look.narrow else text for text in titles])
        bits.set_yticks(range(len(names)), names, fontsize=6)
        bits.invert_yaxis()
        bits.grid(visible=False)
        bits.set(title="Bits", xlim=(0, 3))
        for parts in panels[1:]:
            _draw_parts(parts, layers, look)
    return path


def _draw_parts(parts: Any, layers: Sequence[LayerPlan], look: Look) -> None:
    """Draw each layer's part of the bit operations and of the error."""
    places, colours = list(range(len(layers))), colours_of(look)
    parts.barh([y - 0.2 for y in places], [100 * layer.bops_share for layer in layers], 0.4, color=colours["resq"])
    parts.barh([y + 0.2 for y in places], [100 * layer.error_share for layer in layers], 0.4, color=colours["frame"])
    parts.set(title="Part of the plan, %")
    parts.legend(["bit operations", "error"], loc="lower right")


def _short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _cells(choice: Choice) -> tuple[int, int, int, str]:
    """Bits of the keyframe (the larger of its two), of residual weights and activations, and the latter as text."""
    keyframe = max(choice.keyframe.weight, choice.keyframe.pool[-1])
    side = choice.residual or choice.keyframe
    text = ", ".join(map(str, side.pool))
    return (
        keyframe,
        side.weight,
        side.pool[-1],
        text if choice.threshold is None else f"{text}  τ={choice.threshold:g}",
    )

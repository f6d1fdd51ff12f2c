"""The paper's figures 6 and 8: the policy's choices and predictions, beside the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resq_plugin.errors import ReportError
from resq_plugin.extras import need
from resq_plugin.report.style import bare, bit_colour, figure

__all__ = ["policy_maps", "predictions"]

_INCHES = 1.9
"""Width of one image."""

_FADED = 0.2
"""Opacity of pixels that are labelled right, so that mistakes stand out."""


def policy_maps(
    frames: Sequence[Tensor],
    choices: Sequence[Tensor],
    pool: tuple[int, ...],
    path: Path,
    *,
    title: str = "Bits per pixel, by distance from the keyframe",
    distances: Sequence[int] | None = None,
) -> Path:
    """Draw the policy's choices under the frames they belong to (Fig. 6).

    Args:
        frames: the keyframe and then the residual frames, each (3, H, W), uint8.
        choices: bits of each residual frame, (h, w) of any size, one fewer than frames.
        pool: bit widths, low to high.
        path: the PNG to write.
        title: of the figure.
        distances: of the residual frames from the keyframe; 1, 2, ... unless given.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: numbers of frames and choices do not fit, a choice is not in the pool, or the file cannot be
            written.
    """
    distances = range(1, len(frames)) if distances is None else distances
    if len(frames) < 2 or len(choices) != len(frames) - 1 or len(distances) != len(choices):
        msg = (
            f"{len(frames)} frames, {len(choices)} choices and {len(distances)} distances do not fit; give the "
            "keyframe and any number of residual frames, with one choice and one distance for each of the latter."
        )
        raise ReportError(msg)
    for choice in choices:
        unknown = sorted(set(choice.flatten().tolist()) - set(pool))
        if unknown:
            msg = f"choices hold {unknown} bits, but the pool is {pool}; pass the pool the model was converted with."
            raise ReportError(msg)
    colours = torch.tensor([_rgb(bit_colour(bits, pool)) for bits in pool], dtype=torch.uint8)
    ratio = frames[0].shape[-2] / frames[0].shape[-1]
    with figure(path, _INCHES * len(frames), 2 * _INCHES * ratio + 0.95) as drawing:
        _tighten(drawing)
        grid = drawing.subplots(2, len(frames), squeeze=False)
        for column, frame in enumerate(frames):
            _show(grid[0][column], frame)
            grid[0][column].set_title(f"Δt = {distances[column - 1]}" if column else "keyframe", fontsize=9)
        for column, choice in enumerate(choices, start=1):
            axes = grid[1][column]
            index = torch.bucketize(choice.long(), torch.tensor(pool))
            # At the frame's own aspect: a map of another resolution covers the same view.
            axes.imshow(colours[index].numpy(), interpolation="nearest", extent=(0, 1, 0, ratio), aspect="equal")
            bare(axes)
            axes.set_xlabel("   ".join(f"{bits}b: {_share(choice, bits)}" for bits in pool), fontsize=8)
        grid[1][0].set_axis_off()
        patch = need("matplotlib.patches").Patch
        handles = [patch(facecolor=bit_colour(bits, pool), label=_bits_label(bits)) for bits in pool]
        grid[1][0].legend(handles=handles, loc="center", title="Activation bits", title_fontsize=8.5)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return path


def predictions(
    frames: Sequence[Tensor],
    labels: Sequence[Tensor] | None,
    predictions_by_scheme: Mapping[str, Sequence[Tensor]],
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    *,
    title: str = "Predictions",
    row_names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    reference: str = "labels",
    verdict: str = "right",
) -> Path:
    """Draw the label maps of several schemes side by side, one row per frame (Fig. 8).

    With labels, pixels that are labelled so are faded, and the share of them stands below each map.

    Args:
        frames: (3, H, W), uint8.
        labels: what is right, (H, W) each, e.g. the ground truth or the float model's predictions; or None.
        predictions_by_scheme: name of a column to its label maps (H, W), one per frame.
        palette: red, green and blue in 0..255 of every class.
        path: the PNG to write.
        title: of the figure.
        row_names: of the frames.
        classes: names of the classes for the legend; none without them.
        reference: what the column of labels is called.
        verdict: what the share of pixels labelled as there is called.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: a column has another number of maps than there are frames, a class has no colour, or the file
            cannot be written.
    """
    columns: dict[str, Sequence[Tensor]] = {} if labels is None else {reference: labels}
    columns |= predictions_by_scheme
    for name, maps in columns.items():
        if not frames or len(maps) != len(frames):
            msg = f"column {name!r} has {len(maps)} label maps for {len(frames)} frames; give one for each frame."
            raise ReportError(msg)
        highest = max(int(label_map.max()) for label_map in maps)
        if highest >= len(palette):
            msg = f"column {name!r} has class {highest}, but the palette ends at {len(palette) - 1}; add its colour."
            raise ReportError(msg)
    colours = torch.tensor(palette, dtype=torch.uint8)
    ratio = frames[0].shape[-2] / frames[0].shape[-1]
    height = len(frames) * (_INCHES * ratio + 0.17) + (1.1 if classes else 0.75)
    with figure(path, _INCHES * (len(columns) + 1), height) as drawing:
        _tighten(drawing)
        grid = drawing.subplots(len(frames), len(columns) + 1, squeeze=False)
        for row, frame in enumerate(frames):
            _show(grid[row][0], frame)
            if row_names:
                grid[row][0].set_ylabel(row_names[row], fontsize=8.5)
            for column, (name, maps) in enumerate(columns.items(), start=1):
                axes, label_map = grid[row][column], maps[row].long()
                image = colours[label_map]
                if labels is not None and name != reference:
                    right = label_map == labels[row].long()
                    faded = (image * _FADED + 255 * (1 - _FADED)).to(torch.uint8)
                    image = torch.where(right.unsqueeze(-1), faded, image)
                    axes.set_xlabel(f"{_percent(right)} {verdict}", fontsize=8, labelpad=2)
                _show(axes, image.permute(2, 0, 1))
                if row == 0:
                    axes.set_title(name, fontsize=9)
        grid[0][0].set_title("video", fontsize=9)
        if classes:
            patch = need("matplotlib.patches").Patch
            handles = [
                patch(facecolor=np.array(colour) / 255, label=name)
                for colour, name in zip(palette, classes, strict=False)
            ]
            drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return path


def _tighten(drawing: Any) -> None:
    drawing.get_layout_engine().set(w_pad=0.03, h_pad=0.05, wspace=0, hspace=0)


def _show(axes: Any, image: Tensor) -> None:
    """Show an image (3, H, W), uint8."""
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    bare(axes)


def _share(choice: Tensor, bits: int) -> str:
    return f"{100 * float((choice == bits).double().mean()):.0f} %"


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.double().mean()):.1f} %"


def _bits_label(bits: int) -> str:
    return "0 bits (skipped)" if bits == 0 else f"{bits} bits"


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue

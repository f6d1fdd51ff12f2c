"""Where outputs differ from those of the float model (Fig. 1), as pictures on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from resq_plugin.errors import ReportError
from resq_plugin.report.curves import LIGHT
from resq_plugin.report.style import Look, bare, figure

__all__ = ["error_maps", "relative_error"]

_INCHES = 2.5
_HIGHEST = 0.995
"""Share of the pixels of the worst map that the scale holds; a few more would darken all others."""


def relative_error(output: Tensor, exact: Tensor) -> Tensor:
    """Error of every pixel, ‖z - ẑ‖ over the channels, in units of the root mean square of ‖z‖ over pixels.

    Args:
        output: ẑ, (N, C, h, w).
        exact: z of the float model, of the same shape.

    Returns:
        (h, w) of the first sample. Its root mean square is ‖z - ẑ‖ / ‖z‖.
    """
    error = torch.linalg.vector_norm((output - exact)[0].double(), dim=0)
    unit = torch.linalg.vector_norm(exact[0].double(), dim=0).square().mean().sqrt()
    relative: Tensor = error / unit.clamp_min(1e-30)
    return relative


def error_maps(picture: Tensor, errors: Mapping[str, Tensor], path: Path, *, look: Look = LIGHT) -> Path:
    """Draw a frame, and where each scheme's output differs from float's, with ‖z - ẑ‖ / ‖z‖ below (Fig. 1).

    Args:
        picture: the frame, (3, H, W), uint8.
        errors: name of a scheme to `relative_error`, (h, w) of any size.
        path: the .png to write.
        look: of the page it is for; on phones maps stand below each other.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: there is no map, or the file cannot be written.
    """
    if not errors:
        msg = "there is no map of errors to draw; give one for each scheme."
        raise ReportError(msg)
    highest = max(float(torch.quantile(error.flatten().double(), _HIGHEST)) for error in errors.values()) or 1.0
    ratio = picture.shape[-2] / picture.shape[-1]
    count = len(errors) + 1
    down, across = (count, 1) if look.narrow else (1, count)
    width = 4.1 if look.narrow else _INCHES * across + 0.7
    height = down * ((3.2 if look.narrow else _INCHES) * ratio + 0.55)
    with figure(path, width, height, look) as drawing:
        grid = drawing.subplots(down, across, squeeze=False).flatten()
        grid[0].imshow(picture.permute(1, 2, 0).cpu().numpy())
        grid[0].set_title("The frame", fontsize=8)
        shown = None
        for axes, (name, error) in zip(grid[1:], errors.items(), strict=True):
            # At the frame's own aspect: a map of another resolution covers the same view.
            options = {"extent": (0, 1, 0, ratio), "aspect": "equal", "interpolation": "nearest"}
            percent = 100 * error.cpu().numpy()
            shown = axes.imshow(percent, cmap="magma", vmin=0, vmax=100 * highest, **options)
            axes.set_title(name, fontsize=8)
            axes.set_xlabel(
                f"‖z − ẑ‖ / ‖z‖ = {100 * float(error.double().square().mean().sqrt()):.1f} %", fontsize=8.5
            )
        for axes in grid:
            bare(axes)
        bar = drawing.colorbar(shown, ax=list(grid), location="bottom" if look.narrow else "right", shrink=0.8)
        bar.set_label("error [% of the output]", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return path

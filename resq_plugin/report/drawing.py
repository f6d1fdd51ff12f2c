"""Predictions as pictures: classes as colours over the frame, joints as dots, bits as shades."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.report.style import bit_colour

__all__ = ["Draw", "draw_bits", "draw_joints", "draw_labels", "drawer_of", "pictures_of"]

Draw = Callable[[Tensor, Tensor], Tensor]
"""Picture (3, H, W), uint8, and prediction (1, ...) to a picture of the same size."""

_OPACITY = 0.6
_DOT = 3


def _palette(count: int) -> Tensor:
    """Colours (count, 3), uint8, that neighbours in number do not share."""
    colours = [
        colorsys.hls_to_rgb(index * 0.618034 % 1.0, (0.45, 0.62, 0.33)[index % 3], 0.75) for index in range(count)
    ]
    return (torch.tensor(colours) * 255).to(torch.uint8)


def draw_labels(palette: Sequence[Sequence[int]] | None = None) -> Draw:
    """Draw label maps (1, h, w) over the frame in gray.

    Args:
        palette: red, green, blue of every class; colours of our own unless given.
    """
    colours = _palette(256) if palette is None else torch.tensor(palette, dtype=torch.uint8)

    def draw(picture: Tensor, prediction: Tensor) -> Tensor:
        size = picture.shape[-2:]
        labels = (
            F.interpolate(prediction[None].float(), size=size, mode="nearest")[0, 0].long().clamp(0, len(colours) - 1)
        )
        gray = picture.float().mean(0, keepdim=True)
        mixed = _OPACITY * colours[labels].permute(2, 0, 1) + (1 - _OPACITY) * gray
        return mixed.round().to(torch.uint8)

    return draw


def draw_joints(picture: Tensor, prediction: Tensor) -> Tensor:
    """Draw joints (1, K, 2 or more), x and y in pixels of the picture, as dots."""
    drawn, (height, width) = picture.clone(), picture.shape[-2:]
    colours = _palette(prediction.shape[1])
    for joint, colour in zip(prediction[0], colours, strict=True):
        x, y = int(joint[0].round()), int(joint[1].round())
        rows = slice(max(0, y - _DOT), max(0, min(height, y + _DOT + 1)))
        columns = slice(max(0, x - _DOT), max(0, min(width, x + _DOT + 1)))
        drawn[:, rows, columns] = colour[:, None, None]
    return drawn


def draw_bits(picture: Tensor, bits: Tensor, pool: Sequence[int]) -> Tensor:
    """Draw the mean bits of every pixel (h, w), in the size of the picture, between the colours of the pool."""
    size = picture.shape[-2:]
    bits = F.interpolate(bits[None, None].float(), size=size, mode="nearest")[0, 0].clamp(min(pool), max(pool))
    colours = torch.stack([_rgb(bit_colour(value, tuple(pool))) for value in pool])
    steps = torch.tensor(pool, dtype=torch.float32)
    upper = torch.bucketize(bits, steps).clamp(1, max(len(pool) - 1, 1)).clamp(max=len(pool) - 1)
    lower = (upper - 1).clamp(0)
    share = ((bits - steps[lower]) / (steps[upper] - steps[lower]).clamp_min(1e-12)).unsqueeze(-1)
    mixed = (1 - share) * colours[lower] + share * colours[upper]
    return mixed.permute(2, 0, 1).round().clamp(0, 255).to(torch.uint8)


def _rgb(colour: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(colour.removeprefix("#"))), dtype=torch.float32)


def drawer_of(prediction: Tensor) -> Draw | None:
    """How a prediction (1, ...) is drawn by its looks; None where nobody knows."""
    if prediction.dim() == 3 and not prediction.is_floating_point():
        return draw_labels()
    if prediction.dim() == 3 and prediction.shape[-1] in (2, 3):
        return draw_joints
    return None


def pictures_of(frames: Sequence[Tensor]) -> list[Tensor]:
    """Normalised frames (1, C, H, W) as pictures (3, H, W), uint8, from the lowest value of all to the highest."""
    low = min(float(frame.min()) for frame in frames)
    high = max(float(frame.max()) for frame in frames)
    scaled = [(frame[0].float() - low) / max(high - low, 1e-12) * 255 for frame in frames]
    return [frame[:3].expand(3, -1, -1).round().to(torch.uint8) for frame in scaled]

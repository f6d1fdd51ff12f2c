"""The background of the demo video: coloured clouds under faint planks, wide enough for a camera to pan over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resq_plugin.demo.shapes import cycle_colour

__all__ = ["render_background"]


def render_background(height: int, width: int, camera: Tensor, generator: torch.Generator) -> Tensor:
    """The scene without shapes.

    Args:
        height: Height H of a frame.
        width: Width W of a frame; the world is 2 W wide and repeats.
        camera: Left edge of the view in pixels, (T,).
        generator: Source of everything that is drawn.

    Returns:
        Colours, (T, 3, H, W), mostly in [0, 1].
    """
    world = _render_world(height, 2 * width, generator)
    left = camera.floor()
    part = (camera - left).to(world.dtype).view(-1, 1, 1, 1)
    columns = left.long().view(-1, 1) + torch.arange(width + 1)  # (T, W + 1)
    seen = world[:, :, columns % (2 * width)].permute(2, 0, 1, 3)
    between: Tensor = seen[..., :-1] * (1 - part) + seen[..., 1:] * part
    return between


def _render_world(height: int, width: int, generator: torch.Generator) -> Tensor:
    """The whole background, (3, height, width), periodic in both directions but for its lighting."""
    spectrum = torch.fft.rfft2(torch.randn(4, height, width, generator=generator))
    fy, fx = torch.fft.fftfreq(height)[:, None] * height, torch.fft.rfftfreq(width)[None] * height
    clouds = torch.fft.irfft2(spectrum / (1 + fy**2 + fx**2) ** 0.65, s=(height, width))
    clouds = clouds / clouds.std(dim=(1, 2), keepdim=True)
    draw = torch.rand(9, generator=generator)
    first, second = cycle_colour(draw[:2], 0.15 + 0.3 * draw[2:4], 0.38 + 0.4 * draw[4:6]).view(2, 3, 1, 1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    waves_y, waves_x = (height * (0.03 + 0.09 * draw[6])).round(), (width * (0.12 * draw[7] - 0.06)).round()
    planks = torch.sin(2 * math.pi * (waves_y * rows / height + waves_x * columns / width))
    planks = torch.sigmoid(6 * planks) * torch.sigmoid(2 * clouds[1])
    world = first + torch.sigmoid(1.2 * clouds[0]) * (second - first)
    world = world * (0.85 + 0.3 * planks * draw[8]) + 0.025 * clouds[1:4]
    lit: Tensor = world * (1.15 - 0.35 * rows / height)
    return lit

"""The shapes of the demo video: which pixels each one covers, and how they are painted.

All functions take local coordinates u, v (any equal shapes), in which a shape fits the unit disc and turns with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["CLASSES", "PALETTE", "cover", "cycle_colour", "paint"]

#: Class names; the index is the label. Ball and coin differ by texture only, so do crate and tile;
#: ball and crate differ by outline only, so do coin and tile; a star comes in either texture.
CLASSES: tuple[str, ...] = ("background", "ball", "coin", "crate", "tile", "star")

#: One display colour (red, green, blue in 0..255) for each class.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (38, 42, 54),
    (230, 96, 75),
    (244, 196, 80),
    (92, 170, 110),
    (78, 142, 214),
    (182, 112, 205),
)

_DISCS = (1, 2)
_BOXES = (3, 4)
_STRIPED = (1, 3)
_DOTTED = (2, 4)
_BOX_HALF_WIDTH = 0.8
_BOX_HALF_HEIGHT = 0.6
_STAR_INNER = 0.55


def _edge_distance(label: int, u: Tensor, v: Tensor) -> Tensor:
    """How far inside the outline of class `label` each point lies: 0 on it, negative outside; shaped like u."""
    if label in _DISCS:
        return 1 - (u * u + v * v).sqrt()
    if label in _BOXES:
        return torch.minimum(_BOX_HALF_WIDTH - u.abs(), _BOX_HALF_HEIGHT - v.abs())
    half = math.pi / 5
    angle = (torch.remainder(torch.atan2(v, u), 2 * half) - half).abs()  # 0 at an inner corner, half at a tip
    tip = (math.cos(half), math.sin(half))
    normal = (tip[1], _STAR_INNER - tip[0])
    length = math.hypot(*normal)
    radius = (u * u + v * v).sqrt()
    along = radius * (angle.cos() * normal[0] + angle.sin() * normal[1])
    return (_STAR_INNER * normal[0] - along) / length


def cover(label: int, u: Tensor, v: Tensor) -> Tensor:
    """Which points lie inside the outline of class `label`; bool, shaped like u."""
    return _edge_distance(label, u, v) >= 0


def cycle_colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB colours (N, 3), roughly in [0, 1], from hue, saturation and value, each (N,) in [0, 1]."""
    phase = hue.unsqueeze(-1) + torch.arange(3, dtype=hue.dtype) / 3
    return value.unsqueeze(-1) * (1 + saturation.unsqueeze(-1) * (2 * math.pi * phase).cos()) / 1.3


def _texture(label: int, u: Tensor, v: Tensor, frequency: float, dotted_star: bool) -> Tensor:
    """The pattern in [0, 1] of class `label`, shaped like u: stripes or dots of equal mean brightness."""
    if label in _STRIPED or (label not in _DOTTED and not dotted_star):
        wave = torch.sin(math.pi * frequency * v)
        return torch.sigmoid(8 * wave)
    wave = torch.sin(math.pi * frequency * u) * torch.sin(math.pi * frequency * v)
    return torch.sigmoid(10 * (wave.abs() - 0.35))


def paint(
    label: int,
    u: Tensor,
    v: Tensor,
    colours: Tensor,
    frequency: float,
    light_angle: Tensor,
    dotted_star: bool,
) -> Tensor:
    """The colour of points of a shape: its texture, lit from one side, with a darker rim.

    Args:
        label: Class of the shape, at least 1.
        u: Local coordinate of each point, (P,).
        v: Local coordinate of each point, (P,).
        colours: The two colours of the texture, (2, 3).
        frequency: Half waves of the texture in one unit of u or v.
        light_angle: Direction towards the light in local coordinates, (P,).
        dotted_star: Whether a star takes dots rather than stripes.

    Returns:
        Colours, (P, 3), mostly in [0, 1].
    """
    mix = _texture(label, u, v, frequency, dotted_star).unsqueeze(1)
    base = colours[0] + mix * (colours[1] - colours[0])
    light_u, light_v = light_angle.cos(), light_angle.sin()
    rim = (_edge_distance(label, u, v) / 0.14).clamp(0, 1)
    shade = (0.92 + 0.28 * (u * light_u + v * light_v)) * (0.62 + 0.38 * rim)
    gloss = 0.22 * torch.exp(-8 * ((u - 0.4 * light_u) ** 2 + (v - 0.4 * light_v) ** 2))
    return base * shade.unsqueeze(1) + gloss.unsqueeze(1)

"""A procedural, seeded video with an exact label for every pixel, so that the demo needs no download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resq_plugin.demo.background import render_background
from resq_plugin.demo.shapes import CLASSES, cover, cycle_colour, paint

__all__ = ["HELD_OUT_SEEDS", "SceneConfig", "from_rgb", "generate_clip", "to_rgb"]

#: Seeds that benchmarks/train_demo.py never trains on.
HELD_OUT_SEEDS = range(10_000)

_CAMERAS = ("still", "pan")
_MEAN, _STD = 0.5, 0.25
_LIGHT = math.radians(235)  # from the upper left


@dataclass(frozen=True)
class SceneConfig:
    """One scene: the same config always gives the same video.

    Attributes:
        height: Height of a frame in pixels, a multiple of 8.
        width: Width of a frame in pixels, a multiple of 8.
        shapes: Number of moving shapes; some may be out of view.
        camera: `still`, or `pan` for a camera that moves to the right.
        pan_speed: Pixels that a panning camera moves from one frame to the next.
        speed: Largest speed of a shape in pixels per frame; 0 also stops its rotation.
        noise: Standard deviation of the sensor noise, in units of the full brightness range.
        seed: Seed of everything that is drawn.
    """

    height: int = 128
    width: int = 192
    shapes: int = 12
    camera: Literal["still", "pan"] = "still"
    pan_speed: float = 1.5
    speed: float = 2.0
    noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 32 or size % 8:
                msg = f"{name}={size!r}: expected a multiple of 8, at least 32"
                raise ValueError(msg)
        for name in ("shapes", "seed"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 0:
                msg = f"{name}={number!r}: expected an integer >= 0"
                raise ValueError(msg)
        for name in ("speed", "noise"):
            amount = getattr(self, name)
            if not 0 <= amount < math.inf:
                msg = f"{name}={amount!r}: expected a finite number >= 0"
                raise ValueError(msg)
        if not math.isfinite(self.pan_speed):
            msg = f"pan_speed={self.pan_speed!r}: expected a finite number"
            raise ValueError(msg)
        if self.camera not in _CAMERAS:
            msg = f"camera={self.camera!r}: expected one of {', '.join(_CAMERAS)}"
            raise ValueError(msg)


def generate_clip(config: SceneConfig, frames: int) -> tuple[Tensor, Tensor]:
    """Render the first frames of a scene; a longer clip of the same config starts with the shorter one.

    Args:
        config: The scene.
        frames: Number of frames T, at least 1.

    Returns:
        Frames (T, 3, H, W), float32, normalised as `DemoNet` expects them (`to_rgb` undoes it), and labels (T, H, W),
        int64, indices into `CLASSES`.

    Raises:
        ValueError: If `frames` is less than 1.
    """
    if frames < 1:
        msg = f"frames={frames!r}: expected an integer >= 1"
        raise ValueError(msg)
    pan = config.pan_speed if config.camera == "pan" else 0.0
    camera = pan * torch.arange(frames, dtype=torch.float64)
    margin = math.ceil(_radius_range(config)[1]) + 2
    canvas = torch.zeros(frames, 3, config.height + 4 * margin, config.width + 4 * margin)
    labels = torch.zeros(frames, *canvas.shape[-2:], dtype=torch.int64)
    inner = (..., slice(2 * margin, 2 * margin + config.height), slice(2 * margin, 2 * margin + config.width))
    canvas[inner] = render_background(config.height, config.width, camera, _generator(config, 0))
    _draw_shapes(config, camera, margin, canvas, labels)
    generator = _generator(config, 2)
    noise = torch.stack([torch.randn(3, config.height, config.width, generator=generator) for _ in range(frames)])
    clip = (canvas[inner] + config.noise * noise).clamp(0, 1)
    return (clip - _MEAN) / _STD, labels[inner].contiguous()


def to_rgb(frames: Tensor) -> Tensor:
    """Normalised frames (..., 3, H, W) as uint8 images of the same shape."""
    return ((frames * _STD + _MEAN).clamp(0, 1) * 255).round().to(torch.uint8)


def from_rgb(images: Tensor) -> Tensor:
    """Images (..., 3, H, W), uint8, as normalised float32 frames of the same shape, as `DemoNet` expects them."""
    return (images.float() / 255 - _MEAN) / _STD


def _generator(config: SceneConfig, stream: int) -> torch.Generator:
    """An own random stream for background, shapes and noise, so that one does not disturb the others."""
    return torch.Generator().manual_seed(config.seed * 3 + stream)


def _radius_range(config: SceneConfig) -> tuple[float, float]:
    return 0.11 * config.height, 0.21 * config.height


def _draw_shapes(config: SceneConfig, camera: Tensor, margin: int, canvas: Tensor, labels: Tensor) -> None:
    """Paint every shape into canvas (T, 3, H + 4m, W + 4m) and labels (T, H + 4m, W + 4m), later ones in front.

    All in float64: the last bit of a float32 sine depends on where in its tensor the element lies.
    """
    generator = _generator(config, 1)
    time = torch.arange(len(camera), dtype=torch.float64).view(-1, 1, 1)
    low, high = _radius_range(config)
    height, width = config.height + 2 * margin, config.width + 2 * margin
    window = torch.arange(-margin, margin + 1)
    first = int(torch.randint(len(CLASSES) - 1, (1,), generator=generator))
    for number in range(config.shapes):
        label = 1 + (first + number) % (len(CLASSES) - 1)
        size, pace, heading, x, y, start, spin, *look = torch.rand(14, generator=generator, dtype=torch.float64)
        radius = low + (high - low) * size
        speed, heading = config.speed * (0.25 + 0.75 * pace), 2 * math.pi * heading
        # A shape that has left the view by more than its radius comes back on the other side.
        x = (x * width + speed * heading.cos() * time - camera.view(-1, 1, 1)) % width
        y = (y * height + speed * heading.sin() * time) % height
        angle = 2 * math.pi * start + 0.02 * config.speed * (2 * spin - 1) * time
        row, column = y.round().long() + window.view(-1, 1), x.round().long() + window  # (T, S, 1), (T, 1, S)
        u = ((column - x) * angle.cos() + (row - y) * angle.sin()) / radius  # (T, S, S)
        v = ((row - y) * angle.cos() - (column - x) * angle.sin()) / radius
        t, i, j = cover(label, u, v).nonzero(as_tuple=True)  # (P,) each
        target = (t, margin + row[t, i, 0], margin + column[t, 0, j])
        frequency = float(radius / (3.4 + 1.4 * look[5]))  # stripes of 3.4 to 4.8 pixels
        light = _LIGHT - angle[t, 0, 0]
        painted = paint(label, u[t, i, j], v[t, i, j], _colours(look), frequency, light, bool(look[6] < 0.5))
        canvas.movedim(1, -1)[target] = painted.to(canvas.dtype)
        labels[target] = label


def _colours(look: list[Tensor]) -> Tensor:
    """A dark, colourful and a light, pale colour, (2, 3), drawn alike for all classes."""
    value, contrast, hue, shift, saturation = look[:5]
    values = (0.45 + 0.3 * value) * (1 + (0.5 + 0.25 * contrast) * torch.tensor([-1, 1]))
    hues = torch.stack((hue, hue + 0.12 + 0.25 * shift))
    return cycle_colour(hues, torch.stack((0.35 + 0.4 * saturation, 0.3 * saturation)), values)

"""A procedural, seeded video with an exact label for every pixel, so that the demo needs no download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resq_plugin.demo.shapes import CLASSES, cover, cycle_colour, paint

__all__ = ["HELD_OUT_SEEDS", "SceneConfig", "generate_clip", "to_rgb"]

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
            if size < 32 or size % 8:
                msg = f"{name}={size!r}: expected a multiple of 8, at least 32"
                raise ValueError(msg)
        if self.camera not in _CAMERAS:
            msg = f"camera={self.camera!r}: expected one of {', '.join(_CAMERAS)}"
            raise ValueError(msg)
        for name in ("shapes", "speed", "noise", "seed"):
            if not getattr(self, name) >= 0:
                msg = f"{name}={getattr(self, name)!r}: expected a number >= 0"
                raise ValueError(msg)
        if not math.isfinite(self.pan_speed):
            msg = f"pan_speed={self.pan_speed!r}: expected a finite number"
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
    canvas[inner] = _background(config, camera)
    _draw_shapes(config, camera, margin, canvas, labels)
    generator = _generator(config, 2)
    noise = torch.stack([torch.randn(3, config.height, config.width, generator=generator) for _ in range(frames)])
    clip = (canvas[inner] + config.noise * noise).clamp(0, 1)
    return (clip - _MEAN) / _STD, labels[inner].contiguous()


def to_rgb(frames: Tensor) -> Tensor:
    """Normalised frames (..., 3, H, W) as uint8 images of the same shape."""
    return ((frames * _STD + _MEAN).clamp(0, 1) * 255).round().to(torch.uint8)


def _generator(config: SceneConfig, stream: int) -> torch.Generator:
    """An own random stream for background, shapes and noise, so that one does not disturb the others."""
    return torch.Generator().manual_seed(config.seed * 3 + stream)


def _radius_range(config: SceneConfig) -> tuple[float, float]:
    return 0.11 * config.height, 0.21 * config.height


def _background(config: SceneConfig, camera: Tensor) -> Tensor:
    """The scene without shapes, (T, 3, H, W), seen from the camera positions (T,)."""
    generator = _generator(config, 0)
    height, width = config.height, 2 * config.width
    spectrum = torch.fft.rfft2(torch.randn(4, height, width, generator=generator))
    fy, fx = torch.fft.fftfreq(height)[:, None] * height, torch.fft.rfftfreq(width)[None] * height
    clouds = torch.fft.irfft2(spectrum / (1 + fy**2 + fx**2) ** 0.65, s=(height, width))  # (4, H, 2W), periodic
    clouds = clouds / clouds.std(dim=(1, 2), keepdim=True)
    draw = torch.rand(9, generator=generator)
    colours = cycle_colour(draw[:2], 0.15 + 0.3 * draw[2:4], 0.38 + 0.4 * draw[4:6])
    mix = torch.sigmoid(1.2 * clouds[0])
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    waves_y, waves_x = (height * (0.03 + 0.09 * draw[6])).round(), (width * (0.12 * draw[7] - 0.06)).round()
    stripes = torch.sin(2 * math.pi * (waves_y * rows / height + waves_x * columns / width))
    stripes = torch.sigmoid(6 * stripes) * torch.sigmoid(2 * clouds[1])  # planks that come and go
    world = colours[0].view(3, 1, 1) + mix * (colours[1] - colours[0]).view(3, 1, 1)
    world = world * (0.85 + 0.3 * stripes * draw[8]) + 0.025 * clouds[1:4]
    world = world * (1.15 - 0.35 * rows / height)
    left = camera.floor()
    part = (camera - left).to(world.dtype).view(-1, 1, 1, 1)
    index = left.long().view(-1, 1) + torch.arange(config.width + 1)  # (T, W + 1)
    seen = world[:, :, index % width].permute(2, 0, 1, 3)
    between: Tensor = seen[..., :-1] * (1 - part) + seen[..., 1:] * part
    return between


def _draw_shapes(config: SceneConfig, camera: Tensor, margin: int, canvas: Tensor, labels: Tensor) -> None:
    """Paint every shape into canvas (T, 3, H + 4m, W + 4m) and labels (T, H + 4m, W + 4m), later ones in front."""
    generator = _generator(config, 1)
    time = torch.arange(len(camera), dtype=torch.float64)
    low, high = _radius_range(config)
    window = torch.arange(-margin, margin + 1)
    first = int(torch.randint(len(CLASSES) - 1, (1,), generator=generator))
    for number in range(config.shapes):
        label = 1 + (first + number) % (len(CLASSES) - 1)
        draw = torch.rand(14, generator=generator, dtype=torch.float64)
        radius = low + (high - low) * draw[0]
        speed, heading = config.speed * (0.25 + 0.75 * draw[1]), 2 * math.pi * draw[2]
        # A shape that has left the view by more than its radius comes back on the other side.
        width, height = config.width + 2 * margin, config.height + 2 * margin
        x = (draw[3] * width + speed * heading.cos() * time - camera) % width
        y = (draw[4] * height + speed * heading.sin() * time) % height
        angle = (2 * math.pi * draw[5] + 0.02 * config.speed * (2 * draw[6] - 1) * time).view(-1, 1, 1)
        row = y.round().long().view(-1, 1, 1) + window.view(1, -1, 1)
        column = x.round().long().view(-1, 1, 1) + window.view(1, 1, -1)
        dy, dx = row - y.view(-1, 1, 1), column - x.view(-1, 1, 1)
        u = ((dx * angle.cos() + dy * angle.sin()) / radius).float()  # (T, S, S)
        v = ((dy * angle.cos() - dx * angle.sin()) / radius).float()
        t, i, j = cover(label, u, v).nonzero(as_tuple=True)  # (P,) each
        value = 0.45 + 0.3 * draw[7]
        contrast = 0.5 + 0.25 * draw[8]
        hue = torch.stack((draw[9], draw[9] + 0.12 + 0.25 * draw[10]))
        saturation = torch.stack((0.35 + 0.4 * draw[11], 0.3 * draw[11]))
        colours = cycle_colour(hue, saturation, torch.stack((value * (1 - contrast), value * (1 + contrast)))).float()
        frequency = float(radius / (3.4 + 1.4 * draw[12]))  # stripes of 3.4 to 4.8 pixels
        light = (_LIGHT - angle).flatten().float()[t]
        target = (t, margin + row[t, i, 0], margin + column[t, 0, j])
        canvas.movedim(1, -1)[target] = paint(
            label, u[t, i, j], v[t, i, j], colours, frequency, light, bool(draw[13] < 0.5)
        )
        labels[target] = label

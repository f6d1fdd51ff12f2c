"""Intervals from still images: a smooth random camera over a labelled photograph, where there is no video."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.errors import ConfigError

__all__ = ["Camera", "StillClips", "film"]


@dataclass(frozen=True)
class Camera:
    """How a camera moves over a photograph; all of it is drawn at random per clip.

    Attributes:
        size: height and width of the frames in pixels.
        zoom: range of the first frame's magnification.
        shift: largest shift per frame, in pixels of the frame.
        zooming: largest change of the magnification per frame, relative.
        rotation: largest first rotation, in degrees.
        turning: largest rotation per frame, in degrees.
        smoothness: share of its velocity that the camera keeps from frame to frame; the rest is drawn anew.
        noise: deviation of the noise of every frame, in the unit of the image.
        exposure: deviation of the brightness factor from frame to frame.
        flip: probability that a clip is mirrored.
        ignore: label outside of the photograph.
    """

    size: tuple[int, int] = (256, 256)
    zoom: tuple[float, float] = (0.9, 1.6)
    shift: float = 2.0
    zooming: float = 0.01
    rotation: float = 3.0
    turning: float = 0.2
    smoothness: float = 0.8
    noise: float = 0.01
    exposure: float = 0.01
    flip: float = 0.5
    ignore: int = 255

    def __post_init__(self) -> None:
        if not (0 <= self.smoothness <= 1 and 0 < self.zoom[0] <= self.zoom[1]):
            msg = f"smoothness={self.smoothness} must be 0 to 1 and zoom={self.zoom} an ascending pair above 0."
            raise ConfigError(msg)


def film(
    image: Tensor,
    label: Tensor | None,
    length: int,
    camera: Camera,
    generator: torch.Generator,
    *,
    only: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Make an interval of a photograph.

    Args:
        image: (C, H, W), floating point.
        label: classes (H, W), or None.
        length: T.
        camera: how it moves.
        generator: source of everything random.
        only: make the frame at this position alone, as it would be in an interval of any length beyond it.

    Returns:
        Frames (T, C, h, w), sampled bilinearly, and labels (T, h, w), nearest, with ``camera.ignore`` outside.
    """
    (height, width), wanted = image.shape[-2:], range(length) if only is None else range(only, only + 1)
    grids, gains, noise_seed = _path((height, width), wanted.stop, camera, generator)
    grid = grids[wanted.start :].to(image.device)
    photograph = image.expand(len(wanted), *image.shape)
    frames = F.grid_sample(photograph, grid.to(image.dtype), "bilinear", "reflection", align_corners=False)
    frames = frames * gains[wanted.start :].to(image).view(-1, 1, 1, 1)
    if camera.noise:
        seeds = [torch.Generator().manual_seed(noise_seed + position) for position in wanted]
        noise = torch.stack([torch.randn(frames.shape[1:], generator=seed) for seed in seeds])
        frames = frames + camera.noise * noise.to(frames)
    if label is None:
        return frames, None
    shifted = (label + 1).to(torch.float32).expand(len(wanted), 1, height, width)  # 0 is what lies outside
    sampled = F.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)[:, 0].round().to(label.dtype)
    return frames, torch.where(sampled == 0, torch.full_like(sampled, camera.ignore), sampled - 1)


def _path(
    full: tuple[int, int], length: int, camera: Camera, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Where the pixels of every frame lie (T, h, w, 2), its brightness factor (T,), and a seed for noise."""

    def draw(low: float = -1.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    (height, width), (rows, columns) = full, camera.size
    zoom, angle = math.exp(draw(*map(math.log, camera.zoom))), math.radians(camera.rotation) * draw()
    # In pixels of the photograph, from its middle: as far as the frame stays inside, if it fits.
    x = draw() * max(0.0, (width - columns / zoom) / 2)
    y = draw() * max(0.0, (height - rows / zoom) / 2)
    mirror = -1.0 if draw(0, 1) < camera.flip else 1.0
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    steps = camera.shift, camera.shift, camera.zooming, math.radians(camera.turning)
    velocity = [size * draw() for size in steps]
    gain = 1.0
    grids, gains = [], []
    for _ in range(length):
        grids.append(_grid(camera.size, full, x, y, zoom, angle, mirror))
        gains.append(gain)
        x, y = x + velocity[0] / zoom, y + velocity[1] / zoom
        zoom, angle = zoom * (1 + velocity[2]), angle + velocity[3]
        gain *= 1 + camera.exposure * draw()
        keep = camera.smoothness
        velocity = [keep * v + (1 - keep) * size * draw() for v, size in zip(velocity, steps, strict=True)]
    return torch.stack(grids), torch.tensor(gains), noise_seed


def _grid(
    size: tuple[int, int], full: tuple[int, int], x: float, y: float, zoom: float, angle: float, mirror: float
) -> Tensor:
    """Where the pixels of a frame lie in the photograph, (h, w, 2) in the coordinates of `grid_sample`."""
    rows = torch.arange(size[0]) + 0.5 - size[0] / 2
    columns = (torch.arange(size[1]) + 0.5 - size[1] / 2) * mirror
    v, u = torch.meshgrid(rows / zoom, columns / zoom, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([(cos * u - sin * v + x) * 2 / full[1], (sin * u + cos * v + y) * 2 / full[0]], dim=-1)


class StillClips:
    """Labelled photographs as a data set of clips, for `train`.

    The clip of an image depends on the seed, the pass over the data and the image alone.

    Args:
        images: (C, H, W) each; a sequence may load them when asked.
        labels: classes (H, W) each.
        length: T.
        camera: how it moves.
        seed: of everything random.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        length: int = 3,
        camera: Camera | None = None,
        seed: int = 0,
    ) -> None:
        if len(images) != len(labels):
            msg = f"there are {len(images)} images and {len(labels)} labels; give one label per image."
            raise ConfigError(msg)
        self.images, self.labels, self.length = images, labels, length
        self.camera, self.seed, self.epoch = camera or Camera(), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass over the data."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        source = random.Random(f"{self.seed}/{self.epoch}/{index}")
        generator = torch.Generator().manual_seed(source.getrandbits(62))
        return film(self.images[index], self.labels[index], self.length, self.camera, generator)

"""Frames for a network: in its size, normalised, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.errors import VideoError
from resq_plugin.video.camera import Camera
from resq_plugin.video.display import Pixels
from resq_plugin.video.file import VideoFile
from resq_plugin.video.folder import ImageFolder

__all__ = ["CameraFrames", "Frames", "read"]

Channels = float | Sequence[float]


def read(
    path: str | os.PathLike[str] | int,
    size: tuple[int, int] | None = None,
    mean: Channels = 0.0,
    std: Channels = 255.0,
    frames: int | None = None,
) -> Frames | CameraFrames:
    """Read a video as frames (1, 3, H, W), float32, RGB, decoded when they are asked for.

    ``(value - mean) / std`` is computed per channel from values 0 to 255, so that the default gives 0 to 1. Files and
    folders are sequences with a length, of which slices are sequences again: ``read("my.mp4")[:16]`` calibrates,
    ``read("my.mp4")[16:]`` is measured. See `VideoFile` and `ImageFolder` for what is a frame.

    Args:
        path: a video file, a folder of frames, or the number of a camera, whose frames come as long as one iterates.
        size: (H, W) of the frames, resized without keeping their shape (bilinear, smoothed where they get smaller);
            None keeps theirs.
        mean: what is subtracted, in units of 0 to 255, for all or per channel R, G, B; ImageNet's is
            ``(123.675, 116.28, 103.53)``.
        std: what is divided by, in units of 0 to 255; ImageNet's is ``(58.395, 57.12, 57.375)``.
        frames: only so many from the start.

    Raises:
        VideoError: it cannot be read, breaks off, or frames have different sizes; or an argument is impossible.
        MissingExtraError: PyAV is not installed (extra ``video``).
    """
    prepare = _Preparation(size, mean, std)
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        msg = f"frames={frames!r} must be a number of at least 1, or None for all."
        raise VideoError(msg)
    if isinstance(path, int):
        return CameraFrames(Camera(path), prepare, frames)
    source: ImageFolder | VideoFile
    if os.path.isdir(path):
        source = ImageFolder(path)
    else:
        source = VideoFile(path, partial=frames is not None)
        if source.broken and frames is not None and frames > len(source):
            msg = f"{path} {source.broken} frames={frames} are not there; write frames={len(source)}."
            raise VideoError(msg)
    return Frames(source, prepare, range(min(len(source), frames or len(source))))


class Frames(Sequence[Tensor]):
    """Frames (1, 3, H, W), float32, of a file or folder; made by `read`.

    Attributes:
        source: the pictures before they are prepared.
    """

    def __init__(self, source: ImageFolder | VideoFile, prepare: _Preparation, indices: range) -> None:
        self.source, self._prepare, self._indices = source, prepare, indices

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Tensor | Frames:
        """Decode one frame, or choose some without decoding them."""
        if isinstance(index, slice):
            return Frames(self.source, self._prepare, self._indices[index])
        place = self._indices[index]
        return self._prepare(self.source[place], f"frame {place} of {_name(self.source)}")


class CameraFrames:
    """Frames (1, 3, H, W), float32, of a camera as they come; made by `read`."""

    def __init__(self, camera: Camera, prepare: _Preparation, frames: int | None) -> None:
        self.source, self._prepare, self._frames = camera, prepare, frames

    def __iter__(self) -> Iterator[Tensor]:
        """Open the camera and yield its frames."""
        pictures = islice(self.source, self._frames)
        return (self._prepare(picture, f"a frame of camera {self.source.index}") for picture in pictures)


class _Preparation:
    """Resizing and normalisation; without a size all pictures must have that of the first."""

    def __init__(self, size: tuple[int, int] | None, mean: Channels, std: Channels) -> None:
        self.size = None if size is None else _size(size)
        self.mean, self.std = _channels("mean", mean), _channels("std", std)
        if self.std.min() <= 0:
            msg = f"std={std!r} must be above 0; the default is 255."
            raise VideoError(msg)
        if self.std.max() < 1 or 0 < self.mean.abs().max() <= 1:
            msg = (
                f"mean={mean!r}, std={std!r} are meant for values of 0 to 1, but frames have 0 to 255; write both "
                "times 255, e.g. mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)."
            )
            raise VideoError(msg)
        self._first: tuple[int, ...] | None = None

    def __call__(self, picture: Pixels, name: str) -> Tensor:
        shape = picture.shape[:2]
        self._first = self._first or shape
        if self.size is None and shape != self._first:
            msg = f"{name} is {shape[0]}×{shape[1]}, others are {self._first[0]}×{self._first[1]}; write size=(H, W)."
            raise VideoError(msg)
        frame = torch.from_numpy(picture).permute(2, 0, 1)[None].to(torch.float32)
        if self.size is not None and shape != self.size:
            frame = F.interpolate(frame, self.size, mode="bilinear", antialias=True)
        return ((frame - self.mean) / self.std).contiguous()


def _size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        msg = f"size={size!r} must be (H, W) in pixels, e.g. size=(512, 1024)."
        raise VideoError(msg)
    return height, width


def _channels(name: str, value: Channels) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32).flatten()
    if tensor.numel() not in (1, 3) or not tensor.isfinite().all():
        msg = f"{name}={value!r} must be one number, or three for R, G, B, in units of 0 to 255."
        raise VideoError(msg)
    return tensor.view(1, -1, 1, 1)


def _name(source: ImageFolder | VideoFile) -> str:
    return str(source.folder if isinstance(source, ImageFolder) else source.path)

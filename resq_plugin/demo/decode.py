"""Frames of a user's video file, in the size and normalisation the demo net likes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.demo.video import from_rgb
from resq_plugin.errors import VideoError
from resq_plugin.extras import need
from resq_plugin.video import VideoFile

__all__ = ["VideoError", "decode_video", "fitting_size"]

logger = logging.getLogger(__name__)

SHORT_SIDE = 128
LONGEST_SIDE = 384
_STEP = 8
_TAKEN = "--video takes a video file such as an .mp4, of at least two frames."


def decode_video(path: Path, frames: int) -> Tensor:
    """Decode the first frames of a video, as a player shows them.

    Args:
        path: any file that FFmpeg reads; of one that breaks off the beginning is taken, with a warning.
        frames: decode at most so many.

    Returns:
        Frames (T, 3, H, W), float32, normalised as `DemoNet` expects them, of about 128 pixels on the shorter side.

    Raises:
        VideoError: there is no such file, it holds no video, is damaged at its start, or has fewer than two frames.
        MissingExtraError: PyAV is not installed.
    """
    need("av")  # names the extra of the whole demo
    video = VideoFile(path, partial=True, advice=_TAKEN)
    if len(video) < 2:
        msg = f"{path} has {len(video)} frame(s); residuals need at least two, so --video takes a longer one."
        raise VideoError(msg)
    if video.broken and frames > len(video):
        logger.warning("%s %s Its beginning is used.", path, video.broken)
    height, width = video[0].shape[:2]
    size = fitting_size(width, height)[::-1]
    images = [_shrink(torch.from_numpy(video[index]), size) for index in range(min(frames, len(video)))]
    return from_rgb(torch.cat(images))


def _shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image (H, W, 3), uint8, to one of (1, 3, *size), uint8."""
    resized = F.interpolate(image.permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).contiguous()


def fitting_size(width: int, height: int) -> tuple[int, int]:
    """Width and height, multiples of 8, of about the same shape with 128 pixels on the shorter side.

    >>> fitting_size(1920, 1080), fitting_size(480, 640)
    ((224, 128), (128, 168))
    """
    factor = SHORT_SIDE / min(width, height)
    sides = [round(side * factor / _STEP) * _STEP for side in (width, height)]
    return min(sides[0], LONGEST_SIDE), min(sides[1], LONGEST_SIDE)

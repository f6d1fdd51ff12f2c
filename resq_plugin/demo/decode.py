"""Frames of a user's video file, in the size and normalisation the demo net likes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from resq_plugin.demo.video import from_rgb
from resq_plugin.errors import ResQError
from resq_plugin.extras import need

__all__ = ["VideoError", "decode_video", "fitting_size"]

SHORT_SIDE = 128
LONGEST_SIDE = 384
_STEP = 8


class VideoError(ResQError, ValueError):
    """A file holds no video that the demo can use."""


def decode_video(path: Path, frames: int) -> Tensor:
    """Decode the first frames of a video.

    Args:
        path: any file that FFmpeg reads.
        frames: decode at most so many.

    Returns:
        Frames (T, 3, H, W), float32, normalised as `DemoNet` expects them, of about 128 pixels on the shorter side.

    Raises:
        VideoError: there is no such file, it holds no video, is damaged at its start, or has fewer than two frames.
        MissingExtraError: PyAV is not installed.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        msg = f"{path} {what}; --video takes a video file such as an .mp4 of at least two frames."
        raise VideoError(msg)
    av = need("av")
    images: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                found = ", ".join(stream.type for stream in container.streams) or "nothing"
                msg = f"{path} has no video stream, only {found}; --video takes a file with pictures, e.g. an .mp4."
                raise VideoError(msg)
            for frame in container.decode(video=0):
                width, height = fitting_size(frame.width, frame.height)
                # Every frame in the size of the first: a resolution may change in the middle of a file.
                height, width = images[0].shape[:2] if images else (height, width)
                rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
                images.append(torch.from_numpy(rgb.to_ndarray()))
                if len(images) == frames:
                    break
    except (av.FFmpegError, OSError) as error:
        # A file that breaks off still has its beginning.
        if len(images) < 2:
            msg = f"{path} cannot be decoded ({error}); --video takes a video file that FFmpeg plays, e.g. an .mp4."
            raise VideoError(msg) from error
    if len(images) < 2:
        msg = f"{path} has {len(images)} frame(s); residuals need at least two, so --video takes a longer one."
        raise VideoError(msg)
    return from_rgb(torch.stack(images).permute(0, 3, 1, 2).contiguous())


def fitting_size(width: int, height: int) -> tuple[int, int]:
    """Width and height, multiples of 8, of about the same shape with 128 pixels on the shorter side.

    >>> fitting_size(1920, 1080), fitting_size(480, 640)
    ((224, 128), (128, 168))
    """
    factor = SHORT_SIDE / min(width, height)
    sides = [round(side * factor / _STEP) * _STEP for side in (width, height)]
    return min(sides[0], LONGEST_SIDE), min(sides[1], LONGEST_SIDE)

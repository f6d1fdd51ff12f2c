"""A user's video as frames, and masks over it as a video."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resq_plugin.errors import FrameError
from resq_plugin.extras import need
from resq_vos.davis import PALETTE, read_frame

__all__ = ["frames_of", "overlay", "short_side", "video_size", "write_video"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def short_side(size: tuple[int, int], wanted: int) -> tuple[int, int]:
    """Return (H, W) of about the same shape with ``wanted`` pixels on the shorter side.

    >>> short_side((480, 854), 240), short_side((1920, 1080), 240)
    ((240, 427), (427, 240))
    """
    factor = wanted / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def _pictures(path: str | os.PathLike[str]) -> Iterator[Tensor]:
    """Frames (1, 3, H, W), RGB 0..1, of a folder of pictures or of a video file."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            msg = f"{path} has no pictures ({', '.join(SUFFIXES)}); give a video file or a folder of frames."
            raise FrameError(msg)
        yield from map(read_frame, files)
        return
    if not path.is_file():
        msg = f"{path} does not exist; give a video file or a folder of frames."
        raise FrameError(msg)
    av = need("av", "vos")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                msg = f"{path} has no video stream; give a video file such as an .mp4, or a folder of frames."
                raise FrameError(msg)
            for picture in container.decode(video=0):
                pixels = picture.to_ndarray(format="rgb24")
                yield _frame(pixels)
    except (av.FFmpegError, OSError) as error:
        msg = f"{path} cannot be decoded ({error}); give a video file that FFmpeg plays, or a folder of frames."
        raise FrameError(msg) from error


def _frame(pixels: NDArray[np.uint8]) -> Tensor:
    import torch  # noqa: PLC0415

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(255).unsqueeze(0).contiguous()


def video_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (H, W) of the first frame."""
    frame = next(_pictures(path), None)
    if frame is None:
        msg = f"{path} has no frame."
        raise FrameError(msg)
    return frame.shape[-2], frame.shape[-1]


def frames_of(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, frames: int | None = None
) -> Iterator[Tensor]:
    """Yield frames (1, 3, H, W), RGB 0..1, of a video file or a folder of pictures.

    Args:
        path: of the file or folder.
        size: (H, W) to resize to, smoothed.
        frames: at most so many.

    Raises:
        FrameError: it cannot be read, or a frame has another size than the first.
    """
    first: tuple[int, ...] | None = None
    for index, frame in enumerate(_pictures(path)):
        if index == frames:
            return
        first = first or tuple(frame.shape)
        if tuple(frame.shape) != first:
            msg = f"frame {index} of {path} has the size {tuple(frame.shape[-2:])}, the first {first[-2:]}."
            raise FrameError(msg)
        if size is not None and tuple(frame.shape[-2:]) != size:
            frame = F.interpolate(frame, size, mode="bilinear", antialias=True)  # noqa: PLW2901
        yield frame


def overlay(frame: Tensor, labels: NDArray[np.integer], strength: float = 0.5) -> NDArray[np.uint8]:
    """Paint labels over a frame.

    Args:
        frame: (1, 3, H, W), RGB 0..1.
        labels: (H, W).
        strength: of the colours, 0 to 1.

    Returns:
        (H, W, 3).
    """
    pixels = (frame[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()
    colours = np.array(PALETTE, dtype=np.float32).reshape(256, 3)[np.asarray(labels).astype(np.uint8)]
    painted = np.where((np.asarray(labels) > 0)[..., None], (1 - strength) * pixels + strength * colours, pixels)
    return painted.round().astype(np.uint8)


def write_video(path: str | os.PathLike[str], pictures: Iterable[NDArray[np.uint8]], rate: int = 24) -> None:
    """Write pictures (H, W, 3) as an H.264 video; odd sides are cut by one pixel, as the format wants."""
    av = need("av", "vos")
    part = Path(f"{os.fspath(path)}.part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(image))
        if stream is not None:
            container.mux(stream.encode())
    part.replace(path)

"""A looping film of schemes side by side, which every browser plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resq_plugin.errors import ReportError
from resq_plugin.extras import need
from resq_plugin.files import written

__all__ = ["tiles", "write_film", "write_strip"]

GAP = 4
TITLE = 22
"""Height of the line above each picture, in pixels."""
WIDEST = 1920
"""H.264 decoders of phones take no wider film."""


def write_film(path: Path, columns: Mapping[str, Sequence[Tensor]], *, rate: float = 10.0) -> Path:
    """Write pictures side by side as H.264 (yuv420p, MP4, fast start), two rows where there are more than three.

    Args:
        path: the .mp4 to write; folders above it are made.
        columns: title to pictures (3, H, W), uint8, of one size and number.
        rate: frames per second.

    Returns:
        The path.

    Raises:
        MissingExtraError: PyAV or Pillow is not installed.
        ReportError: pictures do not fit, or the file cannot be written.
    """
    av = need("av", "report")
    frames = tiles(columns)
    height, width = frames[0].shape[:2]
    with written(path, ReportError) as part:
        try:
            with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "23", "preset": "medium"}
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            msg = f"cannot write {path}: {error}; pass pictures that H.264 takes."
            raise ReportError(msg) from error
    return path


def write_strip(path: Path, columns: Mapping[str, Sequence[Tensor]], frames: Sequence[int]) -> Path:
    """Write some of the pictures as one PNG: a row for each scheme, a column for each frame.

    Args:
        path: the .png to write; folders above it are made.
        columns: title to pictures (3, H, W), uint8, of one size and number.
        frames: numbers of the frames that are shown.

    Raises:
        MissingExtraError: Pillow is not installed.
        ReportError: pictures do not fit, or the file cannot be written.
    """
    chosen = {name: [pictures[index] for index in frames] for name, pictures in columns.items()}
    rows = []
    for name, pictures in chosen.items():
        shown = {
            f"{name}, frame {index}" if place == 0 else f"frame {index}": [picture]
            for place, (index, picture) in enumerate(zip(frames, pictures, strict=True))
        }
        rows.append(torch.from_numpy(tiles(shown, len(shown))[0]).permute(2, 0, 1))
    image = _joined(rows, 1).permute(1, 2, 0).numpy()
    with written(path, ReportError) as part:
        need("PIL.Image", "report").fromarray(np.ascontiguousarray(image)).save(part, format="PNG")
    return path


def tiles(columns: Mapping[str, Sequence[Tensor]], across: int | None = None) -> list[NDArray[np.uint8]]:
    """Return frames (H, W, 3), uint8, of even size, with all pictures of a moment and their titles.

    Args:
        columns: title to pictures (3, H, W), uint8.
        across: how many stand side by side; up to three, or half of them.

    Raises:
        ReportError: there is no picture, or they differ in size or number.
    """
    shapes = {(len(pictures), *pictures[0].shape) for pictures in columns.values() if pictures}
    if len(shapes) != 1 or any(not pictures for pictures in columns.values()):
        found = {name: [tuple(picture.shape) for picture in pictures[:1]] for name, pictures in columns.items()}
        msg = f"the pictures of a film must be of one size and number; found {found}."
        raise ReportError(msg)
    ((count, _, height, width),) = shapes
    across = across or (len(columns) if len(columns) <= 3 else -(-len(columns) // 2))
    shrink = min(1.0, (WIDEST - GAP * (across - 1)) / (across * width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    titles = {name: _title(name, size[1]) for name in columns}
    frames = []
    for index in range(count):
        cells = [
            torch.cat([titles[name], _resized(pictures[index], size)], dim=1) for name, pictures in columns.items()
        ]
        blank = torch.full_like(cells[0], 255)
        cells += [blank] * (-len(cells) % across)
        rows = [_joined(cells[start : start + across], 2) for start in range(0, len(cells), across)]
        frame = _joined(rows, 1)
        frame = F.pad(frame, (0, frame.shape[2] % 2, 0, frame.shape[1] % 2), value=255)  # yuv420p halves both
        frames.append(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
    return frames


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    shape = list(parts[0].shape)
    shape[dim] = GAP
    gap = torch.full(shape, 255, dtype=torch.uint8)
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [gap, part]
    return torch.cat(joined, dim)


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[1:]) == size:
        return picture.cpu()
    resized = F.interpolate(picture[None].float().cpu(), size=size, mode="area")
    return resized[0].round().to(torch.uint8)


def _title(text: str, width: int) -> Tensor:
    """A line of text as a picture (3, TITLE, width); what is too long is cut at the end."""
    image_module, draw_module, font_module = (
        need(f"PIL.{name}", "report") for name in ("Image", "ImageDraw", "ImageFont")
    )
    image = image_module.new("RGB", (width, TITLE), "white")
    font = font_module.load_default(13)
    text = text.replace("→", "->")  # the font that comes with Pillow has no arrow
    shown = text
    while shown and font.getlength(shown) > width - 4:
        shown = shown[:-1]
    draw_module.Draw(image).text((2, 3), shown if shown == text else shown[:-1] + "…", fill="#1f2430", font=font)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

"""Video files for tests, as cameras and editors make them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

HEIGHT, WIDTH = 48, 64
LOSSLESS = {"codec": "libx264rgb", "pixels": "rgb24", "qp": "0"}
"""Keyword arguments of `encode` for H.264 whose frames are `pictures` bit for bit."""
ONE = 0x10000


def pictures(count: int) -> list[np.ndarray]:
    """Pictures (48, 64, 3) that brighten by 5 per frame, with a block that moves and noise that is hard to encode."""
    generator = np.random.default_rng(0)
    found = []
    for t in range(count):
        picture = np.full((HEIGHT, WIDTH, 3), 5 * t % 256, np.uint8)
        picture[8:24, t % 40 : t % 40 + 16] = (255 - 5 * t % 256, 40, 200)
        picture[30:] = generator.integers(0, 255, (HEIGHT - 30, WIDTH, 3))
        found.append(picture)
    return found


def encode(
    path: Path,
    codec: str = "libx264",
    frames: int | Sequence[np.ndarray] = 41,
    *,
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write a film at 25 frames per second; ``times`` in 1/1000 s give each frame another moment."""
    shown = pictures(frames) if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *shown[0].shape[:2], pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if times else 25)
        for t, picture in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[t], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded(path: Path, layout: str = "rgb24") -> list[np.ndarray]:
    """All frames as FFmpeg gives them, one after the other."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=layout) for frame in container.decode(video=0)]


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an .mp4: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0
    data[start : start + 36] = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    turned = path.with_name(f"matrix_{a}_{b}_{c}_{d}.mp4")
    turned.write_bytes(data)
    return turned


def copied_from(path: Path, target: Path, cut: int, *, keep_earlier: bool) -> Path:
    """Copy the packets of a film so that it begins at time ``cut`` of its stream, without encoding it again.

    With ``keep_earlier`` they get negative times, which .mp4 hides by an edit list, as ``ffmpeg -ss 1 -i IN -c copy``
    does; without it packets before the keyframe at that time are not there.
    """
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        packets: list[Any] = [packet for packet in source.demux(template) if packet.dts is not None]
        if not keep_earlier:
            packets = packets[next(i for i, packet in enumerate(packets) if packet.pts == cut) :]
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, stream
            out.mux(packet)
    return target


def cut_off(path: Path, share: float) -> Path:
    """Write the first part of a file's bytes beside it."""
    target = path.with_name(f"cut_{path.name}")
    target.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return target


def sound(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 8000
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path

"""Which frames a video file shows, and when."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from resq_plugin.errors import VideoError
from resq_plugin.video.truncation import missing_bytes

__all__ = ["ADVICE", "FrameIndex", "frame_index", "open_video", "reason", "video_stream"]

ADVICE = "give a video file such as an .mp4, or a folder of frames."

SEEKABLE = {"mov", "matroska", "mpegts"}
"""Containers with a true time of every picture; elsewhere times shift after a seek."""
REORDERED = 16
"""The most pictures that may be stored after one that is shown later (H.264)."""
INDEXED = {"mov", "matroska"}
"""Containers that store whole pictures with their times, so that nothing need be decoded to count them."""
ONE_PICTURE_PER_PACKET = {
    *("h264", "hevc", "vvc", "av1", "vp9", "mjpeg", "prores", "dnxhd", "ffv1", "huffyuv", "png", "rawvideo"),
}
"""Others have packets that show nothing, such as the alternate reference frames of VP8."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames that a player shows, in their order.

    Attributes:
        times: presentation times in units of the stream, rising; or the frames' numbers when they have none.
        keyframes: times to which one may go, rising; None when times are numbers and one must start at the beginning.
        broken: where and why the frames end too early; empty when the file is whole.
    """

    times: list[int]
    keyframes: list[int] | None
    broken: str = ""


def open_video(av: Any, path: str) -> Any:
    """Open a container; a name such as ``a:b.mp4`` is no protocol."""
    return av.open(f"file:{path}")


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, without number and function."""
    return str(getattr(error, "strerror", None) or error)


def video_stream(container: Any, path: str, advice: str = ADVICE) -> Any:
    """Return the first video stream that is not a cover picture.

    Args:
        container: an open one.
        path: its name in messages.
        advice: what they end in.

    Raises:
        VideoError: there is none, or the file is an image.
    """
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        found = ", ".join(kinds).replace("video", "a cover picture") or "nothing"
        msg = f"{path} has no video stream, only {found}; {advice}"
        raise VideoError(msg)
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        msg = f"{path} is an image, not a video (frames may lie in a folder); {advice}"
        raise VideoError(msg)
    return streams[0]


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def frame_index(av: Any, path: str, advice: str = ADVICE) -> FrameIndex:
    """Find the frames of a file: by its packets where they tell, else by decoding it once.

    Args:
        av: the package.
        path: a file.
        advice: what messages end in.

    Raises:
        VideoError: there is no video.
        av.FFmpegError, OSError: the file cannot be read at all.
    """
    missing = missing_bytes(path)
    with open_video(av, path) as container:
        if missing and not container.streams:
            msg = "its index is missing"
            raise OSError(msg)
        stream = video_stream(container, path, advice)
        formats = set(container.format.name.split(","))
        told = INDEXED & formats and stream.codec_context.codec.canonical_name in ONE_PICTURE_PER_PACKET
        found = _by_packets(av, path, container, stream) if told and not missing else None
    if found is None:
        found = _by_decoding(av, path, is_seekable=bool(SEEKABLE & formats), missing=missing)
    if missing:
        size = os.path.getsize(path)
        broken = f"{found.broken}; {missing} of {size + missing} bytes are missing"
        found = FrameIndex(found.times, found.keyframes, broken)
    return found


def _by_packets(av: Any, path: str, container: Any, stream: Any) -> FrameIndex | None:
    """Times of the packets that are shown; None when they do not tell the whole truth."""
    try:
        packets = [packet for packet in container.demux(stream) if packet.size]
    except av.FFmpegError:
        return None
    # An edit list hides packets that are needed for decoding only.
    shown = [packet for packet in packets if not packet.is_discard]
    times = [packet.pts for packet in shown]
    if not times or None in times or len(set(times)) < len(times) or packets[-1].is_corrupt:
        return None
    with open_video(av, path) as again:
        first = next(again.decode(video_stream(again, path)), None)
    # What comes before the first keyframe, or refers to frames before it, is not shown.
    if first is None or first.pts not in times:
        return None
    keyframes = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
    return FrameIndex(sorted(time for time in times if time >= first.pts), keyframes)


def _by_decoding(av: Any, path: str, *, is_seekable: bool, missing: int) -> FrameIndex:
    shown: list[Any] = []
    delayed: list[Any] = []  # what the decoder held back for pictures that are stored later and shown before
    broken = "the end of the file is missing" if missing else ""
    with open_video(av, path) as container:
        stream = video_stream(container, path)
        try:
            for packet in container.demux(stream):
                pictures = [_Picture(frame) for frame in packet.decode()]
                (shown if packet.size else delayed).extend(pictures)
        except (av.FFmpegError, OSError) as error:
            broken = reason(error)
    last = [place for place, picture in enumerate(shown + delayed) if picture.is_corrupt]
    if last and last[-1] >= len(shown + delayed) - REORDERED:  # elsewhere it is told when that frame is read
        broken = broken or "the last pictures are damaged"
    # A file that is cut ends in damage, and pictures that were held back would follow ones that are lost.
    pictures = shown if broken else shown + delayed
    damaged = [place for place in last if broken and place >= len(pictures) - REORDERED]
    pictures = pictures[: damaged[0]] if damaged else pictures
    times = [picture.time for picture in pictures]
    if is_seekable and None not in times and all(a < b for a, b in pairwise(times)):
        return FrameIndex(times, [picture.time for picture in pictures if picture.is_keyframe], broken)
    return FrameIndex(list(range(len(times))), None, broken)


class _Picture:
    """What is to be known of a decoded picture, without its pixels."""

    def __init__(self, frame: Any) -> None:
        self.time, self.is_corrupt, self.is_keyframe = frame.pts, frame.is_corrupt, bool(frame.key_frame)

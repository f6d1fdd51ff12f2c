"""Frames of a video file in any order, as a player shows them."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

from resq_plugin.errors import VideoError
from resq_plugin.extras import need
from resq_plugin.video.display import Pixels, display_matrix, is_right_angled, upright
from resq_plugin.video.folder import ARRAY_SUFFIXES, IMAGE_SUFFIXES, has_suffix
from resq_plugin.video.index import ADVICE, frame_index, open_video, reason, video_stream
from resq_plugin.video.truncation import missing_bytes

__all__ = ["VideoFile"]

_OPEN: weakref.WeakSet[VideoFile] = weakref.WeakSet()
_INHERITED: list[object] = []
"""Decoders of a parent process. Freeing one waits for its threads, which a fork does not have: it hangs or crashes."""


class VideoFile:
    """A video file as a sequence of frames (H, W, 3), uint8: frame i is what a player shows as frame i.

    - Rotation and mirroring that the container asks for are applied (phones store upright films sideways); an angle
      that is no multiple of 90 degrees is refused.
    - Frames that an edit list hides (films cut without encoding them again) are no frames, nor is a cover picture.
    - Every picture is one frame, however long it is shown: a variable frame rate changes nothing.
    - Pixels are those that are stored: ones that are not square stay so, interlaced lines are not separated, HDR is
      not mapped to another range of brightness. A picture of another size in the middle is scaled to the first one's.

    Frames may be asked for in any order: the decoder goes back to a keyframe and decodes from there, or from the start
    where the file does not tell its times (AVI, raw streams); frame after frame costs one decoding each. Files whose
    packets do not tell how many pictures they hold (all but MP4, MOV and Matroska with common codecs) are decoded once
    when they are opened. May be used by several threads, and pickled or forked into processes, which open their own.

    Args:
        path: any file that FFmpeg reads.
        order: of the channels; OpenCV and mmcv have ``bgr``.
        partial: take a file whose end is missing or damaged for what there is of it; `broken` then tells.
        advice: what messages end in, such as what the caller takes.

    Attributes:
        path: the file.
        broken: where and why the frames end too early; empty for a whole file.

    Raises:
        VideoError: there is no such file, it holds no video or is damaged; the message tells where.
        MissingExtraError: PyAV is not installed (extra ``video``).
    """

    def __init__(
        self, path: str | os.PathLike[str], *, order: str = "rgb", partial: bool = False, advice: str = ADVICE
    ) -> None:
        self.path, self._settings, self._advice = os.fspath(path), {"order": order, "partial": partial}, advice
        self._format = f"{order}24"
        if not os.path.isfile(self.path):
            msg = f"{self.path} {'is a folder' if os.path.isdir(self.path) else 'does not exist'}; {advice}"
            raise VideoError(msg)
        _refuse_others(self.path, advice)
        self._av = need("av", "video")
        try:
            index = frame_index(self._av, self.path, advice)
            self._times, self._keyframes = index.times, index.keyframes
            self._open()
        except (self._av.FFmpegError, OSError) as error:
            missing = missing_bytes(self.path)
            lost = f"; {missing} bytes at its end are missing" if missing else ""
            raise VideoError(self._unreadable(reason(error) + lost)) from error
        if not self._times:
            raise VideoError(self._unreadable(index.broken or "it holds no picture"))
        count = len(self)
        self.broken = f"breaks off after {count} whole frames ({index.broken})." if index.broken else ""
        if self.broken and not partial:
            msg = (
                f"{self.path} {self.broken} Get the whole file, or take its beginning: frames={count} in "
                f"resq_plugin.video.read, or as a file of its own: ffmpeg -i IN -frames:v {count} OUT.mp4"
            )
            raise VideoError(msg)
        first = self._picture(0)
        self._matrix, self._size = display_matrix(first), (first.width, first.height)
        if not is_right_angled(self._matrix):
            msg = (
                f"{self.path} is to be shown turned by {first.rotation} degrees; only multiples of 90 keep their "
                "pixels. Encode it again: ffmpeg -i IN OUT.mp4"
            )
            raise VideoError(msg)

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._container = open_video(self._av, self.path)
        self._stream = video_stream(self._container, self.path)
        self._pictures: Iterator[Any] = iter(())
        self._next, self._process = -1, os.getpid()
        _OPEN.add(self)

    def __del__(self) -> None:
        """Close the decoder now, by its process: left to the garbage collector, a fork might inherit it as garbage."""
        if getattr(self, "_process", None) == os.getpid():
            self._pictures = iter(())
            self._container.close()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._times)

    def __getitem__(self, index: int) -> Pixels:
        """Decode one frame.

        Raises:
            VideoError: there is no such frame, or it is damaged.
        """
        if not 0 <= index < len(self):
            msg = f"{self.path} has frames 0 to {len(self) - 1}; frame {index} was asked for."
            raise VideoError(f"{msg} It {self.broken}" if self.broken else msg)
        if os.getpid() != self._process:  # a fork: the decoder and its lock belong to the parent
            self._open()
        with self._lock:
            picture = self._picture(index)
        width, height = self._size
        if (picture.width, picture.height) != self._size:
            picture = picture.reformat(width=width, height=height)
        pixels: Pixels = picture.to_ndarray(format=self._format)
        return upright(pixels, self._matrix)

    def __iter__(self) -> Iterator[Pixels]:
        """Yield all frames in order."""
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> Any:
        return _opened, (self.path, self._settings)

    @property
    def rate(self) -> float | None:
        """Frames per second on average; None where the file does not tell."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    def _picture(self, index: int) -> Any:
        """Decode picture ``index``; the one after the last costs one decoding."""
        follows, self._next = index == self._next, -1
        try:
            picture: Any = next(self._pictures, None) if follows else self._seek(index)
            if not self._is(picture, index):  # the seek went too far, or came out elsewhere
                picture = self._from_start(index)
        except (self._av.FFmpegError, OSError) as error:
            msg = f"{self._name(index)} cannot be decoded ({reason(error)}); the file is damaged."
            raise VideoError(msg) from error
        if not self._is(picture, index):
            msg = f"{self._name(index)} is not there; the file is damaged. Encode it again: ffmpeg -i IN OUT.mp4"
            raise VideoError(msg)
        if picture.is_corrupt:
            msg = f"{self._name(index)} is damaged; leave it out, or encode the file again: ffmpeg -i IN OUT.mp4"
            raise VideoError(msg)
        self._next = index + 1
        return picture

    def _is(self, picture: Any, index: int) -> bool:
        return picture is not None and (self._keyframes is None or picture.pts == self._times[index])

    def _seek(self, index: int) -> Any:
        if not self._keyframes or index == 0:
            return self._from_start(index)
        time = self._times[index]
        before = self._keyframes[max(bisect_right(self._keyframes, time) - 1, 0)]
        self._container.seek(before, stream=self._stream, backward=True)
        self._pictures = self._container.decode(self._stream)
        return next((picture for picture in self._pictures if picture.pts is None or picture.pts >= time), None)

    def _from_start(self, index: int) -> Any:
        """Open the file again: not every container can go back to its start."""
        self._container.close()
        self._container = open_video(self._av, self.path)
        self._stream = video_stream(self._container, self.path)
        self._pictures = self._container.decode(self._stream)
        if self._keyframes is None:
            return next(islice(self._pictures, index, None), None)
        return next((picture for picture in self._pictures if picture.pts >= self._times[index]), None)

    def _seconds(self, index: int) -> str:
        if self._keyframes is None:
            return ""
        return f" ({float((self._times[index] - self._times[0]) * Fraction(self._stream.time_base)):.2f} s)"

    def _name(self, index: int) -> str:
        return f"frame {index}{self._seconds(index)} of {len(self)} in {self.path}"

    def _unreadable(self, why: str) -> str:
        return f"{self.path} cannot be read as a video: it cannot be decoded ({why}); {self._advice}"


def _refuse_others(path: str, advice: str) -> None:
    """Refuse files whose names say that they hold something else, which FFmpeg would tell in its own words."""
    if has_suffix(path, IMAGE_SUFFIXES):
        msg = f"{path} is an image, not a video; give its folder {os.path.dirname(path) or '.'}; {advice}"
        raise VideoError(msg)
    if has_suffix(path, ARRAY_SUFFIXES):
        msg = f"{path} holds arrays, not a video; numpy.load reads it; {advice}"
        raise VideoError(msg)


def _after_fork() -> None:
    _INHERITED.extend((file._container, file._stream, file._pictures) for file in list(_OPEN))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _opened(path: str, settings: dict[str, Any]) -> VideoFile:
    return VideoFile(path, **settings)

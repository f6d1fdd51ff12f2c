"""Frames of a video file in any order, also as files that every pipeline reads: ``resq-video://film.mp4#12``."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend
from resq_mmengine.video_dataset import DatasetError

from resq_plugin.extras import need

__all__ = ["VideoBackend", "VideoFile", "frame_uri"]

PREFIX = "resq-video"
OPEN_FILES = 8
"""Video files that one process keeps open."""


class VideoFile:
    """A video file as a sequence of frames (H, W, 3), uint8, BGR.

    Frames may be asked for in any order: the decoder goes back to the last frame that stands alone and decodes from
    there, or from the start where the file does not tell its times; frame after frame costs one decoding each. Safe in
    threads; a process must open its own.

    Raises:
        DatasetError: the file cannot be read or holds no video.
        MissingExtraError: PyAV is not installed (extra ``report``).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._av = need("av")
        self._lock = threading.Lock()
        try:
            self._times, self._timed = self._frame_times()
            self._container = self._av.open(self.path)
        except (self._av.FFmpegError, OSError, IndexError) as error:
            msg = f"{self.path} cannot be read as a video ({error}); give a file that FFmpeg plays, e.g. an .mp4."
            raise DatasetError(msg) from error
        self._stream = self._container.streams.video[0]
        self._frames: Any = iter(())
        self._next = -1

    def _frame_times(self) -> tuple[list[int], bool]:
        """Presentation times of all frames in order, and whether the packets tell them without decoding."""
        with self._av.open(self.path) as container:
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            if all(packet.pts is not None for packet in packets):
                return sorted(packet.pts for packet in packets), True
        with self._av.open(self.path) as container:
            return [frame.pts for frame in container.decode(video=0)], False

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._times)

    def __getitem__(self, index: int) -> np.ndarray:
        """Decode one frame."""
        if not 0 <= index < len(self):
            msg = f"{self.path} has frames 0 to {len(self) - 1}; frame {index} was asked for."
            raise DatasetError(msg)
        with self._lock:
            follows, self._next = index == self._next, -1
            try:
                frame = self._decode(index, None if follows else self._times[index])
                if frame is None or frame.pts != self._times[index]:  # the seek went too far
                    frame = self._decode(index, self._times[0])
            except self._av.FFmpegError as error:
                msg = f"frame {index} of {len(self)} in {self.path} cannot be decoded ({error}); the file is damaged."
                raise DatasetError(msg) from error
            if frame is None or frame.pts != self._times[index]:
                msg = (
                    f"frame {index} of {len(self)} in {self.path} is not there; re-encode it: ffmpeg -i IN.mp4 OUT.mp4"
                )
                raise DatasetError(msg)
            self._next = index + 1
            return frame.to_ndarray(format="bgr24")

    def _decode(self, index: int, start: int | None) -> Any:
        """Return the first frame that is not before frame ``index``, after going to a time unless None."""
        if start is not None:
            self._container.seek(start if self._timed else self._times[0], stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
        return next((frame for frame in self._frames if frame.pts >= self._times[index]), None)


@lru_cache(maxsize=OPEN_FILES)
def _open(path: str, process: int) -> VideoFile:  # noqa: ARG001 -- a forked worker must not share the decoder
    return VideoFile(path)


def frame_uri(path: str | Path, index: int) -> str:
    """Name one frame of a video file as a file.

    >>> frame_uri("films/a.mp4", 12)
    'resq-video://films/a.mp4#12'
    """
    return f"{PREFIX}://{path}#{index}"


@register_backend(PREFIX, prefixes=PREFIX)
class VideoBackend(BaseStorageBackend):
    """File backend by which ``LoadImageFromFile`` and ``LoadImage`` of any pipeline read a frame of a video file."""

    def get(self, filepath: str) -> bytes:
        """Return the frame as a bitmap file."""
        path, _, index = str(filepath).removeprefix(f"{PREFIX}://").rpartition("#")
        done, encoded = cv2.imencode(".bmp", _open(path, os.getpid())[int(index)])
        if not done:
            msg = f"frame {index} of {path} cannot be encoded as a bitmap."
            raise DatasetError(msg)
        return encoded.tobytes()

    def get_text(self, filepath: str, encoding: str = "utf-8") -> str:  # noqa: ARG002 -- the signature of the base
        """Refuse: a frame is no text."""
        msg = f"{filepath} is a frame of a video, not a text."
        raise DatasetError(msg)

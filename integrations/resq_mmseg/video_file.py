"""Frames of a video file in any order, also as files that every pipeline reads: ``resq-video://film.mp4#12``."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend
from resq_mmengine.video_dataset import DatasetError, video_errors

from resq_plugin import video

__all__ = ["VideoBackend", "VideoFile", "frame_uri"]

PREFIX = "resq-video"
OPEN_FILES = 8
"""Video files that one process keeps open."""


class VideoFile(video.VideoFile):
    """A video file as a sequence of frames (H, W, 3), uint8, BGR as mmcv has them.

    What a frame is and how it is found: `resq_plugin.video.VideoFile`.

    Raises:
        DatasetError: the file cannot be read, breaks off or holds no video; there is no such frame, or it is damaged.
        MissingExtraError: PyAV is not installed (extra ``video``).
    """

    def __init__(self, path: str | Path) -> None:
        with video_errors():
            super().__init__(path, order="bgr")

    def __getitem__(self, index: int) -> np.ndarray:
        """Decode one frame."""
        with video_errors():
            return super().__getitem__(index)

    def __reduce__(self) -> Any:
        return VideoFile, (self.path,)


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

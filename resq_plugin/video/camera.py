"""Frames of a camera of this machine, as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from resq_plugin.errors import VideoError
from resq_plugin.extras import need
from resq_plugin.video.display import Pixels
from resq_plugin.video.index import reason, video_stream

__all__ = ["Camera"]

FORMATS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


class Camera:
    """Pictures (H, W, 3), RGB, uint8, of a camera; it is open while one iterates over it.

    Args:
        index: number of the camera, from 0.

    Raises:
        VideoError: there is no such camera, or it is in use.
        MissingExtraError: PyAV is not installed (extra ``video``).
    """

    def __init__(self, index: int) -> None:
        self._av = need("av", "video")
        self.index = index
        self._format, name = FORMATS.get(sys.platform, FORMATS["linux"])
        self._name = name.format(index)
        self._open().close()

    def _open(self) -> Any:
        try:
            return self._av.open(self._name, format=self._format)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            msg = f"camera {self.index} ({self._format} {self._name}) cannot be opened ({reason(error)}); "
            raise VideoError(msg + "give the number of one that is there and free, or a video file.") from error

    def __iter__(self) -> Iterator[Pixels]:
        """Open the camera and yield its pictures until it stops."""
        with self._open() as container:
            try:
                for picture in container.decode(video_stream(container, self._name)):
                    yield picture.to_ndarray(format="rgb24")
            except (self._av.FFmpegError, OSError) as error:
                msg = f"camera {self.index} stopped ({reason(error)})."
                raise VideoError(msg) from error

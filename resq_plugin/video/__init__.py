"""Files, folders and cameras as frames: `read` for networks, `VideoFile` and `ImageFolder` for pictures."""

from __future__ import annotations

from resq_plugin.video.camera import Camera
from resq_plugin.video.file import VideoFile
from resq_plugin.video.folder import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ImageFolder,
    frame_files,
    has_suffix,
    is_hidden,
    natural_key,
    read_image,
    video_sources,
)
from resq_plugin.video.frames import CameraFrames, Frames, read

__all__ = [
    "ARRAY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Camera",
    "CameraFrames",
    "Frames",
    "ImageFolder",
    "VideoFile",
    "frame_files",
    "has_suffix",
    "is_hidden",
    "natural_key",
    "read",
    "read_image",
    "video_sources",
]

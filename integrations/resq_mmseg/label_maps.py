"""Label maps of one video, found by the names of its frames as `FrameFolder` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from resq_mmengine.video_dataset import DatasetError, check_depth
from torch import Tensor

from resq_mmseg.frame_folder import unpadded
from resq_plugin.video import frame_files

__all__ = ["label_maps"]


def label_maps(folder: Path, video: Path, frames: int, size: tuple[int, int]) -> list[Tensor | None]:
    """Return the label map (1, H, W) of each frame of a video, or None where there is none.

    Args:
        folder: of PNG files, each called as its frame (``12.png``, zeros in front do not matter), in a folder of the
            video's name where it is for several videos; frames of a video file count from 0.
        video: a video file or a folder of frames.
        frames: how many there are.
        size: (H, W) of a frame as it is shown.

    Raises:
        DatasetError: no label belongs to a frame, or a file is no label map of its size with classes of 8 bits.
    """
    files = frame_files(folder, (".png",), recursive=True)
    found = {unpadded(path.relative_to(folder).as_posix().rpartition(".")[0]): path for path in files}
    stems = [path.stem for path in frame_files(video)] if video.is_dir() else [str(index) for index in range(frames)]
    clip = video.name if video.is_dir() else video.stem
    maps: list[Tensor | None] = []
    for stem in stems[:frames]:
        path = found.get(unpadded(f"{clip}/{stem}")) or found.get(unpadded(stem))
        maps.append(None if path is None else _read(path, size))
    if not any(label is not None for label in maps):
        first = files[0] if files else "none"
        msg = (
            f"no label in {folder} belongs to a frame of {video}: labels are called like {first}, frames like "
            f"{clip}/{stems[0] if stems else 0}; call them {clip}/{stems[0] if stems else 0}.png."
        )
        raise DatasetError(msg)
    return maps


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    try:
        check_depth(str(path))
        values = np.array(Image.open(path))
    except (OSError, UnidentifiedImageError) as error:
        msg = f"{path} cannot be read as a label map ({error}); write the class of each pixel as an 8-bit PNG."
        raise DatasetError(msg) from error
    if values.ndim != 2:
        msg = f"{path} has shape {values.shape}; a label map has one channel, the class of each pixel."
        raise DatasetError(msg)
    if values.shape != size:
        found, expected = ("{}×{}".format(*shape) for shape in (values.shape, size))
        msg = f"{path} is {found}, its frame {expected}; write labels in the size and rotation in which it is shown."
        raise DatasetError(msg)
    return torch.from_numpy(values.astype(np.int64))[None]

"""Any video: a folder of frames, a folder of such folders, or video files, with labels on some frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from resq_mmengine.video_dataset import DatasetError

from resq_mmseg.registry import DATASETS
from resq_mmseg.video import SegmentationFrame, SegmentationVideo
from resq_mmseg.video_file import VideoFile, frame_uri
from resq_plugin.errors import ConfigError
from resq_plugin.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, frame_files, has_suffix, video_sources

__all__ = ["FrameFolder", "unpadded"]

logger = logging.getLogger(__name__)

SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES


@DATASETS.register_module()
class FrameFolder(SegmentationVideo):
    """Frames of one or more videos, with labels on some of them.

    ``data_prefix['img_path']`` is one of these, and ``seg_map_path``, if given, holds a label map for any frame::

        folder of frames             img_path/00012.png            label  seg_map_path/00012.png
        folder of folders of frames  img_path/street/00012.png     label  seg_map_path/street/00012.png
        video file                   img_path = film.mp4           label  seg_map_path/film/12.png
        folder of video files        img_path/film.mp4             label  seg_map_path/film/12.png

    A folder or a video file is one clip. Frames of a folder are in natural order (9 before 10); those of a video file
    count from 0 as a player shows them, and its labels may be padded with zeros. Video files are decoded when a frame
    is asked for. Suffixes may be in capitals; hidden files and those of desktops (``._00012.png``) are left out.

    Args:
        step: difference of the numbers at the end of the names of consecutive frames; another difference, or another
            text before the number, starts a new clip. None takes all frames of a folder as consecutive.
        img_suffix: suffixes of frames and video files, in capitals or not.
        kwargs: those of `SegmentationVideo`; give the classes as ``metainfo=dict(classes=(...), palette=[...])``.

    Raises:
        DatasetError: nothing is found, no label belongs to a frame, or two frames, clips or labels have one name.
    """

    def __init__(
        self,
        *,
        step: int | None = None,
        img_suffix: str | Sequence[str] = IMAGE_SUFFIXES + VIDEO_SUFFIXES,
        **kwargs: Any,
    ) -> None:
        if step is not None and (not isinstance(step, int) or step < 1):
            msg = f"step={step!r} must be the difference of consecutive frame numbers, e.g. 1, or None."
            raise ConfigError(msg)
        self.step = step
        suffixes = (img_suffix,) if isinstance(img_suffix, str) else tuple(img_suffix)
        super().__init__(img_suffix=suffixes, **kwargs)

    def find_frames(self) -> Iterator[SegmentationFrame]:
        """Find the frames of all clips."""
        root = Path(self.data_prefix["img_path"])
        if not root.exists():
            msg = f"{root} does not exist; data_prefix=dict(img_path=...) takes a folder of frames or a video file."
            raise DatasetError(msg)
        labels = self._labels()
        sources = self._sources(root)
        _refuse_twins((_clip_name(root, path), str(path)) for path in sources)
        frames = [frame for path in sources for frame in self._clip(root, path, labels)]
        _refuse_twins((unpadded(frame.name), frame.image) for frame in frames)
        used = {frame.label for frame in frames} - {None}
        if labels and not used:
            first = next(iter(labels.values()))
            msg = f"no label belongs to a frame: labels are called like {first}, frames like {frames[0].name}."
            raise DatasetError(msg)
        if len(used) < len(labels):
            stray = next(path for path in labels.values() if path not in used)
            logger.warning("%d labels belong to no frame, first %s", len(labels) - len(used), stray)
        return iter(frames)

    def _labels(self) -> dict[str, str]:
        """Labels by the name of their frame; numbers without padding."""
        folder = self.data_prefix.get("seg_map_path")
        if not folder:
            return {}
        paths = frame_files(folder, (self.seg_map_suffix,), recursive=True)
        if not paths:
            msg = f"no label *{self.seg_map_suffix} in {folder}; leave out seg_map_path for a video without labels."
            raise DatasetError(msg)
        labels: dict[str, str] = {}
        for path in paths:
            name = unpadded(path.relative_to(folder).as_posix()[: -len(self.seg_map_suffix)])
            if name in labels:
                msg = f"{labels[name]} and {path} are labels of one frame; keep one of them."
                raise DatasetError(msg)
            labels[name] = str(path)
        return labels

    def _sources(self, root: Path) -> list[Path]:
        """Folders of frames and video files, in natural order."""
        return video_sources(root, self.img_suffix)

    def _clip(self, root: Path, path: Path, labels: dict[str, str]) -> Iterator[SegmentationFrame]:
        clip = _clip_name(root, path)
        if path.is_file():
            for index in range(len(VideoFile(path))):
                name = f"{clip}/{index}"
                yield SegmentationFrame(clip, index, name, frame_uri(path, index), labels.get(unpadded(name)))
            return
        files = [file for file in frame_files(path, self.img_suffix) if not has_suffix(file, VIDEO_SUFFIXES)]
        for part, members in groupby(_numbered(files, self.step), key=lambda member: member[0]):
            for index, (_, file) in enumerate(members):
                name = file.relative_to(root).as_posix()
                name = name[: -len(next(suffix for suffix in self.img_suffix if has_suffix(name, (suffix,))))]
                label = labels.get(unpadded(name))
                yield SegmentationFrame("/".join(filter(None, (clip, part))), index, name, str(file), label)


def _clip_name(root: Path, path: Path) -> str:
    name = path.name if path == root else path.relative_to(root).as_posix()
    return name.removesuffix(path.suffix) if path.is_file() else name


def _refuse_twins(named: Iterable[tuple[str, str]]) -> None:
    """Refuse ``0.jpg`` beside ``0.png``, and ``film.mp4`` beside ``film.mov`` or ``film/``."""
    known: dict[str, str] = {}
    for name, path in named:
        first = known.setdefault(name, path)
        if first != path:
            msg = (
                f"{first} and {path} are both called {name}, so that clips and labels cannot be told apart; rename "
                "one, or choose by suffix, e.g. img_suffix='.png'."
            )
            raise DatasetError(msg)


def _numbered(files: list[Path], step: int | None) -> Iterator[tuple[str, Path]]:
    """Each file with the stem of the first file of its clip, or '' when all files are one clip."""
    start, last = "", None
    for file in files:
        if step is not None:
            match = re.fullmatch(r"(.*?)(\d+)", file.stem)
            if match is None:
                msg = f"step={step} needs a number at the end of a frame's name, but there is {file}."
                raise DatasetError(msg)
            found = match[1], int(match[2])
            if last is None or found != (last[0], last[1] + step):
                start = file.stem
            last = found
        yield start, file


def unpadded(name: str) -> str:
    """The name with its last part, when a number, without leading zeros."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + (str(int(last)) if last.isdigit() else last)

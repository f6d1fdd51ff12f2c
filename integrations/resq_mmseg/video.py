"""Base of the segmentation videos: from found frames to the data infos of MMSeg."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from resq_mmengine.video_dataset import DatasetError, VideoDataset, require_files

__all__ = ["SegmentationFrame", "SegmentationVideo"]


@dataclass(frozen=True)
class SegmentationFrame:
    """One frame that a dataset found.

    Attributes:
        clip: its clip.
        index: its number in the clip; a gap starts a new interval.
        name: unique in the dataset, a relative path without suffix; pseudo-labels are called so.
        image: what ``LoadImageFromFile`` reads.
        label: label map, or None.
    """

    clip: str
    index: int
    name: str
    image: str
    label: str | None


class SegmentationVideo(VideoDataset, BaseSegDataset):
    """MMSeg dataset of consecutive frames, some or all of them labelled. Files are local.

    Args:
        pseudo_label_dir: folder with a label map ``{frame name}.png`` for every frame that has no label, made by
            ``python -m resq_mmseg.pseudo_labels`` (§5.2); below ``data_root`` unless absolute.
        still_frames: T; every labelled picture is shown as a clip of so many frames, to train on stills with
            `resq_mmseg.RandomCamera`. What lies between them is not used.
        kwargs: those of MMSeg's ``BaseSegDataset``.

    Raises:
        DatasetError: no frame is found, or files are missing.
    """

    def __init__(self, *, pseudo_label_dir: str | None = None, still_frames: int | None = None, **kwargs: Any) -> None:
        self.pseudo_label_dir, self.still_frames = None, still_frames
        if pseudo_label_dir is not None:
            self.pseudo_label_dir = Path(kwargs.get("data_root") or ".") / pseudo_label_dir
        super().__init__(**kwargs)

    def find_frames(self) -> Iterable[SegmentationFrame]:
        """Find all frames of all clips, each clip in order of time."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict]:
        """Return the data infos of all frames."""
        frames = list(self.find_frames())
        if not frames:
            msg = f"{type(self).__name__} found no frame in {self.data_prefix.get('img_path')}; see its docstring."
            raise DatasetError(msg)
        infos = [self._info(frame) for frame in frames]
        if self.pseudo_label_dir is not None:
            made = [info["seg_map_path"] for info, frame in zip(infos, frames, strict=True) if frame.label is None]
            hint = "Make them with `python -m resq_mmseg.pseudo_labels CONFIG CHECKPOINT --out DIR`."
            require_files(made, "pseudo-labels", hint)
        if self.still_frames is not None:
            infos = [
                info | {"clip_id": f"{info['clip_id']}/{info['frame_name']}", "frame_index": position}
                for info in infos
                if info["labelled"]
                for position in range(self.still_frames)
            ]
        return infos

    def _info(self, frame: SegmentationFrame) -> dict:
        label = frame.label
        if label is None and self.pseudo_label_dir is not None:
            label = str(self.pseudo_label_dir / f"{frame.name}.png")
        info = {
            "img_path": frame.image,
            "clip_id": frame.clip,
            "frame_index": frame.index,
            "frame_name": frame.name,
            "labelled": label is not None,
            "label_map": self.label_map,
            "reduce_zero_label": self.reduce_zero_label,
            "seg_fields": [],
        }
        return info if label is None else info | {"seg_map_path": label}

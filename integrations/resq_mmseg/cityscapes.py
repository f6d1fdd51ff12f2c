"""Cityscapes snippets: 30 frames around each labelled frame (leftImg8bit_sequence)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import CityscapesDataset
from resq_mmengine.video_dataset import DatasetError, require_files

from resq_mmseg.registry import DATASETS
from resq_mmseg.video import SegmentationFrame, SegmentationVideo
from resq_plugin.errors import ConfigError
from resq_plugin.video import frame_files

__all__ = ["CityscapesSnippets"]

SNIPPET = (-19, 10)
"""First and last frame of a snippet, counted from its labelled frame, the 20th of 30."""


@DATASETS.register_module()
class CityscapesSnippets(SegmentationVideo):
    """Snippets of 30 frames whose 20th is labelled, 19 classes, in the layout of the data set.

    ::

        leftImg8bit_sequence/{split}/{city}/{city}_{sequence:06}_{frame:06}_leftImg8bit.png
        gtFine/{split}/{city}/{city}_{sequence:06}_{frame:06}_gtFine_labelTrainIds.png

    A snippet is found by its label, because some cities (hamburg, hanover, frankfurt ...) number the frames of one
    long recording, which holds many snippets. A clip is called ``{city}_{sequence}_{labelled frame}``.

    Args:
        frames: first and last frame of the window to use, counted from the labelled frame: ``(-19, 10)`` is the whole
            snippet, ``(-2, 0)`` all that the evaluation at T = 3 visits, ``(0, 0)`` the labelled frames alone.
        data_prefix: ``img_path`` and ``seg_map_path`` with the split.
        kwargs: those of `SegmentationVideo`.

    Raises:
        ConfigError: the window reaches beyond the snippet or leaves out the labelled frame.
        DatasetError: no label, or frames are missing.
    """

    METAINFO = CityscapesDataset.METAINFO

    def __init__(
        self,
        *,
        frames: Sequence[int] = SNIPPET,
        data_prefix: dict | None = None,
        img_suffix: str = "_leftImg8bit.png",
        seg_map_suffix: str = "_gtFine_labelTrainIds.png",
        **kwargs: Any,
    ) -> None:
        if len(frames) != 2 or not SNIPPET[0] <= frames[0] <= 0 <= frames[1] <= SNIPPET[1]:
            msg = (
                f"frames={frames!r} must be the first and the last frame counted from the labelled one, within "
                f"{SNIPPET}, e.g. frames=(-2, 0) for an interval of 3."
            )
            raise ConfigError(msg)
        self.frames = int(frames[0]), int(frames[1])
        if data_prefix is None:
            data_prefix = {"img_path": "leftImg8bit_sequence/val", "seg_map_path": "gtFine/val"}
        super().__init__(data_prefix=data_prefix, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    def find_frames(self) -> Iterator[SegmentationFrame]:
        """Find the window around every label."""
        images, labels = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        found = [frame for label in self._labels(labels) for frame in self._snippet(images, labels, label)]
        hint = (
            "Unpack leftImg8bit_sequence_trainvaltest.zip (leftImg8bit holds the labelled frames only), or take a "
            f"smaller window than frames={self.frames}."
        )
        require_files((frame.image for frame in found), "frames of Cityscapes snippets", hint)
        return iter(found)

    def _labels(self, folder: Path) -> list[Path]:
        found = frame_files(folder, (self.seg_map_suffix,), recursive=True)
        labels = [path for path in found if len(path.relative_to(folder).parts) == 2]
        if not labels:
            hint = "unpack gtFine_trainvaltest.zip"
            if any(folder.glob("*/*_gtFine_labelIds.png")):
                hint = "make them with MMSegmentation's tools/dataset_converters/cityscapes.py"
            msg = f"no label */*{self.seg_map_suffix} in {folder}; {hint}."
            raise DatasetError(msg)
        return labels

    def _snippet(self, images: Path, labels: Path, label: Path) -> Iterator[SegmentationFrame]:
        city, stem = label.parent.relative_to(labels), label.name.removesuffix(self.seg_map_suffix)
        match = re.fullmatch(r"(.+_\d{6})_(\d{6})", stem)
        if match is None:
            msg = f"{label} is not called city_000000_000019{self.seg_map_suffix}, as Cityscapes calls its labels."
            raise DatasetError(msg)
        sequence, labelled = match[1], int(match[2])
        for number in range(labelled + self.frames[0], labelled + self.frames[1] + 1):
            name = f"{sequence}_{number:06}"
            yield SegmentationFrame(
                clip=stem,
                index=number,
                name=(city / name).as_posix(),
                image=str(images / city / f"{name}{self.img_suffix}"),
                label=str(label) if number == labelled else None,
            )

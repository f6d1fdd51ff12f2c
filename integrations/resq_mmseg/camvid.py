"""CamVid sequences with the 11 classes of SegNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from resq_mmseg.frame_folder import FrameFolder
from resq_mmseg.registry import DATASETS

__all__ = ["CamVidSequence"]

VOID = 11
"""Label of pixels that belong to none of the 11 classes."""


@DATASETS.register_module()
class CamVidSequence(FrameFolder):
    """Frames of CamVid sequences in the layout of SegNet's selection, 11 classes; label 11 is ignored (255).

    ::

        {split}/{sequence}_{frame}.png         data_prefix=dict(img_path='{split}', seg_map_path='{split}annot')
        {split}annot/{sequence}_{frame}.png

    Frame numbers count 30 Hz. A new clip starts where the sequence changes or the number does not grow by ``step``,
    so that the training set at 1 Hz (numbers 30 apart) gives clips of one frame.

    Args:
        step: 2 for the sequence labelled at 15 Hz; 30 takes the frames at 1 Hz as consecutive.
        kwargs: those of `SegmentationVideo`.
    """

    METAINFO: ClassVar[dict] = {
        "classes": (
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        "palette": [
            *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0]),
            *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
        ],
    }

    def __init__(self, *, step: int | None = 2, img_suffix: str | Sequence[str] = ".png", **kwargs: Any) -> None:
        super().__init__(step=step, img_suffix=img_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence | None = None) -> dict:
        """Map the labels of chosen classes as MMSeg does, and the void label to 255."""
        return {**(super().get_label_map(new_classes) or {}), VOID: 255}

"""Persons in videos: a clip is one person, and its crop stands still so that frames can be subtracted."""

from __future__ import annotations

from typing import Any

import numpy as np
from resq_mmengine.video_dataset import VideoDataset

from resq_plugin.errors import ConfigError, nearest

__all__ = ["CROPS", "PoseVideo", "union"]

CROPS = ("interval", "clip", "frame")


class PoseVideo(VideoDataset):
    """Mixin for an MMPose top-down dataset whose clips are persons; put it before the dataset class.

    A residual is the difference of two crops at the same place, so a crop that follows the person turns the
    background into residual. `resq_mmengine.ClipSampler` tells the keyframe; with another sampler every frame is its
    own. The label's own box, by which PCK is normalized, stays in the data sample.

    Args:
        crop: ``interval``: all frames of an interval have the box of their keyframe; ``clip``: all frames of a clip
            have the union of its boxes; ``frame``: every frame has its own box, as in image pose estimation.
        kwargs: those of the dataset class.

    Raises:
        ConfigError: unknown crop, or the dataset is not top-down.
    """

    def __init__(self, *args: Any, crop: str = "interval", **kwargs: Any) -> None:
        if crop not in CROPS:
            msg = f"crop={crop!r} is not allowed; write one of {', '.join(CROPS)}.{nearest(str(crop), CROPS)}"
            raise ConfigError(msg)
        if kwargs.get("data_mode", "topdown") != "topdown" or kwargs.get("bbox_file"):
            msg = (
                f"{type(self).__name__} follows labelled persons, so it needs data_mode='topdown' and no bbox_file: "
                "detections have no tracks."
            )
            raise ConfigError(msg)
        self.crop = crop
        super().__init__(*args, **kwargs)

    def full_init(self) -> None:
        """Load the data infos and, for ``crop='clip'``, give each the box of its clip."""
        if self._fully_initialized:
            return
        serialize, self.serialize_data = self.serialize_data, False
        super().full_init()
        self.serialize_data = serialize
        self._add_clip_boxes()
        if serialize:
            self.data_bytes, self.data_address = self._serialize_data()

    def _add_clip_boxes(self) -> None:
        boxes: dict[str, np.ndarray] = {}
        for info in self.data_list:
            box = info["bbox"]
            boxes[info["clip_id"]] = union(boxes.get(info["clip_id"], box), box)
        for info in self.data_list:
            info["clip_bbox"] = boxes[info["clip_id"]]

    def get_data_info(self, idx: int) -> dict:
        """Return the data info; its ``bbox`` (1, 4), left, top, right, bottom, is the crop."""
        info = super().get_data_info(idx)
        if self.crop == "clip":
            info["bbox"] = info["clip_bbox"]
        elif self.crop == "interval":
            info["bbox"] = super().get_data_info(getattr(idx, "keyframe", idx))["bbox"]
        return info

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one frame; in tests the data sample keeps the person's own box."""
        sample = super().prepare_data(idx)
        if self.test_mode and "data_samples" in sample:
            sample["data_samples"].gt_instances.bboxes = super().get_data_info(idx)["bbox"]
        return sample


def union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the smallest box (1, 4) around two.

    >>> union(np.array([[0, 2, 4, 6]]), np.array([[1, 1, 5, 5]])).tolist()
    [[0, 1, 5, 6]]
    """
    return np.concatenate([np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], axis=1)

"""PoseTrack18 videos: a clip is one tracked person."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mmpose.datasets.datasets.body import PoseTrack18Dataset
from resq_mmengine.video_dataset import DatasetError, require_files

from resq_mmpose.pose_video import PoseVideo
from resq_mmpose.registry import DATASETS
from resq_plugin.errors import ConfigError

__all__ = ["PoseTrackVideo"]


@DATASETS.register_module()
class PoseTrackVideo(PoseVideo, PoseTrack18Dataset):
    """Tracked persons of PoseTrack18, from COCO-style annotations with ``vid_id`` and ``track_id``.

    A clip is one person of one video, ``{vid_id}/{track_id}``; several persons are a batch of clips in step
    (``batch_sampler=dict(type='resq_mmengine.ClipBatchSampler')``). Only some frames of a video are labelled: those in
    between become frames without a label, whose box lies between the boxes before and after.

    Args:
        fill_gaps: largest distance in frames of two labels between which unlabelled frames are added; farther apart,
            a new interval starts. 1 adds none.
        kwargs: those of `PoseVideo` and MMPose's ``PoseTrack18Dataset``.

    Raises:
        ConfigError: impossible ``fill_gaps``.
        DatasetError: annotations have no tracks, or frames are missing.
    """

    def __init__(self, *args: Any, fill_gaps: int = 8, **kwargs: Any) -> None:
        if not isinstance(fill_gaps, int) or fill_gaps < 1:
            msg = f"fill_gaps={fill_gaps!r} must be a number of frames of at least 1, which adds none."
            raise ConfigError(msg)
        self.fill_gaps = fill_gaps
        super().__init__(*args, **kwargs)

    def parse_data_info(self, raw_data_info: dict) -> dict | None:
        """Parse the annotation of a person in a frame as MMPose does, and its track and time."""
        person, image = raw_data_info["raw_ann_info"], raw_data_info["raw_img_info"]
        info = super().parse_data_info(raw_data_info)
        if info is None or not self._is_valid_instance(info):
            return None
        if "track_id" not in person or "vid_id" not in image:
            msg = f"{self.ann_file} has no track_id and vid_id; take the annotations of PoseTrack18."
            raise DatasetError(msg)
        info["clip_id"] = f"{image['vid_id']}/{person['track_id']}"
        info["frame_index"] = int(Path(image["file_name"]).stem)
        info["labelled"] = True
        return info

    def load_data_list(self) -> list[dict]:
        """Return the data infos of all persons in all frames, each clip in order of time."""
        labelled = sorted(super().load_data_list(), key=lambda info: (info["clip_id"], info["frame_index"]))
        infos = [
            info
            for _, clip in groupby(labelled, key=lambda info: info["clip_id"])
            for info in self._filled(list(clip))
        ]
        hint = "Unpack all frames of the videos, or take labelled frames only: fill_gaps=1."
        require_files({info["img_path"] for info in infos}, "frames of PoseTrack videos", hint)
        for number, info in enumerate(info for info in infos if not info["labelled"]):
            info["id"] = -1 - number
        return infos

    def _filled(self, clip: list[dict]) -> Iterator[dict]:
        for before, after in pairwise(clip):
            yield before
            distance = after["frame_index"] - before["frame_index"]
            if distance <= self.fill_gaps:
                for step in range(1, distance):
                    yield between(before, after, step / distance)
        yield clip[-1]


def between(before: dict, after: dict, share: float) -> dict:
    """The data info of an unlabelled frame, ``share`` of the way from one labelled frame to the next."""
    path = Path(before["img_path"])
    index = round(before["frame_index"] + share * (after["frame_index"] - before["frame_index"]))
    return before | {
        "img_path": str(path.with_name(f"{index:0{len(path.stem)}}{path.suffix}")),
        "frame_index": index,
        "labelled": False,
        "bbox": ((1 - share) * before["bbox"] + share * after["bbox"]).astype(np.float32),
        "keypoints": np.zeros_like(before["keypoints"]),
        "keypoints_visible": np.zeros_like(before["keypoints_visible"]),
        "num_keypoints": 0,
        "raw_ann_info": None,
    }

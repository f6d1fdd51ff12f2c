"""JHMDB as it is distributed: frames, Matlab joint positions and split files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmpose.datasets.datasets.base import BaseCocoStyleDataset
from PIL import Image
from resq_mmengine.video_dataset import DatasetError
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from resq_mmpose.pose_video import PoseVideo
from resq_mmpose.registry import DATASETS
from resq_plugin.errors import ConfigError
from resq_plugin.video import frame_files

__all__ = ["JhmdbVideo", "joint_box"]

JOINTS = 15
SUBSETS = {"train": "1", "test": "2"}
PREFIX = {"img": "Rename_Images", "joints": "joint_positions", "splits": "splits"}


@DATASETS.register_module()
class JhmdbVideo(PoseVideo, BaseCocoStyleDataset):
    """JHMDB clips with 15 joints of one person on every frame, in the layout of the data set.

    ::

        Rename_Images/{class}/{video}/00001.png
        joint_positions/{class}/{video}/joint_positions.mat    pos_img (2, 15, T), Matlab pixels: the first is 1
        splits/{class}_test_split{1,2,3}.txt                    lines "{video}.avi 1": 1 is train, 2 is test

    The paper's 316 clips are sub-JHMDB: ``data_prefix=dict(splits='sub_splits')``, whose files may also be called
    ``{class}_test_split_1.txt``. Frames after the last labelled one are left out, and a joint is visible when it is
    inside the image. MMPose's ``JhmdbPCKAccuracy`` works as it is; ``norm_item='bbox'`` is the larger side of the box
    described at ``padding``, ``'torso'`` comes from the joints. Puppet masks, from which MMPose's own annotations take
    their boxes, are not needed.

    Args:
        split: 1, 2 or 3; the paper reports the mean of all.
        subset: ``train`` or ``test``.
        padding: the person's box is that of the visible joints, widened at each side by this share of its width and
            height, inside the image. (``GetBBoxCenterScale`` adds its own margin to the crop.)
        data_prefix: the three folders, ``img``, ``joints`` and ``splits``.
        kwargs: those of `PoseVideo` and MMPose's ``BaseCocoStyleDataset``.

    Raises:
        ConfigError: unknown split or subset.
        DatasetError: files are missing or hold something else.
    """

    METAINFO: ClassVar[dict] = {"from_file": "configs/_base_/datasets/jhmdb.py"}

    def __init__(
        self,
        *,
        split: int = 1,
        subset: str = "test",
        padding: float = 0.1,
        data_prefix: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in (1, 2, 3) or subset not in SUBSETS:
            msg = f"split={split!r}, subset={subset!r}: write split=1, 2 or 3 and subset='train' or 'test'."
            raise ConfigError(msg)
        if not padding >= 0:
            msg = f"padding={padding!r} must be a share of at least 0, e.g. 0.1."
            raise ConfigError(msg)
        self.split, self.subset, self.padding = split, subset, padding
        super().__init__(data_prefix={**PREFIX, **(data_prefix or {})}, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return the data infos of all frames."""
        infos = [info for action, video in self._videos() for info in self._clip(action, video)]
        for number, info in enumerate(infos):
            info["id"] = info["img_id"] = number
        return infos

    def _videos(self) -> list[tuple[str, str]]:
        """Class and name of the videos of the subset."""
        folder = Path(self.data_prefix["splits"])
        pattern = re.compile(rf"(.+)_test_split_?{self.split}\.txt")
        matches = [pattern.fullmatch(path.name) for path in frame_files(folder, (".txt",))]
        found = []
        for match in filter(None, matches):
            for line in (folder / match[0]).read_text().splitlines():
                video, _, part = line.strip().rpartition(" ")
                if part == SUBSETS[self.subset]:
                    found.append((match[1], video.removesuffix(".avi")))
        if not found:
            msg = (
                f"no video of subset {self.subset!r} in {folder}/*_test_split{self.split}.txt; unpack splits.zip, or "
                "sub_splits.zip with data_prefix=dict(splits='sub_splits')."
            )
            raise DatasetError(msg)
        return found

    def _clip(self, action: str, video: str) -> Iterator[dict]:
        images = Path(self.data_prefix["img"], action, video)
        frames = frame_files(images, (".png",))
        joints = read_joints(Path(self.data_prefix["joints"], action, video, "joint_positions.mat"))
        if len(frames) < len(joints):
            msg = f"{images} has {len(frames)} frames, but the joints of {len(joints)} are labelled; unpack it again."
            raise DatasetError(msg)
        with Image.open(frames[0]) as first:
            size = first.size
        for index, (frame, keypoints) in enumerate(zip(frames, joints, strict=False)):
            visible = ((keypoints >= 0) & (keypoints <= np.array(size) - 1)).all(axis=1)
            box = joint_box(keypoints[visible], size, self.padding)
            yield {
                "img_path": str(frame),
                "clip_id": f"{action}/{video}",
                "frame_index": index,
                "labelled": bool(visible.any()),
                "bbox": box[None],
                "bbox_score": np.ones(1, dtype=np.float32),
                "keypoints": keypoints[None],
                "keypoints_visible": visible[None].astype(np.float32),
                "num_keypoints": int(visible.sum()),
                "area": np.float32((box[2] - box[0]) * (box[3] - box[1])),
                "iscrowd": 0,
                "segmentation": None,
                "category_id": 1,
            }


def read_joints(path: Path) -> np.ndarray:
    """Read joint positions (T, 15, 2) in pixels whose first is 0.

    Raises:
        DatasetError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        msg = f"{path} is missing; unpack joint_positions.zip beside Rename_Images."
        raise DatasetError(msg)
    try:
        positions = loadmat(path)["pos_img"]
    except (MatReadError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        msg = f"{path} holds no pos_img ({error}); unpack joint_positions.zip again."
        raise DatasetError(msg) from error
    if positions.ndim != 3 or positions.shape[:2] != (2, JOINTS) or not np.isfinite(positions).all():
        msg = f"pos_img in {path} has shape {positions.shape}, not (2, {JOINTS}, T) with a number for every joint."
        raise DatasetError(msg)
    return positions.transpose(2, 1, 0).astype(np.float32) - 1


def joint_box(joints: np.ndarray, size: tuple[int, int], padding: float) -> np.ndarray:
    """Return the box left, top, right, bottom (4,) around joints (K, 2), widened and cut at the image.

    >>> joint_box(np.array([[10, 20], [30, 60]]), (320, 240), 0.1).tolist()
    [8.0, 16.0, 32.0, 64.0]

    Without joints it is the whole image.
    """
    limit = np.array(size, dtype=np.float32) - 1
    if len(joints) == 0:
        return np.concatenate([np.zeros(2, np.float32), limit])
    low, high = joints.min(axis=0), joints.max(axis=0)
    margin = padding * (high - low)
    return np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin, limit)]).astype(np.float32)

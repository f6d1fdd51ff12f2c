"""A user's own video through the test pipeline and the preprocessor of an mm config."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from resq_mmengine.pipelines import build_transforms, check_packed, step_errors
from resq_mmengine.refusals import RANDOM_TRANSFORMS
from resq_plugin.errors import ConfigError, VideoError
from resq_plugin.video import ImageFolder, VideoFile

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "PipelineFrames",
    "PredictingModel",
    "joints_of",
    "joints_of_output",
    "labels_of",
    "labels_of_output",
    "open_pictures",
    "pipeline_of",
]

logger = logging.getLogger(__name__)

OWNER = "the config's test data"

LOADERS = ("LoadImage", "LoadAnnotations", "LoadImageFromFile", "LoadImageFromNDArray")
"""Transforms that get pictures and labels from files; here the pictures are there already."""


def open_pictures(path: Path, frames: int | None = None) -> Sequence[Any]:
    """Return the pictures (H, W, 3), RGB, uint8, of a video file or a folder of frames, decoded when asked for.

    Args:
        path: the file or folder.
        frames: only so many from the start are asked for, which may be there although the file breaks off.

    Raises:
        ConfigError: so many frames cannot be asked for.
        VideoError: it cannot be read as either, or breaks off before so many frames.
    """
    if frames is not None and frames < 1:
        msg = f"--frames {frames} is not allowed; write how many frames of each video to take, e.g. --frames 100."
        raise ConfigError(msg)
    if path.is_dir():
        return ImageFolder(path)
    video = VideoFile(path, partial=frames is not None)
    if video.broken and frames is not None and frames > len(video):
        msg = f"{path} {video.broken} {frames} frames are not there; write --frames {len(video)}."
        raise VideoError(msg)
    return cast("Sequence[Any]", video)


def pipeline_of(config: Config, size: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Return the test pipeline of a config without what reads files.

    Args:
        config: of MMSeg or MMPose.
        size: (H, W) that frames are resized to, instead of the config's.

    Raises:
        ConfigError: the config has no test pipeline, or one whose frames have no fixed size to change.
    """
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    found = (loader.get("dataset") or {}).get("pipeline") or config.get("test_pipeline")
    if not found:
        msg = f"{config.filename} has no test pipeline; write test_pipeline = [dict(type='LoadImageFromFile'), ...]."
        raise ConfigError(msg)
    kept = [copy.deepcopy(dict(step)) for step in found if str(step["type"]).rpartition(".")[2] not in LOADERS]
    for step in kept:
        if str(step["type"]).startswith(RANDOM_TRANSFORMS):
            msg = (
                f"the test pipeline has {step['type']}, which changes neighbouring frames in different ways; take it "
                "out."
            )
            raise ConfigError(msg)
    if size is not None:
        resizes = [step for step in kept if step["type"] == "Resize"]
        if not resizes:
            if config.default_scope != "mmseg":
                msg = "--size has no use here: the size of a crop is that of the config's codec (input_size)."
                raise ConfigError(msg)
            kept.insert(0, {"type": "Resize", "scale": size[::-1], "keep_ratio": False})
        for step in resizes:
            step.clear()
            step.update(type="Resize", scale=size[::-1], keep_ratio=False)
    return kept


class PipelineFrames(Sequence[Tensor]):
    """Frames of a video as a model gets them, (1, 3, H, W), made when they are asked for.

    Args:
        pictures: of `open_pictures`.
        model: its ``data_preprocessor`` normalizes and pads.
        transforms: of `pipeline_of`.
        boxes: for pose: per frame the person's box (4,) as left, top, right, bottom; the whole frame unless given.
        scope: ``mmseg`` or ``mmpose``.
        frames: only so many from the start.
    """

    def __init__(
        self,
        pictures: Sequence[Any],
        model: nn.Module,
        transforms: Sequence[dict[str, Any]],
        *,
        scope: str,
        boxes: Any = None,
        frames: int | None = None,
    ) -> None:
        self.pictures, self.model, self.boxes = pictures, model, boxes
        self.shape: torch.Size | None = None
        self.count = len(pictures) if frames is None else min(frames, len(pictures))
        self.is_pose = scope == "mmpose"
        with DefaultScope.overwrite_default_scope(scope):
            self.steps = build_transforms(transforms, OWNER)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        frame: Tensor = self.batch(index % len(self))["inputs"]
        self.shape = self.shape or frame.shape
        if frame.shape != self.shape:
            sides = " × ".join(map(str, frame.shape[2:]))
            msg = (
                f"frame {index}{self._origin(index)} is {sides} as the network gets it, others are "
                f"{' × '.join(map(str, self.shape[2:]))}; all frames of a video need one size: --size H W."
            )
            raise VideoError(msg)
        return frame

    def picture(self, index: int) -> Tensor:
        """Return a frame as it is in the video, (3, H, W), uint8."""
        return torch.from_numpy(np.ascontiguousarray(self.pictures[index])).permute(2, 0, 1)

    def batch(self, index: int) -> dict[str, Any]:
        """Return what the model's ``forward`` takes: ``inputs`` (1, 3, H, W) and ``data_samples``."""
        picture = np.ascontiguousarray(self.pictures[index][..., ::-1])  # mmcv loads BGR, and preprocessors know it
        height, width = picture.shape[:2]
        values: dict[str, Any] = {"img": picture, "img_path": None, "img_shape": (height, width)}
        values |= {"ori_shape": (height, width), "img_id": index, "id": index}
        if self.is_pose:
            box = [0, 0, width, height] if self.boxes is None else self.boxes[index]
            values |= {"bbox": np.array([box], np.float32), "bbox_score": np.ones(1, np.float32)}
        for step in self.steps:
            with step_errors(step, OWNER, f"frame {index}{self._origin(index)}"):
                values = step(values)
        check_packed(values, OWNER)
        packed: dict[str, Any] = self.model.data_preprocessor(pseudo_collate([values]), False)  # type: ignore[operator]
        return packed

    def _origin(self, index: int) -> str:
        """What file a frame is of, as far as the pictures tell."""
        if isinstance(self.pictures, ImageFolder):
            return f" ({self.pictures.files[index]})"
        return f" of {self.pictures.path}" if isinstance(self.pictures, VideoFile) else ""


class PredictingModel(nn.Module):
    """An mm model as a network from one frame to what it predicts, in pixels of the video.

    It shares the children and parameters of the model under the same names, as `FrameModel` does.

    Args:
        model: an MMSeg segmentor or MMPose estimator.
        sample: data sample of the first frame; all frames of a video are alike in what it tells.
        read: prediction of a data sample, as a tensor (1, ...).
    """

    def __init__(self, model: nn.Module, sample: Any, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        # Not as a child, which would put a prefix before every name.
        self.__dict__.update(model=model, sample=sample, read=read)
        self.training = model.training

    def train(self, mode: bool = True) -> PredictingModel:
        """Set the mode of both."""
        self.model.train(mode)
        self.training = mode
        return self

    def forward(self, frame: Tensor) -> Tensor:
        """Predict one frame (1, 3, H, W)."""
        (result,) = self.model(frame, [copy.deepcopy(self.sample)], mode="predict")
        return self.read(result)


def labels_of(sample: Any) -> Tensor:
    """Labels (1, H, W) of a data sample of MMSeg."""
    labels: Tensor = sample.pred_sem_seg.data
    return labels


def joints_of(sample: Any) -> Tensor:
    """Joints and the person's size (1, K, 3) of a data sample of MMPose: x, y and the larger side, in pixels.

    The person is as large as the box of all joints.
    """
    joints = torch.as_tensor(np.asarray(sample.pred_instances.keypoints[:1, ..., :2]), dtype=torch.float64)
    sides = joints.amax(1) - joints.amin(1)
    size = sides.amax(-1, keepdim=True)[:, None].expand(-1, joints.shape[1], -1)
    return torch.cat([joints, size], dim=-1)


def labels_of_output(model: Any, sample: Any, output: Any) -> Tensor:
    """Labels (1, H, W) of the raw output of a segmentor's head, made as its predict mode makes them.

    Args:
        model: an MMSeg segmentor.
        sample: data sample of the frame.
        output: scores of the head.
    """
    logits = model.decode_head.predict_by_feat(output, [sample.metainfo])
    return labels_of(model.postprocess_result(logits, [copy.deepcopy(sample)])[0])


def joints_of_output(model: Any, sample: Any, output: Any) -> Tensor:
    """Joints and the person's size (1, K, 3) of the raw output of a pose estimator's head.

    Args:
        model: an MMPose top-down estimator.
        sample: data sample of the frame.
        output: heat maps or whatever the head's codec decodes.
    """
    return joints_of(model.add_pred_to_datasample(model.head.decode(output), None, [copy.deepcopy(sample)])[0])

"""A config, its weights and a user's videos as what `resq_plugin.compare` takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from resq_mmengine.loading import load_weights
from resq_mmengine.options import read_options
from resq_mmengine.own_video import (
    PipelineFrames,
    PredictingModel,
    joints_of,
    joints_of_output,
    labels_of,
    labels_of_output,
    open_pictures,
    pipeline_of,
)
from resq_mmengine.refusals import check_model
from resq_mmengine.zoo import FrameModel, architecture_of, build_model, load_config
from resq_plugin.conversion import read_checkpoint
from resq_plugin.errors import ConfigError
from resq_plugin.evaluation import Agreement, MeanIoU, Metric

__all__ = ["OwnModel"]


class OwnModel:
    """A float model with its weights, and videos through its own pipeline.

    Args:
        source: config file or model-zoo name.
        checkpoint: float weights; they must fit.
        videos: video files or folders of frames.
        size: (H, W) that frames are resized to.
        frames: only so many of each video.
        boxes: for pose: per frame a box; the whole frame unless given.
        predict: ``module:function`` that makes a tensor of the raw output of the head.
        options: ``KEY=VALUE`` overrides of the config.

    Attributes:
        model: frame to prediction.
        frames: per video its frames (1, 3, H, W).
        predict: prediction of the model's output.
        raw: frame to the raw output of the head, of which gradients flow.
        read: raw output to prediction, the same as that of ``model``.
        agreement: maker of the metric against the float model.
        metric: name and maker of the metric of labels, of a segmentor.
    """

    def __init__(
        self,
        source: str | Path,
        checkpoint: Path,
        videos: Sequence[Path],
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        boxes: Any = None,
        predict: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.videos = [Path(path) for path in videos]
        read_checkpoint(checkpoint)  # what cannot be read is said before anything takes its time
        pictures = [open_pictures(path, frames) for path in self.videos]
        own = _function(predict) if predict else None
        config = load_config(source)
        config.merge_from_dict(read_options(options))
        architecture = architecture_of(config)
        if config.default_scope == "mmpose" and (architecture.get("test_cfg") or {}).get("flip_test"):
            architecture.test_cfg.flip_test = False  # which runs the network twice per frame
        self.scope = str(config.default_scope)
        self.transforms = pipeline_of(config, size)
        self.network = build_model(config)
        check_model(self.network)
        load_weights(self.network, checkpoint)
        self.limit = frames
        self.frames = [self._frames(source, boxes) for source in pictures]
        if boxes is not None and len(boxes) < max(map(len, self.frames)):
            msg = f"--boxes has {len(boxes)} boxes for {max(map(len, self.frames))} frames; give one for each frame."
            raise ConfigError(msg)
        self.metric: tuple[str, Callable[[], Metric]] | None = None
        self.agreement: Callable[[], Metric] = Agreement
        self.predict: Callable[[Any], Tensor] = own or (lambda output: output)
        self.raw: nn.Module = FrameModel(self.network)
        self.read: Callable[[Any], Tensor] = own or (lambda output: output)
        if own is not None:
            self.model: nn.Module = self.raw
            return
        sample = self.frames[0].batch(0)["data_samples"][0]
        self.read = partial(joints_of_output if self.scope == "mmpose" else labels_of_output, self.network, sample)
        if self.scope == "mmpose":
            from resq_mmpose.agreement import NearJoints  # noqa: PLC0415

            self.agreement = NearJoints
            self.model = PredictingModel(self.network, sample, joints_of)
        else:
            classes = int(self.network.decode_head.num_classes)  # type: ignore[union-attr,arg-type]
            self.metric = "mIoU", lambda: MeanIoU(classes)
            self.model = PredictingModel(self.network, sample, labels_of)

    def _frames(self, pictures: Sequence[Any], boxes: Any = None) -> PipelineFrames:
        return PipelineFrames(
            pictures, self.network, self.transforms, scope=self.scope, boxes=boxes, frames=self.limit
        )

    def clips(self, paths: Sequence[Path], interval: int) -> list[list[Tensor]]:
        """Return clips of T frames from other videos, for calibration."""
        length = max(interval, 2)
        found = [self._frames(open_pictures(path, self.limit)) for path in paths]
        return [video[start : start + length] for video in found for start in range(0, len(video) - 1, length)]

    def labels(self, folder: Path) -> list[list[Tensor | None]]:
        """Return per video and frame its label map (1, H, W), or None.

        Raises:
            ConfigError: the model predicts no classes, or no label belongs to a frame.
        """
        from resq_mmseg.label_maps import label_maps  # noqa: PLC0415

        if self.metric is None:
            msg = "--labels takes label maps of a segmentor; leave it out to measure the agreement with float."
            raise ConfigError(msg)
        return [
            label_maps(folder, path, len(frames), (frames.picture(0).shape[1], frames.picture(0).shape[2]))
            for path, frames in zip(self.videos, self.frames, strict=True)
        ]


def _function(text: str) -> Callable[[Any], Tensor]:
    module, _, name = text.partition(":")
    try:
        found: Callable[[Any], Tensor] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"--predict {text}: {error}; write MODULE:FUNCTION, e.g. my_model:labels, of a module on PYTHONPATH."
        raise ConfigError(msg) from error
    return found

"""Calibration clips from the config of a video dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from resq_mmengine.clips import Interval, clips_of, cut
from resq_mmengine.pipelines import build_dataset, check_packed, telling
from resq_mmengine.settings import Settings
from resq_plugin import calibrate
from resq_plugin.errors import CalibrationError
from resq_plugin.method import residual_layers

__all__ = ["KEY", "ClipLoader", "calibrate_from_settings", "is_calibrated"]

KEY = "resq.calibration.dataset"
LINES = "resq = dict(calibration=dict(dataset=dict(type='resq_mmseg.CamVidSequence', data_root=..., ...)))"


class ClipLoader(Sequence[list[Tensor]]):
    """Clips as lists of preprocessed frames (1, 3, H, W), loaded when they are asked for.

    Args:
        dataset: a built video dataset with its test pipeline.
        model: its ``data_preprocessor`` normalizes the frames.
        length: frames of a clip.
        step: frames from the start of one clip to the next; ``length`` by default.
    """

    def __init__(self, dataset: Any, model: nn.Module, length: int, step: int | None = None) -> None:
        self.dataset, self.model = dataset, model
        self.intervals: list[Interval] = [part for clip in clips_of(dataset) for part in cut(clip, length, step)]

    def __len__(self) -> int:
        return len(self.intervals)

    @overload
    def __getitem__(self, index: int) -> list[Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Tensor]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return [self.batch(frame)["inputs"] for frame in self.intervals[index]]

    def batch(self, index: int) -> dict[str, Any]:
        """What the model's preprocessor makes of a frame: ``inputs`` (1, 3, H, W) and ``data_samples``.

        Raises:
            ConfigError: a step of the pipeline fails.
        """
        with telling(f"frame {index} of {KEY} ({type(self.dataset).__name__}) cannot be made"):
            batch = pseudo_collate([self.dataset[index]])
        check_packed(batch, KEY)
        found: dict[str, Any] = self.model.data_preprocessor(batch, False)  # type: ignore[operator]
        return found

    def __length_hint__(self) -> int:
        return len(self)


def is_calibrated(model: nn.Module) -> bool:
    """Whether the model has ranges; layers that calibration did not reach have none and are never run."""
    layers = residual_layers(model).values()
    return any(layer.activation_quantizers()["keyframe"].is_calibrated for layer in layers)


@torch.no_grad()
def calibrate_from_settings(model: nn.Module, settings: Settings) -> None:
    """Calibrate an mm model on the clips that its configuration names.

    Raises:
        CalibrationError: the configuration names none.
        ConfigError: they cannot be built, or a step of their pipeline fails.
    """
    clips = settings.clips
    if clips.dataset is None:
        msg = (
            f"the model has no ranges for {settings.config.notation} and the config names no calibration clips; write "
            f"{LINES}, or load a calibrated checkpoint."
        )
        raise CalibrationError(msg)
    dataset = build_dataset(clips.dataset, KEY)
    length = clips.length or max(settings.config.interval, 2)
    loader = ClipLoader(dataset, model, length, clips.step)
    calibrate(model, loader, run=lambda frame: model(frame, None, mode="tensor"))

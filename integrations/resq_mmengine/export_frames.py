"""Frames for the golden clip of an export: of a video, or the clips that a config calibrates on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from resq_mmengine.calibration import KEY, ClipLoader
from resq_mmengine.own_video import PipelineFrames, open_pictures, pipeline_of
from resq_mmengine.pipelines import build_dataset
from resq_plugin.errors import ExportError

__all__ = ["frames_of_config", "frames_of_video"]


def frames_of_video(
    path: Path, config: Config, network: nn.Module, size: tuple[int, int] | None, count: int
) -> list[Tensor]:
    """Return the first frames (1, 3, H, W) of a video or a folder of frames, through the config's own pipeline.

    Args:
        path: video file or folder.
        config: its test pipeline prepares the frames.
        network: its ``data_preprocessor`` normalizes them.
        size: (H, W) that they are resized to, instead of the config's.
        count: how many, where there are so many.

    Raises:
        ExportError: there are less than two, or they come out in another size.
        ResQError: the file or the pipeline is not fit.
    """
    pictures = open_pictures(path)
    frames = PipelineFrames(
        pictures, network, pipeline_of(config, size), scope=str(config.default_scope), frames=count
    )
    if len(frames) < 2:
        msg = f"--frames {path} has {len(frames)} frame; residual frames need at least two, better {count}."
        raise ExportError(msg)
    return _sized([frames[index] for index in range(len(frames))], size, f"--frames {path}")


@torch.no_grad()
def frames_of_config(
    config: Config, network: nn.Module, size: tuple[int, int] | None, count: int
) -> list[Tensor] | None:
    """Return the first frames of the clips that ``resq.calibration.dataset`` names; None if it names none.

    Raises:
        ExportError: no clip has two frames, or they are of another size than ``size``.
        ResQError: the data set cannot be read.
    """
    settings: Any = config.get("resq") or config.model.get("resq") or {}
    dataset = (settings.get("calibration") or {}).get("dataset")
    if not dataset:
        return None
    with DefaultScope.overwrite_default_scope(str(config.default_scope)):
        clips = ClipLoader(build_dataset(dataset, KEY), network, count)
        clip = next((clips[index] for index, part in enumerate(clips.intervals) if len(part) > 1), None)
    if clip is None:
        msg = "the clips of resq.calibration.dataset have one frame each; give --frames VIDEO."
        raise ExportError(msg)
    return _sized(clip, size, "resq.calibration.dataset of the config")


def _sized(frames: list[Tensor], size: tuple[int, int] | None, source: str) -> list[Tensor]:
    found = {tuple(frame.shape[-2:]) for frame in frames}
    if len(found) > 1 or (size is not None and found != {size}):
        sizes = ", ".join(f"{height} {width}" for height, width in sorted(found))
        msg = (
            f"the frames of {source} are {sizes} after the config's pipeline and preprocessor, and not those of "
            f"--shape; write --shape {sizes.partition(',')[0]}, or other --frames."
        )
        raise ExportError(msg)
    return frames

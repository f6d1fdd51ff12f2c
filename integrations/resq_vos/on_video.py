"""What ``resq vos`` does: every scheme on one video, masks and overlays in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resq_plugin.errors import ConfigError
from resq_vos.calibration import record_clips
from resq_vos.davis import read_labels, write_labels
from resq_vos.models import build_stm
from resq_vos.schemes import Run, Scheme, VosVideo, run_scheme, schemes_of
from resq_vos.step import SegmentationStep
from resq_vos.stm import STM
from resq_vos.video import frames_of, overlay, short_side, video_size, write_video

__all__ = ["VideoRequest", "run_on_video"]

CLIPS = 21
"""Clips of three steps for calibration; of a longer video, evenly spread ones."""
MIN_FRAMES = 4


@dataclass(frozen=True)
class VideoRequest:
    """What to run on; see ``resq vos --help``."""

    video: Path
    mask: Path
    checkpoint: Path | None
    out: Path
    model: str = "small"
    precisions: tuple[str, ...] = ("W8A8->W4A8",)
    interval: int = 3
    every: int = 5
    short_side: int = 240
    frames: int | None = None
    calibrate: tuple[Path, Path] | None = None


def run_on_video(request: VideoRequest, on_step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run float, frame by frame and ResQ on a video and write masks, overlays and values for a report.

    Returns:
        ``rows`` as `resq_plugin.report` takes them, and what they were measured on.

    Raises:
        ResQError: whatever of the request cannot be done; before anything is run where that can be told.
    """
    schemes = schemes_of(request.precisions, request.interval)
    model = build_stm(request.model, request.checkpoint)
    video = _video(request.video, request.mask, request)
    count = sum(1 for _ in video.frames())
    if count < MIN_FRAMES:
        msg = f"{request.video} has {count} frames; at least {MIN_FRAMES} are needed to calibrate and compare."
        raise ConfigError(msg)
    on_step("recording steps to calibrate on")
    clips = _clips(model, _video(*request.calibrate, request) if request.calibrate else video, request)
    rows, reference = [], None
    for scheme in schemes:
        on_step(f"{scheme.name} {scheme.precision}")
        row, run = run_scheme(model, scheme, [video], clips, reference, every=request.every)
        reference = reference or run
        rows.append(row)
        _write(request.out / _name(scheme), video, run)
    return {
        "rows": rows,
        "video": str(request.video),
        "frames": count,
        "size": list(video.size),
        "objects": list(video.objects),
        "calibrated_on": str(request.calibrate[0] if request.calibrate else request.video),
    }


def _video(path: Path, mask: Path, request: VideoRequest) -> VosVideo:
    size, labels = video_size(path), read_labels(mask)
    if labels.shape != size and labels.shape[0] * size[1] != labels.shape[1] * size[0]:
        msg = f"--mask {mask} is {labels.shape[0]}×{labels.shape[1]} and does not fit frames of {size[0]}×{size[1]}."
        raise ConfigError(msg)
    if not labels.any():
        msg = f"--mask {mask} is empty; paint at least one object with 1 (or 255), 0 is the background."
        raise ConfigError(msg)
    seen = short_side(size, request.short_side) if min(size) > request.short_side else size

    def frames() -> Iterator[Tensor]:
        return frames_of(path, seen, request.frames)

    return VosVideo(path.name, frames, labels, seen)


def _clips(model: STM, video: VosVideo, request: VideoRequest) -> list[list[SegmentationStep]]:
    steps = sum(1 for _ in video.frames()) - 1
    length = min(max(request.interval, 2), steps)
    gap = max(steps // CLIPS - length, 0)
    first = torch.from_numpy(video.first.astype(np.int64))
    return record_clips(model, video.frames(), first, length=length, gap=gap, clips=CLIPS, every=request.every)


def _name(scheme: Scheme) -> str:
    return "float" if scheme.config is None else f"{scheme.name}_{scheme.precision.replace('->', '-')}"


def _write(folder: Path, video: VosVideo, run: Run) -> None:
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    found = run.labels[video.name]
    for index, labels in enumerate(found):
        write_labels(masks / f"{index:05d}.png", labels)

    def pictures() -> Iterator[Any]:
        for frame, labels in zip(video.frames(), found, strict=True):
            whole = torch.nn.functional.interpolate(frame, labels.shape, mode="bilinear", align_corners=False)
            yield overlay(whole, labels)

    write_video(folder / "overlay.mp4", pictures())

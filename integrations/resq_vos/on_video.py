"""What ``resq vos`` does: every scheme on one video, masks and overlays in a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from resq_plugin.errors import ConfigError
from resq_plugin.files import check_folder, write_json, written_folder, written_into
from resq_plugin.report import describe_machine, row_label, write_film, write_report
from resq_plugin.video import Frames, read
from resq_vos.calibration import record_clips
from resq_vos.davis import read_labels, write_labels
from resq_vos.models import build_stm
from resq_vos.overlay import overlay, short_side
from resq_vos.schemes import Scheme, VosVideo, run_scheme, schemes_of
from resq_vos.step import SegmentationStep
from resq_vos.stm import STM

__all__ = ["VideoRequest", "run_on_video"]

logger = logging.getLogger(__name__)

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


def run_on_video(request: VideoRequest, on_step: Callable[[str, int], None] = lambda *_: None) -> dict[str, Any]:
    """Run float, frame by frame and ResQ on a video and write masks, overlays and values for a report.

    Args:
        request: what to run on.
        on_step: told before each step what comes, and how many steps there are in all.

    Returns:
        ``rows`` as `resq_plugin.report` takes them, and what they were measured on.

    Raises:
        ResQError: whatever of the request cannot be done; before anything is run where that can be told.
    """
    schemes = schemes_of(request.precisions, request.interval)
    check_folder(request.out, option="--out")
    model = build_stm(request.model, request.checkpoint)
    frames, video = _video(request.video, request.mask, request)
    if len(frames) < MIN_FRAMES:
        msg = f"{request.video} has {len(frames)} frames; at least {MIN_FRAMES} are needed to calibrate and compare."
        raise ConfigError(msg)
    steps = len(schemes) + 2
    if request.interval > len(frames) - 1:
        msg = (
            f"--interval {request.interval} is longer than the video, which has {len(frames) - 1} frames after the "
            f"first; frames farther from their keyframe would never run. Write --interval {min(3, len(frames) - 1)}, "
            "or give a longer video."
        )
        raise ConfigError(msg)
    on_step("recording steps to calibrate on", steps)
    other = _video(*request.calibrate, request) if request.calibrate else (frames, video)
    clips = _clips(model, *other, request)
    rows: list[dict[str, Any]] = []
    films: dict[str, list[Tensor]] = {}
    masks: dict[str, list[Any]] = {}
    reference = None
    for scheme in schemes:
        on_step(f"{scheme.name} {scheme.precision}", steps)
        row, run = run_scheme(model, scheme, [video], clips, reference, every=request.every)
        if reference is None and not any(labels.any() for labels in run.labels[video.name][1:]):
            logger.warning(
                "the float network loses all objects after the first frame, so that J with its masks says nothing; "
                "look at the checkpoint, the mask and --short-side."
            )
        reference = reference or run
        rows.append(row)
        masks[_name(scheme)] = run.labels[video.name]
        pairs = zip(frames, run.labels[video.name], strict=True)
        films[row_label(row).replace("→", "->")] = [overlay(frame, labels) for frame, labels in pairs]
    on_step("writing masks and overlays", steps)
    calibrated_on = str(request.calibrate[0] if request.calibrate else request.video)
    values = {
        "video": str(request.video),
        "frames": len(frames),
        "size": list(video.size),
        "objects": list(video.objects),
        "calibrated_on": calibrated_on,
    }
    details = {"Video": {name: str(value) for name, value in values.items()}, "Machine": describe_machine()}
    values = {"rows": rows, **values}
    for name, found in masks.items():
        with written_folder(request.out / name, _check_replaced) as folder:
            _write_masks(folder / "masks", found)
    with written_into(request.out) as folder:
        write_film(folder / "overlay.mp4", films, rate=24)
        write_report(folder / "report.html", f"Masks through {request.video.name}", rows, [], details)
        write_json(folder / "vos.json", values)
    return values


def _check_replaced(folder: Path) -> None:
    """Raise unless a folder holds masks of an earlier run and nothing else."""
    other = [path for path in folder.rglob("*") if path.is_file() and path.parent.name + path.suffix != "masks.png"]
    if other:
        msg = f"{folder} would be replaced and holds {other[0].name}, no mask of an earlier run; name another --out."
        raise ConfigError(msg)


def _video(path: Path, mask: Path, request: VideoRequest) -> tuple[Frames, VosVideo]:
    frames, labels = read(path, frames=request.frames), read_labels(mask)
    if not isinstance(frames, Frames):
        msg = f"{path} is no video file or folder of frames."
        raise ConfigError(msg)
    size = (frames[0].shape[-2], frames[0].shape[-1])
    if labels.shape != size and labels.shape[0] * size[1] != labels.shape[1] * size[0]:
        msg = f"--mask {mask} is {labels.shape[0]}×{labels.shape[1]} and does not fit frames of {size[0]}×{size[1]}."
        raise ConfigError(msg)
    if not labels.any():
        msg = f"--mask {mask} is empty; paint at least one object with 1 (or 255), 0 is the background."
        raise ConfigError(msg)
    if min(size) > request.short_side:
        frames = cast(Frames, read(path, short_side(size, request.short_side), frames=request.frames))
    seen = (frames[0].shape[-2], frames[0].shape[-1])
    return frames, VosVideo(path.name, lambda: iter(frames), labels, seen)


def _clips(model: STM, frames: Frames, video: VosVideo, request: VideoRequest) -> list[list[SegmentationStep]]:
    steps = len(frames) - 1
    length = min(max(request.interval, 2), steps)
    gap = max(steps // CLIPS - length, 0)
    first = torch.from_numpy(video.first.astype(np.int64))
    return record_clips(model, frames, first, length=length, gap=gap, clips=CLIPS, every=request.every)


def _name(scheme: Scheme) -> str:
    return "float" if scheme.config is None else f"{scheme.name}_{scheme.precision.replace('->', '-')}"


def _write_masks(folder: Path, found: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, labels in enumerate(found):
        write_labels(folder / f"{index:05d}.png", labels)

"""Calibration clips of a float run: steps with all they read, recorded and run again exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resq_plugin.errors import CalibrationError
from resq_plugin.method import dense_execution
from resq_vos.propagation import Propagation
from resq_vos.step import SegmentationStep, VideoModel

__all__ = ["record_clips", "step_runner"]


def step_runner(model: VideoModel) -> Callable[[SegmentationStep], Tensor]:
    """What ``calibrate(model, clips, run=step_runner(model))`` runs."""

    def run(step: SegmentationStep) -> Tensor:
        return step.run(model)[0]

    return run


@torch.no_grad()
def record_clips(
    model: VideoModel,
    frames: Iterable[Tensor],
    labels: Tensor,
    *,
    length: int = 3,
    clips: int | None = None,
    gap: int = 0,
    every: int = 5,
) -> list[list[SegmentationStep]]:
    """Propagate labels through a video in float and record clips of consecutive steps.

    Args:
        model: float or converted; a converted one runs in float, too.
        frames: (V, 3, H, W) each.
        labels: of the first frame.
        length: steps per clip; T fits the interval.
        clips: at most so many, the first of the video; None for all.
        gap: steps left out between clips.
        every: as in `Propagation`.

    Returns:
        Clips for `calibrate`, with ``run=step_runner(model)``.

    Raises:
        CalibrationError: the video is too short for a clip.
    """
    propagation = Propagation(model, every=every)
    recorded: list[list[SegmentationStep]] = []
    clip: list[SegmentationStep] = []
    with dense_execution():
        for index, frame in enumerate(frames):
            step = propagation.next_step(frame)
            propagation(frame, labels if index == 0 else None)
            if step is None or (index - 1) % (length + gap) >= length:
                continue
            clip.append(step)
            if len(clip) == length:
                recorded.append(clip)
                clip = []
                if clips is not None and len(recorded) == clips:
                    break
    if not recorded:
        msg = f"the video is too short for one clip of {length} steps; it needs {length + 1} frames."
        raise CalibrationError(msg)
    return recorded

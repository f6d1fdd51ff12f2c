"""What `resq_plugin.search` needs of video object segmentation: scores of recorded steps, and whole videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resq_plugin.errors import FrameError
from resq_plugin.planning import Loop
from resq_vos.propagation import Propagation
from resq_vos.step import SegmentationStep, VideoModel

__all__ = ["LabelledFrame", "labelled", "score_runner", "tracking_loop"]

LabelledFrame = tuple[Tensor, Tensor | None]
"""Frame (1, 3, H, W) and, where they are given, its labels (H, W)."""
SMALLEST = 1e-6
"""Probability whose logarithm is taken for 0."""


def score_runner(model: VideoModel) -> Callable[[SegmentationStep], Tensor]:
    """What ``search(model, clips, run=score_runner(model))`` runs: a step's class scores (R, 2, H, W) per object."""

    def run(step: SegmentationStep) -> Tensor:
        half = step.run(model)[0] / 2  # log-odds are the difference of both scores
        return torch.stack([-half, half], dim=1)

    return run


def tracking_loop(model: VideoModel, *, every: int = 5) -> Loop:
    """Whole videos of `LabelledFrame`, of which the first is given, for ``search(..., loop=tracking_loop(model))``.

    Each frame comes to class scores (1, 1 + R, H, W), logarithms of the probabilities of background and R objects.

    Args:
        model: the network.
        every: as in `Propagation`.
    """
    tracker = Propagation(model, every=every)

    def run(frame: LabelledFrame) -> Tensor:
        image, labels = frame
        if image.shape[0] != 1:
            msg = f"frames of a loop are (1, 3, H, W), one video after the other; got {tuple(image.shape)}."
            raise FrameError(msg)
        tracker(image, labels)
        masks = tracker.masks
        if masks is None or not len(masks):
            msg = "the first frame of a video has no object; give it as (frame, labels), labels (H, W) with numbers."
            raise FrameError(msg)
        background = 1 - masks.sum(0, keepdim=True)
        return torch.cat([background, masks])[None].clamp_min(SMALLEST).log()

    return Loop(run, tracker.reset, given=1)


def labelled(frames: Iterable[Tensor], labels: Tensor) -> list[LabelledFrame]:
    """A video for `tracking_loop`: frames (1, 3, H, W), and labels (H, W) of the first."""
    return [(frame, labels if index == 0 else None) for index, frame in enumerate(frames)]

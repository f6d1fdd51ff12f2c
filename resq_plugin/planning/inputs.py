"""What a search is given: clips that are looked at, clips that verify, and what cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resq_plugin.calibration import Clip, checked_frames
from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError
from resq_plugin.method import frame_to
from resq_plugin.planning.target import Target

__all__ = ["FOUND", "Loop", "check_common", "check_labels", "possible_intervals", "split_clips"]

logger = logging.getLogger(__name__)

FOUND = {
    "interval": "say which T may be: target={'intervals': (8, 16)}",
    "weights": "say what may be: target={'weights': ('channel',)}",
    "reference": "say which may be: target={'references': ('running',)}",
    "keyframe_grid": "say which may be: target={'grids': ('unsigned',)}",
    "policy": "say what may be: target={'thresholds': (0.1, 0.2), 'granularity': 'pixel'}",
    "overrides": "edit the plan that it finds, or leave layers in float: exclude=('head.*',)",
    "precision": "say which may be: target={'keyframes': ('W8A8',), 'residuals': ('W4A4',)}",
    "keyframe": "say which may be: target={'keyframes': ('W8A8', 'W6A6')}",
    "residual": "say which may be: target={'residuals': ('W4A4', 'W4A{0,4}')}",
    "schedule": "convert with plan.config.replace(schedule=...)",
}
"""Fields of `ResQConfig` that are found, and what to write instead."""


@dataclass(frozen=True)
class Loop:
    """How whole videos run where a frame depends on what the ones before left behind, as in `evaluate`.

    Attributes:
        run: what runs one frame with what it remembers, and returns what ``predict`` takes.
        start: what begins a video and forgets the one before.
        given: so many frames at the start of a video call no layer, as the frame whose mask is given.
    """

    run: Callable[[Any], Any]
    start: Callable[[], Any]
    given: int = 0


def check_common(common: Mapping[str, Any]) -> None:
    """Refuse fields of `ResQConfig` that the search finds itself, and unknown ones.

    Raises:
        ConfigError: the message has what to write instead.
    """
    for key in common:
        if key in FOUND:
            msg = f"search finds {key} itself, so {key}={common[key]!r} cannot be given; {FOUND[key]}."
            raise ConfigError(msg)
    ResQConfig.parse("W8A8", **common)


def split_clips(
    clips: Sequence[Clip],
    held_out: float | Sequence[Clip],
    device: torch.device | None,
    *,
    pytrees: bool = False,
    loop: Loop | None = None,
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Clips that are looked at, and those that verify.

    Args:
        clips: consecutive frames.
        held_out: clips that verify, or a share of those.
        device: of the model.
        pytrees: whether a frame may be more than a tensor.
        loop: what runs the held-out videos, if those are no clips as the others.
    """
    found = [_frames(clip, index, device, pytrees) for index, clip in enumerate(clips)]
    if not found:
        msg = "search got no clip; pass clips such as [(T, C, H, W) tensor, ...] of consecutive frames."
        raise ConfigError(msg)
    if not isinstance(held_out, (int, float)):
        pytrees = pytrees or loop is not None
        verifying = [_frames(clip, index, device, pytrees) for index, clip in enumerate(held_out)]
        if not verifying:
            msg = "held_out=[] has no clip; pass clips that verify plans, or a share of the others such as 0.25."
            raise ConfigError(msg)
        if loop is not None and min(map(len, verifying)) <= loop.given:
            msg = (
                f"the held-out videos have {[len(video) for video in verifying]} frames; each needs more than the "
                f"{loop.given} that are given."
            )
            raise ConfigError(msg)
        return found, verifying
    if loop is not None:
        msg = (
            f"held_out={held_out!r} is a share of recorded steps, but loop=... runs whole videos; pass "
            "held_out=[video, ...]."
        )
        raise ConfigError(msg)
    if not 0 < held_out < 1:
        msg = f"held_out={held_out!r} is not allowed; write a share of the clips such as 0.25, or clips."
        raise ConfigError(msg)
    if len(found) == 1:
        clip, count = found[0], max(1, round(len(found[0]) * held_out))
        if len(clip) < 3:
            msg = f"one clip of {len(clip)} frames cannot be parted; pass a longer one, or held_out=[clip, ...]."
            raise ConfigError(msg)
        return [clip[:-count]], [clip[-count:]]
    count = min(max(1, round(len(found) * held_out)), len(found) - 1)
    return found[:-count], found[-count:]


def _frames(clip: Clip, index: int, device: torch.device | None, pytrees: bool) -> list[Any]:
    frames = checked_frames(clip, index)
    if not pytrees and not all(isinstance(frame, Tensor) for frame in frames):
        msg = (
            f"clip {index} has frames that are no tensors; search takes frames (N, C, H, W), or with run=... whatever "
            "that runs, such as (frame, masks, previous state)."
        )
        raise ConfigError(msg)
    return [frame_to(frame, device) for frame in frames]


def possible_intervals(target: Target, measured: Sequence[Any], verifying: Sequence[Any]) -> tuple[int, ...]:
    """T that both kinds of clips are long enough for."""
    longest = min(max(map(len, measured)), max(map(len, verifying)))
    fit = tuple(interval for interval in sorted(target.intervals) if interval <= longest)
    if not fit:
        msg = (
            f"target.intervals={target.intervals} are all longer than the clips; the longest interval that both the "
            f"searched and the held-out clips show has {longest} frames."
        )
        raise ConfigError(msg)
    left = sorted(set(target.intervals) - set(fit))
    if left:
        logger.warning("T = %s is longer than the clips (%d frames) and is left out", left, longest)
    return fit


def check_labels(labels: Sequence[Any], clips: Sequence[Any]) -> None:
    """Refuse labels that do not fit the held-out clips."""
    found, expected = [len(each) for each in labels], [len(clip) for clip in clips]
    if found != expected:
        msg = (
            f"there are {found} labels for held-out clips of {expected} frames; use None for a frame without a label."
        )
        raise ConfigError(msg)

"""When a frame is a keyframe: every T frames (the paper), also on a scene change, or the first one only."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError, ConfigError

__all__ = ["Schedule", "make_schedule", "relative_change", "scene_threshold", "set_scene_threshold"]

_ATTRIBUTE = "_resq_scene_threshold"

LARGEST_THRESHOLD = 100.0
"""Only a frame without contrast is followed by a larger change: about 1.4 is that of unrelated frames."""


def relative_change(frame: Tensor, keyframe: Tensor) -> Tensor:
    """How much a frame differs from its keyframe: mean |x_t - x_k| over the mean deviation of x_k.

    Args:
        frame: x_t, (N, C, H, W).
        keyframe: x_k, the same shape.

    Returns:
        Changes (N,); 0 for a repeated frame, about 1.4 for an unrelated one of the same statistics.
    """
    x_t, x_k = frame.double().flatten(1), keyframe.double().flatten(1)
    spread = (x_k - x_k.mean(1, keepdim=True)).abs().mean(1)
    return (x_t - x_k).abs().mean(1) / spread.clamp_min(1e-12)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Decides where intervals start.

    Attributes:
        interval: T, the longest interval in frames.
        scene_threshold: relative change that starts a new one earlier; None for a fixed T.
        is_spread: whether keyframes are spread over T frames, so that intervals have no end; see `Refresh`.
    """

    interval: int
    scene_threshold: float | None = None
    is_spread: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether every T-th frame is a keyframe, and no other."""
        return self.scene_threshold is None and not self.is_spread

    def phase(self, position: int) -> int:
        """Position t within T frames, 0 to T - 1."""
        return position % self.interval

    def is_over(self, position: int) -> bool:
        """Whether the frame that would get this position starts a new interval, whatever it shows."""
        return position >= self.interval and not self.is_spread

    def is_keyframe(self, position: int, frame: Tensor, keyframe: Tensor) -> bool:
        """Whether the frame (N, C, H, W) that would get this position starts a new interval.

        Of several videos in step, one that changes its scene takes all of them along.
        """
        if self.is_over(position):
            return True
        if self.scene_threshold is None:
            return False
        return bool((relative_change(frame, keyframe) > self.scene_threshold).any())


def make_schedule(model: nn.Module, config: ResQConfig, interval: int | None = None) -> Schedule:
    """Return the schedule of a stream.

    Raises:
        CalibrationError: the threshold of scene changes is to come from calibration, and there was none, or one that
            no frame or every frame exceeds.
        ConfigError: the interval is no whole number of at least 1.
    """
    interval = config.interval if interval is None else interval
    if not isinstance(interval, int) or interval < 1:
        msg = f"interval={interval!r} is not allowed; write a whole number of at least 1."
        raise ConfigError(msg)
    if config.schedule.kind == "interval":
        return Schedule(interval)
    if config.schedule.kind == "spread":
        return Schedule(interval, is_spread=True)
    threshold = config.schedule.threshold
    if threshold is None:
        found = [scene_threshold(module) for module in model.modules()]
        threshold = next((value for value in found if value is not None), None)
    if threshold is None:
        msg = (
            "the scene-change schedule has no threshold; call resq_plugin.calibrate(model, clips), "
            "or write schedule=dict(kind='scene_change', threshold=0.5)."
        )
        raise CalibrationError(msg)
    if config.schedule.threshold is None and not 0 < threshold <= LARGEST_THRESHOLD:
        which = "every" if threshold <= 0 else "no"
        msg = (
            f"the calibrated threshold of scene changes is {threshold:.3g}, which {which} frame exceeds (unrelated "
            "frames change by about 1.4); calibrate again, resq_plugin.calibrate(model, clips), or write "
            "schedule=dict(kind='scene_change', threshold=0.5)."
        )
        raise CalibrationError(msg)
    return Schedule(interval, threshold)


def scene_threshold(model: nn.Module) -> float | None:
    """The threshold of scene changes that belongs to a module, if any; those of its parts do not count."""
    threshold: float | None = model.__dict__.get(_ATTRIBUTE)
    return threshold


def set_scene_threshold(model: nn.Module, threshold: float | None) -> None:
    """Keep a calibrated threshold with the model, see `resq_plugin.conversion.model_state`; None forgets it."""
    model.__dict__.pop(_ATTRIBUTE, None)
    if threshold is not None:
        model.__dict__[_ATTRIBUTE] = threshold

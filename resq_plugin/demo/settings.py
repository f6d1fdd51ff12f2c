"""What the demo runs: schemes, precisions, intervals, and how much video."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from resq_plugin.config import CalibrationConfig

__all__ = ["DemoSettings"]


@dataclass(frozen=True)
class DemoSettings:
    """Schemes and sizes of one run of the demo.

    Attributes:
        frame: precisions of frame quantization.
        mixed: keyframe and residual precision, each of `frame`, of frame quantization with two precisions: what ResQ
            of the same bit operations has to beat, and what Fig. 5 and 7 compare it with.
        resq: precisions of ResQ.
        dynamic: precisions of Dynamic-ResQ.
        thresholds: τ of Eq. 11 for the dynamic precisions; those in `swept` run at the first only.
        interval: T.
        intervals: further T of the precisions in `swept`.
        swept: precisions to run at them.
        videos: scenes to evaluate on.
        frames: of each scene, or of the user's video.
        calibration_clips: clips of four frames; as many frames of the user's video calibrate.
        calibration: search of the activation ranges, the same for every scheme.
        weights: one scale per ``tensor`` or ``channel``.
        trained: also run the net that was trained through time.
    """

    frame: tuple[str, ...] = ("W8A8", "W8A4", "W4A8", "W4A4", "W3A3")
    mixed: tuple[str, ...] = ("W8A8->W4A4", "W4A4->W3A3")
    resq: tuple[str, ...] = ("W8A8->W8A4", "W8A8->W4A4", "W4A4->W3A3")
    dynamic: tuple[str, ...] = ("W8A8->W8A{0,4,8}", "W8A8->W4A{0,4,8}")
    thresholds: tuple[float, ...] = (0.1, 0.2)
    interval: int = 3
    intervals: tuple[int, ...] = (2, 4, 6)
    swept: tuple[str, ...] = ("W8A8->W4A4", "W8A8->W4A{0,4,8}")
    videos: int = 8
    frames: int = 12
    calibration_clips: int = 8
    calibration: CalibrationConfig = field(
        default_factory=lambda: CalibrationConfig(samples=24, positions=2048, recheck=2)
    )
    weights: str = "tensor"
    trained: bool = True

    def intervals_of(self, precision: str) -> tuple[int, ...]:
        """Every T that a precision runs at, ascending."""
        further = self.intervals if precision in self.swept else ()
        return tuple(sorted({self.interval, *further}))

    def thresholds_of(self, precision: str) -> tuple[float, ...]:
        """Every τ that a dynamic precision runs at."""
        return self.thresholds[:1] if precision in self.swept else self.thresholds

    @property
    def longest(self) -> int:
        """The longest T."""
        return max(self.interval, *self.intervals) if self.intervals else self.interval

    def fitted(self, frames: int) -> DemoSettings:
        """The settings for videos of that many frames: no T is longer than they are."""
        further = tuple(interval for interval in self.intervals if interval <= frames)
        return dataclasses.replace(self, interval=min(self.interval, frames), intervals=further)

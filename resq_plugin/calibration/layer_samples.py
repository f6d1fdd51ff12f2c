"""What calibration keeps of what one layer reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError

__all__ = ["LayerSamples", "Losses", "best", "widen"]

Quantize = Callable[[Tensor], Tensor]
Losses = dict[float, float]
"""Half ranges and their squared losses, best first."""

STILL = 2.0**-20
"""Changes up to this share of the inputs themselves are noise of float arithmetic."""


@dataclass
class LayerSamples:
    """What calibration keeps of one layer: windows of its inputs and statistics of the full maps.

    Attributes:
        clips: per clip and call, windows (n, C, h, w) by position; all positions of a clip show the same places.
        keyframe_range: minimum and maximum of x.
        residual_range: minimum and maximum of the change since the reference, in float; None when no residual was
            seen.
        complete: per clip and call, whether the windows hold all output positions.
        residuals: per clip and call, the positions that count as residual samples.
        keyframes: per clip and call, the positions that count as keyframe samples.
    """

    clips: list[dict[int, Tensor]] = field(default_factory=list)
    keyframes: list[list[int]] = field(default_factory=list)
    residuals: list[list[int]] = field(default_factory=list)
    keyframe_range: tuple[float, float] = (float("inf"), -float("inf"))
    residual_range: tuple[float, float] | None = None
    complete: list[bool] = field(default_factory=list)
    square_sum: float = 0.0
    pixels: int = 0

    def is_signed(self, config: ResQConfig) -> bool:
        """Whether the keyframe grid is symmetric."""
        return config.keyframe_grid == "symmetric" or self.keyframe_range[0] < 0

    @property
    def is_complete(self) -> bool:
        """Whether the windows hold all output positions of every frame."""
        return all(self.complete)

    def of_keyframes(self) -> LayerSamples:
        """What frame quantization sees of them: the same windows (not copied), and no residual."""
        slots = [slot for slot, chosen in enumerate(self.keyframes) if chosen]

        def of_slots(values: Sequence[Any]) -> list[Any]:
            return [values[slot] for slot in slots]

        return replace(
            self,
            clips=of_slots(self.clips),
            keyframes=of_slots(self.keyframes),
            residuals=[[] for _ in slots],
            complete=of_slots(self.complete),
            residual_range=None,
        )

    @property
    def largest(self) -> float:
        """Largest magnitude of x."""
        return max(self.keyframe_range[1], -self.keyframe_range[0])

    @property
    def is_still(self) -> bool:
        """Whether no residual differs from zero."""
        low, high = self.residual_range or (0.0, 0.0)
        return max(high, -low) <= STILL * self.largest

    @property
    def widest_change(self) -> float:
        """The largest change between two inputs in the range of those seen; the input itself if that is constant."""
        low, high = self.keyframe_range
        return float(torch.tensor((high - low) or self.largest))

    @property
    def activation_norm(self) -> float:
        """Root mean square over pixels of ‖x‖, the norm being taken over channels."""
        return math.sqrt(self.square_sum / max(self.pixels, 1))

    def keyframe_inputs(self) -> list[Tensor]:
        """All keyframe windows, batches (n, C, h, w) of one shape each."""
        return _batches(clip[t] for clip, chosen in zip(self.clips, self.keyframes, strict=True) for t in chosen)

    def residual_inputs(self, reference: str, quantize: Quantize) -> list[Tensor]:
        """All residual windows δ, batches (n, C, h, w) of one shape each, to the reference that streams will use.

        The running reference is taken as the last frame quantized on the keyframe grid: its own error depends on the
        very range that is searched.
        """
        deltas = []
        for clip, chosen in zip(self.clips, self.residuals, strict=True):
            for t in chosen:
                last = max(position for position in clip if position < t)
                x = clip[last if reference == "running" else 0]
                deltas.append(clip[t] - (x if reference == "float" else quantize(x)))
        return _batches(deltas)


def _batches(windows: Iterable[Tensor]) -> list[Tensor]:
    """Concatenate windows by shape: maps smaller than a window make smaller ones."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for window in windows:
        groups.setdefault(window.shape[1:], []).append(window)
    return [torch.cat(group) for group in groups.values()]


def best(losses: Mapping[float, float]) -> float:
    """The half range of the smallest loss; of equal ones the first."""
    return min(losses, key=losses.__getitem__)


def widen(bounds: tuple[float, float], x: Tensor, name: str) -> tuple[float, float]:
    """Widen a range (minimum, maximum) so that it holds ``x``, which layer ``name`` reads.

    Raises:
        CalibrationError: NaN or Inf in ``x``.
    """
    low, high = (float(end) for end in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        msg = f"layer {name} reads NaN or Inf although the frame has none; the network makes them before that layer."
        raise CalibrationError(msg)
    return min(bounds[0], low), max(bounds[1], high)

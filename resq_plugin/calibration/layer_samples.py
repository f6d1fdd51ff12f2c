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

__all__ = ["LayerSamples", "Losses", "best", "square_sum", "widen"]

Quantize = Callable[[Tensor], Tensor]
Losses = dict[float, float]
"""Half ranges and their squared losses, best first."""

STILL = 2.0**-20
"""Changes up to this share of the inputs themselves are noise of float arithmetic."""
TYPICAL = 0.5, 2.0
"""Mean square of windows, relative to that of full maps, between which they stand for the maps."""


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
        inside: per clip and call, pixels of the map that the windows of one position hold.
        square_sum: of x on full maps, over all keyframe samples.
        pixels: of these maps.
        change_square_sum: of the changes of which ``residual_range`` is the range.
        change_pixels: of their maps.
    """

    clips: list[dict[int, Tensor]] = field(default_factory=list)
    keyframes: list[list[int]] = field(default_factory=list)
    residuals: list[list[int]] = field(default_factory=list)
    keyframe_range: tuple[float, float] = (float("inf"), -float("inf"))
    residual_range: tuple[float, float] | None = None
    complete: list[bool] = field(default_factory=list)
    inside: list[int] = field(default_factory=list)
    square_sum: float = 0.0
    pixels: int = 0
    change_square_sum: float = 0.0
    change_pixels: int = 0
    _typical: dict[tuple[str, bool], bool] = field(default_factory=dict, repr=False)

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
            inside=of_slots(self.inside),
            residual_range=None,
            _typical={},
        )

    def is_typical(self, kind: str, reference: str = "float") -> bool:
        """Whether windows hold all of the maps, or about as much. A few may miss what is rare, such as a small mask.

        Args:
            kind: ``keyframe`` (x) or ``residual`` (its change since the reference, in float).
            reference: of residuals.
        """
        if self.is_complete:
            return True
        place = kind, kind == "residual" and reference == "running"
        if place not in self._typical:  # all samples are there when this is asked first
            self._typical[place] = self._is_typical(*place)
        return self._typical[place]

    def _is_typical(self, kind: str, running: bool) -> bool:
        if kind == "keyframe":
            whole, pixels, chosen, batches = self.square_sum, self.pixels, self.keyframes, self.keyframe_inputs()
        else:
            whole, pixels, chosen = self.change_square_sum, self.change_pixels, self.residuals
            batches = self.residual_inputs("running" if running else "float", lambda x: x)
        seen = sum(count * len(positions) for count, positions in zip(self.inside, chosen, strict=True))
        if not (whole and seen):
            return True
        part = sum(map(square_sum, batches))
        return TYPICAL[0] <= (part / seen) / (whole / pixels) <= TYPICAL[1]

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


def square_sum(x: Tensor) -> float:
    """Sum of squares, which does not overflow in half precision."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


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

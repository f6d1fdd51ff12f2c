"""The executors of calibration: they run layers in float and look at what passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.layers import ResidualLayer
from resq_plugin.quantizer import fake_quantize, scale_from_range
from resq_plugin.ranges import output_loss
from resq_plugin.sampling import Window, choose_windows, cut_windows

__all__ = ["Collector", "FullMapComparison", "LayerSamples"]

Quantize = Callable[[Tensor], Tensor]


@dataclass
class LayerSamples:
    """What calibration keeps of one layer: windows of its inputs and statistics of the full maps.

    Attributes:
        clips: windows (n, C, h, w) per clip and position; all positions of a clip show the same places.
        keyframe_range: minimum and maximum of x.
        residual_range: minimum and maximum of x_t - x_k; None when no residual was seen.
        residuals: per clip, the positions that count as residual samples.
        keyframes: per clip, the positions that count as keyframe samples.
    """

    clips: list[list[Tensor]] = field(default_factory=list)
    keyframes: list[list[int]] = field(default_factory=list)
    residuals: list[list[int]] = field(default_factory=list)
    keyframe_range: tuple[float, float] = (float("inf"), -float("inf"))
    residual_range: tuple[float, float] | None = None
    square_sum: float = 0.0
    pixels: int = 0

    def is_signed(self, config: ResQConfig) -> bool:
        """Whether the keyframe grid is symmetric."""
        return config.keyframe_grid == "symmetric" or self.keyframe_range[0] < 0

    @property
    def activation_norm(self) -> float:
        """Root mean square over pixels of ‖x‖, the norm being taken over channels."""
        return (self.square_sum / max(self.pixels, 1)) ** 0.5

    def keyframe_inputs(self) -> Tensor:
        """All keyframe windows (n, C, h, w)."""
        return torch.cat(
            [clip[t] for clip, chosen in zip(self.clips, self.keyframes, strict=True) for t in chosen]
        )

    def residual_inputs(self, reference: str, quantize: Quantize) -> Tensor:
        """All residual windows δ (n, C, h, w), to the reference that streams will use.

        The running reference is taken as the last frame quantized on the keyframe grid: its own error depends on the
        very range that is searched.
        """
        deltas = []
        for clip, chosen in zip(self.clips, self.residuals, strict=True):
            for t in chosen:
                if reference == "float":
                    deltas.append(clip[t] - clip[0])
                else:
                    deltas.append(clip[t] - quantize(clip[t - 1 if reference == "running" else 0]))
        return torch.cat(deltas)


class Collector:
    """Executor that runs layers in float and samples their inputs."""

    def __init__(self, layers: Mapping[str, ResidualLayer], config: ResQConfig) -> None:
        self.layers = layers
        self.config = config
        self.samples: dict[str, LayerSamples] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.frames = {"keyframe": 0, "residual": 0}
        self._windows: dict[tuple[str, int], list[Window]] = {}
        self._references: dict[tuple[str, int], Tensor] = {}
        self._slots: dict[tuple[str, int], int] = {}
        self._calls: dict[str, int] = {}
        self._position = 0
        self._roles: set[str] = set()

    def start_frame(self, position: int) -> None:
        """Begin frame t of the clip."""
        self._position = position
        self._calls.clear()
        limit = self.config.calibration.samples
        roles = {"keyframe"} if position == 0 or self.config.residual is None else {"keyframe", "residual"}
        self._roles = {role for role in roles if self.frames[role] < limit}
        for role in self._roles:
            self.frames[role] += 1

    def end_clip(self) -> None:
        """Forget what belongs to one clip only."""
        self._windows.clear()
        self._references.clear()
        self._slots.clear()

    @property
    def is_full(self) -> bool:
        """Whether enough samples of each kind were seen."""
        limit = self.config.calibration.samples
        return self.frames["keyframe"] >= limit and (self.config.residual is None or self.frames["residual"] >= limit)

    def check(self) -> None:
        """Raise unless some layer was reached."""
        if not self.samples:
            msg = "no ResQ layer was reached by the calibration frames; does model(frame) run the converted network?"
            raise CalibrationError(msg)

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        """Run one call of one layer in float."""
        name = layer.settings.name
        call = self._calls[name] = self._calls.get(name, -1) + 1
        key = name, call
        samples = self.samples.setdefault(name, LayerSamples())
        if key not in self._slots:
            per_frame = self.config.calibration.positions / self.config.calibration.samples
            self._windows[key] = choose_windows(layer, x, max(1, round(per_frame)), self.generator)
            self._slots[key] = len(samples.clips)
            samples.clips.append([])
            samples.keyframes.append([])
            samples.residuals.append([])
        slot = self._slots[key]
        samples.clips[slot].append(cut_windows(layer, x, self._windows[key]))
        if "keyframe" in self._roles:
            samples.keyframes[slot].append(self._position)
            samples.keyframe_range = _widen(samples.keyframe_range, x)
            samples.square_sum += float(x.square().sum(dtype=torch.float64))
            samples.pixels += x.numel() // max(x.shape[layer.channel_dim], 1)
        if self._position == 0:
            self._references[key] = x.clone()
        elif "residual" in self._roles:
            samples.residuals[slot].append(self._position)
            low = samples.residual_range or (float("inf"), -float("inf"))
            samples.residual_range = _widen(low, x - self._references[key])
        return layer.dense(x, **options)


def _widen(bounds: tuple[float, float], x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return min(bounds[0], float(low)), max(bounds[1], float(high))


class FullMapComparison:
    """Executor that runs layers in float and sums the loss of Eq. 8 of a few ranges on full maps."""

    def __init__(
        self, config: ResQConfig, ranked: dict[str, dict[str, list[float]]], samples: Mapping[str, LayerSamples]
    ) -> None:
        self.config = config
        self.finalists = ranked
        self.samples = samples
        self.losses: dict[tuple[str, str, float], float] = {}
        self._references: dict[tuple[str, int], Tensor] = {}
        self._calls: dict[str, int] = {}
        self._position = 0

    def start_frame(self, position: int) -> None:
        """Begin the keyframe (0) or the residual frame (1) of a pair."""
        self._position = position
        self._calls.clear()
        if position == 0:
            self._references.clear()

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        """Run one call of one layer in float."""
        name = layer.settings.name
        call = self._calls[name] = self._calls.get(name, -1) + 1
        if name not in self.finalists:
            return layer.dense(x, **options)
        if self._position == 0:
            self._references[name, call] = self._reference(layer, x)
            self._compare(layer, "keyframe", x, options, signed=self.samples[name].is_signed(self.config))
        else:
            delta = x - self._references[name, call]
            for quantizer in self.finalists[name]:
                if quantizer != "keyframe":
                    self._compare(layer, quantizer, delta, options, signed=True)
        return layer.dense(x, **options)

    def _reference(self, layer: ResidualLayer, x: Tensor) -> Tensor:
        if self.config.reference == "float":
            return x.clone()
        name = layer.settings.name
        signed, bits = self.samples[name].is_signed(self.config), layer.activation_quantizers()["keyframe"].bits
        half = torch.tensor(self.finalists[name]["keyframe"][0], dtype=torch.float64)
        return fake_quantize(x, scale_from_range(-half, half, bits, signed=signed).to(x), bits, signed=signed)

    def _compare(
        self, layer: ResidualLayer, quantizer: str, x: Tensor, options: dict[str, Any], *, signed: bool
    ) -> None:
        name, bits = layer.settings.name, layer.activation_quantizers()[quantizer].bits
        half_ranges = self.finalists[name][quantizer]
        if len(half_ranges) < 2:
            return
        weight = layer.weight_of("keyframe" if quantizer == "keyframe" else "residual")

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            return layer.linear(x, weight, None, **options)

        target = apply(x, layer.weight_of("float"))
        for half_range in half_ranges:
            key = name, quantizer, half_range
            loss = output_loss(x, target, weight, half_range, bits, signed, apply)
            self.losses[key] = self.losses.get(key, 0.0) + loss

    def ranked(self) -> dict[str, dict[str, list[float]]]:
        """The ranges of every quantizer, best first."""
        return {
            name: {
                quantizer: sorted(half_ranges, key=lambda h: self.losses.get((name, quantizer, h), 0.0))  # noqa: B023
                for quantizer, half_ranges in quantizers.items()
            }
            for name, quantizers in self.finalists.items()
        }

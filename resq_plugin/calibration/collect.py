"""The executors of calibration: they run layers in float and look at what passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resq_plugin.calibration.ranges import output_loss
from resq_plugin.calibration.sampling import Window, choose_windows, cut_windows, output_positions
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.method import Call, CountingExecutor, ResidualLayer, fake_quantize, scale_from_range

__all__ = ["Collector", "FullMapComparison", "LayerSamples", "best", "widen"]

Quantize = Callable[[Tensor], Tensor]

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
        is_complete: whether the windows hold all output positions of every frame.
        residuals: per clip and call, the positions that count as residual samples.
        keyframes: per clip and call, the positions that count as keyframe samples.
    """

    clips: list[dict[int, Tensor]] = field(default_factory=list)
    keyframes: list[list[int]] = field(default_factory=list)
    residuals: list[list[int]] = field(default_factory=list)
    keyframe_range: tuple[float, float] = (float("inf"), -float("inf"))
    residual_range: tuple[float, float] | None = None
    is_complete: bool = True
    square_sum: float = 0.0
    pixels: int = 0

    def is_signed(self, config: ResQConfig) -> bool:
        """Whether the keyframe grid is symmetric."""
        return config.keyframe_grid == "symmetric" or self.keyframe_range[0] < 0

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


Key = tuple[str, int, torch.Size]
"""One call of one layer in a frame: layer name, number of the call, shape of the input."""


class Collector(CountingExecutor):
    """Executor that runs layers in float and samples their inputs.

    Args:
        layers: the layers by name.
        config: the configuration.
        expected: how many samples of each kind there will be, among which output positions are shared out.
    """

    def __init__(self, layers: Mapping[str, ResidualLayer], config: ResQConfig, expected: int | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.config = config
        self.positions = max(1, round(config.calibration.positions / (expected or config.calibration.samples)))
        self.samples: dict[str, LayerSamples] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.frames = {"keyframe": 0, "residual": 0}
        self._windows: dict[Key, list[Window]] = {}
        self._references: dict[Key, Tensor] = {}
        self._slots: dict[Key, int] = {}
        self._position = 0
        self._roles: set[str] = set()

    def start_frame(self, position: int) -> None:
        """Begin frame t of the clip."""
        self._position = position
        self.calls.clear()
        limit = self.config.calibration.samples
        roles = {"keyframe"} if position == 0 or self.config.residual is None else {"keyframe", "residual"}
        self._roles = {role for role in roles if self.frames[role] < limit}
        for role in self._roles:
            self.frames[role] += 1

    def pass_over_frame(self) -> None:
        """Do not count this frame, because it called no layer."""
        for role in self._roles:
            self.frames[role] -= 1

    def end_clip(self) -> None:
        """Forget what belongs to one clip only."""
        self._windows.clear()
        self._references.clear()
        self._slots.clear()

    @property
    def wanted(self) -> int:
        """How many frames of the next clip to look at; 0 when enough samples of each kind were seen."""
        limit = self.config.calibration.samples
        keyframes, residuals = limit - self.frames["keyframe"], limit - self.frames["residual"]
        return max(keyframes, 0) if self.config.residual is None or residuals <= 0 else max(keyframes, residuals + 1)

    def finish(self) -> None:
        """Drop layers without a keyframe sample, and raise unless some layer was reached."""
        self.samples = {name: samples for name, samples in self.samples.items() if any(samples.keyframes)}
        if not self.samples:
            msg = "no ResQ layer was reached by the calibration frames; does model(frame) run the converted network?"
            raise CalibrationError(msg)

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer in float."""
        name, key = layer.settings.name, (*call, x.shape)
        z = layer.dense(x, **options)
        _require_batch(layer, x)
        samples = self.samples.setdefault(name, LayerSamples())
        if key not in self._slots:
            self._windows[key] = choose_windows(layer, x, self.positions, self.generator)
            self._slots[key] = len(samples.clips)
            samples.is_complete &= self.positions >= output_positions(layer, x)
            samples.clips.append({})
            samples.keyframes.append([])
            samples.residuals.append([])
        slot = self._slots[key]
        samples.clips[slot][self._position] = cut_windows(layer, x, self._windows[key])
        if "keyframe" in self._roles:
            samples.keyframes[slot].append(self._position)
            samples.keyframe_range = widen(samples.keyframe_range, x, name)
            samples.square_sum += float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
            samples.pixels += x.numel() // max(x.shape[layer.channel_dim], 1)
        if self._position == 0:
            self._references[key] = x.clone()
        elif "residual" in self._roles:
            samples.residuals[slot].append(self._position)
            low = samples.residual_range or (float("inf"), -float("inf"))
            samples.residual_range = widen(low, _difference(x, self._references, key), name)
        if self.config.reference == "running" and key in self._references:
            self._references[key] = x.clone()
        return z


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


def _require_batch(layer: ResidualLayer, x: Tensor) -> None:
    expected = layer.weight_of("float").dim() if layer.channel_dim == 1 else 2
    if x.dim() < expected:
        msg = (
            f"layer {layer.settings.name} got an input {tuple(x.shape)} without a batch dimension; "
            "the frames of a clip are (N, C, H, W)."
        )
        raise CalibrationError(msg)


def _difference(x: Tensor, references: Mapping[Key, Tensor], key: Key) -> Tensor:
    """Residual of ``x`` to the same call in the first frame of the clip, or in the last one that had it."""
    if key not in references:
        name, call, shape = key
        msg = (
            f"call {call} of layer {name} has the input {tuple(shape)}, and none like it in the first frame of the "
            f"clip. Residuals need the same calls in every frame; exclude=({name!r},) keeps this layer in float."
        )
        raise CalibrationError(msg)
    return x - references[key]


class FullMapComparison(CountingExecutor):
    """Executor that runs layers in float and adds the loss of Eq. 8 on full maps to that of a few ranges.

    Args:
        config: the configuration.
        ranked: per layer and quantizer, half ranges and their losses on the sample, best first.
        samples: the samples of every layer.
    """

    def __init__(
        self,
        config: ResQConfig,
        ranked: Mapping[str, Mapping[str, Mapping[float, float]]],
        samples: Mapping[str, LayerSamples],
    ) -> None:
        super().__init__()
        self.config = config
        self.finalists = {name: {key: dict(losses) for key, losses in item.items()} for name, item in ranked.items()}
        self.samples = samples
        self._keyframes = {name: best(item["keyframe"]) for name, item in self.finalists.items()}
        self._references: dict[Key, Tensor] = {}
        self._position = 0

    def start_frame(self, position: int) -> None:
        """Begin the keyframe (0) or the residual frame (1) of a pair."""
        self._position = position
        self.calls.clear()
        if position == 0:
            self._references.clear()

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer in float."""
        name = layer.settings.name
        if name not in self.finalists:
            return layer.dense(x, **options)
        key = (*call, x.shape)
        residuals = [quantizer for quantizer in self.finalists[name] if quantizer != "keyframe"]
        self._compare(layer, "keyframe", x, options, signed=self.samples[name].is_signed(self.config))
        if self._position == 0:
            self._references[key] = self._reference(layer, x)
        elif residuals:
            delta = _difference(x, self._references, key)
            for quantizer in residuals:
                self._compare(layer, quantizer, delta, options, signed=True)
        return layer.dense(x, **options)

    def _reference(self, layer: ResidualLayer, x: Tensor) -> Tensor:
        if self.config.reference == "float":
            return x.clone()
        name = layer.settings.name
        signed, bits = self.samples[name].is_signed(self.config), layer.activation_quantizers()["keyframe"].bits
        half = torch.tensor(self._keyframes[name], dtype=torch.float64)
        scale = scale_from_range(-half, half, bits, signed=signed).to(x.device)
        return fake_quantize(x, scale, bits, signed=signed)

    def _compare(
        self, layer: ResidualLayer, quantizer: str, x: Tensor, options: dict[str, Any], *, signed: bool
    ) -> None:
        name, bits = layer.settings.name, layer.activation_quantizers()[quantizer].bits
        losses = self.finalists[name][quantizer]
        if len(losses) < 2:
            return
        weight = layer.weight_of("keyframe" if quantizer == "keyframe" else "residual")

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            return layer.linear(x, weight, None, **options)

        target = apply(x, layer.weight_of("float"))
        for half_range in losses:
            losses[half_range] += output_loss(x, target, weight, half_range, bits, signed, apply)

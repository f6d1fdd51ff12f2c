"""Per layer: how much smaller residuals are than frames, and what quantizing either costs (§3, Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing, residual_layers

__all__ = ["LayerError", "measure_layers"]


@dataclass(frozen=True)
class LayerError:
    """One layer on float inputs, so that it answers for nothing but itself.

    Attributes:
        name: of the layer.
        frame_variance: of x_t.
        residual_variance: of x_t - x_k.
        frame_error: ‖z - ẑ‖ / ‖z‖ with the frame quantized at the residual precision, ranges scaled alike.
        residual_error: ‖z - ẑ‖ / ‖z‖ of ẑ = q(δ; Θ_a) * q(w; Θ_w) + x_k * w.
        weight_error: part of it that quantized weights alone make.
        activation_error: part of it that quantized residuals alone make.
    """

    name: str
    frame_variance: float
    residual_variance: float
    frame_error: float
    residual_error: float
    weight_error: float
    activation_error: float

    @property
    def cause(self) -> str:
        """What makes most of the error."""
        return "weights" if self.weight_error > self.activation_error else "activations"


class _Sums:
    def __init__(self) -> None:
        self.values = dict.fromkeys(("count", "x", "delta", "z", "frame", "residual", "weight", "activation"), 0.0)

    def add(self, **squares: float) -> None:
        for key, value in squares.items():
            self.values[key] += value


class _Watch(CountingExecutor):
    """Runs layers in float and quantizes on the side."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, _Sums] = {}
        self.references: dict[Call, tuple[Tensor, Tensor]] = {}
        self.is_keyframe = True

    def start_frame(self, *, is_keyframe: bool) -> None:
        self.calls.clear()
        self.is_keyframe = is_keyframe

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        z = layer.dense(x, **options)
        if self.is_keyframe or layer.settings.residual is None:
            self.references[call] = x.clone(), z.clone()
            return z
        x_k, z_k = self.references[call]
        delta = x - x_k
        delta_hat = layer.quantize_residual(delta)[0].clone()
        weight, w_hat = layer.weight_of("float"), layer.weight_of("residual")
        exact = z - z_k
        bias = layer.bias_of()
        scale = float(x.abs().amax() / delta.abs().amax().clamp_min(1e-12))
        frame = layer.quantize_residual(x / scale)[0] * scale
        sums = self.sums.setdefault(call[0], _Sums())
        sums.add(
            count=x.numel(),
            x=_squares(x - x.mean()),
            delta=_squares(delta - delta.mean()),
            z=_squares(z),
            frame=_squares(layer.linear(frame, w_hat, bias, **options) - z),
            residual=_squares(layer.linear(delta_hat, w_hat, None, **options) - exact),
            weight=_squares(layer.linear(delta, w_hat, None, **options) - exact),
            activation=_squares(layer.linear(delta_hat, weight, None, **options) - exact),
        )
        return z


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


@torch.no_grad()
def measure_layers(model: nn.Module, frames: Sequence[Tensor], interval: int) -> list[LayerError]:
    """Measure every layer with a residual path on the frames of one video, in the order of their first call.

    Args:
        model: converted and calibrated, in evaluation mode.
        frames: (1, C, H, W).
        interval: T, the frames of an interval.
    """
    residual_layers(model)
    watch = _Watch()
    with executing(watch):
        for index, frame in enumerate(frames):
            watch.start_frame(is_keyframe=index % interval == 0)
            model(frame)
    return [_error(name, sums.values) for name, sums in watch.sums.items()]


def _error(name: str, sums: dict[str, float]) -> LayerError:
    def relative(key: str) -> float:
        return math.sqrt(sums[key] / max(sums["z"], 1e-30))

    return LayerError(
        name,
        sums["x"] / sums["count"],
        sums["delta"] / sums["count"],
        *(relative(key) for key in ("frame", "residual", "weight", "activation")),
    )

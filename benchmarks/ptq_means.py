"""Mean errors of layers, taken off one layer after the other as the network runs quantized; ptq.py measures it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing

Clips = list[list[Tensor]]
EVERY = 2
"""One clip of so many gives a keyframe and a residual frame; distances take turns."""


class _Float(CountingExecutor):
    """Runs layers in float and keeps the mean of their outputs, (1, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.means: dict[str, Tensor] = {}

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        z = layer.dense(x, **options)
        self.means[call[0]] = z.mean((0, 2, 3), keepdim=True)
        return z


class _Keyframes(CountingExecutor):
    """Runs keyframes, and adds to the bias what their mean lacks."""

    def __init__(self, means: dict[str, Tensor]) -> None:
        super().__init__()
        self.means = means

    def run(self, layer: Any, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        z = layer.apply_keyframe(layer.quantize_keyframe(x), **options)
        lacks = self.means[call[0]] - z.mean((0, 2, 3), keepdim=True)
        layer.bias = nn.Parameter(lacks.flatten() + (0 if layer.bias is None else layer.bias))
        return z + lacks


class _Residuals(CountingExecutor):
    """Runs keyframes and residual frames in one batch, and lets the residual path add what its frames' mean lacks."""

    def __init__(self, means: dict[str, Tensor]) -> None:
        super().__init__()
        self.means = means

    def run(self, layer: Any, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        keyframes, residuals = x.chunk(2)
        z_k = layer.apply_keyframe(layer.quantize_keyframe(keyframes), **options)
        z_t = z_k + layer.apply_residual(layer.quantize_residual(residuals, keyframes)[0], **options)
        lacks = self.means[call[0]] - z_t.mean((0, 2, 3), keepdim=True)
        layer.apply_residual = partial(_biased, layer.apply_residual, lacks)
        return torch.cat([z_k, z_t + lacks])


def _biased(apply: Any, bias: Tensor, delta_hat: Tensor, **options: Any) -> Tensor:
    z: Tensor = apply(delta_hat, **options) + bias
    return z


def _pairs(clips: Clips) -> tuple[Tensor, Tensor]:
    chosen = clips[::EVERY]
    later = [clip[1 + index % (len(clip) - 1)] for index, clip in enumerate(chosen)]
    return torch.cat([clip[0] for clip in chosen]), torch.cat(later)


@torch.no_grad()
def float_means(model: nn.Module, frames: Tensor) -> dict[str, Tensor]:
    """Mean of each layer's float outputs (1, C, 1, 1) over a batch of frames; the model is converted."""
    in_float = _Float()
    with executing(in_float):
        model(frames)
    return in_float.means


@torch.no_grad()
def keyframe_bias(model: nn.Module, clips: Clips, reference: nn.Module) -> None:
    """Add to each bias what the mean of ẑ_k lacks of that of ``reference``, the same net with its first weights."""
    keyframes = _pairs(clips)[0]
    with executing(_Keyframes(float_means(reference, keyframes))):
        model(keyframes)


@torch.no_grad()
def residual_bias(model: nn.Module, clips: Clips) -> None:
    """Let each layer add, in residual frames, what the mean of ẑ_t lacks of that of z_t, per output channel.

    The model must have ``reference="float"`` and is not to be reverted: its layers' `apply_residual` is replaced.
    """
    keyframes, residuals = _pairs(clips)
    means = float_means(model, residuals)
    with executing(_Residuals(means)):
        model(torch.cat([keyframes, residuals]))

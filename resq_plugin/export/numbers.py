"""What a graph needs to know of one layer, read from its backend before the trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resq_plugin.conversion import evaluating
from resq_plugin.errors import ExportError
from resq_plugin.export.grid import Grid
from resq_plugin.method import (
    ActivationQuantizer,
    ResidualLayer,
    executing,
    residual_layers,
    telling_unfit_frames,
)

__all__ = ["LayerNumbers", "Weight", "read_numbers"]


@dataclass(frozen=True)
class Weight:
    """A quantized weight.

    Attributes:
        values: ŵ, any shape.
        grid: its grid.
    """

    values: Tensor
    grid: Grid


@dataclass(frozen=True)
class LayerNumbers:
    """Grids, weights and bias of one layer.

    Attributes:
        keyframe: grid of Φ_a; None where a toolkit quantizes the input before it reaches the layer.
        residual: grids of the pool of Θ_a; None stands for 0 bits. Empty in a frame-by-frame model.
        weights: ŵ of Φ_w (``keyframe``) and Θ_w (``residual``).
        bias: b, (C,), if any.
        threshold: τ in units of ‖δ‖; None for a static residual.
    """

    keyframe: Grid | None
    residual: tuple[Grid | None, ...]
    weights: Mapping[str, Weight]
    bias: Tensor | None
    threshold: Tensor | None


def read_numbers(model: nn.Module, frame: Tensor) -> dict[str, LayerNumbers]:
    """Read every converted layer that a frame (N, C, H, W) reaches, whichever backend holds the quantizers.

    Raises:
        ExportError: the model cannot take the frame, a layer has no range, or scales that ONNX cannot express.
    """
    reached: set[str] = set()

    def watch(layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        reached.add(layer.settings.name)
        return layer.dense(x, **options)

    with telling_unfit_frames(model, frame, ExportError), evaluating(model), torch.no_grad(), executing(watch):
        model(frame)
    return {name: _read(layer) for name, layer in residual_layers(model).items() if name in reached}


def _read(layer: ResidualLayer) -> LayerNumbers:
    name, settings = layer.settings.name, layer.settings
    quantizers = layer.activation_quantizers()
    pool = [quantizer for key, quantizer in quantizers.items() if key != "keyframe"]
    bits = {"keyframe": settings.keyframe.weight}
    if settings.residual is not None:
        bits["residual"] = settings.residual.weight
    bias, threshold = layer.bias_of(), layer.threshold()
    return LayerNumbers(
        keyframe=None if _is_upstream(quantizers["keyframe"]) else _activation_grid(quantizers["keyframe"], name),
        residual=tuple(_activation_grid(quantizer, name) if quantizer.bits else None for quantizer in pool),
        weights={kind: _weight(layer, kind, width) for kind, width in bits.items()},
        bias=None if bias is None else bias.detach().clone(),
        threshold=None if threshold is None else threshold.detach().clone(),
    )


def _is_upstream(quantizer: ActivationQuantizer) -> bool:
    return bool(getattr(quantizer, "is_upstream", False))


def _activation_grid(quantizer: ActivationQuantizer, name: str) -> Grid:
    scale = float(quantizer.scale.detach())
    if not scale > 0:
        msg = f"layer {name} has no range; call resq_plugin.calibrate(model, clips) before you export."
        raise ExportError(msg)
    return Grid((scale,), quantizer.bits, quantizer.signed)


def _weight(layer: ResidualLayer, kind: str, bits: int) -> Weight:
    values = layer.weight_of(kind).detach().clone()
    scale = layer.weight_scale_of(kind).detach().cpu().numpy()
    if np.all(scale == scale.flat[0]):
        return Weight(values, Grid((float(scale.flat[0]),), bits, weight=True))
    for axis in range(scale.ndim):
        channels = np.moveaxis(scale, axis, 0).reshape(scale.shape[axis], -1)
        if np.all(channels == channels[:, :1]):
            return Weight(values, Grid(tuple(channels[:, 0].tolist()), bits, axis=axis, weight=True))
    msg = (
        f"layer {layer.settings.name} ({type(layer).__name__}) has weight scales per group and channel, which ONNX "
        f"has no form for; convert with weights='tensor', or leave the layer out: exclude=({layer.settings.name!r},)."
    )
    raise ExportError(msg)

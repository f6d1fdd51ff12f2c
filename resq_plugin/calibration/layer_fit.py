"""Rounding and bias of one layer, fitted to its outputs and kept where they help on other positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from resq_plugin.backends import TorchResidualLayer
from resq_plugin.calibration.positions import weight_rows
from resq_plugin.calibration.rounding import Moments, rounded_on_outputs

__all__ = ["Sample", "fit_keyframe", "fit_residual"]

MOST_BITS = 8
"""Weights of more bits are as good as float."""

FARTHEST = 127
"""Steps from the nearest integer that a layer can hold."""

HELD_OUT = 5
"""One position of so many decides about what is fitted to the others."""

FEWEST = 16
"""Positions that can decide."""


@dataclass(frozen=True)
class Sample:
    """What a layer reads, quantized, and what it is to put out, at some positions.

    Attributes:
        x: (G, P, D), to fit to.
        z: (G, P, O).
        held_x: the same at other positions, which decide whether the fit is kept.
        held_z: outputs there.
    """

    x: Tensor
    z: Tensor
    held_x: Tensor
    held_z: Tensor

    @classmethod
    def of(cls, x: Tensor, z: Tensor) -> Sample:
        """Of positions (G, P, D) and (G, P, O) in random order; one of `HELD_OUT` is not fitted to."""
        held = x.shape[1] // HELD_OUT
        return cls(x[:, held:], z[:, held:], x[:, :held], z[:, :held])

    def __add__(self, other: Sample) -> Sample:
        """Of both."""
        mine, theirs = astuple(self), astuple(other)
        return Sample(*(torch.cat(both, 1) for both in zip(mine, theirs, strict=True)))

    @property
    def is_enough(self) -> bool:
        """Whether there are enough positions to decide."""
        return self.held_x.shape[1] >= FEWEST

    def error(self, weight: Tensor, bias: Tensor | float = 0.0) -> float:
        """Squared error at the positions that decide, of a weight (G, O, D) and a bias (G, 1, O)."""
        found = self.held_x @ weight.transpose(1, 2) + bias
        return float((found - self.held_z).double().square().sum())


def fit_keyframe(layer: TorchResidualLayer, sample: Sample, kinds: Sequence[str], *, weights: bool = True) -> None:
    """Set how the weights of a layer are rounded, and what its keyframes add to the bias.

    What does not lower the error at the positions that decide stays as it was: nearest integers, the float bias.

    Args:
        layer: a layer that may learn its rounding, with ranges.
        sample: inputs, and outputs with the bias.
        kinds: paths that have this weight, ``keyframe`` first.
        weights: fit not only the bias.
    """
    layer.forget_rounding()
    moments = Moments.of(sample.x, sample.z, centred=True)
    near, bias = weight_rows(layer, layer.weight_of("keyframe")), layer.bias_of()
    own = torch.zeros_like(moments.mean_z) if bias is None else bias.view_as(moments.mean_z)

    def corrected(weight: Tensor) -> Tensor:
        return moments.mean_z - torch.einsum("god,gd->go", weight, moments.mean_x)

    none = torch.zeros_like(near)
    options = [(none, near, own), (none, near, corrected(near))]
    if weights and layer.settings.keyframe.weight <= MOST_BITS:
        steps, fitted = _fitted(layer, "keyframe", moments)
        options.append((steps, fitted, corrected(fitted)))
    steps, _, bias = min(options, key=lambda option: sample.error(option[1], option[2].unsqueeze(1)))
    found = steps.reshape(layer.weight.shape)
    layer.set_rounding(dict.fromkeys(kinds, found) if bool(found.any()) else {}, (bias - own).flatten())


def fit_residual(layer: TorchResidualLayer, sample: Sample) -> None:
    """Set how the residual weights of a layer are rounded, where that helps; its keyframes are fitted already.

    Args:
        layer: a layer that may learn its rounding, with ranges.
        sample: δ̂, and the change of the outputs that it stands for.
    """
    if layer.settings.residual is None or layer.settings.residual.weight > MOST_BITS:
        return
    steps, fitted = _fitted(layer, "residual", Moments.of(sample.x, sample.z, centred=False))
    if sample.error(fitted) < sample.error(weight_rows(layer, layer.weight_of("residual"))):
        layer.set_residual_rounding(steps.reshape(layer.weight.shape))


def _fitted(layer: TorchResidualLayer, kind: str, moments: Moments) -> tuple[Tensor, Tensor]:
    """Steps from the nearest integers of a path to those that fit, and the weight they make, (G, O, D)."""
    scale = weight_rows(layer, layer.weight_scale_of(kind))
    nearest = (weight_rows(layer, layer.weight_of(kind)) / scale).round()
    precision = layer.settings.keyframe if kind == "keyframe" else layer.settings.residual or layer.settings.keyframe
    weight = weight_rows(layer, layer.weight_of("float"))
    integers = rounded_on_outputs(weight, scale[:, :, :1], precision.weight, moments)
    steps = (integers - nearest).clamp(-FARTHEST, FARTHEST)
    return steps, (nearest + steps) * scale

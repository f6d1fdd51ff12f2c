"""Brevitas quantizers on the grid of Eq. 1 and 6: s = 2 max(r_max, -r_min) / (2^b - 1), on -2^(b-1) ... 2^(b-1) - 1.

Use them like any quantizer of Brevitas, in this adapter's layers or in Brevitas' own.
"""

from __future__ import annotations

import sys
from typing import Any

import brevitas
import torch
from brevitas.core.function_wrapper.shape import StatsInputViewShapeImpl
from brevitas.core.quant import IntQuant as BrevitasIntQuant
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling, ParameterFromStatsFromParameterScaling
from brevitas.inject import value
from brevitas.inject.enum import ScalingImplType, StatsOp
from brevitas.quant.base import (
    HQOSymmetricScale,
    IntQuant,
    MSESymmetricScale,
    PerChannelFloatScaling8bit,
    PerTensorFloatScaling8bit,
)
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver
from torch import Tensor, nn

from resq_plugin.method import HALF_TYPES, is_lowest, settle_lowest

__all__ = [
    "HalfStepIntScaling",
    "ResQAct",
    "ResQActMSE",
    "ResQWeightPerChannel",
    "ResQWeightPerChannelHQO",
    "ResQWeightPerChannelMSE",
    "ResQWeightPerTensor",
    "ResQWeightPerTensorHQO",
    "ResQWeightPerTensorMSE",
    "RuntimeMaxScaling",
    "RuntimeScaling",
]


SET = sys.maxsize
"""Steps of collection after which no more is collected."""


class HalfStepIntScaling(brevitas.jit.ScriptModule):
    """What the range is divided by: ``(2^b - 1) / 2``, as Eq. 6 has it, or ``2^b - 1`` on a grid that starts at zero.

    Brevitas' own takes 2^(b-1) or 2^(b-1) - 1.
    """

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.divisor = 2.0 if signed else 1.0

    @brevitas.jit.script_method
    def forward(self, bit_width: Tensor) -> Tensor:
        """Return the divisor, (), in single precision: 2^16 is infinite in float16."""
        return (2.0 ** bit_width.float() - 1.0) / self.divisor


class SinglePrecisionQuant(BrevitasIntQuant):
    """Brevitas' integers and values, computed in float32 where the tensor is of half precision, as in all backends."""

    def to_int(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Return the integers of Eq. 1, in float32 for a tensor of half precision."""
        integers: Tensor = super().to_int(scale, zero_point, bit_width.float(), _single(x))
        return integers

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Return q(x; Θ), in the type of ``x``."""
        y: Tensor = super().forward(scale, zero_point, bit_width, _single(x))
        return y.to(x.dtype)


class WeightQuant(SinglePrecisionQuant):
    """The same for weights, whose most negative value lies on a tie, see `resq_plugin.method.is_lowest`."""

    def to_int(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Return the integers of Eq. 1."""
        integers = super().to_int(scale, zero_point, bit_width, x)
        with torch.no_grad():
            bit_width = bit_width.float()
            low = self.min_int(bit_width)
            lowest = is_lowest(self.input_view_impl(_single(x)), scale, bit_width)
            correction = torch.where(lowest, low - integers, 0)
        return integers + correction


def settle(grid: Any, weight: Tensor) -> Tensor:
    """Take a weight off its tie for those of Brevitas' handlers and formats that quantize it without a `WeightQuant`.

    Args:
        grid: what computes scale and integers.
        weight: the float weight.
    """
    if not isinstance(getattr(grid, "int_quant", None), WeightQuant):
        return weight
    bit_width = grid.msb_clamp_bit_width_impl().float()
    with torch.no_grad():
        scale = grid.scaling_impl(weight, grid.int_scaling_impl(bit_width))
        offset = settle_lowest(weight, scale, bit_width) - weight
    return weight + offset


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF_TYPES else x


class _KeepsType(nn.Module):
    """Mixin for a module whose range follows the model's device and keeps its type: scales of 16 bits need float32."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def keep_type(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_type, recurse)


class WeightScaling(_KeepsType, ParameterFromStatsFromParameterScaling):
    """Brevitas' learned weight range, whose scale is of single precision."""

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        """Return the range over ``threshold``, which decides the type only if it has as many dimensions."""
        if threshold is not None and self.value.dtype in HALF_TYPES:
            threshold = threshold.reshape([1] * self.value.dim())
        scale: Tensor = super().forward(x, threshold)
        return scale


class RuntimeScaling(_KeepsType, ParameterFromRuntimeStatsScaling):
    """Brevitas' learned activation range, but one that never saw data stays unset instead of becoming 1.0.

    One that has been set stays as it is in another `calibration_mode`, which would multiply the two.
    """

    def init_scale(self) -> None:
        """End the collection of statistics."""
        if self.counter > 0:
            super().init_scale()
            self.counter = SET

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.counter > self.collect_stats_steps:
            self.counter = SET


class RuntimeMaxScaling(RuntimeScaling):
    """A range that is the maximum over all batches; Brevitas' own takes the mean of their maxima."""

    def training_forward(self, stats_input: Tensor, threshold: Tensor) -> Tensor:
        """Collect the maximum of a batch, or return the learned range over ``threshold``."""
        if self.counter >= self.collect_stats_steps or self.local_loss_mode:
            return super().training_forward(stats_input, threshold)
        before = self.buffer.clone() if self.counter > 0 else None
        scale: Tensor = super().training_forward(stats_input, threshold)
        maximum = (scale * threshold).detach()
        self.buffer.copy_(maximum if before is None else torch.maximum(before, maximum))
        return scale


class _Grid(IntQuant):
    int_scaling_impl = HalfStepIntScaling
    int_quant = SinglePrecisionQuant
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_op = StatsOp.MAX
    scaling_min_val = 1e-10


class ResQAct(_Grid, PerTensorFloatScaling8bit, ActQuantSolver):
    """Activations: the absolute maximum over calibration, or the line search of Eq. 8; learned from then on."""

    scaling_impl = RuntimeMaxScaling
    collect_stats_steps = 300


class ResQActMSE(MSESymmetricScale, ResQAct):
    """Activations: Brevitas' search for the least squared error of a batch, averaged over batches."""

    scaling_impl = RuntimeScaling


class ResQWeightPerTensor(_Grid, PerTensorFloatScaling8bit, WeightQuantSolver):
    """Weights with one range by Eq. 7; learned from then on."""

    scaling_impl = WeightScaling
    int_quant = WeightQuant


class _GroupedRows(nn.Module):
    """View of a grouped transposed convolution's weight (in, out / groups, *k) as rows of what shares a range.

    Every input channel of a group repeats the rows of its group.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.groups = module.groups

    def forward(self, weight: Tensor) -> Tensor:
        """Return (in * out / groups, in / groups * k)."""
        rows, columns = weight.shape[0] // self.groups, weight.shape[1]
        flat = weight.reshape(self.groups, rows, columns, -1).transpose(1, 2).flatten(2)
        return flat.unsqueeze(1).expand(-1, rows, -1, -1).reshape(weight.shape[0] * columns, -1)


def _is_grouped(module: Any) -> bool:
    return getattr(module, "transposed", False) and module.groups > 1


class ResQWeightPerChannel(_Grid, PerChannelFloatScaling8bit, WeightQuantSolver):
    """Weights with a range per output channel by Eq. 7; learned from then on.

    Brevitas' own cannot do grouped transposed convolutions, in which an output channel is a group and a column.
    """

    scaling_impl = WeightScaling
    int_quant = WeightQuant

    @value
    def scaling_per_output_channel_shape(module, weight_ndims, output_channel_dim, out_channels):  # noqa: N805
        """Shape of the range that broadcasts to the weight's."""
        shape = [1] * weight_ndims
        shape[output_channel_dim] = out_channels
        return (*module.weight.shape[:2], *shape[2:]) if _is_grouped(module) else tuple(shape)

    @value
    def scaling_stats_input_view_shape_impl(module):  # noqa: N805
        """How a weight becomes rows, one for each range."""
        return _GroupedRows if _is_grouped(module) else StatsInputViewShapeImpl.OVER_OUTPUT_CHANNELS


class ResQWeightPerTensorMSE(MSESymmetricScale, ResQWeightPerTensor):
    """Weights with one range by Brevitas' search for the least squared error."""


class ResQWeightPerChannelMSE(MSESymmetricScale, ResQWeightPerChannel):
    """Weights with a range per output channel by Brevitas' search for the least squared error."""


class ResQWeightPerTensorHQO(HQOSymmetricScale, ResQWeightPerTensor):
    """Weights with one range by Brevitas' half-quadratic optimization."""


class ResQWeightPerChannelHQO(HQOSymmetricScale, ResQWeightPerChannel):
    """Weights with a range per output channel by Brevitas' half-quadratic optimization."""


WEIGHTS: dict[str, Any] = {"tensor": ResQWeightPerTensor, "channel": ResQWeightPerChannel}
"""The weight quantizer by ``weights`` of the configuration."""

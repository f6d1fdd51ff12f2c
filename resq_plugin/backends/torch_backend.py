"""The plain torch backend: ResQ layers that replace `torch.nn` layers in place, class for class."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.backends.class_swap import swap_class, swap_class_back
from resq_plugin.backends.torch_layer import TorchResidualLayer
from resq_plugin.backends.wrappers import torch_class
from resq_plugin.method import (
    LayerSettings,
)

__all__ = [
    "ResQConv1d",
    "ResQConv2d",
    "ResQConv3d",
    "ResQConvTranspose1d",
    "ResQConvTranspose2d",
    "ResQConvTranspose3d",
    "ResQLinear",
    "attach",
    "detach",
    "supports",
]


class _Conv(TorchResidualLayer):
    _conv_forward: Any

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        z: Tensor = self._conv_forward(x, weight, bias, **options)
        return z


class ResQConv1d(_Conv, nn.Conv1d):  # type: ignore[misc]
    """`torch.nn.Conv1d` with two quantized paths."""


class ResQConv2d(_Conv, nn.Conv2d):  # type: ignore[misc]
    """`torch.nn.Conv2d` with two quantized paths."""


class ResQConv3d(_Conv, nn.Conv3d):  # type: ignore[misc]
    """`torch.nn.Conv3d` with two quantized paths."""


class _ConvTranspose(TorchResidualLayer):
    weight_channel_dims = (0, 2)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _output_padding: Any

    def grouped(self, weight: Tensor) -> Tensor:
        return weight.view(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        spatial = weight.dim() - 2
        output_padding = self._output_padding(
            x, options.get("output_size"), self.stride, self.padding, self.kernel_size, spatial, self.dilation
        )
        operation = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return operation(x, weight, bias, self.stride, self.padding, output_padding, self.groups, self.dilation)


class ResQConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose1d` with two quantized paths."""


class ResQConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose2d` with two quantized paths."""


class ResQConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose3d` with two quantized paths."""


class ResQLinear(TorchResidualLayer, nn.Linear):  # type: ignore[misc]
    """`torch.nn.Linear` with two quantized paths; a pixel is a token of (N, *, C)."""

    channel_dim = -1

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        """The operation of the wrapped class with another weight and bias."""
        z: Tensor = F.linear(x, weight, bias, **options)
        return z


_CLASSES: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: ResQConv1d,
    nn.Conv2d: ResQConv2d,
    nn.Conv3d: ResQConv3d,
    nn.ConvTranspose1d: ResQConvTranspose1d,
    nn.ConvTranspose2d: ResQConvTranspose2d,
    nn.ConvTranspose3d: ResQConvTranspose3d,
    nn.Linear: ResQLinear,
}


def supports(module: nn.Module) -> bool:
    """Whether the layer is of a class this backend replaces; a subclass may compute something else, see `wrappers`."""
    return torch_class(type(module)) in _CLASSES


def attach(module: nn.Module, settings: LayerSettings) -> None:
    """Turn a layer into a ResQ layer in place: its class changes, its Parameters, hooks and owners do not."""
    swap_class(module, _CLASSES[torch_class(type(module))])
    module.setup(settings)  # type: ignore[operator]


def detach(module: nn.Module) -> None:
    """Turn a ResQ layer back into the layer it was."""
    if not isinstance(module, TorchResidualLayer):
        return
    del module.keyframe_quantizer, module.residual_quantizers
    module.release()
    swap_class_back(module)

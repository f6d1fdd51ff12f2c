"""One ResQ class for each AIMET quantized module that computes a linear operation."""

from __future__ import annotations

from typing import Any

from aimet_torch import nn as aimet_nn
from torch import nn

from resq_aimet._compat import register
from resq_aimet.layers import AimetResidualLayer
from resq_plugin import backends

__all__ = [
    "RESQ_CLASSES",
    "ResQQuantizedConv1d",
    "ResQQuantizedConv2d",
    "ResQQuantizedConv3d",
    "ResQQuantizedConvTranspose1d",
    "ResQQuantizedConvTranspose2d",
    "ResQQuantizedConvTranspose3d",
    "ResQQuantizedLinear",
]


class _Conv(AimetResidualLayer):
    def _float_twin(self) -> nn.Module:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        names += ("output_padding",) if self.transposed else ()
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        sizes = self.in_channels, self.out_channels, self.kernel_size
        return self._sharing(sizes, settings)


class ResQQuantizedConv1d(_Conv, backends.ResQConv1d, aimet_nn.QuantizedConv1d):
    """AIMET's `QuantizedConv1d` with a residual path."""


class ResQQuantizedConv2d(_Conv, backends.ResQConv2d, aimet_nn.QuantizedConv2d):
    """AIMET's `QuantizedConv2d` with a residual path."""


class ResQQuantizedConv3d(_Conv, backends.ResQConv3d, aimet_nn.QuantizedConv3d):
    """AIMET's `QuantizedConv3d` with a residual path."""


class ResQQuantizedConvTranspose1d(_Conv, backends.ResQConvTranspose1d, aimet_nn.QuantizedConvTranspose1d):
    """AIMET's `QuantizedConvTranspose1d` with a residual path."""


class ResQQuantizedConvTranspose2d(_Conv, backends.ResQConvTranspose2d, aimet_nn.QuantizedConvTranspose2d):
    """AIMET's `QuantizedConvTranspose2d` with a residual path."""


class ResQQuantizedConvTranspose3d(_Conv, backends.ResQConvTranspose3d, aimet_nn.QuantizedConvTranspose3d):
    """AIMET's `QuantizedConvTranspose3d` with a residual path."""


class ResQQuantizedLinear(AimetResidualLayer, backends.ResQLinear, aimet_nn.QuantizedLinear):
    """AIMET's `QuantizedLinear` with a residual path."""

    def _float_twin(self) -> nn.Module:
        return self._sharing((self.in_features, self.out_features), {})


RESQ_CLASSES: dict[type[nn.Module], type[AimetResidualLayer]] = {
    nn.Conv1d: ResQQuantizedConv1d,
    nn.Conv2d: ResQQuantizedConv2d,
    nn.Conv3d: ResQQuantizedConv3d,
    nn.ConvTranspose1d: ResQQuantizedConvTranspose1d,
    nn.ConvTranspose2d: ResQQuantizedConvTranspose2d,
    nn.ConvTranspose3d: ResQQuantizedConvTranspose3d,
    nn.Linear: ResQQuantizedLinear,
}
"""The ResQ class by the `torch.nn` class whose operation it computes."""

for _plain, _resq in RESQ_CLASSES.items():
    register(_resq, aimet_nn.QuantizationMixin.cls_to_qcls[_plain])

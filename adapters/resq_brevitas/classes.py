"""The layers of this adapter: Brevitas' own, which ``residual_*`` arguments give a residual path."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from brevitas import nn as brevitas_nn
from torch import Tensor, nn

from resq_brevitas.arguments import split_arguments
from resq_brevitas.layers import BrevitasResidualLayer
from resq_plugin import backends
from resq_plugin.backends import swap_class
from resq_plugin.errors import ConversionError

__all__ = [
    "RESQ_CLASSES",
    "ResQConv1d",
    "ResQConv2d",
    "ResQConv3d",
    "ResQConvTranspose1d",
    "ResQConvTranspose2d",
    "ResQConvTranspose3d",
    "ResQLinear",
]


def _with_residual(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor of Brevitas take ``residual_*`` arguments; without any it is Brevitas', bit for bit."""

    @wraps(init)  # Brevitas reads the signature
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        host, residual = split_arguments(type(self).__name__, kwargs)
        init(self, *args, **host)
        if residual is not None:
            add_residual(self, residual.settings, **residual.quantizers)

    return wrapped


def add_residual(layer: Any, settings: Any, before: set[str] | None = None, **quantizers: Any) -> None:
    """Turn a quantized layer into a residual one, in place.

    Args:
        layer: of one of this module's public classes.
        settings: what the layer knows of the configuration.
        before: names of a float layer's attributes, to keep when this is undone. None for a layer that was made by
            hand: its model has no place for what `resq_plugin.convert` knows of folded batch norms.
        quantizers: arguments of `BrevitasResidualLayer.setup_residual`.

    Raises:
        ConversionError: of a subclass, or with a bias quantizer that takes its scale from the input's.
    """
    original = type(layer)
    if original not in _RESIDUAL:
        msg = f"{original.__name__} is a subclass of a ResQ layer and cannot have residual_* arguments; use the layer."
        raise ConversionError(msg)
    if layer.bias_quant.is_quant_enabled and layer.bias_quant.requires_input_scale:
        msg = (
            f"bias_quant of {original.__name__} takes its scale from the input, of which there are two with residual "
            "frames; write bias_quant=None or one with its own scale, e.g. Int8BiasPerTensorFloatInternalScaling."
        )
        raise ConversionError(msg)
    swap_class(layer, _RESIDUAL[original])
    own = attributes(layer) if before is None else before
    layer.setup_residual(settings, **quantizers)
    if before is None:
        layer.__dict__.pop("_folded")
    layer.__dict__.update(_before=own, _added=attributes(layer) - own)


def attributes(layer: nn.Module) -> set[str]:
    """Names of all that belongs to a layer."""
    return {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}


class ResQConv1d(brevitas_nn.QuantConv1d):
    """Brevitas' `QuantConv1d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConv1d.__init__)


class ResQConv2d(brevitas_nn.QuantConv2d):
    """Brevitas' `QuantConv2d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConv2d.__init__)


class ResQConv3d(brevitas_nn.QuantConv3d):
    """Brevitas' `QuantConv3d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConv3d.__init__)


class ResQConvTranspose1d(brevitas_nn.QuantConvTranspose1d):
    """Brevitas' `QuantConvTranspose1d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConvTranspose1d.__init__)


class ResQConvTranspose2d(brevitas_nn.QuantConvTranspose2d):
    """Brevitas' `QuantConvTranspose2d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConvTranspose2d.__init__)


class ResQConvTranspose3d(brevitas_nn.QuantConvTranspose3d):
    """Brevitas' `QuantConvTranspose3d`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantConvTranspose3d.__init__)


class ResQLinear(brevitas_nn.QuantLinear):
    """Brevitas' `QuantLinear`, with a residual path if ``residual_*`` arguments ask for one."""

    __init__ = _with_residual(brevitas_nn.QuantLinear.__init__)


class _Conv(BrevitasResidualLayer):
    is_same_padded_strided: bool

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        if self.is_same_padded_strided:  # Brevitas' own extension of torch's padding="same"
            z: Tensor = self.inner_forward_impl(x, weight, bias)
            return z
        return super().linear(x, weight, bias, **options)


class ResidualConv1d(_Conv, backends.ResQConv1d, ResQConv1d):
    """`ResQConv1d` with a residual path."""


class ResidualConv2d(_Conv, backends.ResQConv2d, ResQConv2d):
    """`ResQConv2d` with a residual path."""


class ResidualConv3d(_Conv, backends.ResQConv3d, ResQConv3d):
    """`ResQConv3d` with a residual path."""


class ResidualConvTranspose1d(BrevitasResidualLayer, backends.ResQConvTranspose1d, ResQConvTranspose1d):
    """`ResQConvTranspose1d` with a residual path."""


class ResidualConvTranspose2d(BrevitasResidualLayer, backends.ResQConvTranspose2d, ResQConvTranspose2d):
    """`ResQConvTranspose2d` with a residual path."""


class ResidualConvTranspose3d(BrevitasResidualLayer, backends.ResQConvTranspose3d, ResQConvTranspose3d):
    """`ResQConvTranspose3d` with a residual path."""


class ResidualLinear(BrevitasResidualLayer, backends.ResQLinear, ResQLinear):
    """`ResQLinear` with a residual path."""


RESQ_CLASSES: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: ResQConv1d,
    nn.Conv2d: ResQConv2d,
    nn.Conv3d: ResQConv3d,
    nn.ConvTranspose1d: ResQConvTranspose1d,
    nn.ConvTranspose2d: ResQConvTranspose2d,
    nn.ConvTranspose3d: ResQConvTranspose3d,
    nn.Linear: ResQLinear,
}
"""The layer of this adapter by the `torch.nn` class whose operation it computes."""

_RESIDUAL: dict[type[Any], type[Any]] = {
    ResQConv1d: ResidualConv1d,
    ResQConv2d: ResidualConv2d,
    ResQConv3d: ResidualConv3d,
    ResQConvTranspose1d: ResidualConvTranspose1d,
    ResQConvTranspose2d: ResidualConvTranspose2d,
    ResQConvTranspose3d: ResidualConvTranspose3d,
    ResQLinear: ResidualLinear,
}

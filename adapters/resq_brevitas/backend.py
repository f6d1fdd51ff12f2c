"""The backend ``brevitas``: quantizers are Brevitas'. It takes float layers."""

from __future__ import annotations

from typing import Any

from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import nn

from resq_brevitas.classes import RESQ_CLASSES, add_residual, attributes
from resq_brevitas.layers import BrevitasResidualLayer
from resq_brevitas.quantizers import WEIGHTS, ResQAct
from resq_plugin.backends import swap_class, swap_class_back, torch_class
from resq_plugin.method import LayerSettings

__all__ = ["attach", "detach", "supports"]


def supports(module: nn.Module) -> bool:
    """Whether the layer is of a class this backend replaces."""
    return torch_class(type(module)) in RESQ_CLASSES


def attach(module: Any, settings: LayerSettings) -> None:
    """Turn a float layer into a ResQ layer in place: its class changes, its Parameters, hooks and owners do not."""
    before = attributes(module)
    weight_quant = WEIGHTS[settings.config.weights]
    swap_class(module, RESQ_CLASSES[torch_class(type(module))])
    QuantWeightBiasInputOutputLayer.__init__(
        module,
        weight_quant=weight_quant,
        bias_quant=None,
        input_quant=ResQAct,
        output_quant=None,
        return_quant_tensor=False,
        weight_bit_width=settings.keyframe.weight,
        input_bit_width=settings.keyframe.activation,
    )
    module.is_same_padded_strided = False
    residual = settings.residual or settings.keyframe
    add_residual(
        module,
        settings,
        before,
        input_quant=ResQAct,
        weight_quant=weight_quant,
        weight_bit_width=residual.weight,
        input_bit_width=max(residual.pool),
    )
    for name in attributes(module) - before:
        part = getattr(module, name)
        if isinstance(part, nn.Module):
            part.to(module.weight.device).train(module.training)
    module.__dict__["_added"] |= attributes(module) - before


def detach(module: Any) -> None:
    """Turn a ResQ layer back into the layer it was."""
    if not isinstance(module, BrevitasResidualLayer):
        return
    before, added = module._before, module._added
    module.release()
    swap_class_back(module)
    for name in attributes(module) - before:  # Parameters, buffers and modules that somebody added since stay
        if name in added or name in vars(module):
            module.__delattr__(name)

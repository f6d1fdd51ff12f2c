"""The backend ``aimet``: quantizers are AIMET's. It takes float layers, and those of a `QuantizationSimModel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantization.affine import QuantizeDequantize
from torch import nn

from resq_aimet.classes import RESQ_CLASSES
from resq_aimet.layers import AimetResidualLayer
from resq_plugin.backends import swap_class, swap_class_back, torch_class
from resq_plugin.errors import CalibrationError, ConversionError
from resq_plugin.method import LayerSettings

if TYPE_CHECKING:
    from resq_plugin.export import Grid

__all__ = ["attach", "detach", "export_quantizers", "placing", "supports"]

_placement: ContextVar[str] = ContextVar("resq_aimet_placement", default="paper")


@contextmanager
def placing(placement: str) -> Iterator[None]:
    """Let `attach` place quantizers as in the ``paper`` or as AIMET's ``hardware`` supergroups do."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def _linear_class(module: nn.Module) -> type[nn.Module]:
    """The `torch.nn` class of a float layer or of AIMET's quantized one."""
    kind = type(module)
    return QuantizationMixin.qcls_to_cls.get(kind) or torch_class(kind)


def supports(module: nn.Module) -> bool:
    """Whether the layer is of a class this backend replaces."""
    return _linear_class(module) in RESQ_CLASSES and not isinstance(module, AimetResidualLayer)


def attach(module: nn.Module, settings: LayerSettings) -> None:
    """Turn a layer into a ResQ layer in place: its class changes, its Parameters, hooks and owners do not.

    Raises:
        ConversionError: its weight is made by a hook, of Parameters for which AIMET has no weight quantizer.
    """
    if "weight" not in module._parameters:
        msg = (
            f"layer {settings.name} makes its weight in a hook (pruning, weight or spectral norm), for which AIMET "
            "has no quantizer. Make it a Parameter: torch.nn.utils.prune.remove(layer, 'weight'), "
            f"remove_weight_norm(layer) or remove_spectral_norm(layer); or write exclude=({settings.name!r},), or "
            "backend='torch'."
        )
        raise ConversionError(msg)
    original = type(module)
    is_quantized = original in QuantizationMixin.qcls_to_cls
    before = _quantizers(module) if is_quantized else None
    swap_class(module, RESQ_CLASSES[_linear_class(module)])
    if not is_quantized:
        module.__quant_init__()
    module.setup(settings, _placement.get() if is_quantized else "paper")
    module.__dict__["_before"] = before


def detach(module: nn.Module) -> None:
    """Turn a ResQ layer back into the layer it was; one of a sim gets back the quantizers it had."""
    if not isinstance(module, AimetResidualLayer):
        return
    del module.residual_path, module.residual_pool
    before = module.__dict__.pop("_before")
    if before is None:
        del module.input_quantizers, module.output_quantizers, module.param_quantizers
        del module._param_pre_quantizers
    else:
        module.input_quantizers[0], module.output_quantizers[0], module.param_quantizers["weight"] = before
    module.release()
    for key in ("placement", "_stale"):
        module.__dict__.pop(key)
    swap_class_back(module)


def export_quantizers(model: nn.Module) -> dict[nn.Module, Grid]:
    """The quantizers that AIMET placed beside those of the ResQ layers, with the grid of each; for export.

    Raises:
        CalibrationError: one has no encoding yet.
    """
    layers = [module for module in model.modules() if isinstance(module, AimetResidualLayer)]
    ours = {part for layer in layers for child in layer.children() for part in child.modules()}
    kept = {quantizer for layer in layers for quantizer in layer.output_quantizers}
    kept |= {quantizer for layer in layers if layer.placement == "hardware" for quantizer in layer.input_quantizers}
    found = {name: part for name, part in model.named_modules() if isinstance(part, QuantizeDequantize)}
    return {part: _grid(name, part) for name, part in found.items() if part in kept or part not in ours}


def _grid(name: str, quantizer: QuantizeDequantize) -> Grid:
    from resq_plugin.export import Grid  # noqa: PLC0415  # export takes extras

    if not quantizer.is_initialized():
        msg = f"{name} has no encoding; call resq.compute_encodings(clips) before the export."
        raise CalibrationError(msg)
    scale, offset = quantizer.get_scale().detach(), quantizer.get_offset().detach()
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    return Grid(
        tuple(scale.flatten().tolist()),
        quantizer.bitwidth,
        signed=quantizer.qmin < 0,
        axis=axes[0] if axes else None,
        zero_point=-int(offset.flatten()[0]),
        weight="param_quantizers" in name.split("."),
    )


def _quantizers(module: Any) -> tuple[Any, Any, Any]:
    return module.input_quantizers[0], module.output_quantizers[0], module.param_quantizers["weight"]

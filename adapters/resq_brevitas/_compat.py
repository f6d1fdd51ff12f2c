"""All that this adapter uses of Brevitas beyond its documented interface, and the versions it was tested with."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from resq_plugin.errors import ConversionError

__all__ = [
    "OLDEST",
    "TOO_NEW",
    "check_version",
    "grid_of",
    "initialize",
    "is_correcting_bias",
    "is_exporting",
    "is_initialized",
    "is_observing",
    "is_quantizing",
    "knows_weight",
    "plain",
    "remake",
    "scaling_of",
    "settings_of",
]

OLDEST, TOO_NEW = (0, 13, 4), (0, 14)


def check_version(found: str) -> None:
    """Raise unless this version of Brevitas is one the private names below were tested with.

    Raises:
        ConversionError: it is older or newer; the line to install a fitting one is named.
    """
    parts = tuple(int(part) for part in found.split("+", maxsplit=1)[0].split(".")[:3] if part.isdigit())
    if not OLDEST <= parts < TOO_NEW:
        low, high = (".".join(map(str, end)) for end in (OLDEST, TOO_NEW))
        msg = f'brevitas {found} is not supported; install a tested one: pip install "brevitas>={low},<{high}".'
        raise ConversionError(msg)


check_version(version("brevitas"))

from brevitas.proxy.quant_proxy import QuantProxyFromInjector  # noqa: E402
from brevitas.quant_tensor import QuantTensor  # noqa: E402


def plain(x: Tensor | QuantTensor) -> Tensor:
    """The values of one of Brevitas' quantized tensors, a tuple, as a `torch.Tensor`."""
    values: Tensor = x.value if isinstance(x, QuantTensor) else x
    return values


def grid_of(proxy: QuantProxyFromInjector) -> Any:
    """The module behind a proxy that computes scale and integers; None for no quantizer."""
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    return proxy.tensor_quant if fused is None else fused.tensor_quant


def scaling_of(proxy: QuantProxyFromInjector) -> Any:
    """The module that holds the range of a proxy, as ``value`` or in another way."""
    return getattr(grid_of(proxy), "scaling_impl", None)


def is_quantizing(proxy: QuantProxyFromInjector) -> bool:
    """Whether there is a quantizer that nobody has disabled."""
    return bool(proxy.is_quant_enabled)


def is_observing(proxy: QuantProxyFromInjector) -> bool:
    """Whether Brevitas collects statistics: in `calibration_mode`, and in the first steps of training."""
    if getattr(grid_of(proxy), "observer_only", False):
        return True
    scaling = scaling_of(proxy)
    return proxy.training and 0 <= getattr(scaling, "counter", 1) < getattr(scaling, "collect_stats_steps", 0)


def is_exporting(proxy: QuantProxyFromInjector) -> bool:
    """Whether a handler of an exporter or of `quant_inference_mode` has taken over."""
    return bool(proxy.export_mode)


def knows_weight(proxy: QuantProxyFromInjector, weight: Tensor) -> bool:
    """Whether an exporter's handler has noted the quantized values of a weight, by its place in memory."""
    handler = getattr(proxy, "export_handler", None) if is_exporting(proxy) else None
    noted = (getattr(handler, "symbolic_kwargs", None) or {}).values()
    return any(isinstance(values, dict) and weight.data_ptr() in values for values in noted)


def is_initialized(proxy: QuantProxyFromInjector) -> bool:
    """Whether a learned range has been set; quantizers without one are always ready."""
    scaling = scaling_of(proxy)
    return bool(getattr(scaling, "init_done", True)) and getattr(scaling, "counter", 1) > 0


def initialize(proxy: QuantProxyFromInjector, value: float) -> None:
    """Set the learned range of an activation quantizer, which ends the collection of statistics for good."""
    scaling = scaling_of(proxy)
    for holder in (scaling.value, scaling.buffer):
        holder.data.fill_(value)
    scaling.counter = sys.maxsize


def remake(proxy: QuantProxyFromInjector, **settings: Any) -> None:
    """Make the quantizer of a proxy anew, uninitialized, with some settings of its injector changed."""
    was_training, grid = proxy.training, grid_of(proxy)
    device = next((tensor.device for tensor in grid.parameters()), None) if isinstance(grid, nn.Module) else None
    if settings:
        proxy.quant_injector = proxy.quant_injector.let(**settings)
    proxy.init_tensor_quant()
    if "signed" in settings:
        proxy.is_signed = settings["signed"]
    proxy.train(was_training)
    if device is not None and device.type != "meta":
        proxy.to(device)


def is_correcting_bias(layer: nn.Module) -> bool:
    """Whether Brevitas' `bias_correction_mode` watches a layer, which it runs twice."""
    owners = (getattr(getattr(hook, "func", hook), "__self__", None) for hook in layer._forward_hooks.values())
    return any(type(owner).__name__ == "_BiasCorrection" for owner in owners)  # its import is slow and warns


def settings_of(injector: Any) -> set[str]:
    """Names that a quantizer's injector knows: what it defines, and what its parts ask for."""
    specs = injector.__dependencies__
    return {*specs, *(name for spec in specs.values() for name in spec[2])}

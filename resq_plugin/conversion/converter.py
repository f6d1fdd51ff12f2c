"""Model to ResQ model and back, in place and without tracing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resq_plugin.backends import FoldedNorm, check_patterns, find_backend
from resq_plugin.config import ResQConfig
from resq_plugin.conversion.all_or_nothing import all_or_nothing
from resq_plugin.conversion.folding import fold_batch_norms
from resq_plugin.conversion.model_state import STATE_KEYS, attach_model_state, detach_model_state
from resq_plugin.errors import ConversionError
from resq_plugin.method import LayerSettings, ResidualLayer, residual_layers
from resq_plugin.tables import table_text

__all__ = ["ConversionSummary", "convert", "float_state_dict", "revert", "summarize"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

LINEAR_TYPES = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
NORM_TYPES = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did, by qualified layer names. Printed, it is a table.

    Attributes:
        converted: layers with two quantized paths.
        excluded: layers that stay float because the configuration says so.
        unsupported: linear layers that stay float because no quantized path exists for their class, with the class.
        unreached: layers that no calibration frame reached, which made them plain float layers again.
        folded: batch norms that are folded into the layer before them.
        dense: batch norms that could not be folded and act on the full z_t.
    """

    converted: tuple[str, ...]
    excluded: tuple[str, ...]
    unsupported: tuple[str, ...]
    unreached: tuple[str, ...]
    folded: tuple[str, ...]
    dense: tuple[str, ...]

    def __str__(self) -> str:
        table = Table(title="What was converted", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.add_column("", no_wrap=True)
        table.add_column("number", justify="right", no_wrap=True)
        table.add_column("names", overflow="fold")
        for kind, names in dataclasses.asdict(self).items():
            table.add_row(_MEANING[kind], str(len(names)), _some(names))
        return table_text(table)


_MEANING = {
    "converted": "with two quantized paths",
    "excluded": "in float: excluded",
    "unsupported": "in float: not supported",
    "unreached": "in float: not reached",
    "folded": "batch norms folded",
    "dense": "batch norms not folded",
}
_SHOWN = 6
"""Names that a row of the printed summary lists; all of them are in its attributes."""


def _some(names: Sequence[str]) -> str:
    more = f", ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name or "(the model)" for name in names[:_SHOWN]) + more


def convert(model: M, config: ResQConfig | str, *, example: Tensor | None = None) -> M:
    """Give every selected linear layer of a model a keyframe and a residual path, in place.

    Layers change their class and keep their Parameters, hooks and places, so optimizers, containers and functional
    code around them go on working. Nothing is traced. Batch norms are folded as soon as a frame is at hand: here with
    ``example``, else by `calibrate`.

    Args:
        model: any module.
        config: the configuration, or the paper's notation such as ``"W8A8->W4A4"``.
        example: one frame (N, C, H, W), to fold batch norms right away.

    Returns:
        The same model. Outside a stream it is the frame-by-frame quantized model with the keyframe quantizers.

    Raises:
        ConversionError: already converted, traced, nothing to convert, or no backend of that name.
        MissingExtraError: the toolkit of the backend is not installed.
        ConfigError: a pattern of ``include``, ``overrides``, ``policy.thresholds`` or ``state.stateless`` matches no
            layer.
    """
    if isinstance(config, str):
        config = ResQConfig.parse(config)
    _refuse_other_forms(model)
    if any(isinstance(module, ResidualLayer) for module in model.modules()):
        msg = (
            f"{type(model).__name__} is already converted; call resq_plugin.revert(model) before you convert it again."
        )
        raise ConversionError(msg)
    backend = find_backend(config.backend)
    supported = {name: module for name, module in model.named_modules() if backend.supports(module)}
    selected = {name: module for name, module in supported.items() if config.selects(name)}
    if not supported:
        raise ConversionError(_nothing_to_convert(model, config.backend))
    if not selected:
        msg = (
            f"no layer of {type(model).__name__} is selected by include={config.include}, exclude={config.exclude}; "
            f"it has {len(supported)} layers that can be converted, e.g. {', '.join(list(supported)[:3])}."
        )
        raise ConversionError(msg)
    check_patterns(config, supported)
    with all_or_nothing(model):
        for name, module in selected.items():
            keyframe, residual = config.precision_of(name)
            backend.attach(module, LayerSettings(name, keyframe, residual, config))
        attach_model_state(model)
        if example is not None:
            fold_batch_norms(model, example)
    summary = summarize(model)
    logger.info("converted %d layers of %s to %s", len(summary.converted), type(model).__name__, config)
    if summary.unsupported:
        logger.warning("these linear layers stay in float: %s", ", ".join(summary.unsupported))
    return model


def _refuse_other_forms(model: object) -> None:
    """Refuse what has no layers of its own to convert: graphs that PyTorch made of a model, and no model at all."""
    if not isinstance(model, nn.Module):
        msg = f"a {type(model).__name__} is no torch.nn.Module; pass the model that it belongs to."
        if isinstance(getattr(model, "model", None), nn.Module):  # such as AIMET's simulation
            msg += " AIMET's QuantizationSimModel takes resq_aimet.convert(sim, config)."
        raise ConversionError(msg)
    made_by = "torch.jit" if isinstance(model, torch.jit.ScriptModule) else ""
    if isinstance(model, torch.fx.GraphModule) and not any(isinstance(m, LINEAR_TYPES) for m in model.modules()):
        made_by = "torch.export or torch.fx"
    if made_by:
        msg = (
            f"this model is a graph of {made_by}, whose layers are no modules that could be converted; convert the "
            "model that it was made of, before it is traced."
        )
        raise ConversionError(msg)


_TOOLKITS = {"aimet_torch": "resq_aimet.convert(sim, config)", "brevitas": "ResQConfig.parse(..., backend='brevitas')"}


def _nothing_to_convert(model: nn.Module, backend: str) -> str:
    """What a model has instead of layers that a backend converts."""
    found = {name: type(module) for name, module in model.named_modules() if _is_linear(module)}
    if not found:
        kinds = "convolution, transposed convolution or linear layer"
        return f"{type(model).__name__} has no {kinds} to convert."
    shown = ", ".join(f"{name or 'the model'} ({kind.__name__})" for name, kind in list(found.items())[:3])
    msg = f"no layer of {type(model).__name__} can be converted with backend={backend!r}; it has {shown}."
    advice = [_TOOLKITS.get(kind.__module__.partition(".")[0]) for kind in found.values()]
    return msg + next((f" Write {line}." for line in advice if line), "")


def revert(model: M) -> M:
    """Undo `convert` in place, folding included; the float model is back bit for bit, with what it has learned."""
    backend = find_backend(next(iter(residual_layers(model).values())).settings.config.backend)
    with all_or_nothing(model):
        for module in list(model.modules()):
            if isinstance(module, ResidualLayer):
                backend.detach(module)
        detach_model_state(model)
    return model


def summarize(model: nn.Module) -> ConversionSummary:
    """List what was converted, folded and left in float."""
    layers = residual_layers(model)
    config = next(iter(layers.values())).settings.config
    inside = {part for layer in layers.values() for part in layer.modules()}  # a host toolkit's own layers
    rest = {name: module for name, module in model.named_modules() if _is_linear(module) and module not in inside}
    selected = {name: module for name, module in rest.items() if config.selects(name)}
    unreached = [name for name, module in selected.items() if find_backend(config.backend).supports(module)]
    folded = [name for name, module in model.named_modules() if isinstance(module, FoldedNorm)]
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return ConversionSummary(
        converted=tuple(layers),
        excluded=tuple(name for name in rest if name not in selected),
        unsupported=tuple(f"{name} ({type(selected[name]).__name__})" for name in selected if name not in unreached),
        unreached=tuple(unreached),
        folded=tuple(folded),
        dense=tuple(name for name in norms if name not in folded),
    )


def _is_linear(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    # A filter (C_out, C_in, *k) outside torch.nn, such as that of a deformable convolution.
    has_filter = weight is not None and weight.dim() > 2 and not isinstance(module, NORM_TYPES)
    return has_filter or isinstance(module, LINEAR_TYPES)


def float_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the float model had, with today's weights: it loads strictly into a float model."""
    residual_layers(model)
    extra: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        own = set(STATE_KEYS)
        if isinstance(module, ResidualLayer):
            own |= set(module.own_state)
        extra |= {f"{name}.{key}".lstrip(".") for key in own}
    prefixes = tuple(f"{key}." for key in extra)
    state = model.state_dict()
    return {key: value for key, value in state.items() if key not in extra and not key.startswith(prefixes)}

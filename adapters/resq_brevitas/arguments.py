"""The ``residual_*`` arguments of this adapter's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isclass
from typing import Any

from resq_brevitas._compat import settings_of
from resq_brevitas.quantizers import WEIGHTS, ResQAct
from resq_plugin.config import Precision, ResQConfig
from resq_plugin.errors import ConfigError, nearest
from resq_plugin.method import LayerSettings

__all__ = ["Residual", "split_arguments"]

PREFIX = "residual_"


@dataclass(frozen=True)
class Residual:
    """What a layer needs to become a residual one.

    Attributes:
        settings: what the layer knows of the configuration.
        quantizers: injectors of Θ and their settings, see `BrevitasResidualLayer.setup_residual`.
    """

    settings: LayerSettings
    quantizers: dict[str, Any]


def split_arguments(layer: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Residual | None]:
    """Separate the arguments of Brevitas' constructor from those of the residual path.

    * ``residual_config``: a `ResQConfig`, or the paper's notation. Quantizers and bit widths that are not given follow
      from it, those of keyframes too.
    * ``residual_input_quant``, ``residual_weight_quant``: injectors of Θ_a and Θ_w, such as `ResQAct`.
    * ``residual_input_*``, ``residual_weight_*``: any setting of these, e.g. ``residual_input_bit_width=4``; a tuple
      such as (0, 4, 8) is a dynamic pool.
    * ``residual_name``: the layer's name, for errors and overrides; else it is where the model holds the layer.

    Args:
        layer: class name, for errors.
        arguments: keyword arguments of the layer.

    Returns:
        Brevitas' arguments, and the residual path or None when no residual quantizer is given.

    Raises:
        ConfigError: an argument is unknown, without effect or impossible.
    """
    own = {key.removeprefix(PREFIX): value for key, value in arguments.items() if key.startswith(PREFIX)}
    host = {key: value for key, value in arguments.items() if not key.startswith(PREFIX)}
    config, name = own.pop("config", None), own.pop("name", "")
    injectors = {part: own.pop(f"{part}_quant", None) for part in ("input", "weight")}
    if config is None and all(injector is None for injector in injectors.values()):  # injectors are all false
        _check_settings(layer, own, dict.fromkeys(injectors, ResQAct))
        if any(value is not None for value in own.values()):
            msg = (
                f"{layer} has {', '.join(PREFIX + key for key in own)} but no residual quantizer; write "
                f"residual_config='W8A8->W4A4', or residual_input_quant=ResQAct, residual_weight_quant=..."
            )
            raise ConfigError(msg)
        return host, None
    if isinstance(config, str):
        config = ResQConfig.parse(config)
    config = _complete(host, own, config, name)
    for part, default in {"input": ResQAct, "weight": WEIGHTS[config.weights]}.items():
        if injectors[part] is None:
            injectors[part] = default
        if host.get(f"{part}_quant") is None:
            host[f"{part}_quant"] = default
    for part, injector in injectors.items():
        if not isclass(injector):
            msg = f"{layer}: residual_{part}_quant={injector!r} must be a class such as resq_brevitas.ResQAct."
            raise ConfigError(msg)
    _check_settings(layer, own, injectors)
    keyframe, residual = config.precision_of(name)
    own["weight_bit_width"] = (residual or keyframe).weight
    own["input_bit_width"] = max((residual or keyframe).pool)
    host |= {"weight_bit_width": keyframe.weight, "input_bit_width": keyframe.activation}
    quantizers = {f"{part}_quant": injector for part, injector in injectors.items()} | own
    return host, Residual(LayerSettings(name, keyframe, residual, config), quantizers)


def _complete(host: Mapping[str, Any], own: Mapping[str, Any], config: ResQConfig | None, name: str) -> ResQConfig:
    """The configuration with the bit widths that were given."""
    base = config or ResQConfig(residual=Precision(8, 8))
    keyframe, residual = base.precision_of(name)
    if config is None:
        keyframe = Precision(_bits(host, "weight", 8), _bits(host, "input", 8))
    else:
        keyframe = Precision(
            host.get("weight_bit_width", keyframe.weight), host.get("input_bit_width", keyframe.activation)
        )
    if residual is not None:
        residual = Precision(
            own.get("weight_bit_width", residual.weight), own.get("input_bit_width", residual.activation)
        )
    overrides = () if (keyframe, residual) != base.precision_of(name) else base.overrides
    return base.replace(keyframe=keyframe, residual=residual, overrides=overrides, backend="brevitas")


def _bits(host: Mapping[str, Any], part: str, default: int) -> Any:
    """Bit width of a quantizer of Brevitas' own."""
    injector = host.get(f"{part}_quant")
    of_injector = getattr(injector, "bit_width", default) if isclass(injector) else default
    return host.get(f"{part}_bit_width", of_injector)


def _check_settings(layer: str, own: Mapping[str, Any], injectors: Mapping[str, Any]) -> None:
    allowed = {f"{PREFIX}{part}_{name}" for part, injector in injectors.items() for name in settings_of(injector)}
    shown = {"config", "name", "input_quant", "weight_quant", "input_bit_width", "weight_bit_width"}
    for key in own:
        if PREFIX + key not in allowed:
            msg = (
                f"{layer} has no argument {PREFIX}{key}.{nearest(PREFIX + key, [PREFIX + name for name in shown])} "
                f"Allowed are {', '.join(sorted(PREFIX + name for name in shown))} and other settings of the "
                "quantizers with residual_input_ or residual_weight_."
            )
            raise ConfigError(msg)

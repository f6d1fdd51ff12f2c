"""ResQ through Brevitas' own door: a map for `brevitas.graph.quantize.layerwise_quantize`."""

from __future__ import annotations

from typing import Any

from torch import nn

from resq_brevitas.classes import RESQ_CLASSES
from resq_plugin.config import ResQConfig

__all__ = ["layer_map"]


def layer_map(
    config: ResQConfig | str, **quantizers: Any
) -> dict[type[nn.Module], tuple[type[nn.Module], dict[str, Any]]]:
    """Return what ``layerwise_quantize(model, compute_layer_map=...)`` takes.

    Layers that the configuration does not select become Brevitas' layers without quantizers.

    Args:
        config: the configuration, or the paper's notation such as ``"W8A8->W4A4"``; its ``backend`` does not matter.
        quantizers: arguments of the layers for other quantizers than those of Eq. 6 and 7, e.g.
            ``residual_weight_quant=ResQWeightPerChannelMSE``.
    """
    chosen = ResQConfig.parse(config) if isinstance(config, str) else config

    def if_selected(value: Any) -> Any:
        return lambda _, name: value if chosen.selects(name) else None

    arguments = {key: if_selected(value) for key, value in quantizers.items()}
    arguments |= {
        "residual_config": if_selected(chosen),
        "residual_name": lambda _, name: name,
        "weight_quant": if_selected(quantizers.get("weight_quant")),
    }
    return {kind: (layer, dict(arguments)) for kind, layer in RESQ_CLASSES.items()}

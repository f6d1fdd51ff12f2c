"""Weights of mm models: a checkpoint fits its network, or is an error before anything is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from resq_plugin.conversion import float_state_dict, is_range_of, match_state, read_checkpoint, unwrap_state
from resq_plugin.errors import ConversionError

__all__ = ["UNUSED", "fit_checkpoint", "load_weights"]

logger = logging.getLogger(__name__)

UNUSED = ("auxiliary_head.",)
"""What no test reads: heads of MMSeg that only their loss trains."""


def fit_checkpoint(model: nn.Module, checkpoint: dict[str, Any], source: object) -> None:
    """Compare a checkpoint with a network, and put what fits under ``checkpoint["state_dict"]``.

    Every entry of the network must be in the file and every entry of the file in the network, in the same shape.
    Excepted are: known prefixes (``module.``, ``model.``, ``ema_``, ...), taken off with a warning; auxiliary heads,
    which no test reads, with a warning; counters of batch norms; ranges of a calibrated checkpoint, which a float
    network does not take, and which a float checkpoint does not give.

    Args:
        model: float or converted, without wrappers.
        checkpoint: what was read; changed.
        source: its file, for messages.

    Raises:
        CheckpointError: it does not fit; names of either side are given, with their counts.
    """
    state = unwrap_state(checkpoint)
    try:
        weights, calibrated = float_state_dict(model), True
    except ConversionError:
        weights = model.state_dict()
        calibrated = isinstance(checkpoint.get("meta"), Mapping) and checkpoint["meta"].get("resq") is not None
    is_range = is_range_of(name for name, module in model.named_modules(remove_duplicate=False) if _is_layer(module))
    network = type(model).__name__
    match = match_state(
        state, weights, source=source, network=network, allowed=lambda key: calibrated and is_range(key), unused=UNUSED
    )
    for notice in match.notices:
        logger.warning("%s: %s.", source, notice)
    is_float = weights.keys() == model.state_dict().keys()
    checkpoint["state_dict"] = (
        {key: value for key, value in match.state.items() if key in weights} if is_float else match.state
    )


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a float network.

    Raises:
        CheckpointError: it cannot be read, or does not fit; the network is unchanged.
    """
    checkpoint = read_checkpoint(path)
    fit_checkpoint(model, checkpoint, path)
    model.load_state_dict(checkpoint["state_dict"])


def _is_layer(module: nn.Module) -> bool:
    """Whether it could be a converted layer: it holds a weight itself."""
    return "weight" in module._parameters or hasattr(module, "parametrizations")

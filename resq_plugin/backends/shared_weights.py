"""Weights that are quantized once for all frames of a training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["shared_weight", "sharing_weights"]

Weights = tuple[Tensor, Tensor | None]
_shared: ContextVar[dict[tuple[int, str], Weights] | None] = ContextVar("resq_shared_weights", default=None)


class _HasPaths(Protocol):
    def quantized_weight(self, kind: str) -> Weights: ...


@contextmanager
def sharing_weights(layers: Iterable[tuple[_HasPaths, str]]) -> Iterator[None]:
    """Quantize weights once, with their graph, and use them for every frame inside: one training step.

    They are made on entry, so that activation checkpointing inside recomputes none of it. Under autocast they are in
    its type. Leave before the weights change.

    Args:
        layers: layers and the path (``keyframe`` or ``residual``) whose weights are shared.
    """
    weights = {}
    for layer, kind in layers:
        weight, bias = layer.quantized_weight(kind)
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            weight = weight.to(torch.get_autocast_dtype(device))
        weights[id(layer), kind] = weight, bias
    token = _shared.set(weights)
    try:
        yield
    finally:
        _shared.reset(token)


def shared_weight(layer: _HasPaths, kind: str) -> Weights | None:
    """What `sharing_weights` holds of a layer; None outside, and where no gradient is recorded."""
    weights = _shared.get()
    return None if weights is None or not torch.is_grad_enabled() else weights.get((id(layer), kind))

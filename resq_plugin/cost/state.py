"""Bytes that the calls of layers keep between frames, counted as streams keep them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from resq_plugin.config import Precision, StateConfig
from resq_plugin.cost.dry_run import LayerCall
from resq_plugin.method import GRID_BYTES, ResidualLayer, grid_dims, pays

__all__ = ["FLOAT_BYTES", "Kept", "held_bytes", "state_bytes_of"]

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Kept:
    """What decides what a layer keeps.

    Attributes:
        keyframe: precision of Φ; None for a layer in float.
        residual: precision of Θ; None for a layer without residuals.
        reference: of residuals.
        state: settings of the state.
        group: which layers take their references in the same frame; others share nothing.
    """

    keyframe: Precision | None = None
    residual: Precision | None = None
    reference: str = "float"
    state: StateConfig = field(default_factory=StateConfig)
    group: int = 0


def held_bytes(layer: nn.Module, shape: tuple[int, ...], bits: int | None) -> int:
    """Bytes of a tensor of a layer, in floats or in integers with a grid per video and channel."""
    dims, count = _dims(layer, shape), math.prod(shape)
    if bits is None or not pays(shape, bits, dims):
        return count * FLOAT_BYTES
    return count * bits // 8 + math.prod(shape[dim] for dim in dims) * GRID_BYTES


def state_bytes_of(calls: Iterable[LayerCall], kept_by: Callable[[LayerCall], Kept]) -> dict[str, int]:
    """Bytes by name of the layer; what several read is counted for the first.

    Args:
        calls: in the order in which the network makes them.
        kept_by: what decides for a call.
    """
    found: dict[str, int] = {}
    known: set[Hashable] = set()
    for call in calls:
        kept = kept_by(call)
        if kept.keyframe is None or kept.residual is None:
            continue
        own, state = (call.name, len(known)), kept.state
        total = held_bytes(call.layer, call.output_shape, state.output_bits)
        kind, size = _reference(call, kept)
        key = own if kind is None else (kept.group, call.source, kind)
        total += 0 if key in known else size
        known |= {key, (kept.group, call.result, _measured(call.layer, call.output_shape, state.output_bits))}
        found[call.name] = found.get(call.name, 0) + total
    return found


def _reference(call: LayerCall, kept: Kept) -> tuple[Hashable, int]:
    """How the reference is kept, None if by this call alone, and its bytes."""
    bits, shape = kept.state.reference_bits, call.input_shape
    size = held_bytes(call.layer, shape, bits)
    if kept.reference == "running" or kept.keyframe is None:
        return None, size
    own, layer = max(kept.keyframe.pool), call.layer
    measured = _measured(layer, shape, bits)
    if kept.reference == "float":
        return measured, size
    quantizer: Any = layer.activation_quantizers()["keyframe"] if isinstance(layer, ResidualLayer) else None
    if getattr(quantizer, "is_upstream", False):
        return measured, size
    scale = 0.0 if quantizer is None or quantizer.scale.is_meta else float(quantizer.scale.detach())
    # Before calibration nobody knows the ranges.
    grid = (own, quantizer.signed, scale) if scale > 0 and quantizer.bits == own else call.name
    if bits is not None and own > bits:
        return (grid, measured), size
    return grid, math.prod(shape) * -(-own // 8)


def _measured(layer: nn.Module, shape: tuple[int, ...], bits: int | None) -> Hashable:
    """How a tensor is kept that no quantizer has seen."""
    return "float" if bits is None else (bits, _dims(layer, shape))


def _dims(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    weight: Tensor = layer.weight
    return grid_dims(len(shape), -1 if isinstance(layer, nn.Linear) else 1, weight.dim())

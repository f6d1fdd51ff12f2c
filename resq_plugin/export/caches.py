"""Which tensors residual frames need of the past, each kept once however many layers read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.conversion import evaluating
from resq_plugin.export.grid import Grid
from resq_plugin.export.numbers import LayerNumbers
from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing

__all__ = ["Cache", "CachePlan", "Call", "plan_caches"]

FRAME, FRAME_CACHE = "frame", "frame.x"


@dataclass(frozen=True)
class Cache:
    """One tensor of the memory of a stream.

    Attributes:
        name: its name as output of the keyframe graph and input of the residual graph.
        shape: its shape.
        grid: the grid it lies on; None for float32.
        source: ``keyframe`` (an output of that graph) or ``frame`` (the keyframe itself, which a player has).
        layers: who reads it, e.g. ``stem.0 (x)``.
    """

    name: str
    shape: tuple[int, ...]
    grid: Grid | None
    source: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class CachePlan:
    """The caches of a model and where every call of a layer finds its own.

    Attributes:
        caches: every cache once.
        x: name of the reference of the residual, per call.
        z: name of the output it stands for, per call.
        is_updated: whether residual frames write new memory.
    """

    caches: tuple[Cache, ...]
    x: Mapping[Call, str]
    z: Mapping[Call, str]
    is_updated: bool = False


class _Watch(CountingExecutor):
    """Runs a keyframe and notes which tensors are the same. Holds all of them, so that no identity is reused."""

    def __init__(self, numbers: Mapping[str, LayerNumbers], reference: str, frame: Tensor) -> None:
        super().__init__()
        self.numbers, self.reference = numbers, reference
        self.known: list[tuple[Tensor, int, Grid | None, str]] = [(frame, frame._version, None, FRAME_CACHE)]
        self.shapes: dict[str, tuple[int, ...]] = {FRAME_CACHE: tuple(frame.shape)}
        self.grids: dict[str, Grid | None] = {FRAME_CACHE: None}
        self.x: dict[Call, str] = {}
        self.z: dict[Call, str] = {}

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        name = call[0]
        if layer.settings.residual is None:  # keeps nothing
            return layer.keyframe(x, **options)
        prefix = name if call[1] == 0 else f"{name}#{call[1]}"
        grid = self.numbers[name].keyframe if self.reference == "quantized" else None
        self.x[call] = self._find(x, grid) or self._add(x, grid, f"{prefix}.x")
        z = layer.keyframe(x, **options)
        self.z[call] = self._add(z, None, f"{prefix}.z")
        return z

    def _find(self, x: Tensor, grid: Grid | None) -> str | None:
        if self.reference == "running":  # every layer updates its own
            return None
        return next((name for t, v, g, name in self.known if t is x and v == x._version and g == grid), None)

    def _add(self, tensor: Tensor, grid: Grid | None, name: str) -> str:
        self.known.append((tensor, tensor._version, grid, name))
        self.shapes[name], self.grids[name] = tuple(tensor.shape), grid
        return name


def plan_caches(model: nn.Module, frame: Tensor, numbers: Mapping[str, LayerNumbers], reference: str) -> CachePlan:
    """Find the caches by running one keyframe (N, C, H, W); nothing is traced.

    Layers that read the same tensor share its cache, also where that tensor is another layer's output or the frame;
    with ``reference="quantized"`` they do if their grids agree, and with ``running`` each layer has its own.
    """
    watch = _Watch(numbers, reference, frame)
    with evaluating(model), torch.no_grad(), executing(watch):
        model(frame)
    readers: dict[str, list[str]] = {}
    for kind, calls in (("x", watch.x), ("z", watch.z)):
        for (layer, _), name in calls.items():
            readers.setdefault(name, []).append(f"{layer} ({kind})")
    caches = tuple(
        Cache(name, watch.shapes[name], watch.grids[name], FRAME if name == FRAME_CACHE else "keyframe", tuple(layers))
        for name, layers in readers.items()
    )
    return CachePlan(caches, watch.x, watch.z, reference == "running")

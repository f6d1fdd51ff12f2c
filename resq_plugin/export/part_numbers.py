"""What torch computes in every layer on its own, see `resq_plugin.export.parts`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_plugin.conversion import evaluating
from resq_plugin.export.caches import CachePlan
from resq_plugin.export.difference import sampled
from resq_plugin.export.grid import Grid
from resq_plugin.export.numbers import LayerNumbers
from resq_plugin.export.parts import Part, made_up
from resq_plugin.method import Call, CountingExecutor, LayerCache, ResidualLayer, executing

__all__ = ["compute_parts"]

WIDER = 2.0
"""Made-up numbers spread over more than those of the frame, so that quantizers clip at both ends."""


class _Executor(CountingExecutor):
    """Runs layers with the model's own quantizers; without ``amplitudes`` it only looks how large tensors are."""

    def __init__(
        self,
        numbers: Mapping[str, LayerNumbers],
        plan: CachePlan,
        past: Mapping[Call, LayerCache] | None,
        amplitudes: Mapping[str, float] | None,
    ) -> None:
        super().__init__()
        self.numbers, self.plan, self.past, self.amplitudes = numbers, plan, past, amplitudes
        self.parts: list[Part] = []
        self.handed_on: list[Tensor] = []
        self.memory: dict[str, Part] = {}

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        run = self._keyframe if self.past is None or layer.settings.residual is None else self._residual
        return run(layer, call, x, options)

    def _keyframe(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        name, grid = f"{call[0]}@{call[1]}", self.numbers[call[0]].keyframe
        x_hat = layer.quantize_keyframe(x)
        if call in self.plan.x:
            self._remember(self.plan.x[call], x if layer.settings.config.reference == "float" else x_hat)
        if grid is not None:
            x_hat = self._cut(f"{name}.x", x_hat, least=_end(grid), lsb=grid.scale[0])
        z = layer.apply_keyframe(x_hat, **options)
        if call in self.plan.z:
            self._remember(self.plan.z[call], z)
        return self._cut(f"{name}.z", z)

    def _residual(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        name, past = f"{call[0]}@{call[1]}", cast(Mapping[Call, LayerCache], self.past)[call]
        delta_hat, choice = layer.quantize_residual(x, past.x)
        grids = [grid for grid in self.numbers[call[0]].residual if grid is not None]
        step = max((grid.scale[0] for grid in grids), default=None)
        facts: dict[str, Any] = {"lsb": step, "is_chosen": choice is not None}
        if self.plan.is_updated:
            self._remember(f"new.{self.plan.x[call]}", past.x + delta_hat, **facts)
        if not grids:  # 0 bits: the graph hands z_k on
            if self.plan.is_updated:
                self._remember(f"new.{self.plan.z[call]}", past.z)
            return past.z.clone()
        delta_hat = self._cut(f"{name}.x", delta_hat, least=max(map(_end, grids)), **facts)
        z = layer.apply_residual(delta_hat, **options) + past.z
        if self.plan.is_updated:
            self._remember(f"new.{self.plan.z[call]}", z)
        least = float(past.z.abs().max()) / 100 or 1.0  # of what does not move, too little to overload the next layer
        return self._cut(f"{name}.z", z, past.z, least=least, base=self.plan.z[call])

    def _remember(self, name: str, tensor: Tensor, **facts: Any) -> None:
        self.memory.setdefault(name, _part(name, tensor, **facts))

    def _cut(
        self, name: str, tensor: Tensor, past: Tensor | None = None, *, least: float = 1.0, **facts: Any
    ) -> Tensor:
        moved = float((tensor if past is None else tensor - past).abs().max())
        amplitude = WIDER * moved or least if self.amplitudes is None else self.amplitudes[name]
        self.parts.append(_part(name, tensor, amplitude=amplitude, **facts))
        if self.amplitudes is None:
            return tensor
        values = torch.from_numpy(made_up(tensor.shape, name, amplitude))
        self.handed_on.append(values if past is None else past + values)
        return self.handed_on[-1]

    def outputs(self, names: Sequence[str], results: Sequence[Tensor]) -> list[Part]:
        """The model's outputs, but those that are what a layer was said to return, and new memory."""
        grids = {cache.name: cache.grid for cache in self.plan.caches}
        absent = {cache.name for cache in self.plan.caches if cache.source != "keyframe"}
        memory = [_integers(part, grids.get(part.name)) for part in self.memory.values() if part.name not in absent]
        return memory + [
            _part(name, result, is_chosen=not result.is_floating_point())
            for name, result in zip(names, results, strict=True)
            if result._version or not any(result is known for known in self.handed_on)
        ]


def _part(name: str, tensor: Tensor, **facts: Any) -> Part:
    return Part(name, sampled(tensor.numpy()).copy(), tuple(tensor.shape), **facts)


def _end(grid: Grid) -> float:
    """Where a grid ends: what a tensor may reach that is zero in this frame."""
    return grid.scale[0] * grid.high


def _integers(part: Part, grid: Grid | None) -> Part:
    if grid is None:
        return part
    return dataclasses.replace(part, expected=grid.quantize(part.expected).astype(grid.container))


def compute_parts(
    model: nn.Module,
    frame: Tensor,
    numbers: Mapping[str, LayerNumbers],
    names: Sequence[str],
    plan: CachePlan,
    past: Mapping[Call, LayerCache] | None = None,
) -> list[Part]:
    """Run a frame (N, C, H, W) in torch, every layer on its own.

    Args:
        model: converted and calibrated.
        frame: the frame.
        numbers: of every layer.
        names: of the model's outputs.
        plan: the caches.
        past: memory of a residual frame; without it the frame is a keyframe.
    """
    amplitudes = None
    with evaluating(model), torch.no_grad():
        for _ in range(2):
            executor = _Executor(numbers, plan, past, amplitudes)
            with executing(executor):
                results = [leaf for leaf in tree_leaves(model(frame)) if isinstance(leaf, Tensor)]
            amplitudes = {part.name: part.amplitude for part in executor.parts}
    return executor.parts + executor.outputs(names, results)

"""What a layer does in a stream: its caches x_k and z_k, its calls, and its choices of bit widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resq_plugin.errors import StreamError
from resq_plugin.method.calls import Call, CountingExecutor
from resq_plugin.method.layers import ResidualLayer
from resq_plugin.method.workspace import Workspace

__all__ = ["LayerCache", "StreamState", "describe"]

FARTHEST = 256
"""Distance from the keyframe up to which choices are counted apart, so that an endless interval needs no memory."""


@dataclass
class LayerCache:
    """What one call of one layer keeps of the past.

    Attributes:
        x: reference of the residual, the shape of the layer's input.
        z: the output it stands for, the shape of the layer's output.
    """

    x: Tensor
    z: Tensor


class StreamState(CountingExecutor):
    """State of one stream and the executor that reads and writes it.

    A plain object: never a buffer, a parameter or part of a ``state_dict``. Caches are private copies, because
    the network around may work in place, and are keyed by layer and call, because layers may be reused in a frame.
    """

    def __init__(self, *, keep_graph: bool = False) -> None:
        super().__init__()
        self.caches: dict[Call, LayerCache] = {}
        self.is_keyframe = True
        self.keep_graph = keep_graph
        self.position = -1
        self.counts: dict[tuple[int, str], Tensor] = {}
        self.choices: dict[str, Tensor] | None = None
        self.workspace = Workspace()

    def start_frame(self, position: int) -> None:
        """Begin the frame at that distance from its keyframe; a keyframe (0) forgets everything."""
        self.position, self.is_keyframe = position, position == 0
        self.calls.clear()
        if self.is_keyframe:
            self.caches.clear()

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer, Eq. 5."""
        name = layer.settings.name
        if layer.settings.residual is None:
            return layer.keyframe(x, **options)
        if self.is_keyframe:
            return self._keyframe(layer, call, x, options)
        cache = self.caches.get(call)
        if cache is None:
            msg = (
                f"layer {name} was called {call[1]} time(s) at the keyframe and more often now. A network that "
                "changes its calls must start a new interval: video.start_interval(), or exclude=('" + name + "',)."
            )
            raise StreamError(msg)
        found, expected = (x.shape, x.dtype, x.device), (cache.x.shape, cache.x.dtype, cache.x.device)
        if found != expected:
            msg = (
                f"layer {name} got {describe(found)} but its keyframe was {describe(expected)}. Call "
                "video.start_interval() before such a frame."
            )
            raise StreamError(msg)
        return self._residual(layer, name, cache, x, options)

    def _keyframe(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        if layer.settings.config.reference == "float":
            z = layer.keyframe(x, **options)
            reference = self._own(x)
        else:
            reference = layer.quantize_keyframe(x)
            z = layer.apply_keyframe(reference, **options)
            reference = reference if self.keep_graph else reference.detach()
        self.caches[call] = LayerCache(reference, self._own(z))
        return z

    def _residual(
        self, layer: ResidualLayer, name: str, cache: LayerCache, x: Tensor, options: dict[str, Any]
    ) -> Tensor:
        delta_hat, choice = layer.quantize_residual(x, cache.x, self.workspace)
        if choice is not None:
            self._record(layer, name, choice)
        delta_z = layer.apply_residual(delta_hat, **options)
        z = delta_z + cache.z if delta_z.requires_grad else delta_z.add_(cache.z)
        if layer.settings.config.reference == "running":
            x_hat = cache.x + delta_hat
            cache.x = x_hat if self.keep_graph else x_hat.detach()
            cache.z = self._own(z)
        return z

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self.keep_graph else tensor.detach().clone()

    def _record(self, layer: ResidualLayer, name: str, choice: Tensor) -> None:
        residual = layer.settings.residual
        pool = residual.pool if residual is not None else ()
        counts = torch.bincount(choice.flatten(), minlength=len(pool))
        key = min(self.position, FARTHEST), name
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts
        if self.choices is not None:
            bits = torch.tensor(pool, dtype=torch.uint8, device=choice.device)
            self.choices[name] = bits[choice.long()]

    def state_bytes(self) -> int:
        """Bytes that the caches hold in this simulation."""
        return sum(t.numel() * t.element_size() for cache in self.caches.values() for t in (cache.x, cache.z))


def describe(signature: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    """Return shape, type and device in words."""
    shape, dtype, device = signature
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device}"

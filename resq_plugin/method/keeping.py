"""What is kept of a tensor that a layer reads or returns, by the settings of the layer."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor

from resq_plugin.method.held import Held
from resq_plugin.method.held_grid import HeldGrid, grid_dims, pays
from resq_plugin.method.layer_cache import LayerCache
from resq_plugin.method.layers import ResidualLayer

__all__ = ["Keeper"]


class Keeper:
    """Makes private copies, or integers where a layer is to keep those.

    Attributes:
        keep_graph: keep what gradients through time need; integers are then floats of the same values.
    """

    def __init__(self, *, keep_graph: bool) -> None:
        self.keep_graph = keep_graph

    def kind(self, layer: ResidualLayer, tensor: Tensor, bits: int | None) -> Hashable:
        """How a tensor is kept that no quantizer has seen: what is of one kind is kept alike."""
        return None if bits is None else (bits, _dims(layer, tensor))

    def reference(self, layer: ResidualLayer, x: Tensor, x_hat: Tensor | None) -> Held:
        """What is kept of x_k, or x̂_k where that is not None and private already."""
        config = layer.settings.config
        bits, moves = config.state.reference_bits, config.reference == "running"
        if x_hat is None:
            return self._hold(layer, x, bits, moves=moves)
        is_fine = bits is None or layer.settings.keyframe.pool[-1] <= bits
        if moves or not is_fine:
            return self._hold(layer, x_hat, bits, moves=moves, is_private=True)
        return Held.of(x_hat) if self.keep_graph else _on_keyframe_grid(layer, x_hat.detach())

    def output(self, layer: ResidualLayer, z: Tensor) -> Held:
        """What is kept of z_k."""
        config = layer.settings.config
        return self._hold(layer, z, config.state.output_bits, moves=config.reference == "running")

    def updated(self, layer: ResidualLayer, old: LayerCache, x_hat: Tensor, z: Tensor) -> LayerCache:
        """The cache of a running reference after a residual frame: x̂_t, which is private, and ẑ_t."""
        return LayerCache(self._moved(layer, old.held_x, x_hat, is_private=True), self._moved(layer, old.held_z, z))

    def _moved(self, layer: ResidualLayer, old: Held, values: Tensor, *, is_private: bool = False) -> Held:
        if old.grid is None:
            return Held.of(self._own(values, is_private=is_private))
        grid = old.grid.grown(values, _dims(layer, values))
        return Held.of(self._kept(values), grid, keep_graph=self.keep_graph)

    def _hold(
        self, layer: ResidualLayer, values: Tensor, bits: int | None, *, moves: bool, is_private: bool = False
    ) -> Held:
        """Values in that many bits, or as they are where that takes no less; ``moves`` if later frames change them."""
        if bits is None or not pays(values.shape, bits, _dims(layer, values), values.element_size()):
            return Held.of(self._own(values, is_private=is_private))
        grid = HeldGrid.measure(values, bits, _dims(layer, values), room=moves)
        return Held.of(self._kept(values), grid, keep_graph=self.keep_graph)

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor if self.keep_graph else tensor.detach()

    def _own(self, tensor: Tensor, *, is_private: bool) -> Tensor:
        kept = self._kept(tensor)
        return kept if is_private else kept.clone()


def _dims(layer: ResidualLayer, tensor: Tensor) -> tuple[int, ...]:
    return grid_dims(tensor.dim(), layer.channel_dim, cast(Tensor, layer.weight).dim())


def _on_keyframe_grid(layer: ResidualLayer, x_hat: Tensor) -> Held:
    """x̂ as the integers of Φ_a, which lose nothing, or as it is where it lies on no such grid."""
    quantizer = layer.activation_quantizers()["keyframe"]
    if quantizer.bits == 0:  # a host quantizes what the layer reads
        return Held.of(x_hat)
    held = Held.of(x_hat, HeldGrid.of_quantizer(quantizer.scale, quantizer.bits, signed=quantizer.signed))
    is_smaller = held.data.element_size() < x_hat.element_size()
    # Hosts may have been told to quantize nothing, and half precision cannot tell all steps of a grid apart.
    return held if is_smaller and torch.equal(held.values(), x_hat) else Held.of(x_hat)

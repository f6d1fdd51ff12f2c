"""Grids of what is kept between frames: integers that stand for values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resq_plugin.method.quantizer import HALF_TYPES, SMALLEST_SCALE, integer_range
from resq_plugin.method.workspace import Workspace

__all__ = ["GRID_BYTES", "HeldGrid", "grid_dims", "pays"]

ROOM = 1 / 8
"""How far a grid that moves reaches beyond the values it was measured on, on each side, as a share of their range."""
GRID_BYTES = 8
"""Scale and base of a channel."""


@dataclass(frozen=True)
class HeldGrid:
    """Values ``(integer + shift) * scale + base``.

    Attributes:
        scale: s, broadcastable to the tensor.
        dtype: of the integers, as few bytes as hold the grid.
        low: the least of ``integer + shift``.
        high: the largest.
        base: value of ``integer + shift = 0``, broadcastable to the tensor; None on a quantizer's grid, for 0.
    """

    scale: Tensor
    dtype: torch.dtype
    low: int
    high: int
    base: Tensor | None = None

    @classmethod
    def of_quantizer(cls, scale: Tensor, bits: int, *, signed: bool) -> HeldGrid:
        """The grid of Eq. 1, on which a quantized tensor lies already."""
        low, high = integer_range(bits, signed=signed)
        return cls(scale.detach().clone(), _container(bits, signed=signed), low, high)

    @classmethod
    def measure(cls, values: Tensor, bits: int, dims: Sequence[int], *, room: bool = False) -> HeldGrid:
        """A grid from the smallest to the largest value.

        Args:
            values: any shape.
            bits: 8 or 16.
            dims: each index of these dimensions has a grid of its own: videos and channels.
            room: reach farther by `ROOM` on both sides.
        """
        low, high = _ends(values, dims)
        return cls._between(low, high, bits, ROOM if room else 0.0)

    @classmethod
    def _between(cls, low: Tensor, high: Tensor, bits: int, room: float) -> HeldGrid:
        span, steps = high - low, 2**bits - 1
        scale = (span * (1 + 2 * room) / steps).clamp_min(SMALLEST_SCALE)
        return cls(scale, _container(bits, signed=False), 0, steps, low - room * span)

    def grown(self, values: Tensor, dims: Sequence[int]) -> HeldGrid:
        """The same where it holds the values, and elsewhere one that reaches beyond them.

        A grid that ends would cut x̂_t off, and the next residual would add to z_t what it cannot add to x̂_t.
        """
        if self.base is None:
            return self
        low, high = _ends(values, dims)
        first, last = self.base, self.base + self.high * self.scale
        leaves = (low < first - self.scale / 2) | (high > last + self.scale / 2)
        bits = 8 if self.dtype == torch.uint8 else 16
        wider = self._between(torch.minimum(low, first), torch.maximum(high, last), bits, ROOM)
        base = first if wider.base is None else torch.where(leaves, wider.base, first)
        return replace(self, scale=torch.where(leaves, wider.scale, self.scale), base=base)

    @property
    def shift(self) -> int:
        """What is added to the integers: 2^15 for those from 0 to 65535, else 0."""
        return 2**15 if self.high >= 2**15 else 0

    @property
    def bytes(self) -> int:
        """Size of what is kept beside the integers; a quantizer's grid is kept anyway."""
        tensors = () if self.base is None else (self.scale, self.base)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def encode(self, values: Tensor) -> Tensor:
        """The integers of the nearest values."""
        values = values.to(_work_dtype(values.dtype))
        scale = self.scale.to(values.dtype)
        steps = values / scale if self.base is None else (values - self.base).div_(scale)
        steps.round_().clamp_(self.low, self.high)
        return (steps.sub_(self.shift) if self.shift else steps).to(self.dtype)

    def decode(self, integers: Tensor, dtype: torch.dtype, workspace: Workspace | None = None) -> Tensor:
        """The values, in the arithmetic of `fake_quantize`, so that those of its grid are the same bits.

        They may lie in a ``workspace``, and are then lost with its next use.
        """
        room = None if workspace is None else workspace.like(integers, dtype=dtype)
        values = integers.to(_work_dtype(dtype)) if room is None else room[0].copy_(integers)
        if self.shift:
            values.add_(self.shift)
        values.mul_(self.scale.to(values.dtype))
        if self.base is not None:
            values.add_(self.base)
        return values.to(dtype)

    def equals(self, other: HeldGrid | None) -> bool:
        """Whether both stand for the same values."""
        if other is None or (self.dtype, self.low, self.high) != (other.dtype, other.low, other.high):
            return False
        pairs = ((self.scale, other.scale), (self.base, other.base))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    def clone(self) -> HeldGrid:
        """A copy of its own."""
        return replace(self, scale=self.scale.clone(), base=None if self.base is None else self.base.clone())


def grid_dims(dims: int, channel_dim: int, weight_dims: int) -> tuple[int, ...]:
    """Dimensions of videos and channels of what a layer reads or returns.

    Args:
        dims: of the tensor.
        channel_dim: of the layer.
        weight_dims: of its weight; a convolution may read (C, H, W) instead of (N, C, H, W).

    >>> grid_dims(4, 1, 4), grid_dims(3, 1, 4), grid_dims(3, -1, 2), grid_dims(1, -1, 2)
    ((0, 1), (0,), (0, 2), (0,))
    """
    if channel_dim == 1:
        return (0,) if dims < weight_dims else (0, 1)
    return tuple(sorted({0, dims - 1}))


def pays(shape: Sequence[int], bits: int, dims: Sequence[int], element_size: int = 4) -> bool:
    """Whether integers with a grid for each index of ``dims`` take fewer bytes than values of ``element_size``.

    >>> pays((1, 64, 1, 1), 8, (0, 1)), pays((1, 64, 2, 2), 8, (0, 1))
    (False, True)
    """
    count, grids = math.prod(shape), math.prod(shape[dim] for dim in dims)
    return count * bits // 8 + grids * GRID_BYTES < count * element_size


def _container(bits: int, *, signed: bool) -> torch.dtype:
    if bits > 8:
        return torch.int16
    return torch.int8 if signed else torch.uint8


def _work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type to compute in: half precision is too coarse for ``x / s``."""
    return torch.float32 if dtype in HALF_TYPES else dtype


def _ends(values: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    values = values.detach().to(torch.float32)
    rest = [dim for dim in range(values.dim()) if dim not in dims]
    return values.amin(rest, keepdim=True), values.amax(rest, keepdim=True)

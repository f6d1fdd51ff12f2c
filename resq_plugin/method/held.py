"""How a tensor of the past is kept between frames: as it is, or as integers on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resq_plugin.method.held_grid import HeldGrid
from resq_plugin.method.workspace import Workspace

__all__ = ["Held"]


@dataclass(frozen=True)
class Held:
    """A tensor as it is kept.

    Attributes:
        data: the tensor itself, or integers. In training, the values of the integers with the graph that made them.
        dtype: of the values.
        grid: of the integers; None without.
    """

    data: Tensor
    dtype: torch.dtype
    grid: HeldGrid | None = None

    @classmethod
    def of(cls, values: Tensor, grid: HeldGrid | None = None, *, keep_graph: bool = False) -> Held:
        """Keep values.

        Args:
            values: any shape; without a grid they must be private.
            grid: of integers.
            keep_graph: keep the values of the integers as a function of ``values`` whose gradient is the identity.
        """
        if grid is None:
            return cls(values, values.dtype)
        integers = grid.encode(values.detach())
        if not keep_graph:
            return cls(integers, values.dtype, grid)
        rounded: Tensor = _StraightThrough.apply(values, grid.decode(integers, values.dtype))
        return cls(rounded, values.dtype, grid)

    def values(self, workspace: Workspace | None = None) -> Tensor:
        """What it stands for: the tensor itself, or one that is new or lies in a ``workspace`` until its next use."""
        if self.grid is None or self.data.is_floating_point():
            return self.data
        return self.grid.decode(self.data, self.dtype, workspace)

    @property
    def bytes(self) -> int:
        """Size in bytes, grid included."""
        return self.data.numel() * self.data.element_size() + (0 if self.grid is None else self.grid.bytes)

    def equals(self, other: Held) -> bool:
        """Whether both stand for the same values."""
        if self.dtype != other.dtype or self.data.dtype != other.data.dtype or self.data.shape != other.data.shape:
            return False
        is_one_grid = other.grid is None if self.grid is None else self.grid.equals(other.grid)
        return is_one_grid and torch.equal(self.data, other.data)

    def clone(self) -> Held:
        """A copy of its own."""
        return Held(self.data.clone(), self.dtype, None if self.grid is None else self.grid.clone())


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grads[0], None

"""The grid of a quantized tensor as files hold it: scale, bits, and the integer type that carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid"]

NATIVE_WEIGHT_BITS = (4, 8, 16)
NATIVE_ACTIVATION_BITS = (8, 16)
"""Integer widths of ONNX; 4-bit activations exist there too, but few runtimes and targets take them."""


@dataclass(frozen=True)
class Grid:
    """Grid of Eq. 1: ``scale * (q - zero_point)`` for the integers q of that many bits.

    Attributes:
        scale: s, one value, or one per channel along ``axis``; float32 values.
        bits: b, at least 2.
        signed: integers -2^(b-1) to 2^(b-1) - 1, else 0 to 2^b - 1.
        axis: dimension of the channels; None for one scale.
        zero_point: integer that stands for 0; other than 0 only on grids that a toolkit brings.
        weight: whether this is a constant, which may be carried by 4-bit integers.
    """

    scale: tuple[float, ...]
    bits: int
    signed: bool = True
    axis: int | None = None
    zero_point: int = 0
    weight: bool = False

    @property
    def low(self) -> int:
        """Lowest integer."""
        return -int(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Highest integer."""
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)

    @property
    def container_bits(self) -> int:
        """Width of the integer type that carries the grid in ONNX: the next one there is."""
        native = NATIVE_WEIGHT_BITS if self.weight else NATIVE_ACTIVATION_BITS
        return next(width for width in native if width >= self.bits)

    @property
    def container(self) -> str:
        """Name of that integer type, e.g. ``int8``."""
        return f"{'int' if self.signed else 'uint'}{self.container_bits}"

    @property
    def is_carried(self) -> bool:
        """Whether the integer type is wider than the grid, so that the ends of the grid need clipping."""
        return self.container_bits != self.bits

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale as an array, () or (C,)."""
        values = np.array(self.scale, dtype=np.float32)
        return values if self.axis is not None else values.reshape(())

    def _broadcast(self, ndim: int) -> NDArray[np.float32]:
        if self.axis is None:
            return self.scales
        return self.scales.reshape([-1 if dim == self.axis else 1 for dim in range(ndim)])

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.int32]:
        """The integers of Eq. 1 for an array of any shape."""
        steps = np.rint(values / self._broadcast(values.ndim)).astype(np.int32)
        integers: NDArray[np.int32] = np.clip(steps + self.zero_point, self.low, self.high).astype(np.int32)
        return integers

    def dequantize(self, integers: NDArray[np.generic]) -> NDArray[np.float32]:
        """The values that integers of any shape stand for."""
        steps = integers.astype(np.int32) - self.zero_point
        return (steps * self._broadcast(integers.ndim)).astype(np.float32)

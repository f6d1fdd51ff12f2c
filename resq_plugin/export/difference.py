"""Differences in steps of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TensorDifference", "classes", "difference", "sample_size", "sampled"]

Array = NDArray[Any]
LSB_BITS = 8
SAMPLES = 512


@dataclass(frozen=True)
class TensorDifference:
    """Largest difference of one tensor between two ways to compute it.

    Attributes:
        graph: ``keyframe`` or ``residual``.
        name: of the tensor.
        lsb: largest difference, in steps of its grid, or of an 8-bit grid over its range (Eq. 6) if it has none.
        share: share of the elements that differ by more than half a step.
        beyond: share of the elements that differ by more than a step.
    """

    graph: str
    name: str
    lsb: float
    share: float
    beyond: float


def difference(
    graph: str, name: str, pairs: Sequence[tuple[Array, Array]], lsb: float | None = None
) -> TensorDifference:
    """Compare arrays (ours, expected) of one tensor over the frames of a clip.

    Integers are compared as such. Floats are in steps of ``lsb``, by default of an 8-bit grid over the expected range.
    What is not finite in one of both only differs by infinity.
    """
    if lsb is None:
        largest = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0)) for _, expected in pairs)
        lsb = 1.0 if pairs[0][1].dtype.kind in "iu" else 2 * largest / (2**LSB_BITS - 1) or 1.0
    steps = [_distance(ours.astype(np.float64), expected.astype(np.float64)) / lsb for ours, expected in pairs]
    share, beyond = (float(np.mean([(step > least).mean() for step in steps])) for least in (0.5, 1))
    return TensorDifference(graph, name, max(float(step.max()) for step in steps), share, beyond)


def _distance(ours: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    equal = (ours == expected) | (np.isnan(ours) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(ours - expected)
    return np.where(equal, 0, np.where(np.isnan(distance), np.inf, distance))


def classes(output: Array) -> Array:
    """The largest channel of each pixel; of an output without channels the output itself."""
    found: Array = output.argmax(1) if output.ndim > 1 else output
    return found


def sample_size(shape: Sequence[int]) -> int:
    """How many elements `sampled` takes of an array of that shape."""
    size = math.prod(shape)
    return -(-size // max(1, size // SAMPLES))


def sampled(array: Array) -> Array:
    """At most `SAMPLES` elements of an array of any shape, evenly spread."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // SAMPLES)]

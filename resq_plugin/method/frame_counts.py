"""How many keyframes and residual frames really ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

__all__ = ["FrameCounts", "shares_of"]


@dataclass(frozen=True)
class FrameCounts:
    """Frames that ran, by their distance from the keyframe; what costs are amortized over.

    >>> counts = FrameCounts((4, 3, 3)) + FrameCounts((1,))
    >>> counts.keyframes, counts.residual, counts.total
    (5, 6, 11)

    Attributes:
        by_distance: frames at distance 0 (keyframes), 1, 2, ...; N videos in step are N frames.
    """

    by_distance: tuple[int, ...] = ()

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> FrameCounts:
        """Read a table of distance to frames."""
        return cls(tuple(counts.get(distance, 0) for distance in range(max(counts, default=-1) + 1)))

    @property
    def keyframes(self) -> int:
        """Frames at distance 0."""
        return sum(self.by_distance[:1])

    @property
    def residual(self) -> int:
        """Frames farther than that."""
        return sum(self.by_distance[1:])

    @property
    def total(self) -> int:
        """All frames."""
        return sum(self.by_distance)

    def __add__(self, other: FrameCounts) -> FrameCounts:
        """Frames of two streams, or of two ranks."""
        return FrameCounts(tuple(a + b for a, b in zip_longest(self.by_distance, other.by_distance, fillvalue=0)))


def shares_of(pixels: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, float]]:
    """Shares of bit widths, of counts of pixels, per layer; layers that saw no pixel are left out."""
    totals = {layer: sum(counts.values()) for layer, counts in pixels.items()}
    return {
        layer: {bits: count / totals[layer] for bits, count in counts.items()}
        for layer, counts in pixels.items()
        if totals[layer]
    }

"""What an evaluation measured, and how it averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from resq_plugin.errors import ConfigError
from resq_plugin.method import FrameCounts, shares_of

__all__ = ["Evaluation", "Pixels", "sum_pixels", "weighted_mean"]

Pixels = Mapping[str, Mapping[int, int]]
"""Pixels that got each bit width of a dynamic pool, per layer."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    With a fixed T every interval holds each distance once, so that is how accuracy and cost average, whatever frames
    were run to see labelled ones at every distance (§5). Where content decides which frames are keyframes, or they are
    spread, both average over the frames that ran.

    Attributes:
        by_distance: metric name to its value at distance 0 (keyframes), 1, ..., T - 1 frames; NaN where no frame had
            a target.
        pixels_by_distance: at distance 1, ..., T - 1, per layer the pixels that got each bit width of a dynamic pool.
        frame_counts: frames that ran.
        is_fixed: whether every T-th frame is a keyframe, and no other; else distances of spread ones are t mod T.
    """

    by_distance: Mapping[str, tuple[float, ...]]
    pixels_by_distance: tuple[Pixels, ...] = ()
    frame_counts: FrameCounts = field(default_factory=FrameCounts)
    is_fixed: bool = True

    def mean(self, metric: str) -> float:
        """The metric averaged over distances (§5); those without a target do not count.

        Where content decides which frames are keyframes, every distance counts as often as it occurred.
        """
        values = self.by_distance[metric]
        weights = [1] * len(values)
        if not self.is_fixed:
            weights = [*self.frame_counts.by_distance, *[0] * len(values)][: len(values)]
        return weighted_mean(values, weights)

    @property
    def shares_by_distance(self) -> tuple[dict[str, dict[int, float]], ...]:
        """At distance 1, ..., T - 1, per layer the share of pixels per bit width; empty without a dynamic pool."""
        return tuple(shares_of(pixels) for pixels in self.pixels_by_distance)

    @property
    def bit_shares(self) -> dict[str, dict[int, float]]:
        """Shares over the pixels of all residual frames; empty without a dynamic pool."""
        return shares_of(sum_pixels(self.pixels_by_distance))

    def amortized(self) -> dict[str, Any]:
        """What `measure_cost` needs to know of this evaluation: ``measure_cost(model, shape, **found.amortized())``.

        Returns:
            ``shares`` and ``frames``. With a fixed T the shares are averaged over distances, and frames are None: a
            whole interval of T frames. Else both are of the frames that ran.
        """
        if not self.is_fixed:
            return {"shares": self.bit_shares, "frames": self.frame_counts}
        return {"shares": _mean_of(self.shares_by_distance), "frames": None}

    def until(self, interval: int) -> Evaluation:
        """The same measurement for a shorter fixed interval: its distances are the first of this one.

        Raises:
            ConfigError: the intervals of this one have no fixed length.
        """
        if not self.is_fixed:
            msg = f"intervals have no fixed length; evaluate(..., interval={interval}) measures another T."
            raise ConfigError(msg)
        by_distance = {metric: values[:interval] for metric, values in self.by_distance.items()}
        counts = FrameCounts(self.frame_counts.by_distance[:interval])
        return Evaluation(by_distance, self.pixels_by_distance[: interval - 1], counts)


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Mean of the values that are known; NaN if none is."""
    known = [
        (value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value) and weight
    ]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


def sum_pixels(counts: Iterable[Pixels]) -> dict[str, dict[int, int]]:
    """Counts of several distances, streams or ranks together."""
    total: dict[str, dict[int, int]] = {}
    for layer, pool in chain.from_iterable(each.items() for each in counts):
        known = total.setdefault(layer, dict.fromkeys(pool, 0))
        for bits, count in pool.items():
            known[bits] = known.get(bits, 0) + count
    return total


def _mean_of(shares: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    found: dict[str, list[Mapping[int, float]]] = {}
    for layer, pool in chain.from_iterable(each.items() for each in shares):
        found.setdefault(layer, []).append(pool)
    return {
        layer: {bits: sum(pool[bits] for pool in pools) / len(pools) for bits in pools[0]}
        for layer, pools in found.items()
    }

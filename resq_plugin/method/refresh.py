"""A keyframe spread over the frames of an interval: layers are refreshed in turn, so that no frame pays for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["TRANSPOSED", "Refresh", "count_macs", "refresh_groups"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_macs(layer: Any, x: Tensor, z: Tensor) -> int:
    """Multiply-accumulates of one call of a layer.

    A convolution (weight (C_out, C_in / groups, *k)) and a linear layer (weight (C_out, C_in)) take one per output
    element and weight of its filter; a transposed convolution (weight (C_in, C_out / groups, *k)) spreads every
    input element over the weights of its filter.

    Args:
        layer: with a ``weight``.
        x: its input.
        z: its output.
    """
    weights_per_filter: int = math.prod(layer.weight.shape[1:])
    return (x if isinstance(layer, TRANSPOSED) else z).numel() * weights_per_filter


def refresh_groups(work: Mapping[str, int], count: int) -> dict[str, int]:
    """Cut layers, in their order, into at most ``count`` groups whose largest is as small as it can be.

    >>> refresh_groups({"stem": 4, "body": 1, "neck": 3, "head": 2}, 2)
    {'stem': 0, 'body': 0, 'neck': 1, 'head': 1}

    Args:
        work: of every layer, in bit operations of a keyframe.
        count: T.

    Returns:
        Number of the group by layer, from 0.
    """
    low, high = max(work.values(), default=0), sum(work.values())
    while low < high:
        middle = (low + high) // 2
        if max(_filled(work, middle).values(), default=0) < count:
            high = middle
        else:
            low = middle + 1
    return _filled(work, high)


def _filled(work: Mapping[str, int], most: int) -> dict[str, int]:
    """Groups that are filled one after another, none with more work than that."""
    found: dict[str, int] = {}
    group = total = 0
    for name, own in work.items():
        total += own
        if total > most and found:
            group, total = group + 1, own
        found[name] = group
    return found


class Refresh:
    """Which layers of a stream take their input as a new keyframe's, and when: group g in frames with t ≡ g mod T.

    Attributes:
        interval: T.
        work: bit operations of every layer at the keyframe, in the order of their calls.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.work: dict[str, int] = {}
        self._groups: dict[str, int] = {}

    def set_work(self, work: Mapping[str, int]) -> None:
        """Begin with what is known of a keyframe."""
        self.work, self._groups = dict(work), {}

    def add(self, layer: Any, x: Tensor, z: Tensor) -> None:
        """Note one call of a layer at the keyframe."""
        name, precision = layer.settings.name, layer.settings.keyframe
        bops = count_macs(layer, x, z) * precision.weight * max(precision.pool)
        self.work[name] = self.work.get(name, 0) + bops
        self._groups = {}

    def distance(self, name: str, position: int) -> int:
        """Frames since the layer was refreshed, 0 if it is now; ``position`` is t, counted from the keyframe."""
        if not self._groups:
            self._groups = refresh_groups(self.work, self.interval)
        since = (position - self._groups[name]) % self.interval
        return min(since, position)

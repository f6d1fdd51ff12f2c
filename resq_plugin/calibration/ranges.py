"""Activation ranges by line search on the layer output, Eq. 8."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resq_plugin.method import fake_quantize, scale_from_range

__all__ = ["candidate_ranges", "output_loss", "search_range"]

COARSE = 3
"""Step of the first look at the candidates."""

Apply = Callable[[Tensor, Tensor], Tensor]
"""The layer's operation without bias: ``apply(x, weight) -> z``."""


def candidate_ranges(x_min: float, x_max: float, candidates: int) -> list[float]:
    """The search space S of §4.1, ``linspace(min X, max X, r)``, as the half ranges that Eq. 6 makes of it.

    Eq. 6 takes only ``max(r_max, -r_min)``, so every pair of points of S is one of their magnitudes.

    Returns:
        Half ranges above 0, high to low, at most ``candidates`` of them; ``[0.0]`` for X = 0.

    >>> candidate_ranges(0.0, 4.0, 5), candidate_ranges(-2.0, 1.0, 4)
    ([4.0, 3.0, 2.0, 1.0], [2.0, 1.0])
    """
    # In single precision, as host toolkits store ranges, so that every backend makes the same scale of them.
    points = torch.linspace(x_min, x_max, candidates, dtype=torch.float64).float().abs().tolist()
    return sorted({point for point in points if point > 0}, reverse=True) or [0.0]


def output_loss(
    x: Tensor, target: Tensor, weight: Tensor, half_range: float, bits: int, signed: bool, apply: Apply
) -> float:
    """Squared objective of Eq. 8, ``‖X * w - q(X; s) * ŵ‖²``.

    Args:
        x: X, a batch of layer inputs.
        target: ``X * w``.
        weight: ŵ.
        half_range: ``max(r_max, -r_min)`` of Eq. 6.
        bits: b of the activations.
        signed: the grid.
        apply: the operation.
    """
    end = torch.tensor(half_range, dtype=torch.float64)
    scale = scale_from_range(-end, end, bits, signed=signed).to(x.device)
    return float((apply(fake_quantize(x, scale, bits, signed=signed), weight) - target).double().square_().sum())


def search_range(candidates: Iterable[float], loss: Callable[[float], float]) -> dict[float, float]:
    """Search from coarse to fine: every third candidate, then the neighbours of the two best until those are known.

    Clipping errors fall and rounding errors rise with the range. Of a loss with one minimum the three best of all
    candidates are found, with about half of the evaluations.

    Returns:
        The losses of the candidates tried, best first; of equal ones the wider range.
    """
    ordered = sorted(candidates, reverse=True)
    losses: dict[float, float] = {}
    ranked: list[float] = []
    wanted = ordered[::COARSE]
    while wanted:
        losses |= {half_range: loss(half_range) for half_range in wanted}
        ranked = sorted(losses, key=lambda half_range: (losses[half_range], -half_range))
        places = [ordered.index(half_range) for half_range in ranked[:2]]
        near = sorted({near for place in places for near in (place - 1, place + 1) if 0 <= near < len(ordered)})
        wanted = [ordered[place] for place in near if ordered[place] not in losses]
    return {half_range: losses[half_range] for half_range in ranked}

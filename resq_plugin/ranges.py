"""Activation ranges by line search on the layer output, Eq. 8."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resq_plugin.quantizer import fake_quantize, scale_from_range

__all__ = ["candidate_ranges", "output_loss", "search_range"]

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
    return float((apply(fake_quantize(x, scale, bits, signed=signed), weight) - target).double().square().sum())


def search_range(candidates: Iterable[float], loss: Callable[[float], float]) -> dict[float, float]:
    """Return the loss of every candidate, best first; of equal ones the wider range."""
    losses = {half_range: loss(half_range) for half_range in candidates}
    return dict(sorted(losses.items(), key=lambda item: (item[1], -item[0])))

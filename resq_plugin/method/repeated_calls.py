"""Calls of one layer with inputs of one shape: nothing but what they read tells which is which."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RepeatedCalls"]

SAMPLES = 512
"""Elements that are looked at, about."""


class RepeatedCalls:
    """Notices in a residual frame that calls of a layer have changed places since the keyframe.

    Every input is compared, on a sparse sample, with the references of all calls of its layer. In a video it is
    closest to its own. Calls have changed places where all inputs of a cycle of calls are less than half as far from
    their neighbour's reference as from their own.
    """

    def __init__(self) -> None:
        self._samples: dict[tuple[str, torch.Size], list[tuple[Tensor, Tensor]]] = {}

    def clear(self) -> None:
        """Begin a frame."""
        self._samples.clear()

    def add(self, name: str, x: Tensor, reference: Tensor) -> None:
        """Take x_t and x_k of one call of a layer."""
        self._samples.setdefault((name, x.shape), []).append((_sample(x).clone(), _sample(reference).clone()))

    @torch.no_grad()
    def swapped(self) -> str:
        """Name of a layer whose calls have changed places; empty if none have."""
        for (name, _), pairs in self._samples.items():
            if len(pairs) < 2:
                continue
            inputs, references = (torch.stack(side).double() for side in zip(*pairs, strict=True))
            exact = "donot_use_mm_for_euclid_dist"
            if _has_cycle(torch.cdist(inputs, references, compute_mode=exact).tolist()):
                return name
        return ""


def _has_cycle(distances: list[list[float]]) -> bool:
    """Whether calls, each followed by the one whose reference it resembles instead of its own, form a cycle."""
    nearest = [min(range(len(row)), key=row.__getitem__) for row in distances]
    rows = enumerate(zip(nearest, distances, strict=True))
    follows = [near if row[near] < 0.5 * row[own] else own for own, (near, row) in rows]
    for start in range(len(follows)):
        call = follows[start]
        steps = 1
        while call not in (start, follows[call]) and steps < len(follows):
            call, steps = follows[call], steps + 1
        if call == start and steps > 1:
            return True
    return False


def _sample(x: Tensor) -> Tensor:
    dims = sum(size > 1 for size in x.shape[1:])
    step = max(1, int((x.numel() / SAMPLES) ** (1 / max(dims, 1))))
    return x.detach()[(slice(None), *[slice(None, None, step)] * (x.dim() - 1))].reshape(-1)

"""Folding batch norms into the layer before them, without touching a single Parameter.

A folded batch norm keeps its place, parameters and statistics in the model but passes its input through; the layer
before it computes with the folded weight. So float checkpoints fit before and after, and undoing it is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resq_plugin.backends.wrappers import torch_class

__all__ = ["FoldedBatchNorm", "fold", "fold_factors", "is_foldable", "unfold"]


class FoldedBatchNorm(nn.Module):
    """A batch norm whose work is done by the layer before it."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    eps: float

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (N, C, *)."""
        return input


class FoldedBatchNorm1d(FoldedBatchNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """A folded `torch.nn.BatchNorm1d`."""


class FoldedBatchNorm2d(FoldedBatchNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """A folded `torch.nn.BatchNorm2d`."""


class FoldedBatchNorm3d(FoldedBatchNorm, nn.BatchNorm3d):  # type: ignore[misc]
    """A folded `torch.nn.BatchNorm3d`."""


class FoldedSyncBatchNorm(FoldedBatchNorm, nn.SyncBatchNorm):  # type: ignore[misc]
    """A folded `torch.nn.SyncBatchNorm`."""


class FoldedBatchNormNd(FoldedBatchNorm, _BatchNorm):  # type: ignore[misc]
    """A folded batch norm of any number of dimensions, see `wrappers`."""


_CLASSES: dict[type[nn.Module], type[FoldedBatchNorm]] = {
    nn.BatchNorm1d: FoldedBatchNorm1d,
    nn.BatchNorm2d: FoldedBatchNorm2d,
    nn.BatchNorm3d: FoldedBatchNorm3d,
    nn.SyncBatchNorm: FoldedSyncBatchNorm,
    _BatchNorm: FoldedBatchNormNd,
}


def is_foldable(module: nn.Module) -> bool:
    """Whether the module is a batch norm with running statistics."""
    return torch_class(type(module)) in _CLASSES and getattr(module, "running_var", None) is not None


def fold(norm: nn.Module) -> FoldedBatchNorm:
    """Make a batch norm pass through, in place."""
    original = type(norm)
    norm.__class__ = _CLASSES[torch_class(original)]
    norm.__dict__["_original"] = original
    return norm  # type: ignore[return-value]


def unfold(norm: nn.Module) -> None:
    """Make a folded batch norm work again, in place."""
    norm.__class__ = norm.__dict__.pop("_original")


def fold_factors(norm: FoldedBatchNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factor of the weights and new bias, each (C,), that stand for the batch norm behind a layer.

    Args:
        norm: the batch norm, with running mean m, variance v, weight γ and bias β.
        bias: bias b of the layer (C,), if it has one.

    Returns:
        ``f = γ / sqrt(v + eps)`` and ``(b - m) f + β``.
    """
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shifted = (0 if bias is None else bias) - norm.running_mean
    folded: Any = shifted * factor
    return factor, folded if norm.bias is None else folded + norm.bias

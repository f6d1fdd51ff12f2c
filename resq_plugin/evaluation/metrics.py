"""Figures over many frames: what a protocol averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from resq_plugin.errors import ConfigError

__all__ = ["PCK", "Agreement", "MeanIoU", "Metric"]


class Metric(Protocol):
    """A figure over many frames."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take one frame."""
        ...

    def compute(self) -> float:
        """Return the figure in percent."""
        ...


class MeanIoU:
    """Mean intersection over union of the classes that occur, in percent.

    Args:
        classes: number of classes; other target values are ignored.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take labels (N, H, W) and targets of the same shape."""
        _require_shape(prediction, target.shape)
        prediction, target = prediction.cpu(), target.cpu()
        known = (target >= 0) & (target < self.classes)
        labels, predicted = target[known].long(), prediction[known].long()
        if bool(((predicted < 0) | (predicted >= self.classes)).any()):
            found = sorted(set(predicted.tolist()) - set(range(self.classes)))
            msg = f"MeanIoU({self.classes}) got predictions of class {found[0]}; classes count from 0."
            raise ConfigError(msg)
        index = labels * self.classes + predicted
        self.confusion += torch.bincount(index, minlength=self.classes**2).view(self.classes, self.classes)

    def compute(self) -> float:
        """Return mIoU in percent; NaN when no class occurred."""
        hits = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return float((hits / union)[union > 0].mean()) * 100


class Agreement:
    """Share of equal values, in percent; with float predictions as target it is the agreement with the float model."""

    def __init__(self) -> None:
        self.equal = self.total = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take two tensors of one shape."""
        _require_shape(prediction, target.shape)
        self.equal += int((prediction.cpu() == target.cpu()).sum())
        self.total += target.numel()

    def compute(self) -> float:
        """Return the share in percent."""
        return 100 * self.equal / self.total if self.total else float("nan")


class PCK:
    """Percentage of correct keypoints: those nearer to the truth than α times the reference size (§5.1).

    Args:
        alpha: α, 0.2 in the paper.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = alpha
        self.correct = self.total = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take one frame.

        Args:
            prediction: keypoints (N, K, 2) in pixels.
            target: keypoints and reference size in pixels (N, K, 3); keypoints with a NaN are not labelled.
        """
        _require_shape(prediction, (*target.shape[:-1], 2))
        prediction, target = prediction.double().cpu(), target.double().cpu()
        distance = torch.linalg.vector_norm(prediction - target[..., :2], dim=-1)
        labelled = torch.isfinite(target).all(-1)
        self.correct += int((distance <= self.alpha * target[..., 2])[labelled].sum())
        self.total += int(labelled.sum())

    def compute(self) -> float:
        """Return PCK in percent."""
        return 100 * self.correct / self.total if self.total else float("nan")


def _require_shape(prediction: Tensor, shape: Sequence[int]) -> None:
    if tuple(prediction.shape) != tuple(shape):
        msg = (
            f"a prediction has shape {tuple(prediction.shape)} where its target needs {tuple(shape)}; "
            "predict=... makes predictions of model outputs."
        )
        raise ConfigError(msg)

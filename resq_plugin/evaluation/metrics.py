"""Figures over many frames: what a protocol averages."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from resq_plugin.errors import ConfigError

__all__ = ["PCK", "Agreement", "MeanIoU", "Metric", "make_metric"]


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
        self._range: tuple[float, float] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether all targets are one and the same value, so that the share says nothing."""
        return self._range is not None and self._range[0] == self._range[1]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take two tensors of one shape."""
        _require_shape(prediction, target.shape)
        if target.numel():
            low, high = (float(value) for value in target.detach().aminmax())
            before = self._range or (low, high)
            self._range = min(low, before[0]), max(high, before[1])
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


def make_metric(name: str, make: Any) -> Metric:
    """Return a new metric.

    Raises:
        ConfigError: it is a metric already, or needs arguments; the message has the line to write.
    """
    shown = make.__name__ if isinstance(make, type) else type(make).__name__
    if not callable(make):
        if hasattr(make, "update"):
            line = f"lambda: {shown}({_arguments(make)})"
            msg = (
                f"the metric {name!r} is of class {shown} and has counted already, but every distance from the "
                f"keyframe needs a new one; pass what makes it: {line}."
            )
        else:
            msg = (
                f"the metric {name!r} is of class {shown}, which makes none; pass what makes it: lambda: MeanIoU(19)."
            )
        raise ConfigError(msg)
    try:
        made: Metric = make()
    except TypeError as error:
        msg = f"the metric {name!r} cannot be made: {error}; pass a function without arguments: lambda: {shown}(...)."
        raise ConfigError(msg) from error
    if not (hasattr(made, "update") and hasattr(made, "compute")):
        msg = (
            f"the metric {name!r} makes a {type(made).__name__}; it must make what has update(prediction, target) and "
            "compute(), such as lambda: MeanIoU(19)."
        )
        raise ConfigError(msg)
    return made


def _arguments(metric: object) -> str:
    """What a metric was made with, as far as its attributes tell."""
    names = inspect.signature(type(metric)).parameters
    return ", ".join(repr(getattr(metric, name)) if hasattr(metric, name) else f"{name}=..." for name in names)


def _require_shape(prediction: Tensor, shape: Sequence[int]) -> None:
    if tuple(prediction.shape) != tuple(shape):
        msg = (
            f"a prediction has shape {tuple(prediction.shape)} where its target needs {tuple(shape)}; "
            "predict=... makes predictions of model outputs."
        )
        raise ConfigError(msg)

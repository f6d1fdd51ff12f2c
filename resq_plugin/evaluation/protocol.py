"""The paper's evaluation (§5): accuracy by distance from the keyframe, averaged over the positions of an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resq_plugin.errors import ConfigError
from resq_plugin.method import dense_execution, stream

__all__ = ["PCK", "Agreement", "Evaluation", "MeanIoU", "Metric", "evaluate", "float_predictions"]


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


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        by_distance: metric name to its value at distance 0 (keyframes), 1, ..., T - 1 frames; NaN where no frame had
            a target.
        shares_by_distance: at distance 1, ..., T - 1, per layer the share of pixels per bit width of a dynamic pool.
    """

    by_distance: Mapping[str, tuple[float, ...]]
    shares_by_distance: tuple[Mapping[str, Mapping[int, float]], ...] = ()

    def mean(self, metric: str) -> float:
        """The metric averaged over positions, as the paper reports it; positions without a target do not count."""
        values = [value for value in self.by_distance[metric] if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan

    @property
    def bit_shares(self) -> dict[str, dict[int, float]]:
        """Shares averaged over the residual positions, as `measure_cost` takes them; empty without a dynamic pool."""
        reached = [shares for shares in self.shares_by_distance if shares]
        return {
            layer: {bits: sum(shares[layer][bits] for shares in reached) / len(reached) for bits in pool}
            for layer, pool in (reached[0] if reached else {}).items()
        }

    def until(self, interval: int) -> Evaluation:
        """The same measurement for a shorter interval: its positions are the first of this one."""
        by_distance = {metric: values[:interval] for metric, values in self.by_distance.items()}
        return Evaluation(by_distance, self.shares_by_distance[: interval - 1])


Sequences = Sequence[Sequence[Tensor] | Tensor]
Predict = Callable[[Any], Tensor]


@torch.no_grad()
def float_predictions(model: nn.Module, videos: Sequences, predict: Predict) -> list[list[Tensor]]:
    """Return the float model's predictions of every frame, the target of `Agreement`."""
    with dense_execution():
        return [[predict(model(frame)) for frame in video] for video in videos]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    videos: Sequences,
    targets: Mapping[str, Sequence[Sequence[Tensor | None]]],
    metrics: Mapping[str, Callable[[], Metric]],
    *,
    predict: Predict,
    interval: int | None = None,
    every_position: bool = False,
) -> Evaluation:
    """Run videos through streams and measure by distance from the keyframe.

    A video is split into sequences of T frames whose first is the keyframe. With ``every_position`` it is run once
    for each of the T ways to split it, so that every labelled frame is seen at every position t <= T (§5.2); needed
    when few frames are labelled.

    Args:
        model: converted and calibrated, in evaluation mode.
        videos: per video its frames, each (N, C, H, W).
        targets: per metric, per video and frame the target, or None where there is no label.
        metrics: name to what makes a new metric.
        predict: model output to what the metrics compare, e.g. labels (N, H, W).
        interval: T, when it is to differ from the configured one.
        every_position: see above.

    Raises:
        ConfigError: metrics and targets differ in their names or lengths.
    """
    _check(videos, targets, metrics)
    with stream(model, interval=interval) as video:
        length = video.schedule.interval
        seen: set[tuple[int, str]] = set()
        tables = [{name: make() for name, make in metrics.items()} for _ in range(length)]
        for index, frames in enumerate(videos):
            for offset in range(length if every_position else 1):
                video.reset()
                for time in range(offset, len(frames)):
                    prediction = predict(video(frames[time]))
                    for name, metric in tables[video.position].items():
                        target = targets[name][index][time]
                        if target is not None:
                            metric.update(prediction, target)
                            seen.add((video.position, name))
        by_distance = {
            name: tuple(
                table[name].compute() if (distance, name) in seen else math.nan
                for distance, table in enumerate(tables)
            )
            for name in metrics
        }
        shares = tuple(video.bit_shares(distance) for distance in range(1, length))
        return Evaluation(by_distance, shares if any(shares) else ())


def _check(videos: Sequences, targets: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    if set(targets) != set(metrics):
        msg = f"targets are given for {sorted(targets)} but metrics are {sorted(metrics)}; name both alike."
        raise ConfigError(msg)
    for name, values in targets.items():
        found, expected = [len(value) for value in values], [len(video) for video in videos]
        if found != expected:
            msg = (
                f"targets[{name!r}] have {found} frames per video but the videos have {expected}; "
                "use None for a frame without a label."
            )
            raise ConfigError(msg)

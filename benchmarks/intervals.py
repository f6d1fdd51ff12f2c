"""Intervals that were run from every frame of a video, and the schedules that are made of them.

An interval depends on nothing before its keyframe, so with one from every frame each schedule is known without running
it: fixed T, a scene change, and drift, which starts an interval after a frame whose signal is above a threshold.
W8A8->W4A{0,4} with the first layer at W8A8->W8A8, channel weights, unsigned grid, running reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLASSES, segment
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, stream
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.conversion import load_ranges, save_ranges
from resq_plugin.evaluation import MeanIoU, float_predictions
from resq_plugin.method import relative_change

__all__ = ["SETTINGS", "SIGNALS", "Film", "Frame", "converted", "drift", "kept", "matched", "play", "row", "row_of"]

FIRST = "backbone.stem.0.conv"
STARTS = range(8)
"""Frames that a schedule is begun at; results are averaged."""
LEVELS = 201
"""Thresholds that are tried, at even shares of what a signal was."""
SETTINGS: dict[str, Any] = {
    "weights": "channel",
    "keyframe_grid": "unsigned",
    "reference": "running",
    "policy": {"threshold": 0.1},
    "overrides": {FIRST: "W8A8->W8A8"},
    "calibration": {"candidates": 40},
}
SIGNALS = {
    "share": "share of pixels at 4 bits",
    "residual": "norm of δ over that of keyframe activations, mean of the layers",
    "error": "norm of δ - q(δ) over that of keyframe activations, mean of the layers",
    "clipped": "share of residuals at the ends of their grid",
    "change": "relative change of the picture, known before (`scene_change`)",
}
Frame = dict[str, Any]
"""One frame of an interval: agreement, confusion, relative BOPs, and the signals that a schedule may look at."""


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What is in a file, made if it is not there."""
    if not file.exists():
        torch.save(make(), file)
    return torch.load(file, weights_only=True)


def converted(
    network: nn.Module, interval: int, clips: Sequence[Sequence[Tensor]], ranges: Path, kind: str = "interval"
) -> nn.Module:
    """Convert the network, with ranges of the file, or of the clips if it is not there."""
    config = ResQConfig.parse("W8A8->W4A{0,4}", interval=interval, schedule={"kind": kind}, **SETTINGS)
    convert(network, config, example=clips[0][0])
    if not ranges.exists():
        calibrate(network, clips)
        save_ranges(network, ranges)
    load_ranges(network, ranges)
    return network


@contextmanager
def watching(found: dict[str, list[float]]) -> Iterator[None]:
    """Note what the residuals of each layer tell."""
    original = TorchResidualLayer.quantize_residual

    def watched(layer: Any, x: Tensor, reference: Tensor, *args: Any) -> Any:
        delta_hat, choice = original(layer, x, reference, *args)
        delta, quantizer = x - reference, list(layer.residual_quantizers)[-1]
        pixels, ends = x.numel() / x.shape[layer.channel_dim], (2 ** (quantizer.bits - 1) - 1) * quantizer.scale
        for name, values in (("residual", delta), ("error", delta - delta_hat)):
            found.setdefault(name, []).append(float((values.square().sum() / pixels).sqrt() / layer.activation_norm))
        found.setdefault("clipped", []).append(float((delta_hat.abs() > 0.999 * ends).float().mean()))
        return delta_hat, choice

    TorchResidualLayer.quantize_residual = watched
    try:
        yield
    finally:
        TorchResidualLayer.quantize_residual = original


class Film:
    """A video, and an interval that was run from each of its frames.

    Args:
        network: converted and calibrated.
        frames: (1, 3, H, W).
        labels: (1, H, W) of each frame, or None.
        longest: T of the intervals.
        folder: of what ran.
    """

    def __init__(
        self, network: nn.Module, frames: list[Tensor], labels: list[Tensor] | None, longest: int, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.network, self.frames, self.labels, self.longest, self.folder = network, frames, labels, longest, folder
        self.shape = tuple(frames[0].shape)
        self.cost = measure_cost(network, self.shape)
        self.floats: list[Tensor] = kept(folder / "float.pt", self._float)

    def _float(self) -> list[Tensor]:
        return float_predictions(self.network, [self.frames], self._segment)[0]

    def _segment(self, logits: Any) -> Tensor:
        return segment(logits, self.shape[-2:])

    def intervals(self) -> list[list[Frame]]:
        """The interval from each frame on."""
        return [
            kept(self.folder / f"interval{start}.pt", lambda start=start: list(self._run(start)))
            for start in range(len(self.frames))
        ]

    def relative(self, pixels: dict[str, dict[int, int]]) -> float:
        """BOPs of a residual frame over those of a keyframe, from the pixels that got 0 and 4 bits."""
        bops = 0.0
        for layer in self.cost.layers:  # with all pixels at 4 bits
            pool = pixels.get(layer.name, {4: 1})
            share = pool.get(4, 0) / sum(pool.values())
            bops += layer.policy_bops + share * (layer.bops_residual - layer.policy_bops)
        return bops / self.cost.bops_keyframe

    @torch.no_grad()
    def _run(self, start: int) -> Iterator[Frame]:
        with stream(self.network) as video:
            for t, frame in enumerate(self.frames[start : start + self.longest]):
                found: dict[str, list[float]] = {}
                with watching(found):
                    labels = self._segment(video(frame))
                pixels = video.pixel_counts(t) if t else {}
                woken = sum(pool[4] for pool in pixels.values()), sum(sum(pool.values()) for pool in pixels.values())
                right = {} if self.labels is None else {"confusion": confusion(labels, self.labels[start + t])}
                yield {
                    **right,
                    "agreement": float((labels == self.floats[start + t]).float().mean()),
                    "bops": self.relative(pixels) if t else 1.0,
                    "share": woken[0] / woken[1] if t else 0.0,
                    "change": float(relative_change(frame, self.frames[start])),
                    **{name: float(np.mean(values)) for name, values in found.items()},
                }


def confusion(labels: Tensor, target: Tensor) -> Tensor:
    """Counts (classes, classes) of target and label."""
    scores = MeanIoU(CLASSES)
    scores.update(labels, target)
    return scores.confusion


def mean_iou(frames: list[Frame]) -> float:
    """Mean IoU in percent of the classes that occur; NaN without labels."""
    if any("confusion" not in frame for frame in frames):
        return float("nan")
    scores = MeanIoU(CLASSES)
    scores.confusion = sum(frame["confusion"] for frame in frames)
    return scores.compute()


def row(schedule: str, interval: float, agreement: float, miou: float, bops: float, peak: float) -> dict[str, Any]:
    """One line of a table; bit operations are relative to a keyframe."""
    values = {"agreement": agreement, "miou": miou, "relative_bops": bops, "relative_peak": peak}
    return {"schedule": schedule, "interval": round(interval, 2), **{k: round(v, 4) for k, v in values.items()}}


def row_of(schedule: str, interval: float, frames: list[Frame]) -> dict[str, Any]:
    """The average of frames that ran."""
    agreement, bops = (float(np.mean([frame[key] for frame in frames])) for key in ("agreement", "bops"))
    return row(schedule, interval, 100 * agreement, mean_iou(frames), bops, 1.0)


def play(
    intervals: list[list[Frame]], longest: int, is_over: Callable[[Frame, Frame], bool] = lambda *_: False
) -> dict[str, Any]:
    """Put a schedule together from intervals.

    Args:
        intervals: by their first frame.
        longest: T.
        is_over: whether an interval ends, of its last frame and of the one that would follow.
    """
    frames, keyframes = [], 0
    for start in STARTS:
        first = start
        for index in range(start, len(intervals)):
            own, t = intervals[first], index - first
            if t and (t >= longest or (t > 1 and is_over(own[t - 1], own[t]))):
                first, own, t = index, intervals[index], 0
            frames.append(own[t])
            keyframes += t == 0
    return row_of("fixed", len(frames) / keyframes, frames)


def over(signal: str, level: float) -> Callable[[Frame, Frame], bool]:
    """Ends an interval where a signal is above a level; that of the picture is known before the frame runs."""
    return lambda last, new: (new if signal == "change" else last)[signal] > level


def matched(intervals: list[list[Frame]], signal: str, bops: float, longest: int) -> float:
    """The threshold of a signal whose average bit operations come nearest to ``bops``."""
    seen = [frame[signal] for own in intervals for frame in own[1:]]
    levels = [float(level) for level in np.quantile(seen, np.linspace(0, 1, LEVELS))]
    found = [play(intervals, longest, over(signal, level))["relative_bops"] for level in levels]
    return min(zip(levels, found, strict=True), key=lambda pair: abs(pair[1] - bops))[0]


def drift(intervals: list[list[Frame]], signal: str, level: float, longest: int) -> dict[str, Any]:
    """The schedule of a signal and its threshold."""
    return {**play(intervals, longest, over(signal, level)), "schedule": signal}

"""The paper's evaluation (§5): accuracy by distance from the keyframe, averaged over the positions of an interval."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.errors import ConfigError
from resq_plugin.evaluation.metrics import Agreement, Metric, make_metric
from resq_plugin.evaluation.result import Evaluation
from resq_plugin.method import Stream, dense_execution, is_news, stream

__all__ = ["evaluate", "float_predictions"]


logger = logging.getLogger(__name__)

Sequences = Sequence[Sequence[Any] | Tensor]
"""Per video its frames, each (N, C, H, W) or a pytree with such a tensor."""
Predict = Callable[[Any], Tensor]
Run = Callable[[Any], Any]


@torch.no_grad()
def float_predictions(
    model: nn.Module,
    videos: Sequences,
    predict: Predict,
    *,
    run: Run | None = None,
    start: Callable[[], Any] | None = None,
) -> list[list[Tensor]]:
    """Return the float model's predictions of every frame, the target of `Agreement`; arguments as in `evaluate`."""
    found = []
    with dense_execution():
        for video in videos:
            if start is not None:
                start()
            found.append([predict((run or model)(frame)) for frame in video])
    return found


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
    run: Run | None = None,
    start: Callable[[], Any] | None = None,
    given: int = 0,
) -> Evaluation:
    """Run videos through streams and measure by distance from the keyframe.

    A video is split into sequences of T frames whose first is the keyframe. With ``every_position`` it is run once
    for each of the T ways to split it, so that every labelled frame is seen at every position t <= T (§5.2); needed
    when few frames are labelled. Where content decides which frames are keyframes, or keyframes are spread, there is
    one way only; distances of the latter are t mod T, so that each stands for other layers refreshed. Frames with
    NaN, which ``on_change='keyframe'`` runs outside intervals, are at no position and not measured.

    Args:
        model: converted and calibrated, in evaluation mode.
        videos: per video its frames, each (N, C, H, W) or a pytree with such a tensor.
        targets: per metric, per video and frame the target, or None where there is no label.
        metrics: name to what makes a new metric.
        predict: model output to what the metrics compare, e.g. labels (N, H, W).
        interval: T, when it is to differ from the configured one.
        every_position: see above.
        run: what runs one frame, when it is not ``model(frame)``.
        start: what begins a video, where ``run`` keeps state between frames: a video is then always run from its first
            frame on, and the other ways to split it differ in where the second interval starts.
        given: so many frames at the start of a video call no layer, as the frame whose mask is given; they are run
            outside the stream and are not measured.

    Raises:
        ConfigError: metrics and targets differ in their names or lengths, a metric is none that can be made, or
            ``given`` is negative.
    """
    _check(videos, targets, metrics)
    if not isinstance(given, int) or given < 0:
        msg = f"given={given!r} is not allowed; write how many frames of each video call no layer, e.g. 1."
        raise ConfigError(msg)
    with stream(model, interval=interval) as video:
        length = video.schedule.interval
        seen: set[tuple[int, str]] = set()
        tables = [{name: make_metric(name, make) for name, make in metrics.items()} for _ in range(length)]
        for index, frames in enumerate(videos):
            for offset in range(length if every_position and video.schedule.is_fixed else 1):
                video.reset()
                if start is not None:
                    start()
                first = given + offset
                for time in range(0 if start is not None else first, len(frames)):
                    if time < given:
                        (run or model)(frames[time])
                        continue
                    if time == first:
                        video.start_interval()
                    output = video(frames[time]) if run is None else _run_in(video, run, frames[time])
                    if video.position < 0 or time < first:
                        continue
                    prediction = predict(output)
                    phase = video.schedule.phase(video.position)
                    for name, metric in tables[phase].items():
                        target = targets[name][index][time]
                        if target is not None:
                            metric.update(prediction, target)
                            seen.add((phase, name))
        by_distance = {
            name: tuple(
                table[name].compute() if (distance, name) in seen else math.nan
                for distance, table in enumerate(tables)
            )
            for name in metrics
        }
        _tell_of_positions(video)
        agreements = [metric for table in tables for metric in table.values() if isinstance(metric, Agreement)]
        if agreements and all(metric.is_constant or not metric.total for metric in agreements):
            _tell_of_constant(model)
        pixels = tuple(video.pixel_counts(distance) for distance in range(1, length))
        return Evaluation(by_distance, pixels if any(pixels) else (), video.frame_counts, video.schedule.is_fixed)


def _tell_of_positions(video: Stream) -> None:
    """Warn where T is longer than what was run, which the mean over positions hides."""
    ran, length = len(video.frame_counts.by_distance), video.schedule.interval
    if video.schedule.is_fixed and 0 < ran < length:
        logger.warning(
            "T = %d is longer than the longest video, of which %d frames ran: positions from %d on never ran. They "
            "are NaN and not part of the mean, while bit operations are those of whole intervals; use T = %d, or "
            "longer videos.",
            length,
            ran,
            ran,
            ran,
        )


def _tell_of_constant(model: nn.Module) -> None:
    if is_news(model, "constant"):
        logger.warning(
            "the float model predicts one and the same value everywhere, so that agreement with it says nothing; look "
            "at the frames and their normalization."
        )


def _run_in(video: Stream, run: Run, frame: Any) -> Any:
    with video.frame(frame):
        return run(frame)


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

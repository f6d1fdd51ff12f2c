"""The demo: float, frame quantization, ResQ and Dynamic-ResQ on one net and the same videos."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.calibration import calibrate
from resq_plugin.config import ResQConfig, parse_precision
from resq_plugin.conversion import convert, revert
from resq_plugin.cost import measure_cost
from resq_plugin.demo.data import DemoData
from resq_plugin.demo.result import DemoResult, Showcase
from resq_plugin.demo.settings import DemoSettings
from resq_plugin.demo.shapes import CLASSES
from resq_plugin.evaluation import Agreement, MeanIoU, Metric, evaluate, float_predictions, weighted_mean
from resq_plugin.method import stream

__all__ = ["run_demo", "steps"]

logger = logging.getLogger(__name__)

Predictions = Sequence[Sequence[Tensor]]


SHOWN_LAYER = "refine.1.0"
"""The layer whose policy is shown: late, and at half the resolution of the frame."""


def steps(settings: DemoSettings) -> int:
    """How often `run_demo` reports progress."""
    resq = sum(1 + len(settings.intervals_of(precision)) for precision in settings.resq)
    dynamic = sum(
        1 + len(settings.intervals_of(precision)) * len(settings.thresholds_of(precision))
        for precision in settings.dynamic
    )
    return 1 + 2 * len(settings.frame) + resq + dynamic


def run_demo(
    net: nn.Module, data: DemoData, settings: DemoSettings, on_step: Callable[[str], None] = lambda _: None
) -> DemoResult:
    """Run every scheme.

    Args:
        net: the float model, in evaluation mode; it is converted, reverted and given back as it was.
        data: what to run on.
        settings: what to run.
        on_step: told before each of `steps` what comes next.
    """
    return _Demo(net, data, settings, on_step).run()


class _Demo:
    def __init__(self, net: nn.Module, data: DemoData, settings: DemoSettings, on_step: Callable[[str], None]) -> None:
        self.net, self.data, self.settings, self.on_step = net, data, settings, on_step
        self.videos = [list(video.unsqueeze(1)) for video in data.videos]
        self.on_step("float model")
        self.float = float_predictions(net, self.videos, _labels)
        self.metric = "agreement" if data.labels is None else "mIoU"
        self.metrics: dict[str, Callable[[], Metric]] = {"agreement": Agreement}
        self.targets: dict[str, Predictions] = {"agreement": self.float}
        if data.labels is not None:
            self.metrics["mIoU"] = lambda: MeanIoU(len(CLASSES))
            self.targets["mIoU"] = [list(labels.unsqueeze(1)) for labels in data.labels]
        self.frame: dict[str, Predictions] = {}
        self.rows: list[dict[str, Any]] = []
        self.base_bops = self.bops(ResQConfig.parse("W8A8"))
        truth = self.targets[self.metric][0][: settings.longest]
        self.showcase = Showcase(data.videos[0][: settings.longest], torch.cat(list(truth)))
        self.show("Float", [labels[0] for labels in self.float[0]])

    def run(self) -> DemoResult:
        settings = self.settings
        scores = self.score(lambda _: self.float, settings.interval)
        self.add("float", "float", 1, scores, self.bops(None))
        for precision in settings.frame:
            self.run_frame(precision)
        for precision in settings.mixed:
            self.mix_frame(precision)
        for precision in settings.resq:
            self.run_resq(precision)
        for precision in settings.dynamic:
            self.run_dynamic(precision)
        return DemoResult(self.rows, self.showcase)

    def run_frame(self, precision: str) -> None:
        """Frame quantization at one precision."""
        config = self.config(precision, self.settings.interval)
        with self.converted(config):
            self.on_step(f"frame quantization {precision}")
            with torch.inference_mode():
                self.frame[precision] = [[_labels(self.net(frame)) for frame in video] for video in self.videos]
        scores = self.score(lambda _: self.frame[precision], self.settings.interval)
        self.add("frame", precision, 1, scores, self.bops(config))
        self.show(f"Frame\n{precision}", [labels[0] for labels in self.frame[precision][0]])

    def mix_frame(self, precision: str) -> None:
        """Frame quantization with another precision at every T-th frame, from what was predicted with either."""
        keyframe, residual = map(str, parse_precision(precision))
        for interval in self.settings.intervals_of(precision):
            scores = self.score(lambda position: self.frame[residual if position else keyframe], interval)
            self.add("frame", precision, interval, scores, self.bops(self.config(precision, interval)))

    def run_resq(self, precision: str) -> None:
        """ResQ at one precision and all its intervals."""
        config = self.config(precision, self.settings.interval)
        with self.converted(config):
            for interval in self.settings.intervals_of(precision):
                self.run_stream("resq", config, interval)
            if precision in self.settings.swept:
                self.show_stream(f"ResQ\n{precision}", config)

    def run_dynamic(self, precision: str) -> None:
        """Dynamic-ResQ at one precision and all its thresholds and intervals."""
        settings, state = self.settings, dict[str, Tensor]()
        for threshold in settings.thresholds_of(precision):
            config = self.config(precision, settings.interval, policy={"threshold": threshold})
            # τ has no part in calibration: later thresholds take the ranges found for the first.
            with self.converted(config, state):
                for interval in settings.intervals_of(precision):
                    self.run_stream("dynamic", config, interval, threshold=threshold)
                if precision in settings.swept and not self.showcase.choices:
                    self.show_stream(f"Dynamic-ResQ\n{precision}", config)

    def config(self, precision: str, interval: int, **changes: Any) -> ResQConfig:
        calibration, weights = self.settings.calibration, self.settings.weights
        return ResQConfig.parse(precision, interval=interval, calibration=calibration, weights=weights, **changes)

    @contextmanager
    def converted(self, config: ResQConfig, state: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Convert and calibrate the net, and revert it afterwards; a filled ``state`` spares the calibration."""
        convert(self.net, config, example=self.videos[0][0])
        try:
            if state:
                self.net.load_state_dict(state)
            else:
                self.on_step(f"calibrating {config.notation}")
                calibrate(self.net, self.data.calibration)
                if state is not None:
                    state.update({name: value.clone() for name, value in self.net.state_dict().items()})
            yield
        finally:
            revert(self.net)

    def run_stream(self, scheme: str, config: ResQConfig, interval: int, **extra: Any) -> None:
        self.on_step(f"{config.notation}, T={interval}")
        found = evaluate(self.net, self.videos, self.targets, self.metrics, predict=_labels, interval=interval)
        bops = self.bops(config.replace(interval=interval), **found.amortized())
        self.add(scheme, config.notation, interval, found.by_distance, bops, **extra)

    def show_stream(self, name: str, config: ResQConfig) -> None:
        """Keep the predictions, and the policy's choices if there are any, of the showcase."""
        showcase, found = self.showcase, []
        frames = showcase.frames.unsqueeze(1)
        with stream(self.net, interval=len(frames), record_choices=True) as video, torch.inference_mode():
            for frame in frames:
                found.append(_labels(video(frame))[0])
                if video.choices:
                    showcase.choices.append(video.choices[SHOWN_LAYER][0])
        if showcase.choices and config.residual is not None:
            showcase.pool, showcase.layer = config.residual.pool, SHOWN_LAYER
        self.show(name, found)

    def show(self, name: str, predictions: Sequence[Tensor]) -> None:
        self.showcase.predictions[name] = list(predictions[: len(self.showcase.frames)])

    def score(self, predictions_at: Callable[[int], Predictions], interval: int) -> dict[str, tuple[float, ...]]:
        """Every metric by position in the interval, as `evaluate` finds it, of predictions that are already there."""
        tables = [{name: make() for name, make in self.metrics.items()} for _ in range(interval)]
        for index, video in enumerate(self.videos):
            for time in range(len(video)):
                for name, metric in tables[time % interval].items():
                    metric.update(predictions_at(time % interval)[index][time], self.targets[name][index][time])
        return {name: tuple(table[name].compute() for table in tables) for name in self.metrics}

    def bops(self, config: ResQConfig | None, **measured: Any) -> float:
        return measure_cost(self.net, self.data.shape, config, **measured).bops_per_frame

    def add(
        self,
        scheme: str,
        precision: str,
        interval: int,
        scores: Mapping[str, Sequence[float]],
        bops: float,
        **extra: Any,
    ) -> None:
        values = scores[self.metric]
        row = {
            "scheme": scheme,
            "precision": precision,
            "interval": interval,
            "accuracy": _mean(values),
            "metric": self.metric,
            "agreement": _mean(scores["agreement"]),
            "gbops_per_frame": bops / 1e9,
            "relative_bops": bops / self.base_bops,
            "by_distance": list(values),
            "agreement_by_distance": list(scores["agreement"]),
            **extra,
        }
        self.rows.append(row)
        logger.info("%s %s T=%d: %.2f", scheme, precision, interval, row["accuracy"])


def _mean(values: Sequence[float]) -> float:
    """Over the positions that occurred."""
    return weighted_mean(values, [1] * len(values))


def _labels(scores: Tensor) -> Tensor:
    return scores.argmax(1)

"""The demo: float, frame quantization, ResQ and Dynamic-ResQ on one net and the same videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.comparison import Setting, compare, row_of
from resq_plugin.config import ResQConfig, parse_precision
from resq_plugin.cost import measure_cost
from resq_plugin.demo.data import DemoData
from resq_plugin.demo.net import load_trained_demo_net
from resq_plugin.demo.result import DemoResult, Showcase
from resq_plugin.demo.settings import DemoSettings
from resq_plugin.demo.shapes import CLASSES
from resq_plugin.evaluation import Agreement, Evaluation, MeanIoU, Metric, evaluate, float_predictions
from resq_plugin.method import residual_layers, stream

__all__ = ["run_demo"]

SHOWN_LAYER = "refine.1.0"
"""The layer whose policy is shown: late, and at half the resolution of the frame."""
_ORDER = ("Float", "Frame", "ResQ", "Dynamic-ResQ")


def run_demo(net: nn.Module, data: DemoData, settings: DemoSettings, *, progress: bool = False) -> DemoResult:
    """Run every scheme.

    Args:
        net: the float model, in evaluation mode; it is converted, reverted and given back as it was.
        data: what to run on.
        settings: what to run.
        progress: show a progress bar.
    """
    gallery = _Gallery(net, data, settings)
    found = compare(
        net,
        gallery.videos,
        list(_configs(settings)),
        labels=gallery.labels,
        metric=("mIoU", lambda: MeanIoU(len(CLASSES))),
        predict=_labels,
        calibration=data.calibration,
        progress=progress,
        inspect=gallery.look,
    )
    frames = [dict(row) for row in found.rows if row["interval"] == 1]
    others = [dict(row) for row in found.rows if row["interval"] > 1]
    names = sorted(gallery.showcase.predictions, key=lambda name: _ORDER.index(name.partition("\n")[0]))
    gallery.showcase.predictions = {name: gallery.showcase.predictions[name] for name in names}
    trained = [gallery.trained()] if settings.trained else []
    static = [row for row in others if row["scheme"] == "resq"]
    dynamic = [row for row in others if row["scheme"] == "dynamic"]
    return DemoResult([*frames, *gallery.mixed(), *static, *trained, *dynamic], gallery.showcase)


def _configs(settings: DemoSettings) -> Iterator[ResQConfig]:
    for precision in settings.frame:
        yield _config(settings, precision, settings.interval)
    for precision in settings.resq:
        for interval in settings.intervals_of(precision):
            yield _config(settings, precision, interval)
    for precision in settings.dynamic:
        for threshold in settings.thresholds_of(precision):
            for interval in settings.intervals_of(precision):
                yield _config(settings, precision, interval, policy={"threshold": threshold})


def _config(settings: DemoSettings, precision: str, interval: int, **changes: Any) -> ResQConfig:
    calibration, weights = settings.calibration, settings.weights
    return ResQConfig.parse(precision, interval=interval, calibration=calibration, weights=weights, **changes)


class _Gallery:
    """What the sweep does not keep: predictions of frame quantization, and pictures of one interval."""

    def __init__(self, net: nn.Module, data: DemoData, settings: DemoSettings) -> None:
        self.net, self.settings = net, settings
        self.videos = [list(video.unsqueeze(1)) for video in data.videos]
        self.labels = None if data.labels is None else [list(labels.unsqueeze(1)) for labels in data.labels]
        self.float = float_predictions(net, self.videos, _labels)
        self.frame: dict[str, list[list[Tensor]]] = {}
        truth = (self.labels or self.float)[0][: settings.longest]
        self.showcase = Showcase(data.videos[0][: settings.longest], torch.cat(truth))
        self.show("Float", [labels[0] for labels in self.float[0]])

    @torch.inference_mode()
    def look(self, config: ResQConfig, model: nn.Module) -> None:
        """Look at a calibrated model."""
        notation = config.notation
        if config.residual is None:
            self.frame[notation] = [[_labels(model(frame)) for frame in video] for video in self.videos]
            self.show(f"Frame\n{notation}", [labels[0] for labels in self.frame[notation][0]])
        elif notation in self.settings.swept and config.interval == self.settings.interval:
            self.show_stream(config, model)

    def show_stream(self, config: ResQConfig, model: nn.Module) -> None:
        """Keep the predictions, and the policy's choices if there are any, of the showcase."""
        showcase, residual, found = self.showcase, config.residual, []
        frames = showcase.frames.unsqueeze(1)
        is_dynamic = residual is not None and residual.is_dynamic
        if is_dynamic and showcase.choices:
            return
        with stream(model, interval=len(frames), record_choices=True) as video:
            for frame in frames:
                found.append(_labels(video(frame))[0])
                if video.choices:
                    showcase.choices.append(video.choices[SHOWN_LAYER][0])
        if showcase.choices and is_dynamic and residual is not None:
            showcase.pool, showcase.layer = residual.pool, SHOWN_LAYER
        self.show(f"{'Dynamic-ResQ' if is_dynamic else 'ResQ'}\n{config.notation}", found)

    def show(self, name: str, predictions: list[Tensor]) -> None:
        self.showcase.predictions[name] = predictions[: len(self.showcase.frames)]

    def mixed(self) -> Iterator[dict[str, Any]]:
        """Rows of frame quantization with another precision at every T-th frame, from predictions with either."""
        shape = tuple(self.videos[0][0].shape)
        base = measure_cost(self.net, shape, ResQConfig.parse("W8A8")).bops_per_frame
        for precision in self.settings.mixed:
            keyframe, residual = map(str, parse_precision(precision))
            for interval in self.settings.intervals_of(precision):
                config = _config(self.settings, precision, interval)
                predictions = [self.frame[keyframe], *[self.frame[residual]] * (interval - 1)]
                cost = measure_cost(self.net, shape, config)
                row = row_of(Setting(config), self.score(predictions), cost, base, self.metric)
                yield {**row, "scheme": "frame"}

    def trained(self) -> dict[str, Any]:
        """The row of the net that was trained through time."""
        model = load_trained_demo_net()
        config = next(iter(residual_layers(model).values())).settings.config
        found = evaluate(model, self.videos, self.targets(), self.metrics(), predict=_labels)
        shape = tuple(self.videos[0][0].shape)
        base = measure_cost(self.net, shape, ResQConfig.parse("W8A8")).bops_per_frame
        cost = measure_cost(model, shape, **found.amortized())
        return {**row_of(Setting(config), found, cost, base, self.metric), "trained": True}

    @property
    def metric(self) -> str:
        """What accuracy is."""
        return "agreement" if self.labels is None else "mIoU"

    def targets(self) -> dict[str, list[list[Tensor]]]:
        """By metric, what is right."""
        return {"agreement": self.float} | ({} if self.labels is None else {"mIoU": self.labels})

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        """By name, what makes a metric."""
        return {"agreement": Agreement} | ({} if self.labels is None else {"mIoU": lambda: MeanIoU(len(CLASSES))})

    def score(self, predictions: list[list[list[Tensor]]]) -> Evaluation:
        """Every metric by position, of what was predicted at each."""
        by_distance = {}
        for name, target in self.targets().items():
            tables = [self.metrics()[name]() for _ in predictions]
            for index, video in enumerate(target):
                for time, labels in enumerate(video):
                    position = time % len(predictions)
                    tables[position].update(predictions[position][index][time], labels)
            by_distance[name] = tuple(table.compute() for table in tables)
        return Evaluation(by_distance)


def _labels(scores: Tensor) -> Tensor:
    return scores.argmax(1)

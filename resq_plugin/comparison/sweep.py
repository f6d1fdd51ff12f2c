"""The sweep: every setting on the same frames, one row each."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from resq_plugin.calibration import Statistics, calibrate, fingerprint, tell_of_pixels
from resq_plugin.comparison.journal import Journal
from resq_plugin.comparison.result import Comparison
from resq_plugin.comparison.rows import row_of
from resq_plugin.comparison.settings import DEFAULT_SETTINGS, Setting, checkpoint_path, expand, groups_of
from resq_plugin.comparison.showcase import make_showcase
from resq_plugin.comparison.videos import Videos, identical, split_videos
from resq_plugin.config import CalibrationConfig, ResQConfig
from resq_plugin.conversion import convert, evaluating, revert, save_checkpoint
from resq_plugin.cost import Cost, measure_cost
from resq_plugin.errors import ConfigError, ConversionError, ResQError
from resq_plugin.evaluation import Agreement, Evaluation, MeanIoU, Metric, evaluate, make_metric
from resq_plugin.method import FAILURES, ResidualLayer, failure_on, is_news, telling_unfit_frames
from resq_plugin.report import Draw

__all__ = ["compare", "default_predict", "first_output"]

logger = logging.getLogger(__name__)

Predict = Callable[[Any], Tensor]
Inspect = Callable[[ResQConfig, nn.Module], object]


def compare(
    model: nn.Module,
    frames: Any,
    settings: Sequence[str | ResQConfig] = DEFAULT_SETTINGS,
    *,
    intervals: Sequence[int] = (3,),
    thresholds: Sequence[float] = (0.1,),
    labels: Any = None,
    metric: tuple[str, Callable[[], Metric]] | None = None,
    predict: Predict | None = None,
    agreement: Callable[[], Metric] = Agreement,
    calibration: float | Sequence[Any] = 0.25,
    folder: str | Path | None = None,
    progress: bool = True,
    draw: Draw | None = None,
    inspect: Inspect | None = None,
    **common: Any,
) -> Comparison:
    """Run a float model in many settings on the same frames and put accuracy beside bit operations.

    Accuracy is agreement with the float model where there are no labels. Every setting is converted, calibrated,
    measured by the paper's protocol (§5: every T-th frame a keyframe, mean over the positions in the interval) and
    reverted; the model is given back as it was. Settings share what calibration finds, see
    `resq_plugin.calibration.Statistics`; frame quantization is calibrated on the keyframes of the first T, and
    its accuracy, as that of float, is the mean over as many positions.

    Args:
        model: a float model in evaluation mode; ``model(frame)`` runs one frame.
        frames: one video, (T, C, H, W) or a sequence of frames (1, C, H, W) such as `resq_plugin.video.read` returns,
            or a list of videos; normalised as the model was trained.
        settings: the paper's notations, each run at every interval and threshold it has a use for, or configurations.
        intervals: T of the notations with residual frames.
        thresholds: τ of the notations with a dynamic pool.
        labels: per frame of ``frames`` what is right, or None where nobody knows; or no labels at all.
        metric: name and maker of the metric of the labels; mean IoU over the channels of the output unless given.
        predict: model output to what is compared, such as labels (N, H, W); the highest channel of the first tensor
            of the output unless given.
        agreement: maker of the metric of predictions against those of the float model, in percent.
        calibration: share of the first frames of each video that ranges are found on and that are not measured; or
            clips of other videos.
        folder: where rows are kept as they are measured, with a checkpoint of every setting; a killed sweep goes on
            there. Results of another model, or of other frames, clips or labels, go to ``earlier-MARK`` in it, from
            where they are taken up again.
        progress: show a progress bar.
        draw: picture (3, H, W), uint8, and prediction (1, ...) to a picture, for the film of the schemes side by side;
            labels and joints are drawn without it.
        inspect: called with the configuration and the calibrated model of every quantized row that is measured.
        common: further fields of `ResQConfig` for the notations, e.g. ``weights="channel"``.

    Returns:
        A `Comparison`: rows, a sentence, a table, figures and a report.

    Raises:
        ConfigError: settings, metrics or frames that cannot be compared.
        ConversionError: the model is converted already, or has nothing to convert.
        ReportError: the folder cannot be written, or another comparison takes it meanwhile.
    """
    if any(isinstance(module, ResidualLayer) for module in model.modules()):
        msg = "compare takes the float model; call resq_plugin.revert(model) before it."
        raise ConversionError(msg)
    _check_metrics(metric, agreement)
    plan = expand(settings, intervals, thresholds, **common)
    longest = max(setting.interval for setting in plan)
    samples = max((item.config.calibration for item in plan if item.config), key=lambda c: c.samples).samples
    videos = split_videos(frames, labels, calibration, longest, samples)
    sweep = _Sweep(model, videos, predict, metric, agreement, None if folder is None else Path(folder), progress)
    sweep.draw, sweep.inspect = draw, inspect
    return sweep.run(plan)


class _Sweep:
    """One model and its videos; settings come one after another."""

    def __init__(
        self,
        model: nn.Module,
        videos: Videos,
        predict: Predict | None,
        metric: tuple[str, Callable[[], Metric]] | None,
        agreement: Callable[[], Metric],
        folder: Path | None,
        progress: bool,
    ) -> None:
        self.draw: Draw | None = None
        self.inspect: Inspect | None = None
        self.model, self.videos, self.folder, self.progress = model, videos, folder, progress
        self.first = videos.measured[0][0]
        tell_of_pixels(model, self.first, "frame 0 of video 0")
        self.longest = max(len(video) for video in videos.measured)
        output = first_output(model, self.first)
        self.predict = predict or default_predict(output)
        probe: object = self.predict(output)
        if not isinstance(probe, Tensor):
            msg = f"predict returned an object of class {type(probe).__name__}; it must return a tensor (1, ...)."
            raise ConfigError(msg)
        self.metrics: dict[str, Callable[[], Metric]] = {"agreement": agreement}
        if videos.labels is not None:
            name, make = metric or ("mIoU", _mean_iou(output))
            self.metrics[name] = make
        self.accuracy = next(reversed(self.metrics))
        self.journal = Journal(folder, "" if folder is None else self._mark())
        self.base = measure_cost(model, videos.shape, ResQConfig.parse("W8A8")).bops_per_frame
        self.notes: list[str] = []
        self.statistics = Statistics()

    def _mark(self) -> str:
        """What tells this sweep from others; all frames are decoded for it."""
        return fingerprint(
            itertools.chain(self.model.state_dict().items(), self.videos.named()),
            frames=[len(video) for video in self.videos.measured],
            clips=[len(clip) for clip in self.videos.calibration],
            metric=self.accuracy,
        )

    def run(self, plan: Sequence[Setting]) -> Comparison:
        self.positions = min(next((s.config.interval for s in plan if s.config is not None), 1), self.longest)
        self.journal.order = [setting.key for setting in plan]
        todo = [setting for setting in plan if setting.key not in self.journal.rows]
        if len(todo) < len(plan):
            logger.info("%d of %d rows are there already", len(plan) - len(todo), len(plan))
        groups = groups_of(todo)
        clip_frames = min(sum(len(clip) for clip in self.videos.calibration), 2 * CalibrationConfig().samples)
        total = self.videos.frames * (1 + sum(setting.config is not None for setting in todo))
        total += clip_frames * sum(group[0].config is not None for group in groups)
        with (
            evaluating(self.model),
            tqdm(total=total, unit="frame", disable=not self.progress, dynamic_ncols=True) as bar,
        ):
            self.bar = bar
            if todo:
                self._float()
            for setting in itertools.chain.from_iterable(groups):
                bar.set_description(str(setting))
                self._measure(setting)
        rows = [self.journal.rows[setting.key] for setting in plan]
        details = {
            "Frames": f"{self.videos.description}, {' × '.join(map(str, self.videos.shape[2:]))} pixels",
            "Truth": "labels" if self.videos.labels is not None else "the float model's own predictions",
            "Protocol": "every T-th frame is a keyframe; accuracy is the mean over the positions in the interval",
        }
        configs = {setting.key: setting.config for setting in plan}
        showcase = None
        if self.folder is not None:
            video = self.videos.measured[0]
            showcase = make_showcase(
                self.model,
                video,
                rows,
                configs,
                self.folder,
                self.predict,
                draw=self.draw,
                picture=getattr(video, "picture", None),
            )
        comparison = Comparison(tuple(rows), configs, tuple(self.notes), details, self.folder, showcase)
        self.journal.write(finding=comparison.finding, notes=self.notes)
        return comparison

    def _counted(self, output: Any) -> Tensor:
        self.bar.update()
        return self.predict(output)

    @torch.no_grad()
    def _float(self) -> None:
        """Predictions of the float model: what agreement is with."""
        self.bar.set_description("float")
        predictions = []
        for video in self.videos.measured:
            predictions.append([_small(self._counted(self.model(frame))) for frame in video])
        if identical(predictions):
            is_news(self.model, "constant")  # which the notes tell
            self.notes.append(
                "The float model predicts one and the same value everywhere, so that agreement with it says nothing; "
                "look at the frames and their normalization."
            )
        self.targets: dict[str, Any] = {"agreement": predictions}
        if self.videos.labels is not None:
            self.targets[self.accuracy] = self.videos.labels

    def _measure(self, setting: Setting) -> None:
        if setting.config is None:
            self._add(setting, self._score_float(self.positions), measure_cost(self.model, self.videos.shape))
            return
        convert(self.model, setting.config, example=self.first)
        try:
            calibrate(self.model, self.videos.calibration, run=self._run, statistics=self.statistics)
            found = evaluate(
                self.model,
                self.videos.measured,
                self.targets,
                self.metrics,
                predict=self._counted,
                interval=min(setting.config.interval, self.longest),
            )
            cost = measure_cost(self.model, self.videos.shape, **found.amortized())
            if self.inspect is not None:
                self.inspect(setting.config, self.model)
            if self.folder is not None:
                save_checkpoint(self.model, checkpoint_path(self.folder, setting))
        finally:
            revert(self.model)
        self._add(setting, found, cost)

    def _run(self, frame: Tensor) -> Any:
        self.bar.update()
        return self.model(frame)

    def _score_float(self, positions: int) -> Evaluation:
        """The float model against itself and the labels, at every position as the others."""
        by_distance: dict[str, tuple[float, ...]] = {}
        for name, make in self.metrics.items():
            tables: dict[int, Metric] = {}
            for index, video in enumerate(self.targets["agreement"]):
                for time, prediction in enumerate(video):
                    target = self.targets[name][index][time]
                    if target is not None:
                        tables.setdefault(time % positions, make()).update(prediction, target)
            by_distance[name] = tuple(tables[t].compute() if t in tables else math.nan for t in range(positions))
        return Evaluation(by_distance)

    def _add(self, setting: Setting, found: Evaluation, cost: Cost) -> None:
        self.journal.add(setting.key, row_of(setting, found, cost, self.base, self.accuracy))


@torch.no_grad()
def first_output(model: nn.Module, frame: Any, run: Callable[[Any], Any] | None = None) -> Any:
    """Return what the model makes of a frame, in evaluation mode.

    Args:
        model: float.
        frame: (1, C, H, W), or whatever ``run`` takes.
        run: what runs one frame, when it is not ``model(frame)``.

    Raises:
        ConfigError: it fails on it; the message names sizes near it, or a type or layout, in which it does not.
    """
    with evaluating(model):
        try:
            with telling_unfit_frames(model, frame, ConfigError, run):
                return (run or model)(frame)
        except FAILURES as error:
            if isinstance(error, ResQError):
                raise
            msg = f"{failure_on(frame, error)}."
            raise ConfigError(msg) from error


def _check_metrics(metric: Any, agreement: Any) -> None:
    make_metric("agreement", agreement)
    if metric is None:
        return
    if not (isinstance(metric, tuple) and len(metric) == 2 and isinstance(metric[0], str)):
        msg = f"metric={metric!r} must be a name and what makes it, e.g. metric=('mIoU', lambda: MeanIoU(19))."
        raise ConfigError(msg)
    make_metric(*metric)


def _small(prediction: Tensor) -> Tensor:
    """Labels in a byte each where they fit, because those of every frame are kept."""
    if prediction.is_floating_point() or prediction.dtype == torch.bool or not prediction.numel():
        return prediction.cpu()
    low, high = int(prediction.min()), int(prediction.max())
    return prediction.to(torch.uint8 if low >= 0 and high < 256 else prediction.dtype).cpu()


def default_predict(output: Any) -> Predict:
    """The class of every pixel, or what is integer already."""

    def predict(output: Any) -> Tensor:
        tensor = _first_tensor(output)
        return tensor if not tensor.is_floating_point() else tensor.argmax(1)

    tensor = _first_tensor(output)
    if tensor.is_floating_point() and (tensor.dim() < 2 or tensor.shape[1] < 2):
        msg = (
            f"the model's output has shape {tuple(tensor.shape)}, in which no channel dimension tells classes; say "
            "what to compare: predict=lambda output: ... (a tensor)."
        )
        raise ConfigError(msg)
    return predict


def _first_tensor(output: Any) -> Tensor:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    msg = (
        f"the model returns a {type(output).__name__} without a tensor; say what to compare: "
        "predict=lambda output: ... (a tensor)."
    )
    raise ConfigError(msg)


def _mean_iou(output: Any) -> Callable[[], Metric]:
    channels = _first_tensor(output).shape[1]
    return lambda: MeanIoU(channels)

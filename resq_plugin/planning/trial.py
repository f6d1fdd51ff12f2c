"""A plan in earnest: converted, calibrated, and measured on frames that no range was found on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resq_plugin.calibration import Statistics, calibrate
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import convert, fold_batch_norms, revert
from resq_plugin.cost import measure_cost
from resq_plugin.evaluation import Metric, evaluate, float_predictions
from resq_plugin.method import image_of
from resq_plugin.planning.inputs import Loop
from resq_plugin.planning.journal import SearchJournal
from resq_plugin.planning.observe import find_scores, score_tensor

__all__ = ["Divergence", "Trials", "Verified"]

Predict = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Verified:
    """What a plan comes to, measured.

    Attributes:
        accuracy: in percent, mean over the positions in the interval (§5).
        drop: points of it lost against the float model on the same frames.
        agreement: with the predictions of the float model, in percent.
        divergence: from the float output, KL in nats or half the squared error, per output value; None where what is
            returned holds no scores.
        gbops: per frame, with the shares of bit widths that were measured.
        relative: of W8A8 in every frame.
        state_megabytes: kept between frames.
        shares: share of pixels per bit width, by name of the dynamic layer.
    """

    accuracy: float
    drop: float
    agreement: float
    divergence: float | None
    gbops: float
    relative: float
    state_megabytes: float
    shares: dict[str, dict[int, float]]


class Divergence:
    """Mean of what separates two outputs: KL(float ‖ quantized) over the channels, or half the squared error.

    Args:
        criterion: ``kl`` or ``squared``.
    """

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion
        self.total = 0.0
        self.count = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take scores (N, K, ...) and those of the float model."""
        if self.criterion == "squared":
            self.total += 0.5 * float((prediction.double() - target.double()).square().sum())
            self.count += target.numel()
            return
        ours, theirs = prediction.double().log_softmax(1), target.double().log_softmax(1)
        self.total += float((theirs.exp() * (theirs - ours)).sum())
        self.count += target.numel() // target.shape[1]

    def compute(self) -> float:
        """Return the mean."""
        return self.total / self.count if self.count else math.nan


class _Predicted:
    """A metric of predictions that is given outputs."""

    def __init__(self, metric: Metric, predict: Predict) -> None:
        self.metric, self.predict = metric, predict

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.metric.update(self.predict(prediction), target)

    def compute(self) -> float:
        return self.metric.compute()


class _Scored(_Predicted):
    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.metric.update(score_tensor(prediction), target)


class Trials:
    """Measures plans on clips that are held out; each once.

    Args:
        model: float, in evaluation mode.
        calibration: clips that ranges are found on.
        held_out: clips or whole videos that are measured.
        run: what runs one frame, when it is not ``model(frame)``.
        loop: what runs the held-out videos, when that is not ``run``.
        arguments: of the model behind the frame, for its bit operations.
        labels: per clip and frame what is right, or None where predictions of the float model are.
        predict: model output to what the metric compares.
        metric: maker of the metric.
        agreement: maker of the metric against predictions of the float model.
        criterion: of the divergence.
        journal: where records are kept.
        step: called after each frame.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Sequence[Any],
        held_out: Sequence[Sequence[Any]],
        run: Callable[[Any], Any] | None,
        loop: Loop | None,
        arguments: Sequence[Any],
        labels: Any,
        predict: Predict,
        metric: Callable[[], Metric],
        agreement: Callable[[], Metric],
        criterion: str,
        journal: SearchJournal,
        step: Callable[[], object],
    ) -> None:
        self.model, self.calibration, self.held_out, self.step = model, calibration, held_out, step
        self.journal, self.run, self.arguments = journal, run, tuple(arguments)
        self.playing: dict[str, Any] = (
            {"run": run} if loop is None else {"run": loop.run, "start": loop.start, "given": loop.given}
        )
        self.statistics = Statistics()
        outputs: list[list[Any]] = float_predictions(
            model, held_out, lambda output: output, run=self.playing["run"], start=self.playing.get("start")
        )
        predicted = [[predict(output) for output in video] for video in outputs]
        self.targets: dict[str, Any] = {"accuracy": predicted if labels is None else labels, "agreement": predicted}
        self.metrics: dict[str, Callable[[], Any]] = {
            "accuracy": lambda: _Predicted(metric(), predict),
            "agreement": lambda: _Predicted(agreement(), predict),
        }
        if find_scores(outputs[0][-1]) is not None:
            self.targets["divergence"] = [[score_tensor(output).clone() for output in video] for video in outputs]
            self.metrics["divergence"] = lambda: _Scored(Divergence(criterion), predict)
        own = metric()
        for found, right in zip(predicted, self.targets["accuracy"], strict=True):
            for prediction, target in list(zip(found, right, strict=True))[self.playing.get("given", 0) :]:
                if target is not None:
                    own.update(prediction, target)
        self.float_accuracy = own.compute()
        self.shape = tuple(image_of(held_out[0][0]).shape)
        w8a8 = ResQConfig.parse("W8A8")
        self.base = measure_cost(model, self.shape, w8a8, arguments=self.arguments).bops_per_frame

    @property
    def frames(self) -> int:
        """How many frames a measurement runs, about."""
        return sum(map(len, self.calibration)) + sum(map(len, self.held_out))

    def measure(self, config: ResQConfig) -> Verified:
        """Convert, calibrate, measure and revert; what was measured before is read from the journal."""
        key = "trial " + json.dumps(config.to_dict(), sort_keys=True)
        record = self.journal.records.get(key)
        if record is None:
            record = self.journal.add(key, self._measure(config))
        shares = {name: {int(bits): share for bits, share in pool.items()} for name, pool in record["shares"].items()}
        return Verified(**{**record, "shares": shares})

    def _measure(self, config: ResQConfig) -> dict[str, Any]:
        convert(self.model, config)
        try:
            fold_batch_norms(self.model, self.calibration[0][0], self.run)
            calibrate(self.model, self.calibration, run=self._run, statistics=self.statistics)
            interval = config.interval if config.residual is not None else 1
            found = evaluate(
                *(self.model, self.held_out, self.targets, self.metrics),
                predict=self._counted,
                interval=interval,
                **self.playing,
            )
            averages = found.amortized()
            cost = measure_cost(self.model, self.shape, arguments=self.arguments, **averages)
        finally:
            revert(self.model)
        accuracy = found.mean("accuracy")
        return {
            "accuracy": accuracy,
            "drop": self.float_accuracy - accuracy,
            "agreement": found.mean("agreement"),
            "divergence": found.mean("divergence") if "divergence" in self.metrics else None,
            "gbops": cost.bops_per_frame / 1e9,
            "relative": cost.bops_per_frame / self.base,
            "state_megabytes": cost.state_bytes / 1e6,
            "shares": averages["shares"],
        }

    def _run(self, frame: Any) -> Any:
        self.step()
        return (self.run or self.model)(frame)

    def _counted(self, output: Any) -> Any:
        self.step()
        return output

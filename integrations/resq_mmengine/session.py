"""A model inside MMEngine's loops: one stream, new intervals by metainfo, results by position."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from numbers import Real
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.evaluator import Evaluator
from torch import nn

from resq_mmengine.pipelines import check_packed
from resq_plugin import stream
from resq_plugin.errors import ConfigError
from resq_plugin.evaluation import Evaluation, sum_pixels
from resq_plugin.method import FrameCounts, Stream, dense_execution

__all__ = ["PositionEvaluator", "VideoSession"]

logger = logging.getLogger(__name__)


class VideoSession:
    """Runs data batches through one stream; a new interval starts where a clip does.

    Args:
        model: converted and calibrated mm model.
        interval: T; None takes the configured one.
    """

    def __init__(self, model: nn.Module, interval: int | None = None) -> None:
        self.model, self.interval = model, interval
        self._last: list[tuple[str, int]] | None = None
        self._float: dict[bytes, Any] = {}
        self._float_clips: set[str] = set()

    @cached_property
    def video(self) -> Stream:
        """The stream; opened by the first frame, because calibration comes right before it."""
        return stream(self.model, interval=self.interval)

    @property
    def position(self) -> int | None:
        """Position t of the last batch: 0 at a keyframe, and where every frame is quantized on its own.

        None where a frame with NaN was run outside the interval; t mod T where keyframes are spread.
        """
        position = self.video.position if self._last is not None else 0
        return None if position < 0 else self.video.schedule.phase(position)

    def measured(self, by_position: Mapping[str, tuple[float, ...]]) -> Evaluation:
        """Return metrics by position together with what all ranks counted."""
        length = self.video.schedule.interval
        found = [self.video.pixel_counts(distance) for distance in range(1, length)], self.video.frame_counts
        gathered = all_gather_object(found)
        pixels = tuple(sum_pixels(of_ranks) for of_ranks in zip(*(each for each, _ in gathered), strict=True))
        counts = sum((each for _, each in gathered), FrameCounts())
        is_fixed = self.video.schedule.is_fixed or not counts.total  # without a stream every frame is a keyframe
        return Evaluation(by_position, pixels if any(pixels) else (), counts, is_fixed)

    def step(self, data_batch: Any) -> Any:
        """Predict the next frames of N clips in step; takes the place of the model's ``test_step``.

        Raises:
            ConfigError: the samples do not tell their clip and frame, or the pipeline does not pack them.
        """
        check_packed(data_batch, "the dataset that is tested")
        data = self.model.data_preprocessor(data_batch, False)  # type: ignore[operator]
        frames = [_place(sample) for sample in data["data_samples"]]
        if frames != self._last or any(sample.metainfo.get("keyframe") for sample in data["data_samples"]):
            self.video.reset()
        predictions = self.video(data["inputs"], data["data_samples"], mode="predict")
        self._last = [(clip, index + 1) for clip, index in frames]
        return predictions

    @contextmanager
    def installed(self, *, with_float: bool = False) -> Iterator[None]:
        """Let ``model.test_step`` and ``model.val_step`` be steps of this session inside.

        Args:
            with_float: also predict in float, for `FloatAgreement`.
        """
        step = self._step_with_float if with_float else self.step
        self.model.__dict__.update(test_step=step, val_step=step)
        try:
            yield
        finally:
            for name in ("test_step", "val_step"):
                self.model.__dict__.pop(name, None)
            self.video.close()

    def _step_with_float(self, data_batch: Any) -> Any:
        # A frame comes again at other positions; its crop may be another one then.
        keys = [hashlib.sha256(image.numpy(force=True).tobytes()).digest() for image in data_batch["inputs"]]
        predictions = self.step(copy.copy(data_batch))
        clips = {_place(sample)[0] for sample in predictions}
        if clips != self._float_clips:
            self._float, self._float_clips = {}, clips
        if not all(key in self._float for key in keys):
            with dense_execution():
                found = type(self.model).test_step(self.model, copy.deepcopy(data_batch))  # type: ignore[attr-defined]
            self._float.update(zip(keys, found, strict=True))
        for key, prediction in zip(keys, predictions, strict=True):
            of_float = self._float[key]
            prediction.set_field(of_float, "float_prediction", dtype=type(of_float))
        return predictions


def _place(sample: Any) -> tuple[str, int]:
    known = sample.metainfo
    missing = [key for key in ("clip_id", "frame_index") if key not in known]
    if missing:
        msg = (
            f"a data sample tells no {' and no '.join(missing)} in its metainfo, so nobody knows where clips end. Use "
            "a dataset of resq_mmseg or resq_mmpose, or let yours set both in the metainfo of each data sample."
        )
        raise ConfigError(msg)
    return str(known["clip_id"]), int(known["frame_index"])


class PositionEvaluator:
    """MMEngine's evaluator once per position t in the interval; unlabelled frames are left out.

    Args:
        evaluator: what it is a copy of at every position.
        session: tells the position of the last batch.
        measure: called at the end, with this evaluator; returns further metrics.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        session: VideoSession,
        measure: Callable[[PositionEvaluator], dict[str, float]],
    ) -> None:
        self.evaluator, self.session, self.measure = evaluator, session, measure
        self.evaluators: dict[int, Evaluator] = {}
        self.frames: dict[int, int] = {}
        self.by_position: dict[str, tuple[float, ...]] = {}
        self.evaluation: Evaluation | None = None

    def process(self, data_samples: Sequence[Any], data_batch: Any = None) -> None:
        """Take a batch of predictions."""
        chosen = [i for i, sample in enumerate(data_samples) if sample.metainfo.get("labelled", True)]
        if not chosen:
            return
        if data_batch is not None and len(chosen) < len(data_samples):
            data_batch = {key: [values[i] for i in chosen] for key, values in data_batch.items()}
        position = self.session.position
        if position is None:
            return
        if position not in self.evaluators:
            self.evaluators[position] = copy.deepcopy(self.evaluator)
        self.frames[position] = self.frames.get(position, 0) + len(chosen)
        self.evaluators[position].process([data_samples[i] for i in chosen], data_batch)

    def evaluate(self, size: int) -> dict[str, Any]:  # noqa: ARG002 - MMEngine's signature
        """Return every metric averaged over positions, as in §5.2, and at position t as ``<metric>_t<t>`` (Fig. 9).

        Positions that did not occur are NaN and do not count; see `Evaluation.mean`.

        Raises:
            ConfigError: no frame was labelled.
        """
        counts: dict[int, int] = {}
        for frames in all_gather_object(self.frames):
            for position, count in frames.items():
                counts[position] = counts.get(position, 0) + count
        if not counts:
            msg = "no frame of the dataset has a label; nothing can be measured."
            raise ConfigError(msg)
        found = {}
        for position in sorted(counts):
            evaluator = self.evaluators.get(position) or copy.deepcopy(self.evaluator)
            found[position] = evaluator.evaluate(counts[position])
        self._tell_of_positions(found.keys())
        names = [name for name, value in found[min(found)].items() if isinstance(value, Real)]
        positions = range(max(found) + 1)
        self.by_position = {
            name: tuple(float(found[t][name]) if t in found else math.nan for t in positions) for name in names
        }
        self.evaluation = self.session.measured(self.by_position)
        means = {name: self.evaluation.mean(name) for name in self.by_position}
        apart = {f"{name}_t{t}": value for name, values in self.by_position.items() for t, value in enumerate(values)}
        return means | apart | self.measure(self)

    def _tell_of_positions(self, found: Collection[int]) -> None:
        """Warn of positions that the mean over positions hides."""
        schedule = self.session.video.schedule
        length = schedule.interval
        missing = [str(t) for t in range(length) if t not in found]
        if schedule.is_fixed and missing:
            logger.warning(
                "T = %d, but no labelled frame came at position %s of an interval, because clips are shorter or every "
                "position was not asked for. The mean is over the others, while bit operations are those of whole "
                "intervals; take a T that fits the clips.",
                length,
                ", ".join(missing),
            )

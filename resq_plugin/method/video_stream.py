"""One video, frame by frame: where its intervals start, and what a frame does."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from resq_plugin.config import ResQConfig
from resq_plugin.errors import FrameError, StreamError
from resq_plugin.method.conditions import Conditions
from resq_plugin.method.frame_calls import CallsChangedError
from resq_plugin.method.frame_counts import FrameCounts, shares_of
from resq_plugin.method.frames import image_of, unusable_values
from resq_plugin.method.kept_numbers import settled_numbers
from resq_plugin.method.layers import executing, frame_by_frame, residual_layers
from resq_plugin.method.outside import generator_that_holds, remembering_nodes, watching_threads
from resq_plugin.method.recompute import following_checkpoints
from resq_plugin.method.refresh import Refresh
from resq_plugin.method.schedule import Schedule, make_schedule
from resq_plugin.method.snapshot import Snapshot, precisions_of, reference_of
from resq_plugin.method.stream_state import FARTHEST, StreamState, describe
from resq_plugin.method.unfit_frames import telling_unfit_frames
from resq_plugin.method.unlike_streams import Watch

__all__ = ["Stream", "stream"]

logger = logging.getLogger(__name__)


class Stream:
    """One video: call it with one frame after another. Make it with `stream`.

    Attributes:
        position: t of the last frame, 0 at a keyframe; -1 before the first one, and after a frame with NaN, which is
            run outside the interval (``on_change='keyframe'``).
        is_keyframe: whether the last frame was a keyframe.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        interval: int | None = None,
        record_choices: bool = False,
        keep_graph: bool | None = None,
    ) -> None:
        self.model = model
        self.layers = residual_layers(model)
        self.config: ResQConfig = next(iter(self.layers.values())).settings.config
        self.schedule: Schedule = make_schedule(model, self.config, interval)
        self.position = -1
        self.is_keyframe = False
        self._state = StreamState()
        self._state.refresh = Refresh(self.schedule.interval) if self.schedule.is_spread else None
        self._frames: Counter[int] = Counter()
        self._conditions = Conditions(model, self.layers)
        self._nodes_of = WeakSet(self.layers.values())
        self._keep_graph = keep_graph
        if record_choices:
            self._state.choices = {}
        self._keyframe_input: Tensor | None = None
        self._demanded = True
        self._closed = False
        self._lock = threading.Lock()
        self._watch: Watch | None = None

    def __enter__(self) -> Stream:
        self._watch = Watch(self.layers.values())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._watch is not None:
            self._watch.end(failed=exc[0] is not None, image=self._keyframe_input)
            self._watch = None
        self.close()

    def __call__(self, frame: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the next frame.

        Args:
            frame: (N, C, H, W), N independent videos in step, or any pytree with such a tensor in it (frame, masks,
                prompt, previous state); the model's first argument.
            args: further arguments of the model.
            kwargs: further arguments of the model.

        Returns:
            What the model returns.

        Raises:
            FrameError: the frame holds no tensor, or NaN or Inf, or is of a size, type or layout that the model cannot
                take; the stream is unchanged.
            StreamError: the stream is closed; shape, dtype or device changed within the interval, or the frame calls
                other layers than its keyframe (with ``on_change='keyframe'`` a new interval starts instead, for which
                the model may run a second time on this frame); or layers run where the stream is not seen.
        """
        try:
            with self.frame(frame):
                return self.model(frame, *args, **kwargs)
        except CallsChangedError as change:
            if self.config.on_change == "raise" or change.owner is not self._state:
                raise
            logger.warning("%s Now a new interval starts.", change)
        self.start_interval()
        with self.frame(frame):
            return self.model(frame, *args, **kwargs)

    def frame(self, frame: Any) -> AbstractContextManager[None]:
        """Run whatever model calls are made inside as the next frame, whose input is ``frame`` (as in a call).

        In a generator, close the ``with`` block before the ``yield``: the consumer's model calls would be part of the
        frame, and are refused.
        """
        return self._frame(frame, generator_that_holds(sys._getframe(1)))

    @contextmanager
    def _frame(self, frame: Any, holder: FrameType | None) -> Iterator[None]:
        if self._closed:
            msg = "this stream is closed; open a new one with `with stream(model) as video:`."
            raise StreamError(msg)
        if not self._lock.acquire(blocking=False):
            msg = "this stream is busy in another thread; open one stream per video: stream(model)."
            raise StreamError(msg)
        try:
            if self._watch is not None:
                self._watch.frames += 1
            self._conditions.require_same_model()
            if not self._is_usable(frame):
                self.start_interval()
                self.position, self.is_keyframe = -1, False
                with executing(frame_by_frame):
                    yield
                return
            image = image_of(frame)
            with settled_numbers(self.layers.values()):
                position = 0 if self._starts_interval(image) else self.position + 1
                with telling_unfit_frames(self.model, frame), self._running(position, holder):
                    yield
                if position <= 1:  # hosts make what they lack when a path first runs, e.g. scales of new weights
                    self._conditions.remember(image.device)
            self._demanded = False
            self.position, self.is_keyframe = position, position == 0
            self._frames[min(position, FARTHEST)] += len(image) if image.dim() else 1
            if self.is_keyframe:
                self._keyframe_input = image.detach().clone()
        finally:
            self._lock.release()

    @contextmanager
    def _running(self, position: int, holder: FrameType | None) -> Iterator[None]:
        """Let the state run the layers; a frame that fails leaves nothing of it behind."""
        state = self._state
        counts = dict(state.counts)
        if position == 0:
            state.keep_graph = self.model.training if self._keep_graph is None else self._keep_graph
        with executing(state), following_checkpoints(), remembering_nodes(self._nodes_of), watching_threads() as seen:
            state.start_frame(position, holder)
            try:
                yield
                state.end_frame(self.layers, seen)
            except BaseException:
                state.counts = counts
                # Caches that a failed frame may have half written are worth nothing; others stay.
                if position == 0 or self.schedule.is_spread or self.config.reference == "running":
                    self.start_interval()
                raise

    def clip(self, frames: Tensor) -> Tensor:
        """Run frames (N, T, C, H, W) one by one and return the outputs (N, T, ...). The model must return a tensor."""
        return torch.stack([self(frame) for frame in frames.unbind(1)], dim=1)

    def _is_usable(self, frame: object) -> bool:
        count, total = unusable_values(frame)
        if count:
            msg = f"the frame after position {self.position} holds {count} NaN or Inf of {total} values"
            if self.config.on_change == "raise":
                msg += "; the stream is unchanged. Drop it, or configure on_change='keyframe' to start anew after it."
                raise FrameError(msg)
            logger.warning("%s; it is run outside the stream and a new interval starts after it.", msg)
            return False
        return True

    def _starts_interval(self, frame: Tensor) -> bool:
        reference = self._keyframe_input
        if self._demanded or reference is None or self.schedule.is_over(self.position + 1):
            return True
        if change := self._conditions.change(frame.device):
            logger.info("%s; a new interval starts.", change)
            return True
        found = frame.shape, frame.dtype, frame.device
        expected = reference.shape, reference.dtype, reference.device
        if found != expected:
            msg = f"the frame changed to {describe(found)} from {describe(expected)} inside an interval"
            if self.config.on_change == "raise":
                msg += (
                    "; the stream is unchanged. Call video.start_interval() before it, open another stream, "
                    "or configure on_change='keyframe'."
                )
                raise StreamError(msg)
            logger.warning("%s; a new interval starts.", msg)
            return True
        return self.schedule.is_keyframe(self.position + 1, frame, reference)

    def start_interval(self) -> None:
        """Make the next frame a keyframe."""
        self._demanded = True

    def reset(self) -> None:
        """Forget the video: free the caches; the next frame is the first of a new one."""
        self._state.free()
        self._keyframe_input = None
        self._demanded = True
        self.position, self.is_keyframe = -1, False

    def close(self) -> None:
        """Free the caches for good."""
        self.reset()
        self._closed = True

    def state_bytes(self) -> int:
        """Bytes that this stream's caches hold; `measure_cost` counts the same, of a model in float32."""
        return self._state.state_bytes()

    @property
    def frame_counts(self) -> FrameCounts:
        """Keyframes and residual frames that ran so far, over all intervals and resets, by distance from the keyframe.

        Frames that failed or were run outside the stream do not count; the last distance stands for all that are
        farther, too.
        """
        return FrameCounts.of(self._frames)

    def pixel_counts(self, distance: int | None = None) -> dict[str, dict[int, int]]:
        """Pixels that got each bit width of a dynamic pool, per layer, over the residual frames and calls so far.

        Args:
            distance: count only frames that far from their keyframe; 256 stands for all that are farther, too.
        """
        totals: dict[str, Tensor] = {}
        for (position, name), counts in self._state.counts.items():
            if distance is None or position == distance:
                totals[name] = totals[name] + counts if name in totals else counts
        found = {}
        for name, counts in totals.items():
            residual = self.layers[name].settings.residual
            found[name] = dict(zip(residual.pool if residual else (), counts.tolist(), strict=True))
        return found

    def bit_shares(self, distance: int | None = None) -> dict[str, dict[int, float]]:
        """The same as shares, which `measure_cost` takes."""
        return shares_of(self.pixel_counts(distance))

    @property
    def choices(self) -> dict[str, Tensor]:
        """Bits (N, H, W) chosen in the last residual frame, per layer (Fig. 6); needs ``record_choices=True``."""
        return dict(self._state.choices or {})

    def get_state(self) -> dict[str, Any]:
        """Return copies of all that the next frame depends on; `set_state` of another stream takes it."""
        return Snapshot(
            position=self.position,
            is_keyframe=self.is_keyframe,
            demanded=self._demanded,
            keyframe_input=self._keyframe_input,
            reference=reference_of(self.config),
            precisions=precisions_of(self.layers),
            numbers=self._conditions.numbers.checksum(),
            order=self._state.keyframe_order,
            caches=self._state.caches,
            work={} if self._state.refresh is None else self._state.refresh.work,
        ).to_dict()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned, in this or another stream of the same model.

        Raises:
            StreamError: the state is of another model, reference, precision, or of other weights or ranges; this
                stream is unchanged.
        """
        found = Snapshot.from_dict(state)
        found.require_model(self.layers, self.config, self._conditions)
        self.position, self.is_keyframe, self._demanded = found.position, found.is_keyframe, found.demanded
        self._keyframe_input = found.keyframe_input
        self._state.caches, self._state.keyframe_order = dict(found.caches), found.order
        if self._state.refresh is not None:
            self._state.refresh.set_work(found.work)
        if self._keyframe_input is not None:
            self._conditions.remember(self._keyframe_input.device)


def stream(
    model: nn.Module, *, interval: int | None = None, record_choices: bool = False, keep_graph: bool | None = None
) -> Stream:
    """Open one video on a converted and calibrated model.

    Wrap inference in ``torch.inference_mode()`` or ``torch.no_grad()``, as for any model. In training mode the
    caches keep their graph, so that gradients flow through time within an interval.

    Args:
        model: a model from `convert`; it may have any number of streams, one at a time per thread.
        interval: T, when it is to differ from the configured one.
        record_choices: keep the policy's choices of the last frame, see `Stream.choices`.
        keep_graph: whether gradients flow into earlier frames; by default they do in training mode.

    Raises:
        ConversionError: the model has no ResQ layer.
    """
    return Stream(model, interval=interval, record_choices=record_choices, keep_graph=keep_graph)

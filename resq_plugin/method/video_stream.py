"""One video, frame by frame: where its intervals start, and what a frame does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.config import ResQConfig
from resq_plugin.errors import FrameError, StreamError
from resq_plugin.method.kept_numbers import settled_numbers
from resq_plugin.method.layers import executing, frame_by_frame, residual_layers
from resq_plugin.method.schedule import Schedule, make_schedule
from resq_plugin.method.stream_state import LayerCache, StreamState, describe

__all__ = ["Stream", "stream"]

logger = logging.getLogger(__name__)


class Stream:
    """One video: call it with one frame after another. Make it with `stream`.

    Attributes:
        position: t of the last frame, 0 at a keyframe; -1 before the first frame.
        is_keyframe: whether the last frame was a keyframe.
    """

    def __init__(self, model: nn.Module, *, interval: int | None = None, record_choices: bool = False) -> None:
        self.model = model
        self.layers = residual_layers(model)
        self.config: ResQConfig = next(iter(self.layers.values())).settings.config
        self.schedule: Schedule = make_schedule(model, self.config, interval)
        self.position = -1
        self.is_keyframe = False
        self._state = StreamState(keep_graph=model.training)
        if record_choices:
            self._state.choices = {}
        self._keyframe_input: Tensor | None = None
        self._demanded = True
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __call__(self, frame: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the next frame.

        Args:
            frame: (N, C, H, W), N independent videos in step; the model's first argument.
            args: further arguments of the model.
            kwargs: further arguments of the model.

        Returns:
            What the model returns.

        Raises:
            FrameError: the frame is not a tensor or holds NaN or Inf; the stream is unchanged.
            StreamError: the stream is closed, or shape, dtype or device changed within the interval
                (with ``on_change='keyframe'`` a new interval starts instead).
        """
        with self.frame(frame):
            return self.model(frame, *args, **kwargs)

    @contextmanager
    def frame(self, frame: Tensor) -> Iterator[None]:
        """Run whatever model calls are made inside as the next frame, whose input is ``frame`` (N, C, H, W)."""
        if self._closed:
            msg = "this stream is closed; open a new one with `with stream(model) as video:`."
            raise StreamError(msg)
        if not self._lock.acquire(blocking=False):
            msg = "this stream is busy in another thread; open one stream per video: stream(model)."
            raise StreamError(msg)
        try:
            if not self._is_usable(frame):
                self.start_interval()
                with executing(frame_by_frame):
                    yield
                return
            position = 0 if self._starts_interval(frame) else self.position + 1
            is_keyframe = position == 0
            counts = dict(self._state.counts)
            with executing(self._state), settled_numbers(self.layers.values()):
                self._state.start_frame(position)
                try:
                    yield
                except BaseException:
                    self._state.counts = counts
                    # Caches that a failed frame may have half written are worth nothing; others stay.
                    if is_keyframe or self.config.reference == "running":
                        self.start_interval()
                    raise
            self._demanded = False
            self.is_keyframe = is_keyframe
            self.position = position
            if is_keyframe:
                self._keyframe_input = frame.detach().clone()
        finally:
            self._lock.release()

    def clip(self, frames: Tensor) -> Tensor:
        """Run frames (N, T, C, H, W) one by one and return the outputs (N, T, ...). The model must return a tensor."""
        return torch.stack([self(frame) for frame in frames.unbind(1)], dim=1)

    def _is_usable(self, frame: object) -> bool:
        if not isinstance(frame, Tensor):
            msg = f"a frame must be a tensor (N, C, H, W); got {type(frame).__name__}."
            raise FrameError(msg)
        if frame.is_floating_point() and not bool(torch.isfinite(frame).all()):
            count = int((~torch.isfinite(frame)).sum())
            msg = f"the frame after position {self.position} holds {count} NaN or Inf of {frame.numel()} values"
            if self.config.on_change == "raise":
                msg += "; the stream is unchanged. Drop it, or configure on_change='keyframe' to start anew after it."
                raise FrameError(msg)
            logger.warning("%s; it is run outside the stream and a new interval starts after it.", msg)
            return False
        return True

    def _starts_interval(self, frame: Tensor) -> bool:
        reference = self._keyframe_input
        if self._demanded or reference is None or self.position + 1 >= self.schedule.interval:
            return True
        found, expected = (
            (frame.shape, frame.dtype, frame.device),
            (reference.shape, reference.dtype, reference.device),
        )
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
        self._state.caches.clear()
        self._state.workspace.clear()
        self._keyframe_input = None
        self._demanded = True
        self.position, self.is_keyframe = -1, False

    def close(self) -> None:
        """Free the caches for good."""
        self.reset()
        self._closed = True

    def state_bytes(self) -> int:
        """Bytes that this stream's caches hold in the simulation (float). `measure_cost` tells those of a device."""
        return self._state.state_bytes()

    def bit_shares(self, distance: int | None = None) -> dict[str, dict[int, float]]:
        """Share of pixels that each bit width of a dynamic pool got, per layer, over the residual frames so far.

        Args:
            distance: count only frames that far from their keyframe; 256 stands for all that are farther, too.
        """
        totals: dict[str, Tensor] = {}
        for (position, name), counts in self._state.counts.items():
            if distance is None or position == distance:
                totals[name] = totals[name] + counts if name in totals else counts
        shares = {}
        for name, counts in totals.items():
            residual = self.layers[name].settings.residual
            values = (counts.double() / counts.sum()).tolist()
            shares[name] = dict(zip(residual.pool if residual else (), values, strict=True))
        return shares

    @property
    def choices(self) -> dict[str, Tensor]:
        """Bits (N, H, W) chosen in the last residual frame, per layer (Fig. 6); needs ``record_choices=True``."""
        return dict(self._state.choices or {})

    def get_state(self) -> dict[str, Any]:
        """Return copies of all that the next frame depends on; `set_state` of another stream takes it."""
        return {
            "position": self.position,
            "is_keyframe": self.is_keyframe,
            "demanded": self._demanded,
            "keyframe_input": None if self._keyframe_input is None else self._keyframe_input.clone(),
            "caches": {key: (cache.x.clone(), cache.z.clone()) for key, cache in self._state.caches.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned, in this or another stream of the same model.

        Raises:
            StreamError: the state is of another model; this stream is unchanged.
        """
        try:
            caches = {key: LayerCache(x.clone(), z.clone()) for key, (x, z) in state["caches"].items()}
            position, is_keyframe, demanded = state["position"], state["is_keyframe"], state["demanded"]
            keyframe_input = state["keyframe_input"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"this is no state of a stream ({error!r}); pass what video.get_state() returned."
            raise StreamError(msg) from error
        unknown = sorted({name for name, _ in caches} - set(self.layers))
        if unknown:
            msg = f"the state is of another model: it has layer {unknown[0]}, which this model has not."
            raise StreamError(msg)
        self.position, self.is_keyframe, self._demanded = position, is_keyframe, demanded
        self._keyframe_input = None if keyframe_input is None else keyframe_input.clone()
        self._state.caches = caches


def stream(model: nn.Module, *, interval: int | None = None, record_choices: bool = False) -> Stream:
    """Open one video on a converted and calibrated model.

    Wrap inference in ``torch.inference_mode()`` or ``torch.no_grad()``, as for any model. In training mode the
    caches keep their graph, so that gradients flow through time within an interval.

    Args:
        model: a model from `convert`; it may have any number of streams, one at a time per thread.
        interval: T, when it is to differ from the configured one.
        record_choices: keep the policy's choices of the last frame, see `Stream.choices`.

    Raises:
        ConversionError: the model has no ResQ layer.
    """
    return Stream(model, interval=interval, record_choices=record_choices)

"""Activation checkpointing: what a layer read in its frame is there again when the backward pass computes it anew.

`torch.utils.checkpoint` calls a function again in the backward pass, when its frame is over, the stream has moved on
and its memory is another. So every checkpoint that begins inside a frame keeps a log of the layers' calls with the
x_k and z_k that each read, for as long as autograd's graph may ask for it, and its recomputation reads the log.
Nothing is counted or written a second time.

Gradients that reach a keyframe through time have to pass its checkpoint. The reentrant kind records no graph that they
could flow along, so inside a frame it is done as the other kind, which has the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch.utils.checkpoint
from torch import Tensor

from resq_plugin.errors import StreamError
from resq_plugin.method.layers import ResidualLayer, active_executor, executing
from resq_plugin.method.paths import keyframe_path, residual_path

__all__ = ["LoggedExecutor", "PastCall", "following_checkpoints"]


@dataclass(frozen=True)
class PastCall:
    """One call of one layer, as it was.

    Attributes:
        name: of the layer.
        memory: x_k and z_k that it read; None at a keyframe.
    """

    name: str
    memory: tuple[Tensor, Tensor] | None = None


class LoggedExecutor:
    """Base of the executors whose calls can be repeated."""

    def __init__(self) -> None:
        self._logs: list[list[PastCall]] = []

    @contextmanager
    def logging(self) -> Iterator[list[PastCall]]:
        """Log the calls inside; logs may nest, and what is inside of two belongs to both."""
        log: list[PastCall] = []
        self._logs.append(log)
        try:
            yield log
        finally:
            self._logs = [other for other in self._logs if other is not log]

    def log(self, name: str, memory: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a call to all logs that are open."""
        for log in self._logs:
            log.append(PastCall(name, memory))


class _Replay(LoggedExecutor):
    """Repeats the calls of a log, without writing anything."""

    def __init__(self, log: list[PastCall]) -> None:
        super().__init__()
        self._past = iter(log)

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        past = next(self._past, None)
        if past is None or past.name != layer.settings.name:
            was = "no layer" if past is None else f"layer {past.name}"
            msg = (
                f"layer {layer.settings.name} is called when an activation checkpoint is computed again, where it had "
                f"called {was}; a checkpointed function must do the same both times."
            )
            raise StreamError(msg)
        self.log(past.name, past.memory)
        if past.memory is None:
            return keyframe_path(layer, x, options)[1]
        return residual_path(layer, x, past.memory, options).z


def _repeating(function: Callable[..., Any], log: list[PastCall]) -> Callable[..., Any]:
    context = copy_context()  # what held in the frame, such as shared weights, holds again, whatever thread it is

    def inside(*args: Any, **kwargs: Any) -> Any:
        with executing(_Replay(log)), following_checkpoints():
            return function(*args, **kwargs)

    @wraps(function, assigned=(), updated=())
    def repeat(*args: Any, **kwargs: Any) -> Any:
        return context.copy().run(inside, *args, **kwargs)

    return repeat


@cache
def _following(generator: Callable[..., Generator[None, None, None]]) -> Callable[..., Generator[None, None, None]]:
    """Wrap the core of the checkpoint that is not reentrant: what it calls in the backward pass repeats the log."""

    def follow(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        executor = active_executor()
        if not isinstance(executor, LoggedExecutor):
            yield from generator(function, *args, **kwargs)
            return
        with executor.logging() as log:
            yield from generator(_repeating(function, log), *args, **kwargs)

    return follow


@cache
def _not_reentrant(original: Any) -> Any:
    """A `CheckpointFunction` that inside a frame hands over to the other kind."""

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if not isinstance(active_executor(), LoggedExecutor):
            return original.apply(function, preserve_rng_state, *args)
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )

    return type(original.__name__, (original,), {"apply": staticmethod(apply)})


_PARTS = {
    "CheckpointFunction": _not_reentrant,
    "_checkpoint_without_reentrant_generator_impl": _following,  # torch >= 2.15
    "_checkpoint_without_reentrant_generator": _following,
}
"""Parts of `torch.utils.checkpoint` that all its doors go through, whatever name they were imported under."""

_lock = threading.Lock()
_users = 0
_originals: dict[str, Any] = {}


@contextmanager
def following_checkpoints() -> Iterator[None]:
    """Let checkpoints that begin inside know their frame. Other threads, and all else outside, see no difference."""
    global _users  # noqa: PLW0603
    if not torch.is_grad_enabled():
        yield
        return
    module = torch.utils.checkpoint
    with _lock:
        if _users == 0:
            for name, wrap in _PARTS.items():
                if hasattr(module, name):
                    _originals[name] = getattr(module, name)
                    setattr(module, name, wrap(_originals[name]))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for name, original in _originals.items():
                    setattr(module, name, original)
                _originals.clear()

"""Calls that miss their stream: in other threads, in the consumer of a generator, in a backward pass."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from types import FrameType
from weakref import WeakSet

import torch

from resq_plugin.errors import StreamError
from resq_plugin.method.layers import LayerSettings, ResidualLayer, onlookers

__all__ = ["generator_that_holds", "is_running", "remembering_nodes", "watching_threads"]

_CONTEXTLIB = "contextlib.py"
_SPANS: deque[tuple[int, int, WeakSet[ResidualLayer]]] = deque(maxlen=256)
"""Numbers of the autograd nodes that the last training frames made, and the layers of their model."""


@contextmanager
def watching_threads() -> Iterator[dict[int, LayerSettings]]:
    """Collect the settings, by identity, of layers that run outside any stream in other threads meanwhile.

    Replicas of a layer have the settings of the original. Other threads may well run this model frame by frame, so
    this means something only where a layer was expected here and did not come.
    """
    seen: dict[int, LayerSettings] = {}
    own = threading.get_ident()

    def look(layer: ResidualLayer) -> None:
        if threading.get_ident() != own:
            seen[id(layer.settings)] = layer.settings

    onlookers.append(look)
    try:
        yield seen
    finally:
        onlookers.remove(look)


def generator_that_holds(caller: FrameType) -> FrameType | None:
    """The generator whose body opens a frame, if it is one; not a `contextlib.contextmanager`, which is meant to."""
    is_generator = caller.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR)
    driver = caller.f_back
    if not is_generator or (driver is not None and driver.f_code.co_filename.endswith(_CONTEXTLIB)):
        return None
    return caller


def is_running(frame: FrameType) -> bool:
    """Whether a generator is at work right now, and not its consumer."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


@contextmanager
def remembering_nodes(layers: WeakSet[ResidualLayer]) -> Iterator[None]:
    """Remember which autograd nodes are made inside, to know their recomputation when it comes.

    `torch.utils.checkpoint` is followed, see `recompute`. Other implementations run layers in the backward pass, where
    no stream is active, and would get the numbers of frame-by-frame quantization.
    """
    if not torch.is_grad_enabled():
        yield
        return
    first = torch._C._autograd._get_sequence_nr()
    try:
        yield
    finally:
        last = torch._C._autograd._get_sequence_nr()
        if last > first:
            _SPANS.append((first, last, layers))


def _refuse_recomputation(layer: ResidualLayer) -> None:
    if not _SPANS or torch._C._current_graph_task_id() == -1:
        return
    node = torch._C._current_autograd_node()
    number = -1 if node is None else node._sequence_nr()
    if any(first <= number < last and layer in layers for first, last, layers in tuple(_SPANS)):
        msg = (
            f"layer {layer.settings.name} is computed again in the backward pass by an activation checkpointing that "
            "a stream cannot follow; write torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or run the "
            "block without checkpointing."
        )
        raise StreamError(msg)


onlookers.append(_refuse_recomputation)

"""Steps of a float run, recorded with all they read and run again exactly, whatever state lies between frames."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.method import ResidualLayer

__all__ = ["Recording", "chosen_pair", "keep_pair", "recording", "replay"]

TOLERANCE = 1e-3
"""How much the mean magnitude of a layer's input may differ, relatively, between a run and its repetition."""


@dataclass
class Recording:
    """The outermost module calls of one frame, in order, and what every ResQ layer read.

    Attributes:
        calls: name of the module, positional and keyword arguments, private copies.
        inputs: name of the layer and mean magnitude of its input, per call.
        losses: what keyframe ranges lose on the full maps of this frame, by what that depends on.
    """

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    inputs: list[tuple[str, float]] = field(default_factory=list)
    losses: dict[Hashable, dict[float, float]] = field(default_factory=dict)


@contextmanager
def recording(model: nn.Module, *, keep: bool = True) -> Iterator[Recording]:
    """Record the module calls that are made inside.

    Args:
        model: whose modules; a method of it that calls several of them is recorded as those.
        keep: also copy the arguments, for `replay`.
    """
    found, depth = Recording(), 0
    names = {module: name for name, module in model.named_modules()}
    shared: dict[int, Any] = {id(part): part for part in (*model.modules(), *model.parameters(), *model.buffers())}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        if depth == 0 and keep:
            found.calls.append((names[module], *_copied(args, kwargs, shared)))
        depth += 1
        if isinstance(module, ResidualLayer):
            x = args[0] if args else kwargs["input"]
            found.inputs.append((module.settings.name, _mean_magnitude(x)))

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _mean_magnitude(x: Tensor) -> float:
    """Summed in double precision, without a copy of x in it, which would take as long as a convolution."""
    x = x if x.is_floating_point() else x.double()  # integers, which the layer itself refuses
    return float(torch.linalg.vector_norm(x, 1, dtype=torch.float64)) / max(x.numel(), 1)


def _copied(args: tuple[Any, ...], kwargs: dict[str, Any], shared: dict[int, Any]) -> tuple[Any, Any]:
    """Private copies of arguments, states of any type included, but not of what belongs to the model."""
    try:
        copied: tuple[Any, Any] = copy.deepcopy((args, kwargs), dict(shared))
    except Exception:  # of what cannot be copied only the tensors are private
        copied = tree_map_only(Tensor, torch.clone, (args, kwargs))
    return copied


def replay(model: nn.Module, recorded: Recording) -> None:
    """Run a recorded frame again.

    Raises:
        CalibrationError: a layer reads something else, because a module keeps a state of its own between frames.
    """
    with recording(model, keep=False) as again:
        for name, args, kwargs in recorded.calls:
            model.get_submodule(name)(*args, **kwargs)
    names = [name for name, _ in recorded.inputs], [name for name, _ in again.inputs]
    for index, (name, value) in enumerate(recorded.inputs):
        if names[0] != names[1] or not math.isclose(value, again.inputs[index][1], rel_tol=TOLERANCE, abs_tol=1e-12):
            msg = (
                f"layer {name} reads other values when its frame is run again, so a module keeps state of its own "
                "between frames. Make that state a part of the frame (a frame may be a tuple or dict) or of the "
                "module's arguments, or write calibration=dict(recheck=0), which runs no frame twice."
            )
            raise CalibrationError(msg)


def _slot(index: int, config: ResQConfig) -> int:
    """Where the pair of that interval goes in a reservoir sample of ``recheck`` pairs; outside of it nowhere."""
    limit = config.calibration.recheck
    return index if index < limit else random.Random(index).randrange(index + 1)


def chosen_pair(index: int, length: int, config: ResQConfig) -> Sequence[int]:
    """Positions of an interval to record for the comparison on full maps; distances take turns.

    A pair is a frame and what its residual is a difference to: the first frame of the interval, or the last frame.
    """
    if _slot(index, config) >= config.calibration.recheck:
        return ()
    if length < 2:
        return (0,)
    position = 1 + index % (length - 1)
    return (position - 1 if config.reference == "running" else 0), position


def keep_pair(kept: list[list[Recording]], pair: Sequence[Recording], index: int, config: ResQConfig) -> None:
    """Put a recorded pair, if there is one, in its place of the reservoir sample."""
    if not pair:
        return
    slot = _slot(index, config)
    if slot < len(kept):
        kept[slot] = list(pair)
    else:
        kept.append(list(pair))

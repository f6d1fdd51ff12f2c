"""Recorded frames put into one batch, so that every layer meets all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from resq_plugin.calibration.recording import Recording
from resq_plugin.errors import CalibrationError

__all__ = ["Stacked", "stack_pairs"]


@dataclass(frozen=True)
class Stacked:
    """Frames in one batch: all in float, all as keyframes, and some as residual frames of others.

    Attributes:
        recording: their module calls, each one call of the whole batch.
        frames: how many frames there are.
        references: of each residual frame, which frame is its keyframe.
        residuals: of each residual frame, which frame it is.
        inputs: per frame, what `Recording.inputs` says of it.
    """

    recording: Recording
    frames: int
    references: tuple[int, ...]
    residuals: tuple[int, ...]
    inputs: tuple[list[tuple[str, float]], ...]

    @property
    def blocks(self) -> int:
        """Equal parts of the batch."""
        return 2 * self.frames + len(self.residuals)


def stack_pairs(pairs: Sequence[Sequence[Recording]], *, with_residuals: bool) -> Stacked:
    """Put pairs of recorded frames (keyframe, residual frame) into one batch; those unlike the first are left out.

    Args:
        pairs: from `Collected.pairs`; a pair may be a single frame.
        with_residuals: whether the second frames are residual frames, too.

    Raises:
        CalibrationError: there is none, or the frames cannot be put into a batch.
    """
    if not pairs:
        msg = (
            "calibration.fit needs frames that calibration records, and calibration.recheck=0 of them are; write "
            "calibration=dict(fit='weights', recheck=4), the number of pairs of frames."
        )
        raise CalibrationError(msg)
    like = _form(pairs[0][0])
    chosen = [pair for pair in pairs if all(_form(recorded) == like for recorded in pair)]
    frames = [recorded for pair in chosen for recorded in pair]
    references, residuals, place = [], [], 0
    for pair in chosen:
        if with_residuals and len(pair) > 1:
            references.append(place)
            residuals.append(place + 1)
        place += len(pair)
    order = [*frames, *frames, *(frames[index] for index in residuals)]
    calls = []
    for index, (name, *_) in enumerate(frames[0].calls):
        of_frames = [tree_flatten(recorded.calls[index][1:]) for recorded in order]
        leaves = [_joined(values) for values in zip(*(leaves for leaves, _ in of_frames), strict=True)]
        calls.append((name, *tree_unflatten(leaves, of_frames[0][1])))
    inputs = tuple(recorded.inputs for recorded in frames)
    return Stacked(Recording(calls), len(frames), tuple(references), tuple(residuals), inputs)


def _form(recorded: Recording) -> Any:
    """What frames of one batch have in common."""
    forms = []
    for name, *arguments in recorded.calls:
        leaves, spec = tree_flatten(arguments)
        shapes = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
        forms.append((name, spec, shapes))
    return forms, [name for name, _ in recorded.inputs]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    return torch.cat(list(values)) if first.dim() else first

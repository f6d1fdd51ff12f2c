"""Clips side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resq_plugin.errors import ConfigError

__all__ = ["split", "stack"]


def stack(clips: Sequence[tuple[Any, Any]], interval: int) -> tuple[list[Tensor], list[Any]]:
    """Put clips side by side: T frames (N, C, H, W) and T targets (N, ...), None where no clip has a label.

    Raises:
        ConfigError: a clip is too short, or only some clips have a label at a position.
    """
    for frames, targets in clips:
        if len(frames) < interval or len(targets) < interval:
            msg = (
                f"a clip has {len(frames)} frames and {len(targets)} targets, but intervals of {interval} are "
                "trained; pass longer clips, or shorter intervals=(...)."
            )
            raise ConfigError(msg)
    rows = [torch.stack([torch.as_tensor(frames[t]) for frames, _ in clips]) for t in range(interval)]
    wanted = []
    for position in range(interval):
        column = [targets[position] for _, targets in clips]
        missing = sum(target is None for target in column)
        if missing not in (0, len(column)):
            msg = (
                f"frame {position} has a target in {len(column) - missing} of {len(column)} clips of a step; label "
                "the same positions of every clip, or write a target that your loss ignores."
            )
            raise ConfigError(msg)
        wanted.append(None if missing else torch.stack([torch.as_tensor(target) for target in column]))
    return rows, wanted


def split(clips: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Divide the clips of a step into up to so many parts, none of them empty."""
    size = -(-len(clips) // parts)
    return [clips[start : start + size] for start in range(0, len(clips), size)]

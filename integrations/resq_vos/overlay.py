"""Masks painted over frames, in the colours of DAVIS."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resq_vos.davis import PALETTE

__all__ = ["overlay", "short_side"]

STRENGTH = 0.5


def short_side(size: tuple[int, int], wanted: int) -> tuple[int, int]:
    """Return (H, W) of about the same shape with ``wanted`` pixels on the shorter side.

    >>> short_side((480, 854), 240), short_side((1920, 1080), 240)
    ((240, 427), (427, 240))
    """
    factor = wanted / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def overlay(frame: Tensor, labels: NDArray[np.integer]) -> Tensor:
    """Paint labels over a frame.

    Args:
        frame: (1, 3, H, W), RGB 0..1.
        labels: (H', W').

    Returns:
        A picture (3, H', W'), uint8.
    """
    found = torch.from_numpy(np.asarray(labels).astype(np.int64))
    picture = F.interpolate(frame, tuple(found.shape), mode="bilinear", align_corners=False)[0].clamp(0, 1) * 255
    colours = torch.tensor(PALETTE, dtype=torch.float32).view(256, 3)[found].permute(2, 0, 1)
    painted = torch.where(found > 0, (1 - STRENGTH) * picture + STRENGTH * colours, picture)
    return painted.round().to(torch.uint8)

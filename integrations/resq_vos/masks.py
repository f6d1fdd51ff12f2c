"""Masks between steps: padding, planes of the memory encoder, aggregation over objects, labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["aggregate", "crop", "labels_of", "mask_planes", "pad", "resize_masks"]

EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""


def _margins(size: int, divisor: int) -> tuple[int, int]:
    missing = -size % divisor
    return missing // 2, missing - missing // 2


def pad(x: Tensor, divisor: int = 16) -> Tensor:
    """Pad (..., H, W) with zeros on both sides to multiples of ``divisor``: a width of 854 becomes 864."""
    top, bottom = _margins(x.shape[-2], divisor)
    left, right = _margins(x.shape[-1], divisor)
    return F.pad(x, (left, right, top, bottom)) if top or bottom or left or right else x


def crop(x: Tensor, size: tuple[int, int], divisor: int = 16) -> Tensor:
    """Undo `pad`: (..., H', W') to (..., *size)."""
    top, left = _margins(size[0], divisor)[0], _margins(size[1], divisor)[0]
    return x[..., top : top + size[0], left : left + size[1]]


def _by_owner(owners: Tensor | None, rows: int) -> list[list[int]]:
    """Rows of each frame."""
    if owners is None:
        return [list(range(rows))]
    groups: dict[int, list[int]] = {}
    for row, owner in enumerate(owners.tolist()):
        groups.setdefault(owner, []).append(row)
    return list(groups.values())


def mask_planes(masks: Tensor, owners: Tensor | None = None) -> Tensor:
    """What the memory encoder sees of masks: the object's own, and the sum of the others of its frame, at most 1.

    Args:
        masks: probabilities (R, H, W), one row per object.
        owners: the frame of each row (R,); None for one frame.

    Returns:
        Planes (R, 2, H, W).

    >>> mask_planes(torch.tensor([[[0.25]], [[0.5]], [[0.75]]])).flatten(1).tolist()
    [[0.25, 1.0], [0.5, 1.0], [0.75, 0.75]]
    """
    others = torch.zeros_like(masks)
    for rows in _by_owner(owners, masks.shape[0]):
        if len(rows) > 1:
            mine = masks[rows]
            others[rows] = (mine.sum(0, keepdim=True) - mine).clamp(0, 1)
    return torch.stack([masks, others], dim=1)


def aggregate(logits: Tensor, owners: Tensor | None = None) -> Tensor:
    """Probabilities of objects that share their frame's pixels with each other and the background.

    The background has ``Π (1 - p)``; all are clamped, and a softmax is taken over their log-odds.

    Args:
        logits: log-odds (R, H, W) of each object for itself.
        owners: the frame of each row (R,); None for one frame.

    Returns:
        Probabilities (R, H, W); those of a frame and its background add up to 1.

    >>> aggregate(torch.zeros(1, 1, 1)).item()  # p = 0.5 against a background of 0.5
    0.5
    """
    p = torch.sigmoid(logits)
    shared = torch.empty_like(p)
    for rows in _by_owner(owners, p.shape[0]):
        mine = p[rows]
        candidates = torch.cat([(1 - mine).prod(0, keepdim=True), mine]).clamp(EPSILON, 1 - EPSILON)
        shared[rows] = torch.softmax(torch.log(candidates / (1 - candidates)), dim=0)[1:]
    return shared


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize probabilities (R, H, W): the mean of the covered pixels downwards, bilinear upwards."""
    if masks.shape[-2:] == size:
        return masks
    if masks.shape[-2] >= size[0] and masks.shape[-1] >= size[1]:
        return F.interpolate(masks[None], size=size, mode="area")[0]
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def labels_of(masks: Tensor, ids: list[int]) -> Tensor:
    """Labels (H, W) of probabilities (R, H, W) of one frame: the likeliest object's id, 0 for the background.

    The background has what the objects leave of 1.
    """
    if not ids:
        return torch.zeros(masks.shape[-2:], dtype=torch.int64, device=masks.device)
    background = (1 - masks.sum(0, keepdim=True)).clamp_min(0)
    index = torch.cat([background, masks]).argmax(0)
    return torch.tensor([0, *ids], device=masks.device)[index]

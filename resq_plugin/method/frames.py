"""A frame: a tensor, or any pytree of tensors, such as (frame, masks, prompt, previous state)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from resq_plugin.errors import FrameError

__all__ = ["frame_to", "image_of", "looks_like_pixels", "unusable_values"]


LARGE = 30.0
"""Values above are no normalised pixels; a picture of 0 ... 255 has some in all but complete darkness."""


def _tensors(frame: object) -> list[Tensor]:
    return [frame] if isinstance(frame, Tensor) else [leaf for leaf in tree_leaves(frame) if isinstance(leaf, Tensor)]


def image_of(frame: object) -> Tensor:
    """Return the tensor that stands for a frame: its first (N, C, H, W), else its first.

    Batch, resolution and scene changes are told by it; other parts, such as a state that grows, may change theirs.

    Raises:
        FrameError: there is no tensor in it.
    """
    tensors = _tensors(frame)
    if not tensors:
        msg = (
            f"a frame must be a tensor (N, C, H, W); got {type(frame).__name__}. It may be a tuple, dict or other "
            "pytree that holds one; a class of yours becomes one by torch.utils._pytree.register_pytree_node."
        )
        raise FrameError(msg)
    return next((tensor for tensor in tensors if tensor.dim() == 4), tensors[0])


def looks_like_pixels(frame: object) -> bool:
    """Whether the image of a frame has values that no normalisation yields: none below 0, and some far above 1."""
    image = image_of(frame).detach()
    if image.dim() != 4 or not image.is_floating_point() or not image.numel():
        return False
    low, high = image.aminmax()
    return bool(low >= 0) and bool(high > LARGE)


def unusable_values(frame: object) -> tuple[int, int]:
    """Count the NaN and Inf of a frame's image, and the NaN of its other parts, which may mask with -Inf.

    Returns:
        How many, and of how many values.
    """
    image = image_of(frame)
    bad = total = 0
    for tensor in _tensors(frame):
        if tensor.is_floating_point():
            usable = torch.isfinite(tensor) if tensor is image else ~torch.isnan(tensor)
            if not bool(usable.all()):
                bad += int((~usable).sum())
                total += tensor.numel()
    return bad, total


def frame_to(frame: Any, device: torch.device | None) -> Any:
    """Return a frame with all its tensors on a device."""
    if isinstance(frame, Tensor):
        return frame.to(device)
    return tree_map_only(Tensor, lambda tensor: cast(Tensor, tensor).to(device), frame)

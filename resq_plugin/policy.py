"""The policy of Dynamic-ResQ, Eq. 9-11: which quantizer of the pool each pixel of a residual gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.config import PolicyConfig

__all__ = ["choose", "error_map", "mix", "share_error"]


def error_map(delta: Tensor, quantized: Tensor | None, channel_dim: int) -> Tensor:
    """Pixel-wise ‖δ - q(δ; Θ^i)‖ of Eq. 10, the norm being taken over channels.

    Args:
        delta: δ, (N, C, H, W), or (N, *, C) with ``channel_dim=-1``.
        quantized: q(δ; Θ^i) of the same shape; None stands for 0 bits, whose error is ‖δ‖.
        channel_dim: dimension of the channels.

    Returns:
        Norms (N, H, W).
    """
    error = delta if quantized is None else delta - quantized
    return error.square().sum(channel_dim).sqrt_()


def share_error(errors: Tensor, policy: PolicyConfig) -> Tensor:
    """Let the pixels of a region or frame share one error: the root mean square of theirs.

    Args:
        errors: (N, *spatial) of any number of spatial dimensions.
        policy: its granularity decides; with ``pixel`` the errors are returned as they are.

    Returns:
        Errors of the same shape.
    """
    if policy.granularity == "pixel" or errors.dim() < 2:
        return errors
    squares = errors.square()
    if policy.granularity == "frame":
        return squares.mean(dim=list(range(1, errors.dim())), keepdim=True).sqrt().expand_as(errors)
    pools = {2: F.avg_pool1d, 3: F.avg_pool2d, 4: F.avg_pool3d}
    mean = pools[errors.dim()](squares.unsqueeze(1), policy.region, ceil_mode=True).squeeze(1)
    for dim in range(1, errors.dim()):
        mean = mean.repeat_interleave(policy.region, dim).narrow(dim, 0, errors.shape[dim])
    return mean.sqrt()


def choose(errors: Sequence[Tensor], threshold: float | Tensor) -> Tensor:
    """Π of Eq. 11: the first i with ε_i - ε_(i+1) < τ, else the last.

    Args:
        errors: ε_1 ... ε_n, low to high bit width, each (N, H, W).
        threshold: τ, a number or a tensor broadcastable to (N, H, W).

    Returns:
        Indices (N, H, W), uint8, counted from 0.

    >>> choose([torch.tensor([9.0, 1.0, 9.0]), torch.tensor([8.9, 0.1, 1.0]), torch.tensor([0.0, 0.0, 0.0])], 0.5)
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    choice = torch.full(errors[0].shape, len(errors) - 1, dtype=torch.uint8, device=errors[0].device)
    for index in range(len(errors) - 2, -1, -1):
        choice.masked_fill_(errors[index] - errors[index + 1] < threshold, index)
    return choice


def mix(quantized: Sequence[Tensor | None], choice: Tensor, channel_dim: int) -> Tensor:
    """Compose q(δ; Θ^Π) from the outputs of the pool.

    Args:
        quantized: q(δ; Θ^i), each (N, C, H, W); None stands for 0 bits.
        choice: Π, (N, H, W).
        channel_dim: dimension of the channels.

    Returns:
        A new tensor (N, C, H, W).
    """
    choice = choice.unsqueeze(channel_dim)
    mixed = quantized[-1]
    if mixed is None:  # a pool of 0 bits only never comes here
        msg = "the widest quantizer of a pool cannot have 0 bits"
        raise ValueError(msg)
    for index in range(len(quantized) - 2, -1, -1):
        candidate = quantized[index]
        here = choice == index
        mixed = mixed.masked_fill(here, 0) if candidate is None else torch.where(here, candidate, mixed)
    return mixed

"""The policy of Dynamic-ResQ, Eq. 9-11: which quantizer of the pool each pixel of a residual gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.config import PolicyConfig

__all__ = ["choose", "error_map", "mix", "share_error"]


def error_map(
    delta: Tensor, integers: Tensor | None, scale: Tensor, channel_dim: int, out: Tensor | None = None
) -> Tensor:
    """Pixel-wise ‖δ - q(δ; Θ^i)‖ of Eq. 10, the norm being taken over channels.

    Args:
        delta: δ, (N, C, H, W), or (N, *, C) with ``channel_dim=-1``.
        integers: q(δ; Θ^i) / s, the integers of Eq. 1, of the same shape; None stands for 0 bits, whose error is ‖δ‖.
        scale: s, (); not used for 0 bits.
        channel_dim: dimension of the channels.
        out: memory of the shape of ``delta`` for what comes between.

    Returns:
        Norms (N, H, W).
    """
    if integers is None:
        squares = torch.square(delta, out=out)
    else:
        squares = torch.addcmul(delta, integers, -scale, out=out).square_()
    return squares.sum(channel_dim).sqrt_()


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
    sides = [min(policy.region, size) for size in errors.shape[1:]]
    mean = pools[errors.dim()](squares.unsqueeze(1), sides, ceil_mode=True).squeeze(1)
    for dim, side in enumerate(sides, start=1):
        mean = mean.repeat_interleave(side, dim).narrow(dim, 0, errors.shape[dim])
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


def mix(
    integers: Sequence[Tensor | None],
    scales: Sequence[Tensor],
    choice: Tensor,
    channel_dim: int,
    *,
    inplace: bool = False,
) -> Tensor:
    """Compose q(δ; Θ^Π) from the outputs of the pool.

    Args:
        integers: q(δ; Θ^i) / s_i, each (N, C, H, W); None stands for 0 bits.
        scales: s_i, each ().
        choice: Π, (N, H, W).
        channel_dim: dimension of the channels.
        inplace: whether the result may take the memory of ``integers``.

    Returns:
        A tensor (N, C, H, W), a new one unless ``inplace``.

    >>> mix([None, torch.ones(1, 2, 3)], [torch.tensor(1.0), torch.tensor(0.5)], torch.tensor([[0, 1, 1]]), 1)
    tensor([[[0.0000, 0.5000, 0.5000],
             [0.0000, 0.5000, 0.5000]]])
    """
    choice = choice.unsqueeze(channel_dim)
    steps = torch.zeros((), dtype=scales[-1].dtype, device=scales[-1].device)
    mixed = None
    for index, (candidate, scale) in enumerate(zip(integers, scales, strict=True)):
        if candidate is not None:
            here = choice == index
            mixed = candidate if mixed is None else torch.where(here, candidate, mixed, out=mixed if inplace else None)
            steps = torch.where(here, scale, steps)
    if mixed is None:
        msg = "a pool needs a quantizer of more than 0 bits to mix"
        raise ValueError(msg)
    return torch.mul(mixed, steps.to(mixed.dtype), out=mixed if inplace else None)

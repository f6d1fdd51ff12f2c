"""The elementwise part of Dynamic-ResQ as one function, plain and through `torch.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from resq_plugin.config import PolicyConfig
from resq_plugin.policy import choose, error_map, mix, share_error
from resq_plugin.quantizer import fake_quantize

__all__ = ["quantize_pool", "quantize_pool_compiled"]


def quantize_pool(
    delta: Tensor,
    scales: Sequence[Tensor],
    bits: Sequence[int],
    threshold: Tensor,
    policy: PolicyConfig,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Quantize a residual with the quantizer that Eq. 11 chooses for each pixel.

    Args:
        delta: δ, (N, C, H, W), or (N, *, C) with ``channel_dim=-1``.
        scales: s of every quantizer of the pool, low to high bit width.
        bits: their bit widths.
        threshold: τ, in units of ‖δ‖.
        policy: granularity of the choice.
        channel_dim: dimension of the channels.

    Returns:
        δ̂ of the shape of ``delta`` and the choice Π (N, H, W).
    """
    quantized = [
        None if width == 0 else fake_quantize(delta, scale, width) for scale, width in zip(scales, bits, strict=True)
    ]
    with torch.no_grad():
        errors = [share_error(error_map(delta, q, channel_dim), policy) for q in quantized]
        choice = choose(errors, threshold)
    return mix(quantized, choice, channel_dim), choice


@cache
def _compiled() -> Any:
    return torch.compile(quantize_pool, dynamic=True)


def quantize_pool_compiled(*args: Any) -> tuple[Tensor, Tensor]:
    """`quantize_pool` through `torch.compile`; compiled once, at the first call."""
    result: tuple[Tensor, Tensor] = _compiled()(*args)
    return result

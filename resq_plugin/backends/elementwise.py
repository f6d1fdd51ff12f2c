"""The elementwise part of a layer as one function each, run plainly or through `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from resq_plugin.config import PolicyConfig
from resq_plugin.errors import ConfigError
from resq_plugin.method import (
    HALF_TYPES,
    Workspace,
    choose,
    error_map,
    fake_quantize,
    mix,
    quantize_to_integers,
    share_error,
)

__all__ = ["compiled", "quantize_difference"]

F = TypeVar("F", bound=Callable[..., Any])


def quantize_difference(
    x: Tensor,
    reference: Tensor | None,
    scales: Sequence[Tensor],
    bits: Sequence[int],
    threshold: Tensor | None,
    policy: PolicyConfig,
    channel_dim: int,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Quantize a residual, with the quantizer that Eq. 11 chooses for each pixel if there are several.

    Args:
        x: x_t, (N, C, H, W), or (N, *, C) with ``channel_dim=-1``.
        reference: what the residual is to, the same shape; None when ``x`` is the residual already.
        scales: s of every quantizer of the pool, low to high bit width.
        bits: their bit widths.
        threshold: τ, in units of ‖δ‖; not needed for a single quantizer.
        policy: granularity of the choice.
        channel_dim: dimension of the channels.
        workspace: memory for the residual, δ̂ and what comes between.

    Returns:
        δ̂ of the shape of ``x`` and the choice Π (N, H, W), None for a single quantizer.
    """
    if x.dtype in HALF_TYPES:
        whole = x.float() if reference is None else x.float() - reference.float()
        quantized, choice = quantize_difference(whole, None, scales, bits, threshold, policy, channel_dim)
        return quantized.to(x.dtype), choice
    count = 1 if threshold is None else len(bits) + 2
    found = None if workspace is None else workspace.like(x, count)
    difference, *room = [None] * count if found is None else found
    delta = x if reference is None else torch.sub(x, reference, out=difference)
    if threshold is None:
        return fake_quantize(delta, scales[0], bits[0], out=difference), None
    if torch.is_grad_enabled() and (delta.requires_grad or any(scale.requires_grad for scale in scales)):
        return _choose_and_quantize(delta, scales, bits, threshold, policy, channel_dim)
    integers = [
        None if width == 0 else quantize_to_integers(delta, scale, width, out=out)
        for scale, width, out in zip(scales, bits, room[1:], strict=True)
    ]
    with torch.no_grad():
        errors = [
            share_error(error_map(delta, values, scale, channel_dim, room[0]), policy)
            for values, scale in zip(integers, scales, strict=True)
        ]
        choice = choose(errors, threshold)
    return mix(integers, scales, choice, channel_dim, inplace=found is not None), choice


def _choose_and_quantize(
    delta: Tensor,
    scales: Sequence[Tensor],
    bits: Sequence[int],
    threshold: Tensor,
    policy: PolicyConfig,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """The same with gradients: those of a pixel are the ones of the quantizer it got, none for 0 bits."""
    candidates = [
        fake_quantize(delta, scale, width) if width else None for scale, width in zip(scales, bits, strict=True)
    ]
    with torch.no_grad():
        one = torch.ones((), dtype=delta.dtype, device=delta.device)
        errors = [share_error(error_map(delta, candidate, one, channel_dim), policy) for candidate in candidates]
        choice = choose(errors, threshold)
    chosen = None
    for index, candidate in enumerate(candidates):
        if candidate is not None:
            here = (choice == index).unsqueeze(channel_dim)
            rest = torch.zeros((), dtype=delta.dtype, device=delta.device) if chosen is None else chosen
            chosen = torch.where(here, candidate, rest)
    if chosen is None:
        msg = "a pool needs a quantizer of more than 0 bits to mix"
        raise ValueError(msg)
    return chosen, choice


@cache
def compiled(function: F) -> F:
    """Return the function through `torch.compile`; it is compiled at its first call.

    The result raises ConfigError when this machine cannot compile.
    """
    fast = torch.compile(function, dynamic=True)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except RuntimeError as error:
            if "compile" not in type(error).__name__.lower() and "inductor" not in type(error).__name__.lower():
                raise
            reason = str(error).splitlines()[0]
            msg = f"compile=True fails on this machine ({reason}); install a C++ compiler or write compile=False."
            raise ConfigError(msg) from error

    return run  # type: ignore[return-value]

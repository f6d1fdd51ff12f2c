"""Eq. 5 of one call of one layer, without memory: what a stream runs, and what runs again in a backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from resq_plugin.method.layers import ResidualLayer
from resq_plugin.method.workspace import Workspace

__all__ = ["ResidualStep", "keyframe_path", "residual_path"]


class ResidualStep(NamedTuple):
    """What a residual frame finds.

    Attributes:
        z: ẑ_t, the shape of the layer's output.
        delta_hat: δ̂; valid until the workspace is used again.
        choice: Π (N, H, W) of a dynamic pool.
    """

    z: Tensor
    delta_hat: Tensor
    choice: Tensor | None


def keyframe_path(layer: ResidualLayer, x: Tensor, options: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """x̂_k, where the residual is to it, and ẑ_k."""
    if layer.settings.config.reference == "float" or layer.settings.residual is None:
        return None, layer.keyframe(x, **options)
    x_hat = layer.quantize_keyframe(x)
    return x_hat, layer.apply_keyframe(x_hat, **options)


def residual_path(
    layer: ResidualLayer,
    x: Tensor,
    memory: tuple[Tensor, Tensor],
    options: dict[str, Any],
    workspace: Workspace | None = None,
) -> ResidualStep:
    """Return ẑ_t of the layer's input x_t and its memory, x_k and z_k."""
    x_k, z_k = memory
    delta_hat, choice = layer.quantize_residual(x, x_k, workspace)
    delta_z = layer.apply_residual(delta_hat, **options)
    z = delta_z + z_k if delta_z.requires_grad else delta_z.add_(z_k)
    return ResidualStep(z, delta_hat, choice)

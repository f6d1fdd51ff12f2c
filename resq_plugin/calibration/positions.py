"""What a layer reads and puts out at single output positions, as rows of matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resq_plugin.calibration.sampling import padded_map
from resq_plugin.method import ResidualLayer

__all__ = ["Places", "choose_places", "has_rows", "input_rows", "output_rows", "weight_rows"]

Places = tuple[Tensor, ...]
"""Indices of positions: sample, and place in every spatial dimension of the output."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_rows(layer: ResidualLayer) -> bool:
    """Whether an output is one weight times one row of inputs: of convolutions and linear layers."""
    return isinstance(layer, (*_CONVOLUTIONS, nn.Linear))


def choose_places(layer: ResidualLayer, z: Tensor, count: int, generator: torch.Generator) -> Places:
    """Choose output positions at random, none twice.

    Args:
        layer: the layer.
        z: its output, (N, C, *) or (N, *, C).
        count: how many are wanted; all, if there are fewer.
        generator: source of randomness, on the CPU.
    """
    shape = _channels_last(layer, z).shape[:-1]
    chosen = torch.randperm(shape.numel(), generator=generator, device="cpu")[:count]
    return torch.unravel_index(chosen.to(z.device), shape)


def output_rows(layer: ResidualLayer, z: Tensor, places: Places) -> Tensor:
    """Outputs at those places, (G, P, O)."""
    rows = _channels_last(layer, z)[places]
    return rows.view(len(rows), _groups(layer), -1).transpose(0, 1)


def input_rows(layer: ResidualLayer, x: Tensor, places: Places) -> Tensor:
    """What the outputs at those places are made of, (G, P, D).

    Args:
        layer: the layer.
        x: its input, (N, C, *) or (N, *, C).
        places: from `choose_places`.
    """
    if not isinstance(layer, _CONVOLUTIONS):
        return x[places].unsqueeze(0)
    x = padded_map(layer, x)
    for dim, (kernel, dilation, stride) in enumerate(
        zip(layer.kernel_size, layer.dilation, layer.stride, strict=True), start=2
    ):
        x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    rows = x.movedim(1, len(places))[places]
    return rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)


def weight_rows(layer: ResidualLayer, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape, (G, O, D)."""
    return weight.reshape(_groups(layer), weight.shape[0] // _groups(layer), -1)


def _groups(layer: ResidualLayer) -> int:
    return layer.groups if isinstance(layer, _CONVOLUTIONS) else 1


def _channels_last(layer: ResidualLayer, z: Tensor) -> Tensor:
    return z if isinstance(layer, nn.Linear) else z.movedim(1, -1)

"""Small windows of layer inputs that stand for full maps in the range search.

A window is the exact receptive field of a few output positions, so the objective on windows is Eq. 8 on a sample of
the output. The operation itself runs on a batch of windows, with no im2col.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.method import ResidualLayer

__all__ = [
    "Window",
    "apply_to_windows",
    "choose_windows",
    "cut_outputs",
    "cut_windows",
    "inside",
    "output_positions",
    "padded_map",
]

SIDE = 4
"""Output positions per window side: 4×4 for images, so that a 3×3 kernel reads 6×6 inputs."""

Window = tuple[int, ...]
"""Sample index and start of the window in every spatial dimension, in output positions (convolutions) or inputs."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _spatial(layer: ResidualLayer, x: Tensor) -> list[int]:
    """Sizes among which windows are placed."""
    if isinstance(layer, nn.Linear):
        return list(x.shape[1:-1])
    sizes = list(x.shape[2:])
    if not isinstance(layer, _CONVOLUTIONS):
        return sizes
    pads = _padding(layer)
    return [
        (before + size + behind - dilation * (kernel - 1) - 1) // stride + 1
        for size, (before, behind), dilation, kernel, stride in zip(
            sizes, pads, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[tuple[int, int]]:
    """Padding before the first and behind the last input in every dimension; 'same' may pad one more behind."""
    if not isinstance(layer.padding, str):
        return [(pad, pad) for pad in layer.padding]
    same = layer.padding == "same"
    totals = [same * d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def output_positions(layer: ResidualLayer, x: Tensor) -> int:
    """How many positions there are to choose from."""
    return int(x.shape[0] * math.prod(_spatial(layer, x)))


def choose_windows(layer: ResidualLayer, x: Tensor, positions: int, generator: torch.Generator) -> list[Window]:
    """Place windows that hold about ``positions`` output positions: at random, or side by side if all are wanted.

    Args:
        layer: the layer that reads ``x``.
        x: its input, (N, C, H, W) or (N, *, C).
        positions: output positions wanted.
        generator: source of randomness, on the CPU.
    """
    sizes = _spatial(layer, x)
    if positions >= output_positions(layer, x):
        tiles = [sorted({*range(0, size - SIDE, SIDE), max(0, size - SIDE)}) for size in sizes]
        return list(itertools.product(range(x.shape[0]), *tiles))
    count = max(1, round(positions / math.prod(min(SIDE, size) for size in sizes)))
    highs = [x.shape[0], *(max(1, size - SIDE + 1) for size in sizes)]
    columns = [torch.randint(high, (count,), generator=generator, device="cpu").tolist() for high in highs]
    return list(zip(*columns, strict=True))


def cut_windows(layer: ResidualLayer, x: Tensor, windows: list[Window]) -> Tensor:
    """Copy the inputs of the windows.

    Args:
        layer: the layer that reads ``x``.
        x: its input, (N, C, H, W) or (N, *, C).
        windows: from `choose_windows`, for an input of the same shape.

    Returns:
        A batch (windows, C, h, w), or (windows, *, C) for linear layers.
    """
    sizes = _spatial(layer, x)
    if isinstance(layer, _CONVOLUTIONS):
        return torch.stack([_receptive_field(layer, x, window, sizes) for window in windows])
    cut = []
    for index, *starts in windows:
        spans = [slice(start, start + SIDE) for start in starts]
        cut.append(x[index][tuple(spans if isinstance(layer, nn.Linear) else [slice(None), *spans])])
    return torch.stack(cut)


def inside(layer: ResidualLayer, x: Tensor, windows: list[Window]) -> Tensor:
    """1 for pixels of the map and 0 for what pads it, (windows, h, w) or (windows, *).

    Args:
        layer: the layer that reads ``x``.
        x: its input, (N, C, H, W) or (N, *, C).
        windows: as for `cut_windows`.
    """
    ones = torch.ones_like(x.narrow(layer.channel_dim, 0, 1))
    return cut_windows(layer, ones, windows).squeeze(layer.channel_dim)


def cut_outputs(layer: ResidualLayer, z: Tensor, windows: list[Window]) -> Tensor | None:
    """Cut what `apply_to_windows` makes of windows out of a map (N, C, H, W) or (N, *, C) of the layer's output.

    Returns:
        A batch (windows, C, h, w), or (windows, *, C); None for transposed convolutions, whose windows are inputs.
    """
    if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
        return None
    cut = []
    for index, *starts in windows:
        spans = [slice(start, start + SIDE) for start in starts]
        cut.append(z[index][tuple(spans if isinstance(layer, nn.Linear) else [slice(None), *spans])])
    return torch.stack(cut)


def _receptive_field(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, window: Window, sizes: list[int]) -> Tensor:
    index, *starts = window
    inputs: list[slice] = []  # of the padded map
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        begin = start * layer.stride[dim]
        reach = (min(SIDE, size) - 1) * layer.stride[dim] + layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
        inputs.append(slice(begin, begin + reach))
    spans: list[slice] = []  # of the map itself
    pads: list[tuple[int, int]] = []
    for padded, (shift, _), length in zip(inputs, _padding(layer), x.shape[2:], strict=True):
        begin, end = padded.start - shift, padded.stop - shift
        span = slice(min(max(begin, 0), length), min(max(end, 0), length))
        spans.append(span)
        pads.append((max(min(end, span.start) - begin, 0), max(end - max(begin, span.stop), 0)))
    if layer.padding_mode != "zeros" and any(itertools.chain.from_iterable(pads)):
        # Borders that mirror or wrap need the whole map.
        return padded_map(layer, x[index : index + 1])[0][(slice(None), *inputs)]
    crop = x[index][(slice(None), *spans)]
    flat = list(itertools.chain.from_iterable(reversed(pads)))
    return F.pad(crop, flat) if any(flat) else crop.clone()


def padded_map(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """``x`` (N, C, *) with the borders that the layer adds to it."""
    if layer.padding_mode != "zeros":
        return F.pad(x, cast(Any, layer)._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return F.pad(x, list(itertools.chain.from_iterable(reversed(_padding(layer)))))


def apply_to_windows(layer: ResidualLayer, x: Tensor, weight: Tensor) -> Tensor:
    """Run the layer's operation, without bias, on a batch of windows from `cut_windows`."""
    if isinstance(layer, _CONVOLUTIONS):
        operation = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        return operation(x, weight, None, layer.stride, 0, layer.dilation, layer.groups)
    return layer.linear(x, weight, None)

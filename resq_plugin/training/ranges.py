"""Ranges as Parameters: which are trained, how fast, and when they are lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.errors import TrainingError
from resq_plugin.method import TrainableRange, residual_layers
from resq_plugin.training.settings import TrainConfig

__all__ = [
    "Ranges",
    "check_ranges",
    "counting_elements",
    "gradient_scale",
    "parameter_groups",
    "prepare_ranges",
    "scale_gradients",
]

Ranges = dict[tuple[str, str], TrainableRange]
"""By layer and name: ``keyframe.activation``, ``residual.0.activation``, ``residual.weight``, ..."""


def prepare_ranges(model: nn.Module, config: TrainConfig, *, calibrated: bool = True) -> Ranges:
    """Make the ranges Parameters that are to be trained, freeze the others, and return the trained ones.

    Args:
        model: converted.
        config: tells which are trained.
        calibrated: whether calibration is over, so that a layer without a range is one that no frame reaches.
    """
    trained = {}
    for name, layer in residual_layers(model).items():
        if config.weight_scales == "learned":
            layer.learn_weight_scales()
        ranges = layer.range_parameters()
        used = not calibrated or all(bool((found.scale() > 0).all()) for found in ranges.values())
        for key, found in ranges.items():
            learned = config.activation_scales if key.endswith("activation") else config.weight_scales
            for parameter in found.parameters:
                parameter.requires_grad_(learned == "learned" and used)
            if learned == "learned" and used:
                trained[name, key] = found
    return trained


def parameter_groups(model: nn.Module, ranges: Ranges, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer: the weights, and every range with a rate that is relative to its value."""
    own = {id(parameter) for found in ranges.values() for parameter in found.parameters}
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": config.lr, "weight_decay": config.weight_decay}]
    for found in ranges.values():
        for parameter in found.parameters:
            size = float(parameter.detach().abs().mean())
            groups.append({"params": [parameter], "lr": config.scale_lr * size, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def gradient_scale(elements: int, bits: int) -> float:
    """Factor of the gradient of a scale in LSQ: ``1 / sqrt(n Q_p)`` with ``Q_p = 2^(b-1) - 1``.

    Args:
        elements: n, how many values share the scale.
        bits: b.
    """
    return 1 / math.sqrt(max(elements, 1) * max(2 ** (bits - 1) - 1, 1))


@contextmanager
def counting_elements(model: nn.Module) -> Iterator[dict[str, int]]:
    """Note how many values of one image each layer quantizes, by layer, for `scale_gradients`."""
    elements: dict[str, int] = {}
    handles = []
    for name, layer in residual_layers(model).items():

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            x = args[0] if args else kwargs["input"]
            if isinstance(x, Tensor):
                elements[name] = x[:1].numel()

        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield elements
    finally:
        for handle in handles:
            handle.remove()


def scale_gradients(ranges: Ranges, elements: dict[str, int], model: nn.Module) -> None:
    """Multiply the gradients of ranges by `gradient_scale`, so that clipping weighs them like those of weights."""
    layers = residual_layers(model)
    for (name, key), found in ranges.items():
        for parameter in found.parameters:
            if parameter.grad is not None:
                count = elements.get(name, 1)
                if key.endswith("weight"):
                    weight: Any = layers[name].weight
                    count = weight.numel() // parameter.numel()
                parameter.grad.mul_(gradient_scale(count, found.bits))


@torch.no_grad()
def check_ranges(ranges: Ranges, step: int, kept: str) -> None:
    """Look for ranges that are no use any more.

    Raises:
        TrainingError: a scale is zero, negative or not finite; layer and step are named.
    """
    if not ranges:
        return
    scales = [found.scale().float() for found in ranges.values()]
    ends = torch.stack([torch.stack([scale.min(), scale.max()]) for scale in scales])
    good = torch.isfinite(ends).all(1) & (ends[:, 0] > 0)
    if bool(good.all()):
        return
    index = int((~good).nonzero()[0])
    (name, key), scale = list(ranges)[index], scales[index].flatten()
    path, _, what = key.rpartition(".")
    value = float(scale[~(torch.isfinite(scale) & (scale > 0))][0])
    msg = (
        f"layer {name} ({path}): the {what} scale became {value:.3g} in step {step}; {kept} "
        "Train with a lower scale_lr, lr or clip_norm."
    )
    raise TrainingError(msg)

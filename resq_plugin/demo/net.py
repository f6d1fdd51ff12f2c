"""A small segmentation net for the demo video, built like the real ones, with its trained weights."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from resq_plugin.conversion import load
from resq_plugin.demo.shapes import CLASSES

__all__ = ["DemoNet", "load_demo_net", "load_trained_demo_net", "mean_iou"]

_WEIGHTS = "demonet.pth"
_TRAINED = "demonet_w4a4_w3a3.pth"
"""A checkpoint of ``benchmarks/train_demo_qat.py``."""


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two 3x3 convolutions and a skip connection, (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.second = _conv(channels, channels, 3, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.second(self.first(x)) + x)
        return out


class _InvertedBlock(nn.Module):
    """Widen, filter each channel on its own, narrow, and add, (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, kernel: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = _conv(channels, hidden, 1)
        self.depthwise = _conv(hidden, hidden, kernel, groups=hidden)
        self.project = _conv(hidden, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x))) + x
        return out


class DemoNet(nn.Module):
    """Encoder to 1/8 resolution, depthwise context, decoder with two lateral connections, bilinear output.

    Args:
        classes: Number of classes C.
        width: Channels at full depth are 4 times this.
    """

    def __init__(self, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        half, quarter, eighth = width, 2 * width, 4 * width
        self.stem = _conv(3, half, 3, stride=2)
        self.stage1 = nn.Sequential(_conv(half, quarter, 3, stride=2), _Block(quarter))
        self.stage2 = nn.Sequential(_conv(quarter, eighth, 3, stride=2), _Block(eighth), _InvertedBlock(eighth, 3))
        self.context = nn.Sequential(_InvertedBlock(eighth, 5), _InvertedBlock(eighth, 5))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(eighth, quarter, 4, 2, 1, bias=False), nn.BatchNorm2d(quarter), nn.ReLU(inplace=True)
        )
        self.lateral1 = _conv(quarter, quarter, 1, relu=False)
        self.fuse = nn.Sequential(nn.ReLU(inplace=True), _conv(quarter, half, 3))
        self.lateral0 = _conv(half, half, 1, relu=False)
        self.refine = nn.Sequential(nn.ReLU(inplace=True), _conv(half, 2 * half, 3))
        self.classifier = nn.Conv2d(2 * half, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, C, H, W) of normalised frames (N, 3, H, W), H and W multiples of 8."""
        half = self.stem(x)
        quarter = self.stage1(half)
        eighth = self.context(self.stage2(quarter))
        quarter = self.fuse(self.up(eighth) + self.lateral1(quarter))
        quarter = nnf.interpolate(quarter, scale_factor=2.0, mode="bilinear", align_corners=False)
        scores = self.classifier(self.refine(quarter + self.lateral0(half)))
        return nnf.interpolate(scores, scale_factor=2.0, mode="bilinear", align_corners=False)


def load_demo_net() -> DemoNet:
    """The trained `DemoNet`, in eval mode, on the CPU."""
    net = DemoNet()
    with resources.files("resq_plugin.demo").joinpath(_WEIGHTS).open("rb") as file:
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return net.eval()


def load_trained_demo_net() -> nn.Module:
    """The `DemoNet` that was trained through time at W4A4->W3A3, converted, in eval mode, on the CPU."""
    with resources.as_file(resources.files("resq_plugin.demo").joinpath(_TRAINED)) as path:
        return load(path, DemoNet()).eval()


def mean_iou(predictions: Tensor, labels: Tensor, classes: int = len(CLASSES)) -> float:
    """Mean over the classes of intersection over union, counted over all pixels.

    Args:
        predictions: Class indices, (T, H, W).
        labels: Class indices, (T, H, W).
        classes: Number of classes; one that occurs in neither argument is left out of the mean.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: If the shapes differ.
    """
    if predictions.shape != labels.shape:
        msg = f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)}: expected equal shapes"
        raise ValueError(msg)
    pairs = torch.bincount(labels.flatten() * classes + predictions.flatten(), minlength=classes**2)
    table = pairs.reshape(classes, classes)
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return float((both / either)[either > 0].mean())

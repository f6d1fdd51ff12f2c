"""The ResNet trunks of STM up to stride 16: one for frames, one for frames with masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Bottleneck", "Trunk", "TrunkConfig"]

EXPANSION = 4
"""Channels that a bottleneck returns per channel of its width."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrunkConfig:
    """Shape of a trunk; the defaults are ResNet-50 up to its third stage.

    Attributes:
        stem: channels of the 7×7 stem.
        width: channels inside the bottlenecks of the first stage; each later stage doubles them.
        blocks: bottlenecks per stage, at strides 4, 8 and 16.
        stride_in: which convolution of a bottleneck has the stride, ``spatial`` (3×3) or ``reduce`` (1×1).
        norm: batch norm behind each convolution; without it convolutions have a bias, as where it is folded.
        colours: what pixels become: ``imagenet`` (RGB, mean and deviation of ImageNet) or ``caffe`` (BGR, 0 to 255,
            minus the mean that the weights bring).
    """

    stem: int = 64
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6)
    stride_in: str = "spatial"
    norm: bool = True
    colours: str = "imagenet"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the features at strides 4, 8 and 16."""
        return tuple(self.width * 2**stage * EXPANSION for stage in range(len(self.blocks)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def _norm(channels: int, config: TrunkConfig) -> nn.Module:
    return nn.BatchNorm2d(channels) if config.norm else nn.Identity()


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution with a skip connection.

    Args:
        inputs: channels of the input.
        width: channels of the 3×3 convolution; the output has four times as many.
        stride: of the block.
        project: a 1×1 convolution on the skip connection.
        config: of the trunk.
    """

    def __init__(self, inputs: int, width: int, stride: int, project: bool, config: TrunkConfig) -> None:
        super().__init__()
        outputs, bias = width * EXPANSION, not config.norm
        strides = (stride, 1) if config.stride_in == "reduce" else (1, stride)
        self.reduce = _convolution(inputs, width, 1, strides[0], bias)
        self.reduce_norm = _norm(width, config)
        self.spatial = _convolution(width, width, 3, strides[1], bias)
        self.spatial_norm = _norm(width, config)
        self.expand = _convolution(width, outputs, 1, 1, bias)
        self.expand_norm = _norm(outputs, config)
        self.project = _convolution(inputs, outputs, 1, stride, bias) if project else None
        self.project_norm = _norm(outputs, config) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 width, H / stride, W / stride)."""
        skip = x if self.project is None else self.project_norm(self.project(x))
        x = F.relu(self.reduce_norm(self.reduce(x)))
        x = F.relu(self.spatial_norm(self.spatial(x)))
        return F.relu(self.expand_norm(self.expand(x)) + skip)


class Trunk(nn.Module):
    """Frames, and masks if there are mask planes, to features at strides 4, 8 and 16.

    Args:
        config: the shape.
        mask_planes: planes beside the frame, each seen by its own bias-free 7×7 filters, whose result is added to
            that of the frame before batch norm.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: TrunkConfig, mask_planes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer(
            "mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=config.colours == "caffe"
        )
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.stem = _convolution(3, config.stem, 7, 2, not config.norm)
        self.mask_stem = _convolution(mask_planes, config.stem, 7, 2, False) if mask_planes else None
        self.stem_norm = _norm(config.stem, config)
        stages, inputs = [], config.stem
        for stage, blocks in enumerate(config.blocks):
            width, stride = config.width * 2**stage, 1 if stage == 0 else 2
            stages.append(
                nn.ModuleList(
                    Bottleneck(inputs if i == 0 else width * EXPANSION, width, stride if i == 0 else 1, i == 0, config)
                    for i in range(blocks)
                )
            )
            inputs = width * EXPANSION
        self.stages = nn.ModuleList(stages)

    def normalize(self, frame: Tensor) -> Tensor:
        """RGB 0..1 (N, 3, H, W) to what the stem reads."""
        if self.config.colours == "caffe":
            return frame.flip(1) * 255 - self.mean
        return (frame - self.mean) / self.deviation

    def forward(self, frame: Tensor, planes: Tensor | None = None, owners: Tensor | None = None) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            frame: (V, 3, H, W), RGB 0..1, sides multiples of 16.
            planes: mask planes (R, P, H, W), one row per object.
            owners: the frame of each row (R,).

        Returns:
            Features (V or R, C, H / s, W / s) for s = 4, 8, 16.
        """
        if planes is None:
            x = self.stem(self.normalize(frame))
        else:
            frame = self.normalize(frame)
            frame = frame.expand(planes.shape[0], -1, -1, -1) if owners is None else frame[owners]
            x = self.stem(frame) + cast(nn.Module, self.mask_stem)(planes)
        x = F.max_pool2d(F.relu(self.stem_norm(x)), 3, 2, 1)
        features = []
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage):
                x = block(x)
            features.append(x)
        return tuple(features)

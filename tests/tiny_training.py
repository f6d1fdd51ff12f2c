"""A tiny net to train, and clips for it."""

from __future__ import annotations

from typing import Any

import torch
from helpers import ZOO, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert


def labelled_clips(count: int = 8, length: int = 3, shape: tuple[int, ...] = (3, 12, 16)) -> list[tuple[Tensor, Any]]:
    """Clips (T, C, H, W) with one class (T, H / 2, W / 2) per pixel, which depends on the brightness."""
    clips = []
    for seed in range(count):
        frames = torch.stack([frame[0] for frame in video(length, (1, *shape), seed=seed)])
        labels = (torch.nn.functional.avg_pool2d(frames.mean(1, keepdim=True), 2)[:, 0] > 0).long()
        clips.append((frames, labels))
    return clips


def make_net(
    precision: str = "W4A4->W3A3", name: str = "plain", dtype: torch.dtype = torch.float32, **settings: Any
) -> nn.Module:
    """A calibrated net, (N, 3, H, W) to (N, 4, H / 2, W / 2)."""
    model = convert(seeded(ZOO[name]).to(dtype), ResQConfig.parse(precision, **settings))
    calibrate(model, [[frame.to(dtype) for frame in video(3, (2, 3, 12, 16), seed=seed)] for seed in (20, 21)])
    return model


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Loss () of scores (N, C, H, W) and labels (N, H, W)."""
    return torch.nn.functional.cross_entropy(scores, labels)

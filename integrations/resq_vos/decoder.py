"""The decoder of STM: what was read from memory to one map per object, with two refinements by skip connections."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Refine", "ResidualBlock", "upsample"]


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, pixel centres at half positions."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3×3 convolutions, ``x + b(relu(a(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.b(F.relu(self.a(F.relu(x))))


class Refine(nn.Module):
    """Doubles the resolution with the help of the query trunk's feature there.

    Args:
        inputs: channels of that feature.
        channels: of the decoder.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(inputs, channels, 3, padding=1)
        self.before = ResidualBlock(channels)
        self.after = ResidualBlock(channels)

    def forward(self, feature: Tensor, x: Tensor) -> Tensor:
        """Feature (N, C_in, 2H, 2W) and x (N, C, H, W) to (N, C, 2H, 2W)."""
        return self.after(self.before(self.skip(feature)) + upsample(x, 2))

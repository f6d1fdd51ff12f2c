"""PoseNet (MobileNetV1-0.75, Google) as parts of an MMPose top-down estimator with the 15 joints of JHMDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from mmpose.models.heads.base_head import BaseHead
from mmpose.registry import MODELS
from torch import Tensor, nn

STRIDE = 16
STRIDED = (2, 4, 6)
WIDTHS = (24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 384, 384)
# Joints of JHMDB (neck, belly, head, then shoulders, hips, elbows, knees, wrists, ankles, right before left) as means
# of joints of COCO; PoseNet sees no neck and no belly.
JOINTS = ((5, 6), (5, 6, 11, 12), (0,), (6,), (5,), (12,), (11,), (8,), (7,), (14,), (13,), (10,), (9,), (16,), (15,))


@MODELS.register_module()
class PoseNetTrunk(nn.Module):
    """MobileNetV1-0.75 without batch norm, stride 16.

    Frames (N, 3, H, W) have sides of the form 16 k + 1, for which TensorFlow's SAME padding is symmetric.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1)
        for i in range(1, 14):
            before, width, stride = WIDTHS[i - 1], WIDTHS[i], 2 if i in STRIDED else 1
            depthwise = nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before)
            self.add_module(f"Conv2d_{i}_depthwise", depthwise)
            self.add_module(f"Conv2d_{i}_pointwise", nn.Conv2d(before, width, 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return features (N, C, k + 1, k + 1)."""
        for convolution in self.children():
            x = convolution(x).clamp_(0, 6)
        return (x,)


@MODELS.register_module()
class PoseNetHead(BaseHead):
    """Heat maps and offsets of 17 joints; a joint is at the maximum of its heat map plus the offset there."""

    def __init__(self) -> None:
        super().__init__()
        self.heatmap_2 = nn.Conv2d(WIDTHS[-1], 17, 1)
        self.offset_2 = nn.Conv2d(WIDTHS[-1], 34, 1)

    def forward(self, feats: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        """Return heat maps (N, 17, H, W) and offsets (N, 34, H, W)."""
        return self.heatmap_2(feats[0]), self.offset_2(feats[0])

    def predict(self, feats: tuple[Tensor], *args: Any, **kwargs: Any) -> list[InstanceData]:  # noqa: ARG002
        """Return the joints of each crop in its pixels."""
        return self.joints_of(*self.forward(feats))

    def joints_of(self, heatmaps: Tensor, offsets: Tensor) -> list[InstanceData]:
        """Return the joints that heat maps and offsets tell, of each crop in its pixels."""
        scores, places = heatmaps.flatten(2).max(-1)  # (N, 17)
        rows, columns = places // heatmaps.shape[-1], places % heatmaps.shape[-1]
        offsets = offsets.flatten(2).unflatten(1, (2, 17))  # (N, 2, 17, H W); y before x
        moved = offsets.gather(-1, places[:, None, :, None].expand(-1, 2, -1, 1)).squeeze(-1)
        points = torch.stack([columns * STRIDE + moved[:, 1], rows * STRIDE + moved[:, 0]], dim=-1)
        return [_jhmdb(p.numpy(), s.sigmoid().numpy()) for p, s in zip(points, scores, strict=True)]

    def loss(self, *args: Any, **kwargs: Any) -> dict:
        """Refuse."""
        msg = "PoseNet is not trained here."
        raise NotImplementedError(msg)


def _jhmdb(points: np.ndarray, scores: np.ndarray) -> InstanceData:
    joints = np.stack([points[list(part)].mean(0) for part in JOINTS])
    return InstanceData(
        keypoints=joints[None], keypoint_scores=np.stack([scores[list(part)].min() for part in JOINTS])[None]
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights by their names in the estimator."""
    state = torch.load(path, weights_only=True)
    heads = ("heatmap_2.", "offset_2.")
    named = {("head." if key.startswith(heads) else "backbone.") + key: value for key, value in state.items()}
    return {key: value for key, value in named.items() if "displacement" not in key}

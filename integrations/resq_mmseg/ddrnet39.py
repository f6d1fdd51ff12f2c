"""DDRNet-39, which MMSegmentation's DDRNet class cannot be configured to: its fourth stage has two fusions."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from mmseg.models.backbones import DDRNet
from mmseg.models.utils import BasicBlock, Bottleneck, resize
from torch import Tensor, nn

from resq_mmseg.registry import MODELS

__all__ = ["DDRNet39"]

BLOCKS = (3, 4, 6, 3)
"""Basic blocks of stages 2 to 5 as in ResNet-34; stage 4 is split in two halves with a fusion after each."""


@MODELS.register_module()
class DDRNet39(DDRNet):
    """Backbone DDRNet-39 (Hong et al., "Deep Dual-resolution Networks", the 1.5× net of Table 1).

    Stem, bottlenecks and pyramid are those of MMSeg's ``DDRNet`` with 64 channels. It has 3 and 4 basic blocks in the
    stem instead of 2 and 2, and three fused stages of 3 blocks in either branch instead of two of 2.

    Args:
        channels: base channels.
        kwargs: those of MMSeg's ``DDRNet``.
    """

    def __init__(self, channels: int = 64, **kwargs: Any) -> None:
        super().__init__(channels=channels, **kwargs)
        high, low = channels * 2, (channels * 4, channels * 4, channels * 8)
        count = (BLOCKS[2] // 2, BLOCKS[2] // 2, BLOCKS[3])
        inputs = (channels * 2, *low[:2])
        context = [
            self._make_layer(BasicBlock, inputs[i], low[i], count[i], stride=1 if i == 1 else 2) for i in range(3)
        ]
        context.append(self._make_layer(Bottleneck, low[2], low[2], 1, stride=2))
        spatial = [self._make_layer(BasicBlock, high, high, count[i]) for i in range(3)]
        spatial.append(self._make_layer(Bottleneck, high, high, 1))
        self.context_branch_layers = ModuleList(context)
        self.spatial_branch_layers = ModuleList(spatial)
        # The fusions after the halves of stage 4 take the place of the first one of the parent, that of stage 5 stays.
        del self.compression_1, self.down_1, self.compression_2, self.down_2
        self.compression = ModuleList(
            ConvModule(width, high, kernel_size=1, norm_cfg=self.norm_cfg, act_cfg=None) for width in low
        )
        self.down = ModuleList(self._down(high, width) for width in low)

    def _make_stem_layer(self, in_channels: int, channels: int, num_blocks: int) -> nn.Sequential:
        stem = super()._make_stem_layer(in_channels, channels, num_blocks)
        # 0, 1: convolutions; 2: first stage; 3: ReLU; 4: second stage; 5: ReLU.
        stem[2] = self._make_layer(BasicBlock, channels, channels, BLOCKS[0])
        stem[4] = self._make_layer(BasicBlock, channels, channels * 2, BLOCKS[1], stride=2)
        return stem

    def _down(self, high: int, low: int) -> nn.Sequential:
        """From the high to the low resolution: one strided 3×3 convolution per factor of two."""
        widths = [high, *(width for width in (high * 2, high * 4) if width <= low)]
        options = {"kernel_size": 3, "stride": 2, "padding": 1, "norm_cfg": self.norm_cfg}
        last = len(widths) - 2
        return nn.Sequential(
            *(
                ConvModule(widths[i], widths[i + 1], act_cfg=None if i == last else self.act_cfg, **options)
                for i in range(last + 1)
            )
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return features of 1/8 of the size.

        Args:
            x: (N, 3, H, W).

        Returns:
            (N, 4 · channels, H/8, W/8); in training also the features (N, 2 · channels, H/8, W/8) of the auxiliary
            head, first.
        """
        size = (x.shape[-2] // 8, x.shape[-1] // 8)
        context = spatial = self.stem(x)
        auxiliary = None
        for stage in range(3):
            context = self.context_branch_layers[stage](self.relu(context))
            spatial = self.spatial_branch_layers[stage](self.relu(spatial))
            up = self.compression[stage](self.relu(context))
            context = context + self.down[stage](self.relu(spatial))
            spatial = spatial + resize(up, size=size, mode="bilinear", align_corners=self.align_corners)
            if stage == 1 and self.training:
                auxiliary = spatial
        spatial = self.spatial_branch_layers[3](self.relu(spatial))
        context = self.spp(self.context_branch_layers[3](self.relu(context)))
        fused = spatial + resize(context, size=size, mode="bilinear", align_corners=self.align_corners)
        return fused if auxiliary is None else (auxiliary, fused)

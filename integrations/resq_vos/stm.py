"""Space-Time Memory Networks (Oh et al., ICCV 2019), written from the paper."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.errors import CheckpointError
from resq_vos.bank import Readable, TensorBank, repeated
from resq_vos.decoder import Refine, ResidualBlock, upsample
from resq_vos.masks import crop, mask_planes, pad
from resq_vos.trunk import Trunk, TrunkConfig

__all__ = ["FLOAT_LAYERS", "PUBLISHED", "SMALL", "STM", "STMConfig", "load_stm"]


@dataclass(frozen=True)
class STMConfig:
    """Shape of an STM; the defaults are the published one.

    Attributes:
        trunk: of both trunks.
        key: channels of keys.
        value: channels of values.
        decoder: channels of the decoder.
        planes: of the last convolution: 2 (background and object) or 1 (the object's log-odds).
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    key: int = 128
    value: int = 512
    decoder: int = 256
    planes: int = 2


PUBLISHED = STMConfig()
"""ResNet-50, as published."""
SMALL = STMConfig(TrunkConfig(width=32, stride_in="reduce", norm=False, colours="caffe"), 64, 128, 64, 1)
"""Trunks of half width; `benchmarks/train_stm.py` trains it."""
FLOAT_LAYERS = ("query_key", "query_value", "memory_key", "memory_value")
"""What stays in float where the paper's Table 3 is followed: the memory operations."""


class STM(nn.Module):
    """Two pure steps, `memorize` and `segment`; what is remembered lies in a bank that the caller owns.

    A row is one object of one frame. Objects of a frame share its query features.
    """

    def __init__(self, config: STMConfig = PUBLISHED) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.trunk.channels
        self.query = Trunk(config.trunk)
        self.memory = Trunk(config.trunk, mask_planes=2)
        self.query_key = nn.Conv2d(coarse, config.key, 3, padding=1)
        self.query_value = nn.Conv2d(coarse, config.value, 3, padding=1)
        self.memory_key = nn.Conv2d(coarse, config.key, 3, padding=1)
        self.memory_value = nn.Conv2d(coarse, config.value, 3, padding=1)
        self.top = nn.Conv2d(2 * config.value, config.decoder, 3, padding=1)
        self.top_residual = ResidualBlock(config.decoder)
        self.refine8 = Refine(middle, config.decoder)
        self.refine4 = Refine(fine, config.decoder)
        self.predict = nn.Conv2d(config.decoder, config.planes, 3, padding=1)

    def memorize(self, frame: Tensor, masks: Tensor, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make a frame with its masks into memory.

        Args:
            frame: (V, 3, H, W), RGB 0..1, V videos in step; padded to multiples of 16 inside.
            masks: probabilities (R, H, W), one row per object.
            owners: the video of each row (R,); None where there is one.

        Returns:
            Keys (R, C_k, h, w) and values (R, C_v, h, w) at stride 16.
        """
        feature = self.memory(pad(frame), pad(mask_planes(masks, owners)), owners)[-1]
        return self.memory_key(feature), self.memory_value(feature)

    def segment(self, frame: Tensor, bank: Readable) -> Tensor:
        """Find the objects of a bank in a frame.

        Args:
            frame: (V, 3, H, W), RGB 0..1.
            bank: what is remembered, R objects; it is read only.

        Returns:
            Log-odds (R, H, W) of each object for itself; `aggregate` makes probabilities of them.
        """
        fine, middle, coarse = self.query(pad(frame))
        read = bank.read(self.query_key(coarse))
        owners, rows = bank.owners, read.shape[0]

        def per_row(x: Tensor) -> Tensor:
            return repeated(x, rows) if owners is None or x.shape[0] == 1 else x[owners]

        x = self.top(torch.cat([read, per_row(self.query_value(coarse))], dim=1))
        x = self.top_residual(x)
        x = self.refine8(per_row(middle), x)
        x = self.refine4(per_row(fine), x)
        x = upsample(self.predict(F.relu(x)), 4)
        logits = x[:, 0] if self.config.planes == 1 else x[:, 1] - x[:, 0]
        return crop(logits, (frame.shape[-2], frame.shape[-1]))

    def forward(self, frame: Tensor, objects: int = 1) -> Tensor:
        """Both steps on one frame with empty masks: what one frame of a video costs.

        Args:
            frame: (1, 3, H, W).
            objects: R.

        Returns:
            Log-odds (R, H, W).
        """
        keys, values = self.memorize(frame, frame.new_zeros(objects, *frame.shape[-2:]))
        return self.segment(frame, TensorBank(keys.flatten(2), values.flatten(2)))


def load_stm(path: str | os.PathLike[str], config: STMConfig = SMALL) -> STM:
    """Build an STM with the float weights of a file, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, or is of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: tensor.float() for name, tensor in state.items()}
    except Exception as error:
        msg = f"cannot read {path}: {error}; it is a torch file of the state dict of an STM."
        raise CheckpointError(msg) from error
    model = STM(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        msg = f"{path} is not of this STM ({config}): {error}"
        raise CheckpointError(msg) from error
    return model.eval()

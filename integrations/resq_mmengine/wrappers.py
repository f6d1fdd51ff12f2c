"""The classes of mmcv and MMEngine that compute what the `torch.nn` class they derive from computes.

They differ for empty inputs on PyTorch 1.4 and older only. SegFormer and PVT are made of them, and so are the
transposed convolutions of MMPose's heat map heads. mmcv's other subclasses (Conv2dAdaptivePadding, ConvWS2d, ...)
compute something else and stay in float.
"""

from __future__ import annotations

from mmcv.cnn.bricks import wrappers
from mmengine.model.utils import _BatchNormXd
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm

__all__ = ["BATCH_NORMS", "LAYERS"]

LAYERS = (
    wrappers.Conv2d,
    wrappers.Conv3d,
    wrappers.ConvTranspose2d,
    wrappers.ConvTranspose3d,
    wrappers.Linear,
)

BATCH_NORMS = (SyncBatchNorm, _BatchNormXd)
"""MMEngine's batch norms: a check less of the input's dimensions is all that is different."""

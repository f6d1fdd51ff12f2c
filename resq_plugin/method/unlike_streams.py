"""Uses of a stream that run, and are not what somebody meant: a clip as one batch, and the model called beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from weakref import WeakSet

import torch
from torch import Tensor

from resq_plugin.method.layers import ResidualLayer, onlookers

__all__ = ["Watch"]

logger = logging.getLogger(__name__)

ALIKE = 0.4
"""Change from picture to picture, as a share of their contrast, below which they are frames of one video.

Neighbouring frames of driving video (15 Hz) have 0.13 to 0.6, frames of other moments 0.43 and more.
"""
LEAST = 3
"""Pictures of a batch from which on it may be a clip."""


class Watch:
    """What a stream that is open in a ``with`` block was used for, told at its end.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: Iterable[ResidualLayer]) -> None:
        self._layers = WeakSet(layers)
        self._thread = threading.get_ident()
        self._beside = False
        self.frames = 0
        onlookers.append(self._look)

    def _look(self, layer: ResidualLayer) -> None:
        if not self.frames and not self._beside:
            self._beside = threading.get_ident() == self._thread and layer in self._layers

    def end(self, *, failed: bool, image: Tensor | None) -> None:
        """Stop looking, and tell.

        Args:
            failed: the block raised, which tells more.
            image: the keyframe (N, C, H, W), if there is one.
        """
        onlookers.remove(self._look)
        if failed:
            return
        if self._beside and not self.frames:
            logger.warning(
                "a stream was open and ran no frame, while the model itself was called: that is frame-by-frame "
                "quantization, without residuals. Call the stream: with stream(model) as video: video(frame)"
            )
        if self.frames == 1 and image is not None and _is_clip(image):
            logger.warning(
                "the only frame of a stream, %s, holds %d pictures that follow each other as in a video; they ran as "
                "keyframes of %d videos in step. Run a clip frame by frame: [video(frame[None]) for frame in clip]",
                tuple(image.shape),
                len(image),
                len(image),
            )


@torch.no_grad()
def _is_clip(image: Tensor) -> bool:
    """Whether the N pictures of a batch (N, C, H, W) change as little as neighbouring frames do, and change."""
    if image.dim() != 4 or len(image) < LEAST:
        return False
    pictures = image.flatten(1).float()
    contrast = (pictures - pictures.mean(1, keepdim=True)).norm(dim=1)[1:]
    change = (pictures[1:] - pictures[:-1]).norm(dim=1)
    return bool((change > 0).all() and (change < ALIKE * contrast).all())

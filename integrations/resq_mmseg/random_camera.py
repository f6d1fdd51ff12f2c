"""A transform that makes an interval of a labelled photograph, where there is no video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from resq_mmseg.registry import TRANSFORMS
from resq_plugin.training import Camera, film

__all__ = ["RandomCamera"]


@TRANSFORMS.register_module()
class RandomCamera(BaseTransform):
    """A smooth random camera over a photograph: shift, zoom, rotation, noise and exposure, alike for image and label.

    It stands for ``RandomResize``, ``RandomCrop`` and ``RandomFlip``, after ``LoadAnnotations``. The video dataset
    shows each labelled picture as a clip: ``dataset=dict(type='resq_mmseg.CamVidSequence', still_frames=3, ...)``.

    Required keys: ``img`` (H, W, C) uint8, ``frame_index``; ``gt_seg_map`` (H, W) if there is a label.
    Modified keys: ``img``, ``img_shape``, ``gt_seg_map``.

    Args:
        size: height and width of the frames.
        noise: deviation of the noise of every frame, in grey levels.
        ignore: label outside of the photograph.
        motion: further settings of `resq_plugin.training.Camera`, e.g. ``shift=6.0``.
    """

    def __init__(self, size: Sequence[int], *, noise: float = 1.0, ignore: int = 255, **motion: Any) -> None:
        self.camera = Camera(size=(size[0], size[1]), noise=noise, ignore=ignore, **motion)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Take the frame at ``frame_index`` of the interval that the sampler's seed stands for."""
        position = int(results["frame_index"])
        # `ClipSampler` gives all frames of an interval one seed, so that they draw one path.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        image = torch.from_numpy(np.ascontiguousarray(results["img"])).permute(2, 0, 1).float()
        label = results.get("gt_seg_map")
        labels = None if label is None else torch.from_numpy(label.astype(np.int64))
        frames, moved = film(image, labels, position + 1, self.camera, generator, only=position)
        pixels = frames[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
        results["img"] = np.ascontiguousarray(pixels.numpy())
        results["img_shape"] = results["img"].shape[:2]
        if moved is not None and label is not None:
            results["gt_seg_map"] = moved[0].numpy().astype(label.dtype)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.camera})"

"""How far predicted joints agree with those of the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from resq_mmengine.agreement import FloatAgreement
from torch import Tensor

from resq_mmpose.registry import METRICS

__all__ = ["JointAgreement", "NearJoints"]

NEAR = 0.05
"""Largest distance of a joint that agrees, as a share of the larger side of the person's box."""


@METRICS.register_module()
class JointAgreement(FloatAgreement):
    """Share of joints near to where the float model sees them, in percent; logged as ``agreement``.

    Write ``test_evaluator = [dict(type='JhmdbPCKAccuracy', ...), dict(type='resq_mmpose.JointAgreement')]``.

    Args:
        thr: largest distance, as a share of the larger side of the person's box.
    """

    def __init__(self, thr: float = NEAR, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thr = thr

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:  # noqa: ARG002
        """Compare the joints (1, K, 2) of each sample with the float model's."""
        for sample in data_samples:
            found = np.asarray(sample["pred_instances"]["keypoints"])
            expected = np.asarray(sample["float_prediction"]["pred_instances"]["keypoints"])
            box = np.asarray(sample["gt_instances"]["bboxes"])[0]
            near = np.linalg.norm(found - expected, axis=-1) <= self.thr * (box[2:] - box[:2]).max()
            self.results.append((int(near.sum()), near.size))


class NearJoints:
    """The same of joints with the person's size (1, K, 3), for `resq_plugin.compare`.

    Args:
        thr: largest distance, as a share of the person's size.
    """

    def __init__(self, thr: float = NEAR) -> None:
        self.thr = thr
        self.near = self.total = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take one frame: x, y and size of every joint, in pixels; the size is the target's."""
        distance = torch.linalg.vector_norm(prediction[..., :2] - target[..., :2], dim=-1)
        self.near += int((distance <= self.thr * target[..., 2]).sum())
        self.total += distance.numel()

    def compute(self) -> float:
        """Return the share in percent."""
        return 100 * self.near / self.total if self.total else float("nan")

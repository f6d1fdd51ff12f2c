"""How far predictions agree with those of the float model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from resq_mmengine.registry import METRICS

__all__ = ["FloatAgreement"]

logger = logging.getLogger(__name__)


@METRICS.register_module()
class FloatAgreement(BaseMetric):
    """Share of pixels with the label that the float model gives them, in percent; logged as ``agreement``.

    `ResQHook` runs the float model beside the quantized one where an evaluator holds this metric, e.g.
    ``test_evaluator = [dict(type='IoUMetric', ...), dict(type='resq_mmengine.FloatAgreement')]``.
    """

    default_prefix = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:  # noqa: ARG002
        """Compare ``pred_sem_seg`` (1, H, W) of each sample with the float model's."""
        for sample in data_samples:
            found = sample["pred_sem_seg"]["data"]
            expected = sample["float_prediction"]["pred_sem_seg"]["data"]
            low, high = (int(value) for value in expected.aminmax())
            self.results.append((int((found == expected).sum()), found.numel(), low, high))

    def compute_metrics(self, results: list[tuple[int, ...]]) -> dict[str, float]:
        """Return the share in percent."""
        if len({label for _, _, *labels in results for label in labels}) == 1:
            logger.warning(
                "the float model gives every pixel one and the same label, so that agreement with it says nothing; "
                "look at the checkpoint, the frames and their normalization."
            )
        return {"agreement": 100 * sum(equal for equal, *_ in results) / sum(total for _, total, *_ in results)}

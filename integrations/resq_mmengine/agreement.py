"""How far predictions agree with those of the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from resq_mmengine.registry import METRICS

__all__ = ["FloatAgreement"]


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
            self.results.append((int((found == expected).sum()), found.numel()))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Return the share in percent."""
        return {"agreement": 100 * sum(equal for equal, _ in results) / sum(total for _, total in results)}

"""The paper's protocol, and the metrics that it averages."""

from __future__ import annotations

from resq_plugin.evaluation.protocol import Agreement, Evaluation, MeanIoU, Metric, evaluate, float_predictions

__all__ = ["Agreement", "Evaluation", "MeanIoU", "Metric", "evaluate", "float_predictions"]

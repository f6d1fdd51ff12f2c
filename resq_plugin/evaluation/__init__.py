"""The paper's protocol, and the metrics that it averages."""

from __future__ import annotations

from resq_plugin.evaluation.layer_errors import LayerError, measure_layers
from resq_plugin.evaluation.metrics import PCK, Agreement, MeanIoU, Metric
from resq_plugin.evaluation.protocol import Evaluation, evaluate, float_predictions

__all__ = [
    "PCK",
    "Agreement",
    "Evaluation",
    "LayerError",
    "MeanIoU",
    "Metric",
    "evaluate",
    "float_predictions",
    "measure_layers",
]

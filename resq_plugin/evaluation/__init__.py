"""The paper's protocol, and the metrics that it averages."""

from __future__ import annotations

from resq_plugin.evaluation.layer_errors import LayerError, measure_layers
from resq_plugin.evaluation.metrics import PCK, Agreement, MeanIoU, Metric, make_metric
from resq_plugin.evaluation.protocol import evaluate, float_predictions
from resq_plugin.evaluation.result import Evaluation, Pixels, sum_pixels, weighted_mean

__all__ = [
    "PCK",
    "Agreement",
    "Evaluation",
    "LayerError",
    "MeanIoU",
    "Metric",
    "Pixels",
    "evaluate",
    "float_predictions",
    "make_metric",
    "measure_layers",
    "sum_pixels",
    "weighted_mean",
]

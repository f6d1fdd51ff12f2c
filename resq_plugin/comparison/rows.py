"""The one kind of row that sweeps, demo, commands and benchmarks make of what they measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from resq_plugin.comparison.settings import Setting
from resq_plugin.cost import Cost
from resq_plugin.evaluation import Evaluation

__all__ = ["row_of"]


def row_of(setting: Setting, found: Evaluation, cost: Cost, base: float, metric: str) -> dict[str, Any]:
    """Return a row for `resq_plugin.report`, ready for JSON.

    Args:
        setting: what was run.
        found: accuracy by distance from the keyframe, and ``agreement`` where that was measured.
        cost: of one frame on average.
        base: bit operations per frame of frame quantization at W8A8.
        metric: name of the accuracy.
    """
    config, agreement = setting.config, found.by_distance.get("agreement")
    return {
        "scheme": setting.scheme,
        "precision": setting.precision,
        "interval": setting.interval,
        "threshold": setting.threshold,
        "weights": config.weights if config else "",
        "reference": config.reference if config else "",
        "accuracy": found.mean(metric),
        "metric": metric,
        "agreement": None if agreement is None else found.mean("agreement"),
        "gbops_per_frame": cost.bops_per_frame / 1e9,
        "relative_bops": cost.bops_per_frame / base,
        "by_distance": _known(found.by_distance[metric]),
        "agreement_by_distance": None if agreement is None else _known(agreement),
        "gbops_peak": cost.peak_bops / 1e9,
        "state_megabytes": cost.state_bytes / 1e6,
        "config": config.to_dict() if config else None,
    }


def _known(values: Sequence[float]) -> list[float | None]:
    """For JSON, which has no NaN: None at a position that never ran."""
    return [None if math.isnan(value) else value for value in values]

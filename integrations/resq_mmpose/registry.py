"""Registries by which MMEngine finds ``type='resq_mmpose.X'``."""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import Registry

__all__ = ["DATASETS", "METRICS"]

DATASETS = Registry(
    "dataset",
    parent=MMENGINE_DATASETS,
    scope="resq_mmpose",
    locations=["resq_mmpose.jhmdb", "resq_mmpose.posetrack"],
)
METRICS = Registry("metric", parent=MMENGINE_METRICS, scope="resq_mmpose", locations=["resq_mmpose.agreement"])

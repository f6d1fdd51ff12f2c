"""Registries by which MMEngine finds ``type='resq_mmseg.X'``."""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

__all__ = ["DATASETS", "MODELS"]

DATASETS = Registry(
    "dataset",
    parent=MMENGINE_DATASETS,
    scope="resq_mmseg",
    locations=["resq_mmseg.cityscapes", "resq_mmseg.camvid", "resq_mmseg.frame_folder"],
)
MODELS = Registry("model", parent=MMENGINE_MODELS, scope="resq_mmseg", locations=["resq_mmseg.ddrnet39"])

"""Registries by which MMEngine finds ``type='resq_mmseg.X'``."""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

__all__ = ["DATASETS", "MODELS", "TRANSFORMS"]

DATASETS = Registry(
    "dataset",
    parent=MMENGINE_DATASETS,
    scope="resq_mmseg",
    locations=["resq_mmseg.cityscapes", "resq_mmseg.camvid", "resq_mmseg.frame_folder"],
)
MODELS = Registry("model", parent=MMENGINE_MODELS, scope="resq_mmseg", locations=["resq_mmseg.ddrnet39"])
TRANSFORMS = Registry(
    "transform", parent=MMENGINE_TRANSFORMS, scope="resq_mmseg", locations=["resq_mmseg.random_camera"]
)

"""Registries of this package; MMEngine imports them by scope, so that a config needs no ``custom_imports``."""

from __future__ import annotations

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

__all__ = ["DATA_SAMPLERS", "HOOKS", "METRICS", "MODELS"]

SCOPE = "resq_mmengine"

HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope=SCOPE, locations=[f"{SCOPE}.hook"])
MODELS = Registry("model", parent=MMENGINE_MODELS, scope=SCOPE, locations=[f"{SCOPE}.training"])
DATA_SAMPLERS = Registry("data sampler", parent=MMENGINE_DATA_SAMPLERS, scope=SCOPE, locations=[f"{SCOPE}.sampler"])
METRICS = Registry("metric", parent=MMENGINE_METRICS, scope=SCOPE, locations=[f"{SCOPE}.agreement"])

"""Video object segmentation: STM, propagation with a bank that the caller owns, J and F, DAVIS.

Names are loaded when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resq_vos.bank import Bank, TensorBank
    from resq_vos.calibration import record_clips, step_runner
    from resq_vos.cost import vos_cost
    from resq_vos.metrics import boundary_accuracy, jaccard
    from resq_vos.propagation import Propagation
    from resq_vos.step import SegmentationStep, VideoModel
    from resq_vos.stm import FLOAT_LAYERS, PUBLISHED, SMALL, STM, STMConfig, load_stm

_HOMES = {
    "FLOAT_LAYERS": "stm",
    "PUBLISHED": "stm",
    "SMALL": "stm",
    "STM": "stm",
    "Bank": "bank",
    "Propagation": "propagation",
    "STMConfig": "stm",
    "SegmentationStep": "step",
    "TensorBank": "bank",
    "VideoModel": "step",
    "boundary_accuracy": "metrics",
    "jaccard": "metrics",
    "load_stm": "stm",
    "record_clips": "calibration",
    "step_runner": "calibration",
    "vos_cost": "cost",
}

__all__ = [
    "FLOAT_LAYERS",
    "PUBLISHED",
    "SMALL",
    "STM",
    "Bank",
    "Propagation",
    "STMConfig",
    "SegmentationStep",
    "TensorBank",
    "VideoModel",
    "boundary_accuracy",
    "jaccard",
    "load_stm",
    "record_clips",
    "step_runner",
    "vos_cost",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value

"""ResQ: Residual Quantization for Video Perception (ICCV 2023), for the tools engineers already use.

Names are loaded when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resq_plugin.calibration import calibrate
    from resq_plugin.comparison import Comparison, compare
    from resq_plugin.config import CalibrationConfig, PolicyConfig, Precision, ResQConfig, ScheduleConfig, StateConfig
    from resq_plugin.conversion import (
        convert,
        float_state_dict,
        load,
        load_checkpoint,
        load_ranges,
        revert,
        save_checkpoint,
        save_ranges,
        summarize,
    )
    from resq_plugin.cost import measure_cost
    from resq_plugin.evaluation import evaluate
    from resq_plugin.method import dense_execution, stream
    from resq_plugin.planning import Target, read_plan, search

__version__ = "0.1.0"

__all__ = [
    "CalibrationConfig",
    "Comparison",
    "PolicyConfig",
    "Precision",
    "ResQConfig",
    "ScheduleConfig",
    "StateConfig",
    "Target",
    "calibrate",
    "compare",
    "convert",
    "dense_execution",
    "evaluate",
    "float_state_dict",
    "load",
    "load_checkpoint",
    "load_ranges",
    "measure_cost",
    "read_plan",
    "revert",
    "save_checkpoint",
    "save_ranges",
    "search",
    "stream",
    "summarize",
]

_ROOMS = ("config", "method", "conversion", "cost", "evaluation", "calibration", "comparison", "planning")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"{__name__}.{room}")
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

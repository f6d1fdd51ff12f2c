"""Configuration as frozen values: the paper's precision notation and every setting of the method."""

from __future__ import annotations

from resq_plugin.config.precision import MAX_BITS, Precision, parse_precision
from resq_plugin.config.sections import CalibrationConfig, PolicyConfig, ScheduleConfig, StateConfig
from resq_plugin.config.settings import ResQConfig

__all__ = [
    "MAX_BITS",
    "CalibrationConfig",
    "PolicyConfig",
    "Precision",
    "ResQConfig",
    "ScheduleConfig",
    "StateConfig",
    "parse_precision",
]

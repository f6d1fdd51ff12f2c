"""ResQ: Residual Quantization for Video Perception (ICCV 2023), for the tools engineers already use."""

from resq_plugin.calibrate import calibrate
from resq_plugin.config import CalibrationConfig, PolicyConfig, Precision, ResQConfig, ScheduleConfig
from resq_plugin.convert import convert, float_state_dict, revert, summarize
from resq_plugin.layers import dense_execution
from resq_plugin.stream import stream

__version__ = "0.1.0"

__all__ = [
    "CalibrationConfig",
    "PolicyConfig",
    "Precision",
    "ResQConfig",
    "ScheduleConfig",
    "calibrate",
    "convert",
    "dense_execution",
    "float_state_dict",
    "revert",
    "stream",
    "summarize",
]

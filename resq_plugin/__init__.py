"""ResQ: Residual Quantization for Video Perception (ICCV 2023), for the tools engineers already use."""

from resq_plugin.calibrate import calibrate
from resq_plugin.checkpoint import load_checkpoint, load_ranges, save_checkpoint, save_ranges
from resq_plugin.config import CalibrationConfig, PolicyConfig, Precision, ResQConfig, ScheduleConfig
from resq_plugin.convert import convert, float_state_dict, revert, summarize
from resq_plugin.cost import measure_cost
from resq_plugin.evaluate import evaluate
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
    "evaluate",
    "float_state_dict",
    "load_checkpoint",
    "load_ranges",
    "measure_cost",
    "revert",
    "save_checkpoint",
    "save_ranges",
    "stream",
    "summarize",
]

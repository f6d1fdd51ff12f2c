"""Ranges of activations from clips (Eq. 7, 8)."""

from __future__ import annotations

from resq_plugin.calibration.clips import Clip, checked_frames, split_clip, tell_of_pixels
from resq_plugin.calibration.collect import Collector
from resq_plugin.calibration.fingerprint import fingerprint
from resq_plugin.calibration.full_maps import FullMapComparison
from resq_plugin.calibration.layer_samples import square_sum
from resq_plugin.calibration.line_search import PathSearch
from resq_plugin.calibration.needs import weight_at
from resq_plugin.calibration.ranges import candidate_ranges
from resq_plugin.calibration.sampling import (
    Window,
    apply_to_windows,
    choose_windows,
    cut_outputs,
    cut_windows,
    inside,
    output_positions,
)
from resq_plugin.calibration.statistics import Statistics
from resq_plugin.calibration.temporal import calibrate

__all__ = [
    "Clip",
    "Collector",
    "FullMapComparison",
    "PathSearch",
    "Statistics",
    "Window",
    "apply_to_windows",
    "calibrate",
    "candidate_ranges",
    "checked_frames",
    "choose_windows",
    "cut_outputs",
    "cut_windows",
    "fingerprint",
    "inside",
    "output_positions",
    "split_clip",
    "square_sum",
    "tell_of_pixels",
    "weight_at",
]

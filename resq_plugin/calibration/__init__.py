"""Ranges of activations from clips (Eq. 7, 8)."""

from __future__ import annotations

from resq_plugin.calibration.clips import Clip, checked_frames, tell_of_pixels
from resq_plugin.calibration.collect import Collector
from resq_plugin.calibration.fingerprint import fingerprint
from resq_plugin.calibration.full_maps import FullMapComparison
from resq_plugin.calibration.ranges import candidate_ranges
from resq_plugin.calibration.statistics import Statistics
from resq_plugin.calibration.temporal import calibrate

__all__ = [
    "Clip",
    "Collector",
    "FullMapComparison",
    "Statistics",
    "calibrate",
    "candidate_ranges",
    "checked_frames",
    "fingerprint",
    "tell_of_pixels",
]

"""Ranges of activations from clips (Eq. 7, 8)."""

from __future__ import annotations

from resq_plugin.calibration.clips import Clip
from resq_plugin.calibration.collect import Collector, FullMapComparison
from resq_plugin.calibration.ranges import candidate_ranges
from resq_plugin.calibration.temporal import calibrate

__all__ = ["Clip", "Collector", "FullMapComparison", "calibrate", "candidate_ranges"]

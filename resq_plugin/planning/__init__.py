"""The fewest bits for an accuracy: per-layer precision, thresholds and T from measured sensitivities."""

from __future__ import annotations

from resq_plugin.planning.inputs import FOUND, Loop
from resq_plugin.planning.plan import LayerPlan, Plan, Point, read_plan
from resq_plugin.planning.result import Goal, SearchResult
from resq_plugin.planning.run import search
from resq_plugin.planning.target import Choice, Target
from resq_plugin.planning.trial import Verified

__all__ = [
    "FOUND",
    "Choice",
    "Goal",
    "LayerPlan",
    "Loop",
    "Plan",
    "Point",
    "SearchResult",
    "Target",
    "Verified",
    "read_plan",
    "search",
]

"""Which plans of the front are measured, and when enough of them are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from resq_plugin.planning.plan import Point
from resq_plugin.planning.result import Goal
from resq_plugin.planning.trial import Trials

__all__ = ["verify_front"]

NEIGHBOURS = 1
"""Plans beside the one that was found that are tried, because measured accuracy does not fall evenly."""


def verify_front(front: Sequence[Point], goal: Goal, trials: Trials, points: int, bar: Any) -> list[Point]:
    """Measure plans until the best that does what is asked is between measured neighbours.

    With ``max_drop`` the front is halved: where a plan loses too much, finer ones are tried, else coarser ones. Where
    no plan passes, the finest was measured. With ``max_gbops`` alone the front is halved by measured bit operations.

    Args:
        front: from the fewest bit operations on.
        goal: what is asked.
        trials: measures.
        points: plans spread evenly that are measured as well.
        bar: progress.

    Returns:
        The front, with what was measured.
    """
    found = list(front)
    expected = math.ceil(math.log2(max(len(found), 2))) + 2 * NEIGHBOURS + points
    bar.total = bar.n + min(expected, len(found)) * trials.frames

    def at(index: int) -> Point:
        point = found[index]
        if point.verified is None:
            bar.set_description(f"verifying {point.relative:.0%}")
            point = found[index] = dataclasses.replace(point, verified=trials.measure(point.config))
        return point

    def is_fine_enough(index: int) -> bool:
        """Whether the plan sought is this one or one with fewer bit operations."""
        measured = at(index).verified
        if measured is None:
            return False
        if goal.max_drop is not None:
            return measured.drop <= goal.max_drop
        return goal.max_gbops is not None and measured.gbops > goal.max_gbops

    low, high = 0, len(found) - 1
    while low < high:
        middle = (low + high) // 2
        if is_fine_enough(middle):
            high = middle
        else:
            low = middle + 1
    for index in range(max(low - NEIGHBOURS, 0), min(low + NEIGHBOURS, len(found) - 1) + 1):
        at(index)
    if points > 0:
        for step in range(points):
            at(round(step * (len(found) - 1) / max(points - 1, 1)))
    bar.total = bar.n
    return found

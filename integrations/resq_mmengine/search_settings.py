"""What a config asks of a plan: ``resq = dict(search=dict(max_drop=0.5))``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resq_plugin.errors import ConfigError, nearest
from resq_plugin.planning import FOUND, Goal, Target

__all__ = ["SearchSettings", "read_search", "without_found"]

logger = logging.getLogger(__name__)

GOALS = tuple(item.name for item in dataclasses.fields(Goal))


@dataclass(frozen=True)
class SearchSettings:
    """What is asked, and how it is looked for.

    Attributes:
        goal: what is asked of the plan.
        target: what the hardware has.
        held_out: share of the clips that verify plans.
        clips: how many clips are taken of the calibration data, at most.
        seed: of what is drawn.
    """

    goal: Goal
    target: Target = field(default_factory=Target)
    held_out: float = 0.25
    clips: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.held_out, bool) or not isinstance(self.held_out, float) or not 0 < self.held_out < 1:
            msg = f"search.held_out={self.held_out!r} is not allowed; write a share of the clips such as 0.25."
            raise ConfigError(msg)
        for name, least in (("clips", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                msg = f"search.{name}={value!r} is not allowed; write a whole number of at least {least}."
                raise ConfigError(msg)


def read_search(values: Any) -> SearchSettings | None:
    """Read ``search=dict(...)``: ``max_drop``, ``max_gbops``, ``max_state_mb`` and the fields of `SearchSettings`.

    Raises:
        ConfigError: it is no dict, has an unknown key or an impossible value, or asks for nothing.
    """
    if values is None:
        return None
    if not isinstance(values, Mapping):
        msg = f"search={values!r} must be a dict such as search=dict(max_drop=0.5), or None."
        raise ConfigError(msg)
    allowed = (*GOALS, *(item.name for item in dataclasses.fields(SearchSettings) if item.name != "goal"))
    for key in values:
        if key not in allowed:
            msg = f"unknown setting search.{key}.{nearest(str(key), allowed)} Allowed are {', '.join(allowed)}."
            raise ConfigError(msg)
    goal = Goal(**{key: values[key] for key in GOALS if key in values})
    rest = {key: value for key, value in values.items() if key not in (*GOALS, "target")}
    return SearchSettings(goal, Target.from_dict(values.get("target") or {}), **rest)


def without_found(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields of `ResQConfig` that a search finds, with a notice, as any recipe has some."""
    found = [key for key in values if key in FOUND]
    if found:
        logger.warning("resq.search finds %s; what the config says of it is not used", ", ".join(found))
    return {"precision": "W8A8->W8A8"} | {key: value for key, value in values.items() if key not in FOUND}

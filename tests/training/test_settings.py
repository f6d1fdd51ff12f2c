"""What settings refuse."""

from __future__ import annotations

from typing import Any

import pytest

from resq_plugin.errors import ConfigError
from resq_plugin.training import TrainConfig


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"distill": "logit"},
            r"distill='logit' is not allowed; write one of 'off', 'logits', 'features'. Did you mean",
        ),
        ({"steps": 0}, "steps=0 is not allowed; write a whole number of at least 1"),
        ({"batch": 2.5}, "batch=2.5 is not allowed"),
        ({"lr": float("nan")}, "lr=nan is not allowed; write a number of at least 0"),
        ({"clip_norm": -1}, "clip_norm=-1"),
        ({"intervals": 3}, r"intervals=3 must be a list, e.g. intervals=\(3,\)"),
        ({"intervals": ()}, "intervals is empty"),
        ({"intervals": (0,)}, "an interval=0 is not allowed"),
        ({"distill": "features"}, "distill='features' needs modules to compare"),
        ({"ema": 1.0}, "ema=1.0 below 1"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"learning_rate": 1}, r"unknown setting learning_rate."),
        ({"weight_scale": "fixed"}, r"unknown setting weight_scale. Did you mean 'weight_scales'\?"),
    ],
)
def test_what_is_not_allowed(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig.from_dict(values)


def test_lists_become_tuples() -> None:
    config = TrainConfig.from_dict({"intervals": [2, 3], "features": ["a"], "distill": "features"})
    assert config.intervals == (2, 3)
    assert hash(config) == hash(TrainConfig(intervals=(2, 3), features=("a",), distill="features"))

"""Patterns that match no layer: refused where layers are wanted, told where nothing changes; through every door."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from helpers import Residual, seeded
from torch import nn

from resq_plugin import ResQConfig, convert, measure_cost
from resq_plugin.errors import ConfigError


def through_convert(config: ResQConfig) -> None:
    net = seeded(Residual)
    try:
        convert(net, config)
    except ConfigError:
        assert type(net.head) is nn.Linear  # nothing was changed
        raise


def through_cost(config: ResQConfig) -> None:
    measure_cost(seeded(Residual), (1, 3, 16, 16), config)


def through_cost_of_a_converted_model(config: ResQConfig) -> None:
    measure_cost(convert(seeded(Residual), "W4A4"), (1, 3, 16, 16), config)


doors = pytest.mark.parametrize("door", [through_convert, through_cost, through_cost_of_a_converted_model])


@doors
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"overrides": {"haed": "W8A8"}},
            r"^overrides\['haed'\]='W8A8' matches no layer. Did you mean 'head'\? Layers are e.g. stem.0",
        ),
        (
            {"policy": {"thresholds": {"steam.*": 0.2}}},
            r"^policy.thresholds\['steam.\*'\]=0.2 matches no layer. Did you mean 'stem.\*'\? Layers are e.g. stem.0",
        ),
        (
            {"state": {"stateless": ("haed",)}},
            r"^state.stateless pattern 'haed' matches no layer. Did you mean 'head'\? Layers are e.g. stem.0",
        ),
        (
            {"include": ("conv*", "stem")},  # a module, of which only a pattern finds the layers
            r"^include pattern 'stem' matches no layer. Did you mean 'stem.\*'\? Layers are e.g. stem.0",
        ),
    ],
)
def test_layers_that_are_wanted_have_to_be_there(door: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        door(ResQConfig.parse("W8A8->W4A{0,4}", **settings))


@doors
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # A fragment of a config may leave out layers that only some networks have.
        ({"exclude": ("haed", "conv1")}, "exclude pattern 'haed' matches no layer. Did you mean 'head'?"),
        (
            {"exclude": ("head",), "overrides": {"head": "W8A8"}},
            "overrides['head']='W8A8' has no effect: what it matches stays in float, by include or exclude",
        ),
    ],
)
def test_what_changes_nothing_is_told(
    door: Any, settings: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        door(ResQConfig.parse("W8A8->W4A4", **settings))
    assert [record.getMessage() for record in caplog.records] == [message]


def test_a_model_without_layers_costs_nothing() -> None:
    assert measure_cost(nn.Sequential(nn.ReLU()), (1, 3, 8, 8), ResQConfig.parse("W8A8->W4A4")).macs == 0

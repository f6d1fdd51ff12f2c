"""Settings that differ in whatever has rows and files of their own."""

from __future__ import annotations

import itertools
from typing import Any

from resq_plugin import ResQConfig
from resq_plugin.comparison import Setting, expand

CHANGES: list[dict[str, Any]] = [
    {},
    {"interval": 5},
    {"weights": "channel"},
    {"reference": "quantized"},
    {"keyframe_grid": "unsigned"},
    {"schedule": {"kind": "scene_change"}},
    {"calibration": {"samples": 8}},
    {"policy": {"threshold": 0.2}},
    {"policy": {"granularity": "frame"}},
    {"policy": {"thresholds": {"head.*": 0.2}}},
    {"exclude": ("head.*",)},
    {"exclude": ("head*",)},
    {"exclude": ("Head*",)},
    {"overrides": {"a_b": "W4A4"}},
    {"overrides": {"a-b": "W4A4"}},
    {"state": {"stateless": ("head.*",)}},
    {"state": {"stateless": ("Head.*",)}},
]


def test_no_two_settings_have_a_row_or_a_file_in_common() -> None:
    configs = [
        ResQConfig.parse(precision, **changes)
        for precision, changes in itertools.product(("W8A8", "W8A8->W4A4", "W8A8->W4A{0,4}"), CHANGES)
        # The policy has no use without a pool.
        if "policy" not in changes or precision.endswith("}")
    ]
    settings = [Setting(), *map(Setting, configs)]
    assert len({setting.key for setting in settings}) == len(settings)
    assert len({setting.slug for setting in settings}) == len(settings)


def test_files_of_usual_settings_have_short_names() -> None:
    settings = expand(["W8A8", "W8A8->W4A4", "W8A8->W4A{0,4}"], weights="channel")
    assert [setting.slug for setting in expand(["W8A8"])] == ["float", "w8a8"]
    assert [setting.slug for setting in settings[1:]] == [
        "w8a8-weights-channel",
        "w8a8-w4a4-t-3-weights-channel",
        "w8a8-w4a-0-4-t-3-tau-0.1-weights-channel",
    ]

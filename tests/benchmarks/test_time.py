"""Schedules made of intervals that ran, by hand; and docs/time.md shows what was measured."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "time.md").read_text(encoding="utf-8")


@pytest.fixture
def keyframes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mmengine")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("keyframes")


@pytest.fixture
def intervals(keyframes: ModuleType) -> ModuleType:
    return importlib.import_module("intervals")


@pytest.fixture
def stop_and_go(keyframes: ModuleType) -> ModuleType:
    return importlib.import_module("stop_and_go")


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_page_shows_what_was_measured(keyframes: ModuleType) -> None:
    found = result("keyframes.json")
    assert keyframes.spread_table(found["spread"]) in PAGE
    assert keyframes.drift_table(found["drift"]) in PAGE


def test_the_page_shows_what_policies_do(keyframes: ModuleType) -> None:
    pytest.importorskip("av")
    assert importlib.import_module("policy").table(result("policy.json")["rows"]) in PAGE


def test_the_page_shows_what_stopping_does(stop_and_go: ModuleType) -> None:
    assert stop_and_go.table(result("stop_and_go.json")["rows"]) in PAGE


def frames(keyframes: ModuleType, start: int, count: int) -> list[dict[str, Any]]:
    """Distance t has agreement 1 - t / 10 and costs 1 / 4; the signal is the number of the frame."""
    confusion = torch.eye(keyframes.CLASSES, dtype=torch.long)
    return [
        {"agreement": 1 - t / 10, "confusion": confusion, "bops": 0.25 if t else 1.0, "signal": start + t}
        for t in range(count)
    ]


def test_a_schedule_is_made_of_intervals(
    keyframes: ModuleType, intervals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "STARTS", (0,))
    ran = [frames(keyframes, start, 6 - start) for start in range(6)]

    fixed = intervals.play(ran, 4)
    # Keyframes at 0 and 4: distances 0, 1, 2, 3, 0, 1.
    assert fixed["interval"] == 3
    assert fixed["agreement"] == pytest.approx(100 * (1 - 0.7 / 6), abs=1e-3)
    assert fixed["relative_bops"] == pytest.approx((2 + 4 * 0.25) / 6)
    assert fixed["miou"] == 100

    # A signal above 2 at frame 3 ends the interval after it, and one above 2 at distance 0 does not.
    early = intervals.play(ran, 17, intervals.over("signal", 2))
    assert early["interval"] == 3
    # Keyframes at 0 and 4, as before: frame 4 is one because frame 3 was above.
    assert early["relative_bops"] == fixed["relative_bops"]


def test_every_frame_is_measured_at_every_position(keyframes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyframes, "BEGINS", (0, 1))
    intervals = [frames(keyframes, start, 6 - start) for start in range(6)]
    found = keyframes.at_every_position(intervals, 2)
    # Frames 3 to 5, each as a keyframe and one behind it.
    assert found["agreement"] == pytest.approx(95.0)
    assert found["relative_bops"] == pytest.approx((1 + 0.25) / 2)


def test_a_threshold_meets_the_bit_operations_that_are_asked_for(
    keyframes: ModuleType, intervals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "STARTS", (0,))
    ran = [frames(keyframes, start, 8 - start) for start in range(8)]
    level = intervals.matched(ran, "signal", 3 / 8 + 5 / 8 / 4, 8)
    # Keyframes at 0, 4 and 6: frame 3 is the first above 2, and frame 5 at t = 1 may be followed by one. A lower level
    # gives a keyframe at 3, 5 and 7, too.
    assert level == 2
    assert intervals.drift(ran, "signal", level, 8)["relative_bops"] == pytest.approx((3 + 5 / 4) / 8, abs=1e-4)


def test_a_schedule_stands_beside_a_fixed_interval_of_equal_cost(stop_and_go: ModuleType) -> None:
    # The third has less agreement than a cheaper one.
    points = ((0.2, 90.0), (0.3, 94.0), (0.4, 93.0), (0.5, 96.0))
    line = [{"relative_bops": bops, "agreement": agreement} for bops, agreement in points]
    gain, saved = stop_and_go.at_equal(line, {"relative_bops": 0.25, "agreement": 95.0})
    assert gain == pytest.approx(95 - 92)
    assert saved == pytest.approx(1 - 0.25 / 0.4)
    gain, saved = stop_and_go.at_equal(line, {"relative_bops": 0.1, "agreement": 97.0})
    assert math.isnan(gain)
    assert math.isnan(saved)


def test_a_drive_that_stops_shows_a_frame_again_with_noise(stop_and_go: ModuleType) -> None:
    seen = [torch.full((1, 3, 64, 64), float(index)) for index in range(3)]
    stopped = stop_and_go.stopping(seen, {1: 2})
    assert len(stopped) == 5
    assert [bool((a == b).all()) for a, b in zip(stopped, (*seen[:2], seen[1], seen[1], seen[2]), strict=True)] == [
        *(True, True, False, False, True)
    ]
    levels = (stopped[2] - seen[1]) * torch.tensor(stop_and_go.STD).view(3, 1, 1)
    assert float(levels.std()) == pytest.approx(2.0, abs=0.1)

"""Schedules made of intervals that ran, by hand; and docs/time.md shows what was measured."""

from __future__ import annotations

import importlib
import json
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


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_page_shows_what_was_measured(keyframes: ModuleType) -> None:
    found = result("keyframes.json")
    assert keyframes.spread_table(found["spread"]) in PAGE
    assert keyframes.drift_table(found["drift"]) in PAGE


def test_the_page_shows_what_policies_do(keyframes: ModuleType) -> None:
    pytest.importorskip("av")
    assert importlib.import_module("policy").table(result("policy.json")["rows"]) in PAGE


def frames(keyframes: ModuleType, start: int, count: int) -> list[dict[str, Any]]:
    """Distance t has agreement 1 - t / 10 and costs 1 / 4; the signal is the number of the frame."""
    confusion = torch.eye(keyframes.CLASSES, dtype=torch.long)
    return [
        {"agreement": 1 - t / 10, "confusion": confusion, "bops": 0.25 if t else 1.0, "signal": start + t}
        for t in range(count)
    ]


def test_a_schedule_is_made_of_intervals(keyframes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyframes, "STARTS", (0,))
    intervals = [frames(keyframes, start, 6 - start) for start in range(6)]

    fixed = keyframes.play(intervals, 4)
    # Keyframes at 0 and 4: distances 0, 1, 2, 3, 0, 1.
    assert fixed["interval"] == 3
    assert fixed["agreement"] == pytest.approx(100 * (1 - 0.7 / 6), abs=1e-3)
    assert fixed["relative_bops"] == pytest.approx((2 + 4 * 0.25) / 6)
    assert fixed["miou"] == 100

    # A signal above 2 at frame 3 ends the interval after it, and one above 2 at distance 0 does not.
    early = keyframes.play(intervals, 17, lambda last, _: last["signal"] > 2)
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

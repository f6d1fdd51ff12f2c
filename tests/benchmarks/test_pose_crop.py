"""The real JHMDB sequence end to end through the Runner; skipped where the data is absent."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "jhmdb").exists(), reason=f"the JHMDB sequence is not at {DATA}"),
    pytest.mark.filterwarnings("ignore:The metainfo config file:UserWarning"),
    pytest.mark.filterwarnings(r"ignore::Warning:(mmpose|mmengine|mmcv)\."),
]


def test_the_published_row_comes_out_and_a_still_crop_halves_the_residual(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("pose_crop")
    bench.init_default_scope("mmpose")
    root = bench.layout(DATA, tmp_path)
    state = bench.load_weights(DATA / "weights" / "posenet_mobilenetv1.pth")
    rows = json.loads((ROOT / "benchmarks" / "results" / "pose_crop.json").read_text())["rows"]
    setting = ("interval", "W8A8->W8A4", "channel", "first")
    (published,) = [
        row for row in rows if (row["crop"], row["precision"], row["weights"], row["calibrated_on"]) == setting
    ]

    found = bench.measure(root, setting, state)

    # 78 × 12 joints: a point is 9 of them.
    assert found["float_accuracy"] == pytest.approx(published["float_accuracy"], abs=1.5)
    assert found["accuracy"] == pytest.approx(published["accuracy"], abs=4)
    still, moving = (bench.input_residual(root, crop, "first") for crop in ("interval", "frame"))
    assert still < 0.5 * moving

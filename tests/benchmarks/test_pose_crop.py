"""The real JHMDB sequence end to end through the Runner, in short; skipped where the data is absent."""

from __future__ import annotations

import importlib
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


def test_a_crop_that_moves_with_the_person_agrees_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("pose_crop")
    monkeypatch.setattr(bench, "CALIBRATION", list(range(7)))
    monkeypatch.setattr(bench, "MEASURED", list(range(13, 25)))
    bench.init_default_scope("mmpose")
    root = bench.layout(DATA, tmp_path)
    state = bench.load_weights(DATA / "weights" / "posenet_mobilenetv1.pth")

    still, moving = (bench.measure(root, (crop, "W8A8->W8A4", "channel"), state) for crop in ("interval", "frame"))

    assert still["agreement"] > moving["agreement"] + 5
    assert min(still["float_accuracy"], moving["float_accuracy"]) > 75  # the pipeline and the net fit together
    assert 2 * bench.input_residual(root, "interval") < 1.2 * bench.input_residual(root, "frame")
    # The first frame of an interval is frame quantization at 8 bits.
    assert still["agreement_by_distance"][0] > still["agreement_by_distance"][2]

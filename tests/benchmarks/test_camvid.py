"""The paper's finding on real driving video, in short; skipped where the data is absent."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from resq_plugin import ResQConfig, calibrate, convert, dense_execution, stream

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "camvid").exists(), reason=f"real video is not at {DATA}"),
]


def test_at_equal_bops_resq_is_above_frame_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    """W8A8->W4A4 at T = 3 takes half the BOPs of W8A8, as W4A8 and W8A4 do frame by frame."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    common = importlib.import_module("common")
    clips = common.calibration_clips(common.camvid(DATA, "calib")[0])[::4]
    frames = common.camvid(DATA, "val")[0][:6]
    agreement = {}
    for precision in ("W4A8", "W8A4", "W8A8->W4A4"):
        model = common.ddrnet(DATA / "weights" / "ddrnet23slim_camvid.pth")
        convert(model, ResQConfig.parse(precision))
        calibrate(model, clips)
        with torch.inference_mode(), stream(model) as video:
            with dense_execution():
                expected = [common.segment(model(frame)) for frame in frames]
            found = [common.segment(video(frame)) for frame in frames]
        equal = [(a == b).float().mean() for a, b in zip(found, expected, strict=True)]
        agreement[precision] = 100 * float(torch.stack(equal).mean())
    assert agreement["W8A8->W4A4"] > agreement["W4A8"] + 2
    assert agreement["W8A8->W4A4"] > agreement["W8A4"] + 5
    assert agreement["W8A8->W4A4"] > 96

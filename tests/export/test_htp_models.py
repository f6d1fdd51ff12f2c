"""Whole networks of the model zoos on Qualcomm's HTP: every operator, keyframe and residual frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.export import HtpConfig, OrtStream, export_model, verify_htp

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the toolkits' own
pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")

DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
HRNET = "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"


@pytest.mark.parametrize(
    ("toolkit", "config", "options", "shape"),
    [
        ("mmseg", DDRNET, {"model.decode_head.num_classes": 11}, (512, 1024)),
        ("mmpose", HRNET, {}, (256, 192)),
    ],
    ids=["ddrnet", "hrnet"],
)
def test_the_whole_network_compiles_and_runs(
    tmp_path: Path, toolkit: str, config: str, options: Mapping[str, Any], shape: tuple[int, int]
) -> None:
    pytest.importorskip(toolkit)
    from resq_mmengine.zoo import FrameModel, build_model

    torch.manual_seed(0)
    model = FrameModel(build_model(config, options)).eval()
    still = torch.randn(1, 3, *shape)
    frames = [still + 0.05 * torch.randn_like(still) for _ in range(4)]
    resq = ResQConfig.parse(
        "W8A8->W4A8",
        weights="channel",
        reference="quantized",
        calibration={"samples": 2, "candidates": 4, "recheck": 0},
    )
    convert(model, resq, example=still)
    calibrate(model, [frames[:3]])

    manifest = export_model(model, frames, tmp_path / "out", encodings=(), htp=HtpConfig())
    found = verify_htp(tmp_path / "out", frames=1, layers=False)  # the session allows no fallback: all or an error

    assert manifest.float_layers == ()
    assert found.passed
    assert all(agreement > 80 for graph in found.graphs for agreement in (graph.agreement_cpu, graph.agreement_torch))
    assert {path.name for path in (tmp_path / "out" / "htp").glob("*_context.onnx")} == {
        "keyframe_context.onnx",
        "residual_context.onnx",
    }
    assert OrtStream(tmp_path / "out", device="htp", interval=2).state_bytes() < manifest.state_bytes

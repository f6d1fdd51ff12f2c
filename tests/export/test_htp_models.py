"""Whole networks on Qualcomm's HTP, of the model zoos and trained: every operator, keyframe and residual frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import build
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.export import LAYER_LIMIT, HtpConfig, OrtStream, export_model, verify, verify_htp

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the toolkits' own
pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")

DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
HRNET = "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


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
    found = verify_htp(tmp_path / "out", frames=1)  # the session allows no fallback: all or an error

    assert all(layer.passed and layer.limit <= 16 for layer in found.layers)
    assert sum(layer.lsb > LAYER_LIMIT for layer in found.layers) < 10
    assert [graph.watched for graph in found.graphs] == [0, 0]
    assert manifest.float_layers == ()
    assert found.passed
    assert all(agreement > 80 for graph in found.graphs for agreement in (graph.agreement_cpu, graph.agreement_torch))
    assert {path.name for path in (tmp_path / "out" / "htp").glob("*_context.onnx")} == {
        "keyframe_context.onnx",
        "residual_context.onnx",
    }
    assert OrtStream(tmp_path / "out", device="htp", interval=2).state_bytes() < manifest.state_bytes


def mobilenet() -> nn.Module:
    """The features of a MobileNetV2 trained on ImageNet."""
    models = pytest.importorskip("torchvision.models")
    path = SHARED / "weights" / "mobilenetv2_imagenet.pth"
    if not path.is_file():
        pytest.skip("the trained MobileNetV2 is not on this machine")
    net = models.mobilenet_v2().features.eval()
    net.load_state_dict(dict(zip(net.state_dict(), torch.load(path, map_location="cpu").values(), strict=True)))
    return net


def people(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Normalised frames (1, 3, H, W) of a real video."""
    av = pytest.importorskip("av")
    path = SHARED / "video_people" / "basketball_mmaction2.mp4"
    if not path.is_file():
        pytest.skip("the video is not on this machine")
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    with av.open(str(path)) as container:
        pairs = zip(container.decode(video=0), range(count), strict=False)
        images = [frame.to_image().resize(size[::-1]) for frame, _ in pairs]
    pixels = [((np.asarray(image) - mean) / std).astype(np.float32) for image in images]
    return [torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() for array in pixels]


def cosine(ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]]) -> float:
    """Of features pooled over the image."""
    a, b = (np.stack(arrays).mean((-2, -1)).ravel().astype(np.float64) for arrays in (ours, theirs))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize(
    ("weights", "fold", "least"), [("channel", True, 0.92), ("channel", False, 0.7), ("tensor", True, 0.95)]
)
def test_a_trained_mobilenet_computes_what_its_integers_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: str, fold: bool, least: float
) -> None:
    """With one scale for the tensor its residual frames return what the keyframe did, and everybody says so.

    ``least`` is of pooled features on the HTP against the simulation; 8 bits between the layers cost the rest.
    """
    frames, model = people(28, (96, 128)), mobilenet()
    if fold:
        calibration = {"samples": 4, "candidates": 6, "recheck": 0}
        convert(model, ResQConfig.parse("W8A8->W4A8", weights=weights, calibration=calibration), example=frames[0])
        calibrate(model, [frames[0:6:2], frames[6:12:2], frames[12:18:2]])
    else:
        model = build(model, "W8A8->W4A8", frames[:18:2], fold=False, weights=weights)
    clip = frames[18:28]
    export_model(model, clip, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))

    found = verify_htp(tmp_path / "out", frames=1)

    assert found.worst_layer <= 1
    assert len(found.layers) > 300
    assert [graph.watched for graph in found.graphs] == [0, 0]
    assert found.passed
    assert verify(tmp_path / "out").is_still is (weights == "tensor")
    assert any("weights='channel'" in record.getMessage() for record in caplog.records) is (weights == "tensor")
    htp, cpu = OrtStream(tmp_path / "out", device="htp"), OrtStream(tmp_path / "out")
    played = [[player(frame.numpy()).copy() for frame in clip[:6]] for player in (htp, cpu)]
    assert cosine(*played) > least

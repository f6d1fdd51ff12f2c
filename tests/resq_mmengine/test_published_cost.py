"""The bit operations that the paper publishes, from the configs of the model zoos."""

from __future__ import annotations

import pytest
from torch import nn

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from resq_mmengine.zoo import FrameModel, build_model

from resq_plugin.config import ResQConfig
from resq_plugin.cost.measure import measure_cost

CITYSCAPES = (1, 3, 1024, 2048)
NAMES = {
    "ddrnet_23_slim": "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "ddrnet_23": "mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "hrnet_w18_small": "mmseg::hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py",
    "hrnet_w32": "mmpose::body_2d_keypoint/topdown_heatmap/mpii/td-hm_hrnet-w32_8xb64-210e_mpii-256x256.py",
}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {}


@pytest.mark.parametrize(
    ("name", "precision", "low", "high"),
    [
        ("ddrnet_23_slim", "W8A8->W4A4", 1.1, 1.2),
        ("ddrnet_23_slim", "W4A4->W3A3", 0.35, 0.45),
        ("ddrnet_23", "W8A8->W4A4", 4.55, 4.65),
        ("ddrnet_23", "W4A4->W3A3", 1.55, 1.65),
        ("hrnet_w18_small", "W4A4->W3A3", 0.865, 0.875),  # the paper rounds to 0.9
    ],
)
def test_segmentation_tbops_per_frame(
    models: dict[str, nn.Module], name: str, precision: str, low: float, high: float
) -> None:
    if name not in models:
        models[name] = FrameModel(build_model(NAMES[name]))
    cost = measure_cost(models[name], CITYSCAPES, ResQConfig.parse(precision, interval=3))

    assert low < cost.bops_per_frame / 1e12 < high
    assert not cost.float_layers


def test_pose_gbops_per_frame() -> None:
    model = FrameModel(build_model(NAMES["hrnet_w32"]))
    cost = measure_cost(model, (1, 3, 256, 256), ResQConfig.parse("W8A8->W8A4", interval=4))

    assert cost.macs / 1e9 == pytest.approx(10.19, abs=0.005)
    assert cost.bops_per_frame / 1e9 == pytest.approx(408, abs=0.5)

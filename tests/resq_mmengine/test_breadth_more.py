"""More architectures of the model zoos: the contracts of `test_breadth` in one go, and what stays in float."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_equal, exact_numbers, fit, flat, in_use, outside, play, video

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from resq_mmengine.zoo import FrameModel, build_model

from resq_plugin import ResQConfig, convert, summarize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),  # of MMDet's CSPNeXt
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # of MMPose's RTMO
]

POSE = "mmpose::body_2d_keypoint"
HEATMAP = f"{POSE}/topdown_heatmap/coco"
ATTENTION = {"MultiheadAttention", "NonDynamicallyQuantizableLinear"}
NETS: dict[str, set[str]] = {
    "mmseg::apcnet/apcnet_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::bisenetv1/bisenetv1_r18-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024.py": set(),
    "mmseg::ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py": set(),
    "mmseg::danet/danet_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::dmnet/dmnet_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::dnlnet/dnl_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py": ATTENTION,
    "mmseg::emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024.py": set(),
    "mmseg::encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py": set(),
    "mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.py": set(),
    "mmseg::icnet/icnet_r18-d8-in1k-pre_4xb2-160k_cityscapes-832x832.py": set(),
    "mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py": ATTENTION,
    "mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py": set(),
    "mmseg::mobilenet_v3/mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024.py": {"Conv2dAdaptivePadding"},
    "mmseg::ocrnet/ocrnet_hr18s_4xb2-160k_cityscapes-512x1024.py": set(),
    "mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py": ATTENTION,
    "mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py": set(),
    "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py": set(),
    "mmseg::twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py": ATTENTION,
    f"{HEATMAP}/td-hm_hrformer-small_8xb32-210e_coco-256x192.py": set(),
    f"{HEATMAP}/td-hm_mspn50_8xb32-210e_coco-256x192.py": set(),
    f"{HEATMAP}/td-hm_pvtv2-b2_8xb64-210e_coco-256x192.py": ATTENTION,
    f"{HEATMAP}/td-hm_resnest50_8xb64-210e_coco-256x192.py": set(),
    f"{HEATMAP}/td-hm_rsn18_8xb32-210e_coco-256x192.py": set(),
    f"{HEATMAP}/td-hm_seresnet50_8xb64-210e_coco-256x192.py": set(),
    f"{HEATMAP}/td-hm_vipnas-mbv3_8xb64-210e_coco-256x192.py": set(),
    f"{POSE}/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py": ATTENTION,
    f"{POSE}/topdown_regression/coco/td-reg_res50_rle-8xb64-210e_coco-256x192.py": set(),
    f"{POSE}/yoloxpose/coco/yoloxpose_tiny_4xb64-300e_coco-416.py": set(),
}
"""Configurations, and the classes of their linear layers that stay in float."""


def size_of(source: str) -> int:
    """The side of a frame: LRASPP pools 49×49 pixels at an eighth of the resolution."""
    return 392 if "lraspp" in source else 64


@pytest.mark.parametrize("source", NETS)
def test_the_contracts_hold(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = size_of(source)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = in_use(FrameModel(build_model(source)), torch.randn(2, 3, size, size))
    before, frames = copy.deepcopy(model).double(), video(3, shape=(1, 3, size, size))
    fit(convert(model, ResQConfig.parse("W8A8->W4A4", interval=3)), frames)

    assert {name.partition("(")[2].rstrip(")") for name in summarize(model).unsupported} == NETS[source]
    repeated = flat(play(model, [frames[0]] * 3))
    count = len(repeated) // 3
    assert_equal(repeated[count:], repeated[:count] * 2)
    assert_equal(flat(play(model, frames, interval=1)), flat(outside(model, frames)))

    exact_numbers(monkeypatch)
    exact = [frame.double() for frame in frames]
    for z, expected in zip(flat(play(model.double(), exact)), flat(outside(before, exact)), strict=True):
        assert float((z - expected).abs().max() / expected.abs().max()) <= 1e-10

"""The demo net: loads, has the parts a real net has, and is accurate on scenes it has not seen."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from torch import nn

from resq_plugin.demo import CLASSES, HELD_OUT_SEEDS, DemoNet, SceneConfig, generate_clip, load_demo_net, mean_iou

FLOOR = 0.80  # mean IoU over the scenes below; benchmarks/train_demo.py reaches more


@pytest.fixture(scope="module")
def net() -> DemoNet:
    return load_demo_net()


def test_weights_file_is_small() -> None:
    size = len(resources.files("resq_plugin.demo").joinpath("demonet.pth").read_bytes())
    assert size < 2_000_000


def test_loads_in_eval_mode_with_finite_weights(net: DemoNet) -> None:
    assert not any(module.training for module in net.modules())
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) <= 400_000


def test_has_the_parts_of_a_real_net(net: DemoNet) -> None:
    modules = list(net.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert any(module.groups == module.in_channels > 1 for module in convolutions)
    assert any(module.stride == (2, 2) for module in convolutions)
    assert any(isinstance(module, nn.ConvTranspose2d) for module in modules)
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert any(isinstance(module, nn.ReLU) and module.inplace for module in modules)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 128, 192), (2, 64, 96)])
@torch.no_grad()
def test_output_shape(net: DemoNet, batch: int, height: int, width: int) -> None:
    frames = torch.zeros(batch, 3, height, width)
    scores = net(frames)
    assert scores.shape == (batch, len(CLASSES), height, width)
    assert torch.equal(frames, torch.zeros_like(frames))  # in-place layers keep away from the input


@torch.no_grad()
def test_accurate_on_held_out_scenes(net: DemoNet) -> None:
    seeds = HELD_OUT_SEEDS[:8]
    frames, labels = zip(*(generate_clip(SceneConfig(seed=seed), 1) for seed in seeds), strict=True)
    assert mean_iou(net(torch.cat(frames)).argmax(1), torch.cat(labels)) >= FLOOR


def test_mean_iou_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    predictions = torch.tensor([[[0, 1, 1, 1]]])
    assert mean_iou(predictions, labels, classes=3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_iou(labels, labels) == 1.0
    with pytest.raises(ValueError, match=r"predictions \(1, 1, 3\) and labels \(1, 1, 4\)"):
        mean_iou(predictions[..., :3], labels)

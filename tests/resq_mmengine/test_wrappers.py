"""mmcv's own layer classes: those that compute what torch computes are converted, others are listed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from helpers import assert_equal, build, play, seeded, video
from torch import Tensor, nn

pytest.importorskip("mmcv")

from mmcv.cnn import bricks
from resq_mmengine import mmcv_lite
from resq_mmengine.wrappers import BATCH_NORMS, LAYERS

from resq_plugin import convert, dense_execution, revert, summarize
from resq_plugin.backends.wrappers import torch_class

MAKE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda: bricks.wrappers.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 12, 16)),
    "Conv3d": (lambda: bricks.wrappers.Conv3d(3, 4, 3, padding=1), (2, 3, 4, 6, 5)),
    "ConvTranspose2d": (
        lambda: bricks.wrappers.ConvTranspose2d(3, 4, 4, stride=2, padding=1, output_padding=1),
        (2, 3, 6, 8),
    ),
    "ConvTranspose3d": (lambda: bricks.wrappers.ConvTranspose3d(3, 4, 2, stride=2), (2, 3, 2, 3, 4)),
    "Linear": (lambda: bricks.wrappers.Linear(6, 5), (2, 7, 6)),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "Conv2dAdaptivePadding": lambda: bricks.Conv2dAdaptivePadding(3, 4, 3, stride=2),
    "ConvWS2d": lambda: bricks.ConvWS2d(3, 4, 3),
    "ConvAWS2d": lambda: bricks.ConvAWS2d(3, 4, 3),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_wrapper_computes_what_torch_computes(name: str) -> None:
    make, shape = MAKE[name]
    layer, twin = seeded(make), seeded(make)
    assert torch_class(type(layer)) is getattr(nn, name)
    twin.__class__ = getattr(nn, name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(layer(x), twin(x))
        assert torch.equal(layer(x[:0]), twin(x[:0]))


@pytest.mark.parametrize("name", MAKE)
def test_a_wrapper_is_converted_and_comes_back(name: str) -> None:
    make, shape = MAKE[name]
    frames = video(3, shape)
    net = nn.Sequential(seeded(make))
    model = build(net, frames=frames)
    assert summarize(model).converted == ("0",)
    outputs = play(model, [frames[0]] * 3)
    assert torch.equal(outputs[2], outputs[0])
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), net(frames[0]))
    assert type(revert(model)[0]) is type(net[0])


def test_every_wrapper_is_tested() -> None:
    assert {kind.__name__ for kind in LAYERS} == set(MAKE)


@pytest.mark.parametrize("name", OTHERS)
def test_what_computes_something_else_stays_float_and_is_listed(name: str, frames: list[Tensor]) -> None:
    net = nn.Sequential(seeded(OTHERS[name]), nn.Conv2d(4, 2, 1))
    model = build(net, frames=frames)
    assert summarize(model).unsupported == (f"0 ({name})",)
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), net(frames[0]))


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norms_are_folded_and_come_back(kind: type[nn.Module], frames: list[Tensor]) -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    twin = build(net, frames=frames)
    net[1].__class__ = kind
    model = build(net, frames=frames)
    assert summarize(model).folded == ("1",)
    assert_equal(play(model, frames), play(twin, frames))
    assert type(revert(model)[1]) is kind
    with torch.no_grad():
        assert torch.equal(model(frames[0]), revert(twin)(frames[0]))


def test_deformable_convolutions_are_listed_though_they_are_no_subclass() -> None:
    mmcv_lite.install()
    ops = importlib.import_module("mmcv.ops")
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LayerNorm((4, 8, 8)), ops.DeformConv2d(4, 4, 3), ops.ModulatedDeformConv2d(4, 4, 3)
    )
    assert summarize(convert(net, "W8A8->W4A4")).unsupported == ("2 (DeformConv2d)", "3 (ModulatedDeformConv2d)")

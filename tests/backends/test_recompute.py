"""Activation checkpointing in a stream with every backend: the gradients are those without it."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import seeded, video
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resq_plugin import ResQConfig, calibrate, convert, stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster

MODES = {"plain": None, "reentrant": True, "not reentrant": False}


class Net(nn.Module):
    """A block of two layers, the second used twice, with or without checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.reentrant: bool | None = None

    def block(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.again(x).relu() + self.again(x.flip(-1)).relu_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("backend", ["torch", "aimet", "brevitas"])
@pytest.mark.parametrize("precision", ["W4A4->W3A3", "W4A4->W3A{0,3,8}"], ids=["static", "dynamic"])
def test_gradients_are_those_without_checkpointing(backend: str, precision: str, reference: str) -> None:
    frames = video(3)
    net = convert(seeded(Net), ResQConfig.parse(precision, backend=backend, reference=reference, interval=3))
    calibrate(net, [frames])
    net.train()
    results = {}
    for mode, reentrant in MODES.items():
        net.reentrant = reentrant
        net.zero_grad()
        with stream(net) as player:
            loss = sum((t + 1) * player(frame).square().mean() for t, frame in enumerate(frames))
        loss.backward()
        results[mode] = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    expected = results.pop("plain")
    assert {"stem.weight", "first.0.weight", "again.weight"} <= expected.keys()
    for mode, gradients in results.items():
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-6), (mode, name)

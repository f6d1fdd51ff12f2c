"""What the tests of the AIMET adapter share: a small net, its sim, a video."""

from __future__ import annotations

import copy
from collections.abc import Callable

import aimet_torch
import pytest
import resq_aimet
import torch
from helpers import seeded, video
from torch import Tensor, nn


class Skip(nn.Module):
    """Modules only, as AIMET's graph wants them: convolutions, ReLU, an addition, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()
        self.conv3 = nn.Conv2d(8, 8, 1, bias=False)
        self.add = aimet_torch.nn.modules.custom.Add()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.relu1(self.conv1(frame))
        return self.head(self.add(self.conv3(self.relu2(self.conv2(x))), x))


@pytest.fixture
def net() -> nn.Module:
    """A float net."""
    return seeded(Skip)


@pytest.fixture
def clips(frames: list[Tensor]) -> list[list[Tensor]]:
    """Two calibration clips of three frames."""
    return [frames[:3], frames[3:6]]


@pytest.fixture
def make_sim(net: nn.Module) -> Callable[..., aimet_torch.QuantizationSimModel]:
    """Return a function that makes AIMET's sim of the net, W8A8 by default."""

    def make(cls: type = aimet_torch.QuantizationSimModel, **options: object) -> aimet_torch.QuantizationSimModel:
        return cls(copy.deepcopy(net), video(1)[0], **options)

    return make


@pytest.fixture
def make_resq(make_sim: Callable, clips: list[list[Tensor]]) -> Callable[..., resq_aimet.ResQSim]:
    """Return a function that makes a converted and calibrated sim."""

    def make(precision: str = "W8A8->W4A4", placement: str = "paper") -> resq_aimet.ResQSim:
        resq = resq_aimet.convert(make_sim(), precision, placement=placement)
        resq.compute_encodings(clips)
        return resq

    return make


def show(frames: list[Tensor]) -> Callable[[nn.Module], None]:
    """What AIMET's `compute_encodings` wants: a function that runs frames."""

    def run(model: nn.Module) -> None:
        for frame in frames:
            model(frame)

    return run


@pytest.fixture
def run_frames(frames: list[Tensor]) -> Callable[[nn.Module], None]:
    """A forward-pass callback over all frames."""
    return show(frames)


@pytest.fixture
def outputs(frames: list[Tensor]) -> Callable[[nn.Module], list[Tensor]]:
    """Return a function that runs every frame on its own, without a stream."""

    @torch.no_grad()
    def run(model: nn.Module) -> list[Tensor]:
        return [model(frame).as_subclass(Tensor) for frame in frames]

    return run

"""Every backend notices new numbers in mid-interval, and nothing else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import ZOO, assert_equal, play, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster


@pytest.fixture(params=["torch", "aimet", "brevitas"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Converted by each backend, and calibrated."""
    config = ResQConfig.parse("W8A8->W4A{0,4,8}", backend=request.param, interval=9)
    net = convert(seeded(ZOO["residual"]), config)
    calibrate(net, [video(3)])
    return net


@pytest.mark.parametrize("training", [False, True])
def test_intervals_are_as_long_as_configured(model: nn.Module, training: bool, frames: list[Tensor]) -> None:
    with stream(model.train(training)) as player:
        for frame in frames:
            player(frame)
        assert player.position == 6


@pytest.mark.parametrize("kind", ["loaded", "trained", "calibrated"])
def test_new_numbers_start_an_interval(model: nn.Module, kind: str, frames: list[Tensor]) -> None:
    state = copy.deepcopy(model.state_dict())
    play(model, frames[:2])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        if kind == "loaded":
            key = next(key for key in state if key.endswith("conv1.weight"))
            model.load_state_dict(state | {key: state[key] * 1.1})
        elif kind == "trained":
            weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
            for parameter in weights:
                parameter.grad = torch.full_like(parameter, 0.01)
            torch.optim.SGD(weights, lr=0.1).step()
        else:
            calibrate(model, [[frame * 1.5 for frame in video(3, seed=8)]])
        found = [player(frame) for frame in frames[2:4]]
        assert player.position == 1
    assert_equal(found, play(model, frames[2:4]))

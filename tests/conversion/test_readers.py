"""Who reads the output of a layer with a folded batch norm: its batch norm, or an error says who else does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Plain, assert_equal, build, max_lsb, outside, play, seeded, step_of, video
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resq_plugin import ResQConfig, calibrate, convert, dense_execution, revert, stream, summarize
from resq_plugin.errors import FoldingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster


@pytest.fixture(params=["torch", "aimet", "brevitas"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Base(nn.Module):
    """A convolution and its batch norm, a second convolution, and a switch that no frame of calibration has on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)
        self.switch = False
        self.stored: Any = None


class AuxiliaryInTraining(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        y = self.norm(z)
        return y + z.mean() if self.training else y


class BranchOfLaterFrames(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        y = self.norm(z)
        return torch.cat([y, z]) if self.switch else y


class WithoutNorm(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return F.relu(z) if self.switch else self.norm(z)


class NormOfAnother(Base):
    def forward(self, frame: Tensor) -> Tensor:
        other = self.other(frame)
        return self.norm(other if self.switch else self.conv(frame))


class NormOfTheSum(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return self.norm(z + 1 if self.switch else z)


class NormTwice(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return F.relu_(self.norm(z)) + self.norm(z) if self.switch else self.norm(z)


class InPlaceBefore(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return self.norm(z.relu_() if self.switch else z)


READERS = [BranchOfLaterFrames, WithoutNorm, NormOfAnother, NormOfTheSum, NormTwice, InPlaceBefore]


@pytest.mark.parametrize("net", READERS)
def test_a_branch_of_later_frames_that_reads_the_raw_output_says_so(net: type[Base], backend: str) -> None:
    frames = video(4)
    float_net = seeded(net)
    model = build(float_net, "W16A16->W16A16", frames, backend=backend)
    assert summarize(model).folded == ("norm",)
    with torch.no_grad():
        assert max_lsb(model(frames[0]), float_net(frames[0]), step_of(float_net(frames[0]))) < 6
    model.switch = True
    for run in (lambda: outside(model, frames), lambda: play(model, frames)):
        with pytest.raises(FoldingError, match=r"layer conv computes with the batch norm.*exclude=\('conv',\)"):
            run()
    with dense_execution(), pytest.raises(FoldingError, match="layer conv computes"):
        outside(model, frames)
    float_net.switch = True
    assert_equal(outside(revert(model), frames), outside(float_net, frames))


def test_a_branch_of_training_only_says_so(backend: str) -> None:
    """GIVEN an auxiliary branch on the raw output, which calibration does not run as it runs in evaluation mode."""
    frames = video(4)
    model = convert(seeded(AuxiliaryInTraining), ResQConfig.parse("W8A8->W4A4", backend=backend))
    calibrate(model, [frames])
    model.train()
    with (
        pytest.raises(FoldingError, match=r"layer conv .*now mean\(\.\.\.\) reads its output"),
        stream(model) as player,
    ):
        player(frames[0])
    assert len(play(model.eval(), frames)) == 4


def test_the_line_that_the_error_names_works(backend: str) -> None:
    frames = video(4)
    net = seeded(AuxiliaryInTraining)
    config = ResQConfig.parse("W16A16->W16A16", backend=backend, exclude=("conv",))
    model = nn.ModuleDict({"a": copy.deepcopy(net), "b": nn.Conv2d(4, 2, 1)})
    convert(model, config.replace(exclude=("a.conv", "a.other")))
    calibrate(model, [frames], run=lambda frame: model["b"](model["a"](frame)))
    with torch.no_grad():
        for part in (net, model):
            part.train()
        assert torch.equal(model["a"](frames[0]), net(frames[0]))


def test_a_batch_norm_called_twice_on_one_output_stays_dense() -> None:
    """THEN both results are tensors of their own, as in the float net, on which it may work in place."""
    net = seeded(NormTwice)
    net.switch = True
    model = build(net, "W16A16->W16A16", video(3))
    assert summarize(model).dense == ("norm",)
    with dense_execution():
        assert_equal(outside(model, video(3)), outside(net, video(3)))


# --- what may go on -------------------------------------------------------------------------------------------------


def test_the_shape_may_be_read() -> None:
    seen = []

    class Shapes(Base):
        def forward(self, frame: Tensor) -> Tensor:
            z = self.conv(frame)
            seen.append((z.shape, z.size(1), z.dtype, z.device, z.requires_grad, len(z), z.dim(), z.is_cuda))
            return self.norm(z)

    model = build(Shapes, frames=video(2))
    hook = model.conv.register_forward_hook(lambda *args: seen.append(repr(args[2])))
    play(model, video(2))
    hook.remove()
    assert seen[-2] == "FoldedOutput(conv, (2, 4, 12, 16))"
    assert seen[-1] == ((2, 4, 12, 16), 4, torch.float32, torch.device("cpu"), False, 2, 4, False)


def gradients(model: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    run(model, video(1)[0].requires_grad_()).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", [slice(0, 1), slice(0, 2), slice(0, 3)])
def test_gradients_pass_as_in_the_float_net(reentrant: bool, part: slice, backend: str) -> None:
    """GIVEN frozen statistics, as folded ones are, and checkpointing that cuts before or behind the batch norm."""
    net = seeded(Plain)
    model = build(net, "W16A16->W16A16", video(3), backend=backend)

    def cut(model: nn.Module, x: Tensor) -> Tensor:
        modules = list(model)
        z = checkpoint(nn.Sequential(*modules[part]), x, use_reentrant=reentrant)
        return nn.Sequential(*modules[part.stop :])(z)

    with dense_execution():
        expected = gradients(net, lambda net, x: net(x))
        for run in (lambda model, x: model(x), cut):
            found = gradients(model, run)
            for ours, theirs in zip(found, expected, strict=True):
                assert max_lsb(ours, theirs, step_of(theirs)) < 1


@pytest.mark.parametrize("index", [0, 1])
def test_backward_hooks_are_called(index: int, backend: str) -> None:
    """GIVEN one on the layer or on its batch norm, THEN a ReLU in place behind the batch norm works as before."""
    model = build(Plain, "W16A16->W16A16", video(3), backend=backend)
    calls = []
    if index == 1:  # torch allows nothing in place behind a module with such a hook
        model[2].inplace = False
    expected = gradients(model, lambda model, x: model(x))
    model[index].register_full_backward_hook(lambda module, _, out: calls.append((module, out[0].shape)))
    found = gradients(model, lambda model, x: model(x))
    assert calls == [(model[index], (2, 8, 12, 16))]
    assert_equal(found, expected)

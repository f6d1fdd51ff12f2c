"""Tools that look for batch norms: to them a folded one is none, with every backend, and nothing of it is lost."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import build, max_lsb, seeded, step_of, video
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import fuse_conv_bn
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from resq_plugin import dense_execution, revert, summarize
from resq_plugin.backends import FoldedNorm
from resq_plugin.errors import FoldingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster

BACKENDS = ("torch", "aimet", "brevitas")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "plain": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "no affine": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "none": lambda _: nn.Identity(),
}
Tool = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Block:
    """A convolution, a batch norm, an activation; ``is_read`` if something else reads the raw output, too."""

    channels: int
    kernel: int
    bias: bool
    norm: str
    inplace: bool
    is_read: bool


class Net(nn.Module):
    """Blocks one after another, and a convolution."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        super().__init__()
        self.spec = blocks
        sizes = [3, *(block.channels for block in blocks)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, block.channels, block.kernel, padding=block.kernel // 2, bias=block.bias)
            for before, block in zip(sizes, blocks, strict=False)
        )
        self.norms = nn.ModuleList(NORMS[block.norm](block.channels) for block in blocks)
        self.acts = nn.ModuleList(nn.ReLU(inplace=block.inplace) for block in blocks)
        self.pairs = nn.ModuleList(
            nn.Sequential(*layers) for layers in zip(self.convs, self.norms, strict=True)
        )  # the way fusing tools find them
        self.head = nn.Conv2d(sizes[-1], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block, conv, norm, act in zip(self.spec, self.convs, self.norms, self.acts, strict=True):
            z = conv(x)
            x = act(norm(z) if not block.is_read else norm(z) + z)
        return self.head(x)


block = st.builds(
    Block,
    channels=st.integers(2, 4),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    norm=st.sampled_from(list(NORMS)),
    inplace=st.booleans(),
    is_read=st.booleans(),
)
nets = st.lists(block, min_size=1, max_size=3).map(tuple)


def only_named(model: nn.Module) -> nn.Module:
    """A tool that goes by the name of the class."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if "BatchNorm" in type(child).__name__ and not getattr(child, "affine", True):
                setattr(module, name, copy.deepcopy(child))
    return model


def frozen(model: nn.Module) -> nn.Module:
    """What `norm_eval=True` of MMSeg does."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model.eval()


def averaged(model: nn.Module) -> nn.Module:
    """An averaged model of one model."""
    mean = AveragedModel(model, use_buffers=True)
    mean.update_parameters(model)
    return mean.module


def slower(model: nn.Module) -> nn.Module:
    """Another momentum for every batch norm."""
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.01
    return model


TOOLS: dict[str, Tool] = {
    "convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "revert_sync_batchnorm": revert_sync_batchnorm,
    "by name": only_named,
    "norm_eval": frozen,
    "averaged": averaged,
    "momentum": slower,
    "deepcopy": copy.deepcopy,
    "half and back": lambda model: model.double().float(),
    "memory format": lambda model: model.to(memory_format=torch.channels_last),
}


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad(), dense_execution():
        return model(video(1)[0])


def assert_same(found: Tensor, expected: Tensor, steps: float = 0.2) -> None:
    assert max_lsb(found, expected, step_of(expected)) < steps


# --- any net, any backend, any tool ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tool", list(TOOLS))
@given(blocks=nets)
@settings(max_examples=6)
def test_treated_and_reverted_equals_the_treated_float_net(tool: str, backend: str, blocks: tuple[Block, ...]) -> None:
    net = seeded(lambda: Net(blocks))
    expected = outputs(TOOLS[tool](copy.deepcopy(net)).eval())
    model = TOOLS[tool](build(net, "W16A16->W16A16", video(3), backend=backend)).eval()
    assert_same(outputs(model), expected)
    with torch.no_grad():
        assert_same(model(video(1)[0]), expected, steps=200)
    revert(model)
    assert not any(isinstance(module, FoldedNorm) for module in model.modules())
    with torch.no_grad():
        assert_same(model(video(1)[0]), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(blocks=nets)
@settings(max_examples=10)
def test_update_bn_leaves_folded_statistics_alone(backend: str, blocks: tuple[Block, ...]) -> None:
    """THEN it sees dense batch norms only; statistics of folded ones are constants, in the model and after revert."""
    net = seeded(lambda: Net(blocks))
    model = build(net, "W16A16->W16A16", video(3), backend=backend)
    folded = summarize(model).folded
    update_bn(video(2), model)
    for name in folded:
        assert torch.equal(model.get_submodule(name).running_var, net.get_submodule(name).running_var)
    if not summarize(model).dense:
        assert_same(outputs(model), outputs(net))
        revert(model)
        with torch.no_grad():
            assert torch.equal(model(video(1)[0]), net(video(1)[0]))


# --- tools that fuse ------------------------------------------------------------------------------------------------


def pair(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_folded_pair_is_not_fused_again(backend: str) -> None:
    net = seeded(pair)
    model = fuse_conv_bn(build(net, "W16A16->W16A16", video(3), backend=backend))
    assert_same(outputs(model), outputs(net))
    revert(model)
    assert_same(outputs(model), outputs(fuse_conv_bn(copy.deepcopy(net))))


def test_a_pair_fused_by_hand_says_so(backend: str) -> None:
    model = build(seeded(pair), frames=video(3), backend=backend)
    model[0] = nn.utils.fuse_conv_bn_eval(model[0], model[1])
    model[1] = nn.Identity()
    with pytest.raises(FoldingError, match=r"layer 0 computes with the batch norm behind it folded in.*relu"):
        outputs(model)


def test_a_batch_norm_that_is_replaced_or_moved_says_so(backend: str) -> None:
    model = build(seeded(pair), frames=video(3), backend=backend)
    folded, model[1] = model[1], nn.GroupNorm(2, 8)
    with pytest.raises(FoldingError, match=r"layer 0 .*group_norm\(\.\.\.\) reads its output"):
        outputs(model)
    model[1] = folded
    model[0] = nn.Conv2d(3, 8, 3)
    with pytest.raises(FoldingError, match=r"layer 0 .*this batch norm is called with another tensor"):
        outputs(model)


# --- statistics and checkpoints -------------------------------------------------------------------------------------


def test_a_folded_batch_norm_is_no_batch_norm_to_any_test(backend: str) -> None:
    model = build(seeded(pair), frames=video(3), backend=backend)
    assert not isinstance(model[1], _BatchNorm)
    assert not any("BatchNorm" in kind.__name__ for kind in type(model[1]).__mro__)
    assert "BatchNorm2d, 8" in repr(model[1])
    assert summarize(model).folded == ("1",)


def test_statistics_are_not_reset_where_nothing_fills_them(backend: str) -> None:
    model = build(seeded(pair), frames=video(3), backend=backend)
    before = outputs(model)
    with pytest.raises(FoldingError, match=r"this BatchNorm2d is folded into layer 0.*revert\(model\)"):
        model[1].reset_running_stats()
    assert torch.equal(outputs(model), before)


def test_reset_parameters_resets_as_in_the_float_net(backend: str) -> None:
    net = seeded(pair)
    model = build(net, "W16A16->W16A16", video(3), backend=backend)
    for part in (net, model):
        part[1].reset_parameters()
    assert_same(outputs(model), outputs(net))
    revert(model)
    assert torch.equal(model[1].running_var, net[1].running_var)
    assert int(model[1].num_batches_tracked) == 0


def test_checkpoints_from_before_num_batches_tracked_load_strictly(backend: str) -> None:
    net = seeded(pair, seed=1)
    state = net.state_dict()
    del state["1.num_batches_tracked"]
    state._metadata.pop("1")
    model = build(seeded(pair), frames=video(3), backend=backend)
    model.load_state_dict(state, strict=True)
    assert torch.equal(model[1].running_mean, net[1].running_mean)
    assert model.state_dict()._metadata["1"] == net.state_dict()._metadata["1"]


def test_state_dicts_of_folded_and_float_are_alike(backend: str) -> None:
    net = seeded(pair)
    model = build(net, frames=video(3), backend=backend)
    ours: dict[str, Any] = {key: value for key, value in model.state_dict().items() if key.startswith("1.")}
    theirs = {key: value for key, value in net.state_dict().items() if key.startswith("1.")}
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert [name for name, _ in model.named_parameters() if name.startswith("1.")] == ["1.weight", "1.bias"]

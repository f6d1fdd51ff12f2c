"""Batch norms: which are folded, which stay dense, and that both compute what the float model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Plain, Residual, assert_equal, build, eq1, eq7, max_lsb, play, seeded, step_of, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, dense_execution, revert, stream, summarize
from resq_plugin.conversion.folding import evaluating, fold_batch_norms
from resq_plugin.errors import CheckpointError

PRECISION = ResQConfig.parse("W8A8->W4A4")


def pair(layer: nn.Module, norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm))


FOLDABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (pair(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), (2, 4, 7)),
    "conv2d": (pair(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    "conv2d-bias": (pair(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    "conv2d-depthwise": (pair(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 5, 6)),
    "conv3d": (pair(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 2, 3, 4, 5)),
    "transposed1d": (pair(nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6)), (2, 4, 7)),
    "transposed2d": (pair(nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    "transposed2d-groups": (pair(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    "transposed3d-groups": (pair(nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6)), (2, 4, 2, 3, 4)),
    "linear": (pair(nn.Linear(7, 5), nn.BatchNorm1d(5)), (4, 7)),
    "no-affine": (pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 4, 5, 6)),
    "eps": (pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1)), (2, 4, 5, 6)),
    "sync": (pair(nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)), (2, 4, 5, 6)),
}


@pytest.fixture(params=list(FOLDABLE))
def foldable(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with the batch norm behind it, and the shape of its input."""
    make, shape = FOLDABLE[request.param]
    return seeded(make), shape


def folded_by_hand(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """w f and (b - m) f + β with f = γ / sqrt(v + eps), output channel by output channel, in float64."""
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    weight = layer.weight.detach().double().clone()
    channels = norm.num_features
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    gamma, beta = (norm.weight, norm.bias) if norm.affine else (ones, zeros)
    bias = zeros if layer.bias is None else layer.bias
    result = torch.empty(channels, dtype=torch.float64)
    for c in range(channels):
        f = float(gamma[c].detach()) / (float(norm.running_var[c]) + norm.eps) ** 0.5
        if transposed:  # (C_in, C_out / groups, *kernel)
            per_group = channels // layer.groups
            inputs = layer.in_channels // layer.groups
            group = c // per_group
            weight[group * inputs : (group + 1) * inputs, c % per_group] *= f
        else:
            weight[c] *= f
        result[c] = (float(bias[c].detach()) - float(norm.running_mean[c])) * f + float(beta[c].detach())
    return weight, result


# --- foldable -------------------------------------------------------------------------------------------------------


def test_folded_weights_by_hand(foldable: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = foldable
    weight, bias = folded_by_hand(*net)
    layer = build(net, "W8A8->W4A4", video(3, shape))[0]
    with torch.no_grad():
        found_weight, found_bias = layer.float_weight()
        assert max_lsb(found_weight, weight, step_of(weight)) < 0.02
        assert max_lsb(found_bias, bias, step_of(bias)) < 0.02
        # Eq. 7 sees the folded range
        assert torch.equal(layer.weight_of("keyframe"), eq7(found_weight, 8))
        assert torch.equal(layer.weight_of("residual"), eq7(found_weight, 4))


def test_the_folded_model_is_the_float_model(foldable: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = foldable
    frames = video(4, shape)
    model = build(net, "W16A16->W16A16", frames, interval=4)
    assert summarize(model).folded == ("1",)
    with torch.no_grad():
        expected = [net(frame) for frame in frames]
        with dense_execution():
            dense = [model(frame) for frame in frames]
    lsb = step_of(torch.stack(expected))
    assert max(max_lsb(a, b, lsb) for a, b in zip(dense, expected, strict=True)) < 0.05
    assert max(max_lsb(a, b, lsb) for a, b in zip(play(model, frames), expected, strict=True)) < 4


@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_the_folded_bias_counts_at_the_keyframe_only(weights: str) -> None:
    net = seeded(pair(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    frames = video(2)
    layer = build(net, "W8A8->W4A4", frames, weights=weights)[0]
    delta = frames[1] - frames[0]
    with torch.no_grad():
        delta_hat = eq1(delta, layer.residual_quantizers[0].scale, 4)
        assert torch.equal(layer.residual(delta), F.conv2d(delta_hat, layer.weight_of("residual")))
        assert torch.equal(layer.residual(torch.zeros_like(delta)), torch.zeros_like(layer.residual(delta)))
        _, bias = layer.float_weight()
        assert torch.equal(layer.keyframe(torch.zeros_like(delta)), bias.view(1, 4, 1, 1).expand(2, 4, 12, 16))


def test_parameters_and_statistics_are_not_touched(foldable: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = foldable
    model = build(net, "W8A8->W4A4", video(2, shape))
    for key, value in net.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    revert(model)
    with torch.no_grad():
        frame = video(1, shape)[0]
        assert torch.equal(model(frame), net(frame))


class Reused(nn.Module):
    """A convolution and its batch norm, used twice together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu_(self.norm(self.conv(frame)))))


class Keyword(Reused):
    """Calls by keyword."""

    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(input=self.conv(input=frame))


@pytest.mark.parametrize("net", [Plain, Residual, Reused, Keyword])
def test_usual_networks_fold_every_batch_norm(net: type[nn.Module], frames: list[Tensor]) -> None:
    float_net = seeded(net)
    model = build(float_net, frames=frames)
    norms = [name for name, module in float_net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    summary = summarize(model)
    assert (sorted(summary.folded), summary.dense) == (sorted(norms), ())
    with torch.no_grad(), dense_execution():
        expected = float_net(frames[0])
        assert max_lsb(model(frames[0]), expected, step_of(expected)) < 0.1


# --- not foldable ---------------------------------------------------------------------------------------------------


class Base(nn.Module):
    """Two convolutions and two batch norms for the networks below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


class ReadElsewhere(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return self.norm(z) + z


class ReadThroughView(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return self.norm(z) + z[:, :1]


class ReadBeforeInPlace(Base):
    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(F.relu_(self.conv(frame)))


class Returned(Base):
    def forward(self, frame: Tensor) -> dict[str, Any]:
        z = self.conv(frame)
        return {"out": self.norm(z), "features": [z]}


class ReturnedInAnObject(Base):
    def forward(self, frame: Tensor) -> SimpleNamespace:
        z = self.conv(frame)
        return SimpleNamespace(out=self.norm(z), features=z)


class Stored(Base):
    def forward(self, frame: Tensor) -> Tensor:
        self.features = self.conv(frame)
        return self.norm(self.features)


class TwoNorms(Base):
    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        return self.norm(z) * self.second(z)


class TwoSources(Base):
    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(frame)) + self.norm(self.other(frame))


class AlsoOfTheFrame(Base):
    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(frame)) + self.norm(frame.repeat(1, 2, 1, 1)[:, :4])


class NormFirst(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, frame: Tensor) -> Tensor:
        return self.conv(self.norm(frame))


class OtherUseWithoutNorm(Base):
    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(frame)) + F.relu(self.conv(frame.flip(-1)))


class NoStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(frame))


class OwnNorm(nn.BatchNorm2d):
    """A batch norm that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


class Subclassed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = OwnNorm(4)

    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.conv(frame))


class OverTokens(nn.Module):
    """A batch norm over the tokens (N, L, C) of a linear layer, with as many tokens as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.norm = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 12), nn.BatchNorm1d(12)

    def forward(self, frame: Tensor) -> Tensor:
        return self.norm(self.linear(self.conv(frame).flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    "net",
    [
        ReadElsewhere,
        ReadThroughView,
        ReadBeforeInPlace,
        Returned,
        ReturnedInAnObject,
        Stored,
        TwoNorms,
        TwoSources,
        AlsoOfTheFrame,
        NormFirst,
        OtherUseWithoutNorm,
        NoStatistics,
        Subclassed,
        OverTokens,
    ],
)
def test_what_cannot_be_folded_stays_dense_and_exact(net: type[nn.Module], frames: list[Tensor]) -> None:
    """THEN the batch norm acts on the full z_t: in float bit for bit, at 16 bits within 6 steps, and it is listed."""
    float_net = seeded(net)
    model = build(float_net, "W16A16->W16A16", frames, interval=3)
    summary = summarize(model)
    assert summary.folded == ()
    assert "norm" in summary.dense
    with torch.no_grad():
        expected = [outputs_of(float_net(frame)) for frame in frames]
        with dense_execution():
            assert_equal(outputs_of(model(frames[0])), expected[0])
        with stream(model) as player:
            for frame, exact in zip(frames, expected, strict=True):
                for found, z in zip(outputs_of(player(frame)), exact, strict=True):
                    assert max_lsb(found, z, step_of(z)) < 6


def outputs_of(result: Any) -> list[Tensor]:
    if isinstance(result, SimpleNamespace):
        return [result.out, result.features]
    return [result["out"], *result["features"]] if isinstance(result, dict) else [result]


def test_the_batch_norm_of_a_layer_that_stays_float_is_not_folded(frames: list[Tensor]) -> None:
    model = build(Plain, frames=frames, exclude=("0",))
    assert summarize(model).dense == ("1",)
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), seeded(Plain)(frames[0]))


# --- the run that finds them ----------------------------------------------------------------------------------------


class TwoInARow(nn.Sequential):
    """Two batch norms behind one layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))


def test_folding_again_folds_nothing_more(frames: list[Tensor]) -> None:
    """GIVEN a pass-through in front of another batch norm, THEN the second stays, however often folding is called."""
    net = seeded(TwoInARow)
    model = convert(copy.deepcopy(net), PRECISION, example=frames[0])
    assert fold_batch_norms(model, frames[0]) == ()
    assert (summarize(model).folded, summarize(model).dense) == (("1",), ("2",))
    with torch.no_grad(), dense_execution():
        expected = net(frames[0])
        assert max_lsb(model(frames[0]), expected, step_of(expected)) < 0.1


def test_folding_returns_the_names_and_leaves_no_trace(frames: list[Tensor]) -> None:
    model = convert(seeded(Plain), PRECISION).train()
    model[3].eval()
    flags = [module.training for module in model.modules()]
    assert fold_batch_norms(model, frames[0]) == ("1",)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_run_leaves_no_trace(frames: list[Tensor]) -> None:
    model = convert(seeded(Plain), PRECISION).train()
    with pytest.raises(RuntimeError):
        fold_batch_norms(model, torch.zeros(1, 7, 5, 5))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert summarize(model).folded == ()


def test_statistics_are_not_updated_by_the_run(frames: list[Tensor]) -> None:
    model = convert(seeded(Plain), PRECISION).train()
    before = copy.deepcopy(model.state_dict())
    fold_batch_norms(model, frames[0])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items() if key != "resq.folded")


def test_another_way_to_run_a_frame(frames: list[Tensor]) -> None:
    model = convert(seeded(Residual), PRECISION)
    assert fold_batch_norms(model, frames[0], run=model.stem) == ("stem.1",)


def test_a_model_without_batch_norms_is_not_run() -> None:
    def refuse(frame: Tensor) -> None:
        raise AssertionError

    model = convert(nn.Sequential(nn.Conv2d(3, 4, 1)), PRECISION)
    assert fold_batch_norms(model, torch.zeros(1), run=refuse) == ()


def test_evaluating_gives_every_module_its_flag_back() -> None:
    net = Plain().train()
    net[1].eval()
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    with pytest.raises(RuntimeError), evaluating(net):
        net(torch.zeros(1, 7, 5, 5))
    assert [module.training for module in net] == [True, False, True, True, True, True]


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_state_dict_says_what_is_folded(frames: list[Tensor]) -> None:
    """GIVEN weights saved before folding, THEN loading them unfolds, and the other way round."""
    unfolded, folded = build(Residual, frames=frames, fold=False), build(Residual, frames=frames)
    early, late = copy.deepcopy(unfolded.state_dict()), copy.deepcopy(folded.state_dict())
    expected_early, expected_late = play(unfolded, frames), play(folded, frames)
    assert not torch.equal(expected_early[0], expected_late[0])
    folded.load_state_dict(early)
    unfolded.load_state_dict(late)
    assert_equal(play(folded, frames), expected_early)
    assert_equal(play(unfolded, frames), expected_late)


def test_a_float_state_dict_leaves_folding_as_it_is(frames: list[Tensor]) -> None:
    model = build(Residual, frames=frames)
    folded = summarize(model).folded
    model.load_state_dict(seeded(Residual, seed=1).state_dict())
    assert summarize(model).folded == folded


@pytest.mark.parametrize("text", ['{"0": "9"}', '{"1": "1"}', '{"0": "3"}', "[1", "[]"])
def test_damaged_or_foreign_folding_is_refused(text: str, frames: list[Tensor]) -> None:
    model = build(Plain, frames=frames)
    expected = play(model, frames)
    state = {**model.state_dict(), "resq.folded": torch.tensor(list(text.encode()), dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=r"another model|damaged"):
        model.load_state_dict(state)
    assert_equal(play(model, frames), expected)


def test_a_layer_that_becomes_float_again_gives_its_batch_norm_back(frames: list[Tensor]) -> None:
    """Calibration releases layers that no frame reaches; they may have been folded by `convert(example=...)`."""
    from resq_plugin.backends.torch_backend import detach

    net = seeded(Plain)
    model = convert(copy.deepcopy(net), PRECISION, example=frames[0])
    detach(model[0])
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), net(frames[0]))


def test_the_run_does_not_import_the_compiler() -> None:
    """Wrapped as torch would, the dispatch mode would import `torch._dynamo`: seconds of every calibration."""
    from resq_plugin.conversion.folding import _Readers

    assert not hasattr(_Readers.__torch_dispatch__, "_torchdynamo_disable")
    assert _Readers.__torch_dispatch__.__module__ == "resq_plugin.conversion.folding"

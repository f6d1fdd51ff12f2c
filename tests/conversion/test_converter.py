"""Model to ResQ model and back: what is converted, what is not and said so, and that everything else stays."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from helpers import ZOO, Plain, Pyramid, Residual, Tokens, assert_equal, build, fit, play, seeded, video
from torch import Tensor, nn

from resq_plugin import Precision, ResQConfig, convert, dense_execution, float_state_dict, revert, stream, summarize
from resq_plugin.backends import find_backend
from resq_plugin.errors import ConfigError, ConversionError, ResQError
from resq_plugin.method.layers import residual_layers

# --- in place -------------------------------------------------------------------------------------------------------


def test_conversion_is_in_place_and_shares_every_parameter(zoo: str) -> None:
    net = seeded(ZOO[zoo])
    modules, parameters = list(net.modules()), dict(net.named_parameters())
    model = convert(net, "W8A8->W4A4")
    assert model is net
    assert [module for module in model.modules() if module in modules] == modules
    for name, parameter in parameters.items():
        assert model.get_parameter(name) is parameter
    for original, layer in zip(seeded(ZOO[zoo]).modules(), modules, strict=True):
        assert isinstance(layer, type(original))  # code that asks isinstance(layer, nn.Conv2d) goes on working


def test_converted_layers_in_float_are_the_float_net(zoo: str, frames: list[Tensor]) -> None:
    net = seeded(ZOO[zoo])
    model = convert(copy.deepcopy(net), "W8A8->W4A4")
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), net(frames[0]))


def test_parameters_keep_their_gradient_flags_and_hooks_stay(frames: list[Tensor]) -> None:
    net = seeded(Plain)
    net[0].weight.requires_grad_(False)
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append("forward"))
    net[3].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model = fit(convert(net, "W8A8->W4A4"), frames)
    calls.clear()
    play(model, frames[:2])
    assert calls == ["forward", "pre"] * 2
    assert [p.requires_grad for p in (model[0].weight, model[3].weight)] == [False, True]


def test_a_single_layer_is_a_model(frames: list[Tensor]) -> None:
    net = seeded(lambda: nn.Conv2d(3, 4, 3))
    model = build(net, frames=frames, interval=3)
    assert summarize(model).converted == ("",)
    assert len(play(model, frames)) == len(frames)
    assert list(float_state_dict(model)) == ["weight", "bias"]
    nn.Conv2d(3, 4, 3).load_state_dict(float_state_dict(model), strict=True)
    fresh = convert(nn.Conv2d(3, 4, 3), model.settings.config)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert_equal(play(fresh, frames), play(model, frames))
    revert(model)
    assert type(model) is nn.Conv2d
    with torch.no_grad():
        assert torch.equal(model(frames[0]), net(frames[0]))


def test_a_converted_part_of_a_model(frames: list[Tensor]) -> None:
    """GIVEN only the backbone is converted, THEN streams, weights and reverting work on the whole."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Plain(), nn.Conv2d(4, 2, 1)

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(self.backbone(frame))

    net = seeded(Whole)
    model = copy.deepcopy(net)
    convert(model.backbone, ResQConfig.parse("W8A8->W4A4"))
    fit(model, frames)
    assert list(residual_layers(model)) == ["0", "3", "5"]
    with torch.no_grad():
        expected = [model.head(z) for z in play(model.backbone, frames)]
    assert_equal(play(model, frames), expected)
    assert list(float_state_dict(model)) == list(net.state_dict())
    seeded(Whole, seed=1).load_state_dict(float_state_dict(model), strict=True)
    revert(model)
    with torch.no_grad():
        assert torch.equal(model(frames[0]), net(frames[0]))


def test_modules_under_two_names_are_converted_once() -> None:
    model = convert(seeded(Pyramid), "W8A8->W4A4")
    assert summarize(model).converted == ("stem", "head")
    assert model.alias is model.head


def test_revert_after_training_keeps_what_was_learned(frames: list[Tensor]) -> None:
    model = build(Plain, frames=frames)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[1].weight.mul_(3)
    learned = float_state_dict(model)
    revert(model)
    fresh = Plain().eval()
    fresh.load_state_dict(learned, strict=True)
    with torch.no_grad():
        assert torch.equal(model(frames[0]), fresh(frames[0]))


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "converted"),
    [
        ({}, ("stem.0", "conv1", "conv2", "downsample.0", "head")),
        ({"exclude": ("stem.*", "head")}, ("conv1", "conv2", "downsample.0")),
        ({"include": ("conv?",)}, ("conv1", "conv2")),
        ({"include": ("conv?", "head"), "exclude": ("conv1",)}, ("conv2", "head")),
    ],
)
def test_include_and_exclude(settings: dict, converted: tuple[str, ...], frames: list[Tensor]) -> None:
    model = build(Residual, frames=frames, **settings)
    summary = summarize(model)
    every = ("stem.0", "conv1", "conv2", "downsample.0", "head")
    assert set(summary.converted) == set(converted)
    assert set(summary.excluded) == set(every) - set(converted)
    assert {type(model.get_submodule(name)) for name in summary.excluded} <= {nn.Conv2d, nn.Linear}
    assert len(play(model, frames)) == len(frames)


def test_overrides_set_the_precision_of_layers(frames: list[Tensor]) -> None:
    model = build(
        Residual, "W8A8->W4A4", frames, overrides={"conv*": "W16A16->W8A{4,8}", "conv2": "W4A4->W2A2", "head": "W8A8"}
    )
    settings = {name: layer.settings for name, layer in residual_layers(model).items()}
    found = {name: (str(own.keyframe), str(own.residual)) for name, own in settings.items()}
    assert found == {
        "stem.0": ("W8A8", "W4A4"),
        "conv1": ("W16A16", "W8A{4,8}"),
        "conv2": ("W4A4", "W2A2"),
        "downsample.0": ("W8A8", "W4A4"),
        "head": ("W8A8", "W8A8"),
    }
    assert [quantizer.bits for quantizer in model.conv1.residual_quantizers] == [4, 8]
    assert model.conv1.settings.residual == Precision(8, (4, 8))
    assert model.conv2.weight_of("residual").unique().numel() <= 4  # two bits
    assert len(play(model, frames)) == len(frames)


def test_a_layer_has_the_threshold_of_its_last_pattern() -> None:
    policy = {"threshold": 0.1, "thresholds": {"*1": 0.2, "conv*": 0.3, "head": 0}}
    net = convert(seeded(Residual), ResQConfig.parse("W8A8->W4A{0,4}", policy=policy))
    layers = residual_layers(net)
    found = {name: float(layer.threshold()) for name, layer in layers.items()}  # the norm is 1 until calibrated
    own = {"stem.0": 0.1, "conv1": 0.3, "conv2": 0.3, "head": 0.0}
    assert {name: found[name] for name in own} == pytest.approx(own)


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (
            Residual,
            {"include": ("haed",)},
            "no layer of Residual is selected by include=('haed',), exclude=(); it has 5 layers that can be "
            "converted, e.g. stem.0, conv1, conv2.",
        ),
        (
            Tokens,
            {"exclude": ("*",)},
            "no layer of Tokens is selected by include=('*',), exclude=('*',); it has 4 layers that can be converted, "
            "e.g. embed, mlp.0, mlp.2.",
        ),
        (
            nn.ReLU,
            {},
            "ReLU has no convolution, transposed convolution or linear layer to convert.",
        ),
    ],
    ids=["include", "exclude", "nothing"],
)
def test_nothing_to_convert_is_an_error(net: type[nn.Module], settings: dict, message: str) -> None:
    with pytest.raises(ConversionError) as caught:
        convert(net(), ResQConfig.parse("W8A8->W4A4", **settings))
    assert str(caught.value) == message


def test_a_converted_model_is_not_converted_again() -> None:
    model = convert(seeded(Plain), "W8A8->W4A4")
    with pytest.raises(
        ConversionError,
        match=r"^Plain is already converted; call resq_plugin\.revert\(model\) before you convert it again\.$",
    ):
        convert(model, "W8A8->W8A8")
    convert(revert(model), "W8A8->W8A8")
    assert str(model[0].settings.residual) == "W8A8"


@pytest.mark.parametrize("call", [revert, summarize, float_state_dict, stream])
def test_what_needs_a_converted_model_says_so(call: object) -> None:
    with pytest.raises(
        ConversionError, match=r"Plain has no ResQ layer; call resq_plugin\.convert\(model, config\) first"
    ):
        call(seeded(Plain))
    assert issubclass(ConversionError, (ResQError, TypeError))


def test_the_notation_alone_is_a_configuration() -> None:
    model = convert(seeded(Plain), "W4A8→W3A3")
    assert model[0].settings.config == ResQConfig.parse("W4A8->W3A3")
    with pytest.raises(ConfigError, match="cannot read the precision"):
        convert(seeded(Plain), "4 bits")


# --- what is not supported ------------------------------------------------------------------------------------------


class OwnConv(nn.Conv2d):
    """A convolution that computes something else, such as one with standardized weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=self.padding)


class Exotic(nn.Module):
    """Linear layers that have no quantized path, around one that has."""

    def __init__(self) -> None:
        super().__init__()
        self.own = OwnConv(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.pair = nn.Bilinear(8, 8, 3)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.conv(self.own(frame)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.pair(self.memory(x)[0].mean(1), x.mean(1))


def test_unsupported_layers_stay_float_and_are_listed(frames: list[Tensor], caplog: pytest.LogCaptureFixture) -> None:
    net = seeded(Exotic)
    with caplog.at_level(logging.WARNING):
        model = build(net, frames=frames)
    summary = summarize(model)
    assert summary.converted == ("conv",)
    assert summary.unsupported == (
        "own (OwnConv)",
        "attention (MultiheadAttention)",
        "attention.out_proj (NonDynamicallyQuantizableLinear)",
        "memory (LSTM)",
        "pair (Bilinear)",
    )
    assert all(name in caplog.text for name in summary.unsupported)
    assert type(model.own) is OwnConv
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), net(frames[0]))
    assert len(play(model, frames)) == len(frames)


def test_parametrized_layers_are_unsupported() -> None:
    model = seeded(Plain)
    nn.utils.parametrizations.weight_norm(model[3])
    assert summarize(convert(model, "W8A8->W4A4")).unsupported == ("3 (ParametrizedConv2d)",)


def test_pruned_layers_keep_their_own_state(frames: list[Tensor]) -> None:
    """GIVEN a layer whose weight is made of a mask and an original, THEN both survive conversion, loading and back."""
    from torch.nn.utils import prune

    def pruned(seed: int = 0) -> nn.Module:
        net = seeded(Plain, seed)
        prune.l1_unstructured(net[3], "weight", amount=0.5)
        return net

    net = pruned()
    keys = list(net.state_dict())
    model = fit(convert(net, "W8A8->W4A4"), frames)
    assert list(float_state_dict(model)) == keys
    with torch.no_grad():
        assert float((model[3].weight_of("keyframe") == 0).float().mean()) >= 0.5
    other = pruned(seed=1)
    model.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(model[3].weight_orig, other[3].weight_orig)
    other.load_state_dict(float_state_dict(model), strict=True)


def test_excluded_layers_are_not_called_unsupported() -> None:
    summary = summarize(
        convert(seeded(Exotic), ResQConfig.parse("W8A8->W4A4", exclude=("own", "attention*", "memory")))
    )
    assert summary.excluded == ("own", "attention", "attention.out_proj", "memory")
    assert summary.unsupported == ("pair (Bilinear)",)


def test_an_unknown_backend_lists_those_installed() -> None:
    with pytest.raises(
        ConversionError, match=r"backend='troch' is not installed; found .*torch.* Did you mean 'torch'\?"
    ):
        convert(seeded(Plain), ResQConfig.parse("W8A8->W4A4", backend="troch"))
    assert find_backend("torch").supports(nn.Conv2d(1, 1, 1))


# --- summary --------------------------------------------------------------------------------------------------------


def test_summary_lists_everything_once(frames: list[Tensor]) -> None:
    model = build(Residual, frames=frames, exclude=("conv2",))
    summary = summarize(model)
    assert summary.converted == ("stem.0", "conv1", "downsample.0", "head")
    assert summary.excluded == ("conv2",)
    assert summary.unsupported == ()
    assert summary.folded == ("stem.1", "bn1", "downsample.1")
    assert summary.dense == ("bn2",)


def test_an_example_folds_right_away(frames: list[Tensor]) -> None:
    assert summarize(convert(seeded(Plain), "W8A8->W4A4")).folded == ()
    assert summarize(convert(seeded(Plain), "W8A8->W4A4", example=frames[0])).folded == ("1",)


def test_an_example_that_does_not_fit_leaves_the_float_model() -> None:
    model = seeded(Plain)
    with pytest.raises(RuntimeError, match="channels"):
        convert(model, "W8A8->W4A4", example=torch.zeros(1, 7, 8, 8))
    assert type(model[0]) is nn.Conv2d
    assert list(model.state_dict()) == list(seeded(Plain).state_dict())
    convert(model, "W8A8->W4A4", example=torch.zeros(1, 3, 8, 8))


def test_conversion_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        convert(seeded(Plain), ResQConfig.parse("W8A8->W4A{0,4,8}", interval=5))
    assert "converted 3 layers of Plain to W8A8->W4A{0,4,8} (T=5)" in caplog.text


# --- loading --------------------------------------------------------------------------------------------------------


def test_missing_and_foreign_keys_are_errors() -> None:
    model = build(Plain)
    state = model.state_dict()
    missing = {key: value for key, value in state.items() if key != "3.keyframe_quantizer.scale"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"3\.keyframe_quantizer\.scale\""):
        model.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"0\.residual_quantizers\.1"):
        model.load_state_dict(build(Plain, "W8A8->W4A{4,8}").state_dict())


def test_a_dynamic_checkpoint_does_not_fit_a_static_model_and_vice_versa() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        build(Plain, "W8A8->W4A{4,8}").load_state_dict(build(Plain).state_dict())


def test_weights_without_layers_of_their_own_load_partly() -> None:
    """`strict=False` with a float backbone: what is there is taken, ranges stay."""
    model = build(Plain)
    scale = model[0].keyframe_quantizer.scale.detach().clone()
    weights = {key: value for key, value in seeded(Plain, seed=1).state_dict().items() if key.startswith("0.")}
    result = model.load_state_dict(weights, strict=False)
    assert result.unexpected_keys == []
    assert torch.equal(model[0].weight, weights["0.weight"])
    assert torch.equal(model[0].keyframe_quantizer.scale.detach(), scale)


def test_the_users_state_dict_is_left_alone() -> None:
    model = build(Plain)
    for state in (model.state_dict(), seeded(Plain).state_dict()):
        keys = list(state)
        model.load_state_dict(state)
        assert list(state) == keys


def test_wrappers_with_a_prefix_load_and_save() -> None:
    """As DistributedDataParallel and averaged models do."""
    frames = video(4)
    model, other = build(Residual), convert(seeded(Residual, seed=1), "W8A8->W4A4")
    wrapped, fresh = nn.ModuleDict({"module": model}), nn.ModuleDict({"module": other})
    fresh.load_state_dict(wrapped.state_dict(), strict=True)
    assert_equal(play(other, frames), play(model, frames))

"""The first two doors: layers for those who write models, and Brevitas' `layerwise_quantize` for models at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas import nn as brevitas_nn
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat, Int8Bias, Int8WeightPerChannelFloat
from brevitas.quant.scaled_int import Int8BiasPerTensorFloatInternalScaling
from helpers import ZOO, assert_equal, play, seeded, video
from resq_brevitas import (
    ResQAct,
    ResQConv1d,
    ResQConv2d,
    ResQConv3d,
    ResQConvTranspose1d,
    ResQConvTranspose2d,
    ResQConvTranspose3d,
    ResQLinear,
    ResQWeightPerChannelMSE,
    ResQWeightPerTensor,
    layer_map,
)
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, revert, stream
from resq_plugin.config import Precision
from resq_plugin.errors import ConfigError, ConversionError
from resq_plugin.method.layers import residual_layers

Make = Callable[..., nn.Module]

HOSTS = {
    ResQConv1d: (brevitas_nn.QuantConv1d, (2, 4, 3), (2, 2, 9)),
    ResQConv2d: (brevitas_nn.QuantConv2d, (2, 4, 3), (2, 2, 9, 7)),
    ResQConv3d: (brevitas_nn.QuantConv3d, (2, 4, 3), (2, 2, 5, 5, 5)),
    ResQConvTranspose1d: (brevitas_nn.QuantConvTranspose1d, (2, 4, 3), (2, 2, 9)),
    ResQConvTranspose2d: (brevitas_nn.QuantConvTranspose2d, (2, 4, 3), (2, 2, 5, 7)),
    ResQConvTranspose3d: (brevitas_nn.QuantConvTranspose3d, (2, 4, 3), (2, 2, 3, 3, 3)),
    ResQLinear: (brevitas_nn.QuantLinear, (6, 4), (2, 6)),
}


class HandMade(nn.Module):
    """A net whose author wrote the layers of this adapter."""

    def __init__(self, **residual: Any) -> None:
        super().__init__()
        self.conv1 = ResQConv2d(3, 8, 3, padding=1, **residual)
        self.up = ResQConvTranspose2d(8, 4, 2, stride=2, **residual)
        self.head = ResQLinear(4, 5, **residual)

    def forward(self, frame: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(torch.relu(self.conv1(frame)))).mean((2, 3)))


class Plainly(nn.Module):
    """The same in float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    forward = HandMade.forward


# --- stock behaviour ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", HOSTS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize(
    "quantizers",
    [
        pytest.param({}, id="defaults"),
        pytest.param(
            {"input_quant": Int8ActPerTensorFloat, "output_quant": Int8ActPerTensorFloat, "weight_bit_width": 4},
            id="with quantizers",
        ),
    ],
)
def test_without_residual_arguments_a_layer_is_brevitas_own(layer: type, quantizers: dict[str, Any]) -> None:
    host, sizes, shape = HOSTS[layer]
    found, expected = (seeded(lambda cls=cls: cls(*sizes, **quantizers)) for cls in (layer, host))
    assert [name for name, _ in found.named_modules()] == [name for name, _ in expected.named_modules()]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for is_training in (True, False):
        outputs = [module.train(is_training)(x) for module in (found, expected)]
        assert torch.equal(*outputs)
    assert list(found.state_dict()) == list(expected.state_dict())
    with pytest.raises(ConversionError, match="no ResQ layer"):
        stream(found)


# --- layers with a residual path ------------------------------------------------------------------------------------


def test_hand_made_layers_compute_what_conversion_does(clips: list[list[Tensor]]) -> None:
    config = ResQConfig.parse("W8A8->W4A{0,4,8}", interval=4, weights="channel", reference="quantized")
    expected = convert(seeded(Plainly), config)
    found = HandMade(residual_config=config).eval()
    found.load_state_dict(seeded(Plainly).state_dict(), strict=True)
    for model in (expected, found):
        calibrate(model, clips)
    assert_equal(play(found, video(7)), play(expected, video(7)))
    assert list(residual_layers(found)) == ["conv1", "up", "head"]
    assert measure_cost(found, (1, 3, 12, 16)) == measure_cost(expected, (1, 3, 12, 16))


def test_arguments_reach_their_quantizers() -> None:
    layer = ResQConv2d(
        2,
        4,
        3,
        input_quant=ResQAct,
        weight_quant=Int8WeightPerChannelFloat,
        input_bit_width=6,
        residual_input_quant=ResQAct,
        residual_weight_quant=ResQWeightPerTensor,
        residual_input_bit_width=(0, 3, 5),
        residual_weight_bit_width=2,
        residual_input_scaling_min_val=0.5,
    )
    assert (layer.settings.keyframe, layer.settings.residual) == (Precision(8, 6), Precision(2, (0, 3, 5)))
    assert [int(quantizer.bit_width()) for quantizer in layer.residual_path.pool] == [3, 5]
    assert int(layer.residual_path.weight_quant.bit_width()) == 2
    assert int(layer.weight_quant.bit_width()) == 8
    view = layer.activation_quantizers()["residual.1"]
    view.set_range(-0.1, 0.1)
    assert float(view.scale.detach()) == pytest.approx(0.5 / 3.5)  # 0.1 is below the least range
    assert layer.settings.config.backend == "brevitas"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual_config": "W8A8->W4A4", "residual_intreval": 3}, "no argument residual_intreval"),
        ({"residual_input_bitwidth": 4}, "Did you mean 'residual_input_bit_width'"),
        (
            {"residual_config": "W8A8->W4A4", "residual_weight_bits": 4},
            r"no argument residual_weight_bits\..*Allowed are",
        ),
        (
            {"residual_input_bit_width": 4},
            r"residual_input_bit_width but no residual quantizer; write residual_config=",
        ),
        ({"residual_config": "W8A8->W4A1"}, "the activation has 1 bits"),
        ({"residual_input_quant": ResQAct, "residual_input_bit_width": (4, 0)}, "from low to high"),
        (
            {"residual_config": "W8A8->W4A4", "residual_input_quant": "act"},
            "must be a class such as resq_brevitas.ResQAct",
        ),
    ],
)
def test_wrong_residual_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResQConv2d(2, 4, 3, **arguments)


def test_a_bias_quantizer_needs_a_scale_of_its_own() -> None:
    with pytest.raises(ConversionError, match="write bias_quant=None or one with its own scale"):
        ResQConv2d(2, 4, 3, residual_config="W8A8->W4A4", bias_quant=Int8Bias)
    layer = ResQConv2d(2, 4, 3, residual_config="W8A8->W4A4", bias_quant=Int8BiasPerTensorFloatInternalScaling).eval()
    _, bias = layer.quantized_weight("keyframe")
    assert torch.equal(bias, layer.bias_quant(layer.bias).value)
    assert not torch.equal(bias, layer.bias)


def test_subclasses_are_refused() -> None:
    class Mine(ResQLinear):
        pass

    with pytest.raises(ConversionError, match="Mine is a subclass of a ResQ layer"):
        Mine(3, 4, residual_config="W8A8->W4A4")


def test_reverting_a_hand_made_layer_leaves_brevitas_own(clips: list[list[Tensor]]) -> None:
    model = HandMade(residual_config="W8A8->W4A4").eval()
    calibrate(model, clips)
    with torch.no_grad():
        expected = model(video(1)[0])
        revert(model)
        assert type(model.conv1) is ResQConv2d
        assert torch.equal(model(video(1)[0]), expected)


def test_an_output_quantizer_takes_the_whole_z(clips: list[list[Tensor]]) -> None:
    layer = ResQConv2d(3, 4, 3, residual_config="W8A8->W4A4", output_quant=Int8ActPerTensorFloat)
    calibrate(layer.eval(), clips)
    frames = video(3)
    layer.output_quant.disable_quant = True
    plain = play(layer, frames)
    layer.output_quant.disable_quant = False
    layer.return_quant_tensor = True
    for found, z in zip(play(layer, frames), plain, strict=True):
        assert torch.equal(found.value, layer.output_quant(z).value)
        assert not torch.equal(found.value, z)
        assert found.bit_width == 8


# --- Brevitas' door -------------------------------------------------------------------------------------------------


def test_layerwise_quantize_computes_what_conversion_does(clips: list[list[Tensor]]) -> None:
    config = ResQConfig.parse(
        "W8A8->W4A4", weights="channel", overrides={"mlp.*": "W8A8->W3A{0,3}"}, exclude=("head",)
    )
    net = seeded(ZOO["tokens"])
    expected = convert(copy.deepcopy(net), config)
    found = layerwise_quantize(copy.deepcopy(net), compute_layer_map=layer_map(config))
    for model in (expected, found):
        calibrate(model, clips)
    assert_equal(play(found, video(5)), play(expected, video(5)))
    assert list(residual_layers(found)) == list(residual_layers(expected)) == ["embed", "mlp.0", "mlp.2"]
    assert str(found.mlp[0].settings.residual) == "W3A{0,3}"
    assert type(found.head) is ResQLinear
    assert torch.equal(found.head(torch.ones(1, 8)), net.head(torch.ones(1, 8)))
    assert not any(tensor.is_meta for tensor in [*found.parameters(), *found.buffers()])


def test_batch_norms_stay_as_they_are_in_brevitas_door(clips: list[list[Tensor]]) -> None:
    net = seeded(ZOO["residual"])
    model = layerwise_quantize(copy.deepcopy(net), compute_layer_map=layer_map("W8A8->W4A4"))
    calibrate(model, clips)
    assert type(model.bn1) is nn.BatchNorm2d
    fresh = layerwise_quantize(copy.deepcopy(net), compute_layer_map=layer_map("W8A8->W4A4"))
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert_equal(play(fresh, video(4)), play(model, video(4)))


def test_other_quantizers_can_be_asked_for() -> None:
    mapping = layer_map("W8A8->W4A4", residual_weight_quant=ResQWeightPerChannelMSE, input_quant=Int8ActPerTensorFloat)
    model = layerwise_quantize(seeded(Plainly), compute_layer_map=mapping)
    assert model.conv1.residual_path.weight_quant.tensor_quant.scaling_impl.value.shape == (8, 1, 1, 1)
    assert model.conv1.weight_quant.tensor_quant.scaling_impl.value.shape == ()
    with pytest.raises(ConfigError, match="no argument residual_weights"):
        layerwise_quantize(seeded(Plainly), compute_layer_map=layer_map("W8A8->W4A4", residual_weights="channel"))

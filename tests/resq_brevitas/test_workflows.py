"""Brevitas' own tools go on working on a model with residual paths."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import brevitas.graph.calibrate as brevitas_calibrate
import pytest
import torch
from brevitas.export.inference import quant_inference_mode
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.nn.utils import merge_bn
from helpers import ZOO, assert_equal, eq1, eq6, play, seeded, video
from resq_brevitas import (
    ResQActMSE,
    ResQConv2d,
    ResQWeightPerChannelHQO,
    ResQWeightPerTensor,
    ResQWeightPerTensorMSE,
    layer_map,
)
from torch import Tensor, nn

from resq_plugin import calibrate, stream
from resq_plugin.errors import CalibrationError, ConversionError, StreamError
from resq_plugin.method.layers import dense_execution, residual_layers

Make = Callable[..., nn.Module]


@pytest.fixture
def single() -> nn.Module:
    """One convolution, W8A8->W4A4, not calibrated."""
    return seeded(lambda: nn.Sequential(ResQConv2d(3, 4, 3, residual_config="W8A8->W4A4")))


def ranges(layer: nn.Module) -> dict[str, tuple[float, float]]:
    return {name: quantizer.range for name, quantizer in layer.activation_quantizers().items()}


def frames_with(*maxima: float) -> list[Tensor]:
    """Frames (1, 3, 5, 5) of zeros and one value."""
    frames = [torch.zeros(1, 3, 5, 5) for _ in maxima]
    for frame, value in zip(frames, maxima, strict=True):
        frame[0, 1, 2, 2] = value
    return frames


# --- calibration ----------------------------------------------------------------------------------------------------


def test_calibration_mode_takes_the_true_maximum_of_keyframes_and_residuals_apart(single: nn.Module) -> None:
    with torch.no_grad(), brevitas_calibrate.calibration_mode(single), stream(single, interval=3) as player:
        outputs = [player(frame) for frame in frames_with(1.0, 1.5, -1.0, -3.0, -3.25, -2.75)]
        assert torch.equal(outputs[0], single[0].dense(frames_with(1.0)[0]))  # nothing is quantized meanwhile
    # Keyframes 1 and -3; residuals 0.5, -2, -0.25 and 0.25.
    assert ranges(single[0]) == {"keyframe": (-3.0, 3.0), "residual.0": (-2.0, 2.0)}
    quantizers = single[0].activation_quantizers()
    assert torch.equal(quantizers["keyframe"].scale.detach(), torch.tensor(6 / 255))
    assert torch.equal(quantizers["residual.0"].scale.detach(), torch.tensor(4 / 15))
    with torch.no_grad(), brevitas_calibrate.calibration_mode(single), stream(single) as player:
        [player(frame) for frame in frames_with(9.0, 1.0)]
    assert ranges(single[0])["keyframe"] == (-3.0, 3.0)


def test_a_pool_is_calibrated_for_every_bit_width() -> None:
    model = seeded(lambda: nn.Sequential(ResQConv2d(3, 4, 3, residual_config="W8A8->W4A{0,4,8}")))
    with torch.no_grad(), brevitas_calibrate.calibration_mode(model), stream(model) as player:
        [player(frame) for frame in frames_with(1.0, 1.5, 3.0)]
    found = ranges(model[0])
    assert (found["residual.1"], found["residual.2"]) == ((-2.0, 2.0), (-2.0, 2.0))
    with pytest.raises(CalibrationError, match="no activation norm, which calibration_mode does not find"):
        play(model, frames_with(1.0, 2.0))


def test_a_residual_quantizer_that_saw_no_data_is_an_error(single: nn.Module) -> None:
    with torch.no_grad(), brevitas_calibrate.calibration_mode(single):
        single(frames_with(1.0)[0])
    assert torch.isfinite(single(frames_with(1.0)[0])).all()
    with pytest.raises(CalibrationError, match=r"layer 0 \(residual, 4 bits\) has no range.*calibration_mode"):
        play(single, frames_with(1.0, 2.0))
    again = copy.deepcopy(single)
    again.load_state_dict({**single.state_dict()}, strict=False)
    with pytest.raises(CalibrationError, match="has no range"):
        play(again, frames_with(1.0, 2.0))


def test_the_line_search_refuses_quantizers_on_another_grid(clips: list[list[Tensor]]) -> None:
    from brevitas.quant import Int8ActPerTensorFloat

    layer = ResQConv2d(3, 4, 3, residual_config="W8A8->W4A4", input_quant=Int8ActPerTensorFloat).eval()
    with pytest.raises(CalibrationError, match=r"is not on the grid of Eq\. 6.*calibration_mode"):
        calibrate(layer, clips)
    with torch.no_grad(), brevitas_calibrate.calibration_mode(layer), stream(layer) as player:
        [player(frame) for frame in clips[0]]
    outputs = play(layer, clips[0])
    x_hat = layer.input_quant(clips[0][0]).value
    assert torch.equal(outputs[0], layer.linear(x_hat, layer.weight_of("keyframe"), layer.bias))


def test_brevitas_own_range_setting_beats_the_maximum_where_it_should(clips: list[list[Tensor]]) -> None:
    def error(**quantizers: object) -> float:
        torch.manual_seed(0)
        layer = ResQConv2d(3, 8, 3, residual_config="W4A4->W3A3", **quantizers).eval()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1)))
            layer.weight[0, 0, 0, 0] = 9.0  # an outlier, which the maximum gives away the grid to
            with brevitas_calibrate.calibration_mode(layer), stream(layer) as player:
                [player(frame) for clip in clips for frame in clip]
            return sum(
                float((layer.weight_of(kind) - layer.weight).square().mean()) for kind in ("keyframe", "residual")
            )

    plain = error(weight_quant=ResQWeightPerTensor, residual_weight_quant=ResQWeightPerTensor)
    mse = error(weight_quant=ResQWeightPerTensorMSE, residual_weight_quant=ResQWeightPerTensorMSE)
    assert mse < plain
    layer = ResQConv2d(3, 8, 3, residual_config="W8A8->W4A4", residual_input_quant=ResQActMSE).eval()
    with torch.no_grad(), brevitas_calibrate.calibration_mode(layer), stream(layer) as player:
        [player(frame) for frame in clips[0]]
    widest = max(float((frame - clips[0][0]).abs().max()) for frame in clips[0])
    assert 0 < ranges(layer)["residual.0"][1] <= widest


@pytest.mark.slow
def test_half_quadratic_optimization_sets_ranges(clips: list[list[Tensor]]) -> None:
    layer = ResQConv2d(3, 4, 3, residual_config="W8A8->W3A3", residual_weight_quant=ResQWeightPerChannelHQO).eval()
    calibrate(layer, clips)
    weight = layer.weight.detach()
    reach = weight.abs().amax((1, 2, 3), keepdim=True)
    of_maximum = eq1(weight, 2 * reach / 7, 3)
    assert torch.dist(layer.weight_of("residual"), weight, 1) < torch.dist(of_maximum, weight, 1)


# --- algorithms -----------------------------------------------------------------------------------------------------


@pytest.fixture
def layerwise(clips: list[list[Tensor]]) -> nn.Module:
    """A small net through Brevitas' door, calibrated, W4A8->W4A4."""
    model = layerwise_quantize(seeded(ZOO["unet"]), compute_layer_map=layer_map("W4A8->W4A4"))
    calibrate(model, clips)
    return model


@torch.no_grad()
def keyframe_error(model: nn.Module, reference: nn.Module, frames: list[Tensor]) -> float:
    return sum(float((model(frame) - reference(frame)).square().mean()) for frame in frames)


def test_bias_correction_helps_keyframes_and_refuses_residual_frames(
    layerwise: nn.Module, frames: list[Tensor]
) -> None:
    net = seeded(ZOO["unet"])
    before = keyframe_error(layerwise, net, frames)
    with torch.no_grad(), brevitas_calibrate.bias_correction_mode(layerwise):
        for frame in frames:
            layerwise(frame)
    assert keyframe_error(layerwise, net, frames) < before
    with (
        pytest.raises(StreamError, match=r"corrects the bias of keyframes; run frames outside a stream"),
        torch.no_grad(),
        brevitas_calibrate.bias_correction_mode(layerwise),
        stream(layerwise) as player,
    ):
        [player(frame) for frame in frames]


@pytest.mark.parametrize("mode", [gptq_mode, gpfq_mode])
def test_gptq_and_gpfq_improve_the_keyframe(
    mode: Callable[..., Any], clips: list[list[Tensor]], frames: list[Tensor]
) -> None:
    net = seeded(ZOO["residual"])
    model = layerwise_quantize(copy.deepcopy(net), compute_layer_map=layer_map("W3A8->W3A4"))
    calibrate(model, clips)
    before = keyframe_error(model, net, frames)
    with torch.no_grad(), mode(model) as algorithm:
        for _ in range(algorithm.num_layers):
            for frame in frames:
                algorithm.model(frame)
            algorithm.update()
    assert algorithm.num_layers == len(residual_layers(model)) == 5
    assert keyframe_error(model, net, frames) < before
    layer = model.conv2
    assert torch.equal(layer.weight_orig, net.conv2.weight)
    scale = layer.weight_scale_of("residual")
    assert torch.equal(layer.weight_of("residual"), eq1(layer.weight.detach(), scale, 3))  # of the improved weight


def test_gptq_of_a_folded_layer_says_what_to_do(calibrated: Make, frames: list[Tensor]) -> None:
    model = calibrated("plain")
    with torch.no_grad(), gptq_mode(model) as algorithm:
        algorithm.model(frames[0])
        with pytest.raises(ConversionError, match=r"merge batch norms before the conversion: .*preprocess_for_quant"):
            algorithm.update()


def test_both_ranges_follow_a_merged_batch_norm(single: nn.Module) -> None:
    layer, norm = single[0], seeded(lambda: nn.BatchNorm2d(4))
    for kind in ("keyframe", "residual"):
        layer.weight_of(kind)
    merge_bn(layer, norm)
    w = layer.weight.detach()
    assert torch.equal(layer.weight_of("keyframe"), eq1(w, eq6(w.min(), w.max(), 8), 8))
    assert torch.equal(layer.weight_of("residual"), eq1(w, eq6(w.min(), w.max(), 4), 4))


def test_disabled_quantizers_leave_a_float_model(calibrated: Make) -> None:
    frames = video(4)
    for name, precision in (("residual", "W8A8->W4A4"), ("unet", "W8A8->W4A{0,4,8}"), ("mobile", "W8A8->W4A0")):
        model = calibrated(name, precision)
        with torch.no_grad(), dense_execution():
            expected = [model(frame) for frame in frames]
        quantized = play(model, frames)
        with brevitas_calibrate.quantization_status_manager(
            model, disable_act_quant=True, disable_weight_quant=True, disable_bias_quant=True, is_training=False
        ):
            for found, z in zip(play(model, frames), expected, strict=True):
                torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-5)
        assert_equal(play(model, frames), quantized)


# --- inference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "unet"])
def test_inference_mode_and_compilation_change_nothing(name: str, calibrated: Make) -> None:
    frames = video(4)
    model = calibrated(name, weights="channel")
    expected = play(model, frames)
    with torch.no_grad(), quant_inference_mode(model):
        model(frames[0])
        assert_equal(play(model, frames), expected)
        compiled = torch.compile(model, backend="eager")
        assert_equal(play(compiled, frames), expected)
        assert_equal([compiled(frames[0])], expected[:1])
    assert_equal(play(model, frames), expected)

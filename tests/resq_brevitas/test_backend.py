"""The backend on float models, where it is not as any other: see tests/test_host_backends.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from brevitas.nn import QuantConv2d
from helpers import ZOO, assert_equal, assert_trains, eq1, eq6, play, seeded, video
from torch import nn

from resq_plugin import ResQConfig, calibrate, convert

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"
BOTH = ("torch", "brevitas")
Make = Callable[..., nn.Module]


def test_zero_bits_are_a_residual_of_zero(calibrated: Make) -> None:
    expected, found = (calibrated("unet", "W8A8->W4A0", backend) for backend in BOTH)
    assert_equal(play(found, video(4)), play(expected, video(4)))
    layer = found.blocks[0]
    assert not layer.residual_path.input_quant.is_quant_enabled
    assert torch.equal(layer.residual(torch.ones(1, 3, 4, 4)), torch.zeros(1, 6, 4, 4))


def test_a_single_frame_without_a_batch_dimension_works(calibrated: Make) -> None:
    model, frames = calibrated("plain", DYNAMIC), video(4)
    batched = play(model, [frame[:1] for frame in frames])
    assert_equal(play(model, [frame[0] for frame in frames]), [z[0] for z in batched])


# --- where things are -----------------------------------------------------------------------------------------------


def test_brevitas_sees_a_quantized_layer_with_a_child(calibrated: Make) -> None:
    layer = calibrated("residual", DYNAMIC).conv2
    assert isinstance(layer, QuantConv2d)
    assert (int(layer.input_quant.bit_width()), int(layer.weight_quant.bit_width())) == (8, 8)
    assert int(layer.residual_path.weight_quant.bit_width()) == 4
    assert [int(quantizer.bit_width()) for quantizer in layer.residual_path.pool] == [4, 8]
    assert [name for name, _ in layer.residual_path.named_parameters() if name == "weight"] == []


# --- the core around it ---------------------------------------------------------------------------------------------


def test_state_dicts_hold_a_weight_once_and_load_strictly(calibrated: Make, tmp_path: Path) -> None:
    model = calibrated("residual")
    state = model.state_dict()
    shapes = [value.shape for key, value in state.items() if value.dim() == 4]
    assert len(shapes) == 4
    torch.save(state, tmp_path / "state.pth")
    fresh = convert(seeded(ZOO["residual"], seed=1), ResQConfig.parse(STATIC, backend="brevitas"))
    for _ in range(2):
        fresh.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True), strict=True)
    assert_equal(play(fresh, video(4)), play(model, video(4)))


def test_deep_copies_are_equal_and_read_their_own_weight(calibrated: Make) -> None:
    model = calibrated("residual", DYNAMIC)
    twin = copy.deepcopy(model)
    assert_equal(play(twin, video(4)), play(model, video(4)))
    expected = play(model, video(4))
    with torch.no_grad():
        twin.conv2.weight.mul_(0.5)
    assert not torch.equal(twin.conv2.weight_of("residual"), model.conv2.weight_of("residual"))
    assert_equal(play(model, video(4)), expected)


def test_a_replaced_weight_has_a_new_range(calibrated: Make) -> None:
    layer = calibrated("residual").conv2
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    weight = layer.float_weight()[0].detach()
    assert torch.equal(layer.weight_of("residual"), eq1(weight, eq6(weight.min(), weight.max(), 4), 4))


def test_training_moves_weights_and_ranges(calibrated: Make) -> None:
    model = calibrated("residual").train()
    layer, path = model.conv2, model.conv2.residual_path
    learned = [layer.weight, layer.input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value]
    learned += [path.input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value]
    learned += [side.weight_quant.tensor_quant.scaling_impl.value for side in (layer, path)]
    assert_trains(model, learned)


# --- half precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["half", "bfloat16", "autocast", "half before the conversion"])
@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("precision", ["W8A16->W16A16", "W16A12->W16A15"])
def test_sixteen_bits_work_in_half_precision(precision: str, weights: str, mode: str) -> None:
    """2^16 is infinite in float16: every scale was 0, and the output NaN."""
    frames, net = [frame.abs() for frame in video(3)], seeded(lambda: nn.Conv2d(3, 8, 3))
    expected = [net(frame).detach() for frame in frames]
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float16
    shown = frames if mode == "autocast" else [frame.to(dtype) for frame in frames]
    settings = {"backend": "brevitas", "weights": weights, "keyframe_grid": "unsigned"}
    model = convert(net.to(dtype) if "before" in mode else net, ResQConfig.parse(precision, **settings))
    calibrate(model, [shown if "before" in mode else frames])
    if mode in ("half", "bfloat16"):
        model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        found = play(model, shown)
    for z, right in zip(found, expected, strict=True):
        assert float((z.float() - right).norm() / right.norm()) < 0.02

"""Scales of weights as Parameters: where they start, where they travel, and who undoes them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers import ZOO, eq1, seeded, video

from resq_plugin import (
    calibrate,
    convert,
    float_state_dict,
    load_checkpoint,
    load_ranges,
    revert,
    save_checkpoint,
    save_ranges,
    stream,
)
from resq_plugin.config import ResQConfig
from resq_plugin.method.layers import residual_layers


def learned(name: str = "residual", weights: str = "channel", precision: str = "W4A4->W3A3") -> torch.nn.Module:
    model = convert(seeded(ZOO[name]), ResQConfig.parse(precision, weights=weights))
    calibrate(model, [video(seed=seed) for seed in range(2)])
    for layer in residual_layers(model).values():
        layer.learn_weight_scales()
    return model


def run(model: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad(), stream(model) as player:
        return [player(frame) for frame in video(seed=7)]


@pytest.mark.parametrize("name", ["residual", "unet", "tokens"])
@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_they_start_from_eq_6_and_7(name: str, weights: str) -> None:
    model = convert(seeded(ZOO[name]), ResQConfig.parse("W4A4->W3A3", weights=weights))
    calibrate(model, [video(seed=seed) for seed in range(2)])
    before = run(model)
    keys = set(model.state_dict())
    for layer in residual_layers(model).values():
        layer.learn_weight_scales()
    assert all(torch.equal(a, b) for a, b in zip(before, run(model), strict=True))
    added = set(model.state_dict()) - keys
    assert len(added) == 2 * len(residual_layers(model))
    assert all(key.endswith("_weight_scale") for key in added)


def test_the_quantized_weight_is_eq_1_of_the_learned_scale() -> None:
    layer = residual_layers(learned())["conv2"]
    with torch.no_grad():
        layer.keyframe_weight_scale.mul_(0.5)
        layer.residual_weight_scale.mul_(0.25)
    folded = layer.weight_of("float")
    assert torch.equal(layer.weight_of("keyframe"), eq1(folded, layer.keyframe_weight_scale, 4))
    assert torch.equal(layer.weight_of("residual"), eq1(folded, layer.residual_weight_scale, 3))
    expected = layer.residual_weight_scale.expand(layer.weight.shape)
    assert torch.equal(layer.weight_scale_of("residual"), expected)


def test_frame_quantization_has_one_path() -> None:
    model = learned(precision="W4A4")
    assert not any("residual_weight_scale" in key for key in model.state_dict())


def test_checkpoints_and_ranges_carry_them(tmp_path: Path) -> None:
    model = learned()
    with torch.no_grad():
        for layer in residual_layers(model).values():
            layer.keyframe_weight_scale.mul_(0.7)
    expected = run(model)
    save_checkpoint(model, tmp_path / "all.pt")
    save_ranges(model, tmp_path / "ranges.pt")
    for path, load in (("all.pt", load_checkpoint), ("ranges.pt", load_ranges)):
        other = convert(seeded(ZOO["residual"]), ResQConfig.parse("W4A4->W3A3", weights="channel"))
        load(other, tmp_path / path)
        assert all(torch.equal(a, b) for a, b in zip(expected, run(other), strict=True))


def test_a_checkpoint_without_them_gives_those_of_its_own_weights(tmp_path: Path) -> None:
    plain = convert(seeded(ZOO["residual"], seed=3), ResQConfig.parse("W4A4->W3A3", weights="channel"))
    calibrate(plain, [video()])
    save_checkpoint(plain, tmp_path / "plain.pt")
    expected, model = run(plain), learned()
    load_checkpoint(model, tmp_path / "plain.pt")
    saved = copy.deepcopy(model.state_dict())  # before they are used
    assert all(torch.equal(a, b) for a, b in zip(expected, run(model), strict=True))
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_calibration_starts_them_anew() -> None:
    model = learned()
    expected = run(model)
    layer = residual_layers(model)["conv2"]
    parameter = layer.keyframe_weight_scale
    with torch.no_grad():
        parameter.mul_(3)
    run(model)
    calibrate(model, [video(seed=seed) for seed in range(2)])
    assert layer.keyframe_weight_scale is parameter
    assert all(torch.equal(a, b) for a, b in zip(expected, run(model), strict=True))


def test_revert_and_float_state_dict_know_them() -> None:
    model, net = learned(), seeded(ZOO["residual"])
    assert float_state_dict(model).keys() == net.state_dict().keys()
    revert(model)
    assert model.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in model.state_dict().items())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in net.named_parameters()}

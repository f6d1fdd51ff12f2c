"""Weights and biases fitted to layer outputs: what they give, where they travel, and who undoes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ZOO, assert_equal, eq7, play, seeded, video
from torch import Tensor, nn

from resq_plugin import (
    ResQConfig,
    calibrate,
    convert,
    dense_execution,
    float_state_dict,
    load,
    load_checkpoint,
    load_ranges,
    revert,
    save_checkpoint,
    save_ranges,
)
from resq_plugin.calibration import Statistics
from resq_plugin.calibration.layer_fit import Sample, fit_keyframe
from resq_plugin.errors import CalibrationError, ConfigError
from resq_plugin.method.layers import residual_layers

KEYS = ("keyframe_rounding", "residual_rounding", "bias_correction")
FRAMES = video(4, (1, 3, 24, 32), seed=77)


def clips() -> list[list[Tensor]]:
    return [video(4, (1, 3, 24, 32), seed=seed) for seed in range(4)]


def fitted(
    net: str | Callable[[], nn.Module] = "unet", precision: str = "W4A4->W3A3", fit: str = "weights", **settings: Any
) -> Any:
    search = {"samples": 8, "candidates": 8, "positions": 4096, "fit": fit, **settings.pop("calibration", {})}
    model = seeded(ZOO[net] if isinstance(net, str) else net)
    convert(model, ResQConfig.parse(precision, calibration=search, **settings))
    calibrate(model, clips())
    return model


@pytest.fixture(scope="module")
def shown() -> Any:
    """A fitted model that tests only look at, or copy."""
    return fitted()


def error(model: nn.Module) -> float:
    """Squared error of a stream of frames that were not calibrated on."""
    with torch.no_grad(), dense_execution():
        exact = [model(frame) for frame in FRAMES]
    return sum(float((a - b).square().sum()) for a, b in zip(play(model, FRAMES), exact, strict=True))


@pytest.mark.parametrize("precision", ["W4A4", "W4A4->W3A3", "W4A4->W4A{0,4}"])
def test_other_frames_gain(precision: str) -> None:
    before, bias, weights = (error(fitted("unet", precision, fit)) for fit in ("none", "bias", "weights"))
    assert weights < 0.85 * before
    assert bias < 1.05 * before


def test_ranges_stay_and_nothing_is_added_without(shown: nn.Module) -> None:
    without, model = fitted(fit="none").state_dict(), shown
    assert not [key for key in without if key.endswith(KEYS)]
    assert not [key for key, value in without.items() if not torch.equal(value, model.state_dict()[key])]


def test_a_bias_makes_good_for_the_mean_error() -> None:
    """One weight, 0.4 of a step: rounded to 0, so that the bias has to be the mean of z."""
    model = convert(nn.Sequential(nn.Conv2d(2, 1, 1)), ResQConfig.parse("W4A4"))
    layer: Any = residual_layers(model)["0"]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([7.5, 0.4]).view(1, 2, 1, 1))
        layer.bias.fill_(1.0)
        x = torch.tensor([[0.0, 2.0], [0.0, 4.0]]).repeat(40, 1)[None]
        sample = Sample.of(x, x @ torch.tensor([[7.5], [0.4]]) + 1)
        fit_keyframe(layer, sample, ("keyframe",), weights=False)
        assert layer.weight_of("keyframe").flatten().tolist() == [7.0, 0.0]
        assert float(layer.bias_of().detach()) == pytest.approx(1 + 0.4 * 3)
        fit_keyframe(layer, sample, ("keyframe",))
    assert float(layer.weight_of("float").detach().flatten()[1]) == pytest.approx(0.4)


def test_what_does_not_help_elsewhere_is_not_kept() -> None:
    """Outputs of the positions that decide have nothing to do with those that are fitted to."""
    model = convert(nn.Sequential(nn.Conv2d(2, 1, 1)), ResQConfig.parse("W4A4"))
    layer: Any = residual_layers(model)["0"]
    x = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = x @ layer.weight.flatten(1).T + layer.bias
        fit_keyframe(layer, Sample(x, 3 * exact + 1, x, exact), ("keyframe",))
    assert layer.keyframe_rounding is None
    assert not layer.bias_correction.any()


def test_steps_are_added_to_the_nearest_integers_of_the_grid() -> None:
    """W = 7.5, 2.4, -7.5 at 4 bits, s = 1: nearest are 7, 2, -8, and the grid ends at -8 and 7."""
    layer: Any = residual_layers(convert(nn.Sequential(nn.Conv2d(3, 1, 1)), ResQConfig.parse("W4A4->W3A3")))["0"]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([7.5, 2.4, -7.5]).view(1, 3, 1, 1))
    layer.set_rounding({"keyframe": torch.tensor([3, -2, -1]).view(1, 3, 1, 1)}, torch.tensor([0.25]))
    assert layer.weight_of("keyframe").flatten().tolist() == [7.0, 0.0, -8.0]
    assert layer.weight_of("residual").flatten().tolist() == eq7(layer.weight.detach(), 3).flatten().tolist()
    assert torch.equal(layer.bias_of(), layer.bias + 0.25)
    assert torch.equal(layer.quantized_weight("keyframe")[1], layer.bias + 0.25)


def test_paths_of_one_width_have_one_weight() -> None:
    layers = residual_layers(fitted("unet", "W4A4->W4A3")).values()
    assert any(layer._buffers["keyframe_rounding"] is not None for layer in layers)
    assert all(torch.equal(layer.weight_of("keyframe"), layer.weight_of("residual")) for layer in layers)


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_checkpoints_and_ranges_carry_it(tmp_path: Path, reference: str) -> None:
    model = fitted(reference=reference)
    expected = play(model, FRAMES)
    assert any(key.endswith("keyframe_rounding") for key in model.state_dict())
    assert reference != "float" or any(key.endswith("residual_rounding") for key in model.state_dict())
    save_checkpoint(model, tmp_path / "all.pt")
    save_ranges(model, tmp_path / "ranges.pt")
    plain = ResQConfig.parse("W4A4->W3A3", reference=reference)
    for path, read in (("all.pt", load_checkpoint), ("ranges.pt", load_ranges)):
        other = convert(seeded(ZOO["unet"]), plain)
        read(other, tmp_path / path)
        assert_equal(play(other, FRAMES), expected)
    assert_equal(play(load(tmp_path / "all.pt", seeded(ZOO["unet"])), FRAMES), expected)
    assert_equal(play(copy.deepcopy(model), FRAMES), expected)


def test_a_model_without_it_forgets_it(tmp_path: Path, shown: nn.Module) -> None:
    plain, model = fitted(fit="none"), copy.deepcopy(shown)
    save_checkpoint(plain, tmp_path / "plain.pt")
    load_checkpoint(model, tmp_path / "plain.pt")
    assert_equal(play(model, FRAMES), play(plain, FRAMES))
    assert set(model.state_dict()) == set(plain.state_dict())


def test_it_belongs_to_the_weights_it_was_fitted_to(shown: nn.Module) -> None:
    model = copy.deepcopy(shown)
    weights = {key: value.clone() for key, value in float_state_dict(model).items()}
    assert set(weights) == set(seeded(ZOO["unet"]).state_dict())
    expected = play(model, FRAMES)
    model.load_state_dict(weights)
    assert_equal(play(model, FRAMES), expected)
    model.load_state_dict(
        {key: value * 1.01 if value.is_floating_point() else value for key, value in weights.items()}
    )
    assert not [key for key in model.state_dict() if key.endswith(KEYS)]


def test_revert_and_a_new_calibration_undo_it(shown: nn.Module) -> None:
    before, model = seeded(ZOO["unet"]).state_dict(), copy.deepcopy(shown)
    reverted = revert(model).state_dict()
    assert list(reverted) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in reverted.items())
    convert(model, ResQConfig.parse("W4A4->W3A3"))
    calibrate(model, clips())
    assert not [key for key in model.state_dict() if key.endswith(KEYS)]


def test_statistics_are_shared(shown: nn.Module) -> None:
    shared, states = Statistics(), []
    for fit in ("none", "weights"):
        model = seeded(ZOO["unet"])
        config = ResQConfig.parse(
            "W4A4->W3A3", calibration={"samples": 8, "candidates": 8, "positions": 4096, "fit": fit}
        )
        calibrate(convert(model, config), clips(), statistics=shared)
        states.append(model.state_dict())
        revert(model)
    alone = shown.state_dict()
    assert all(torch.equal(value, alone[key]) for key, value in states[1].items())


def test_gradients_reach_the_weights() -> None:
    model = fitted("plain", "W4A4")
    model(FRAMES[0]).square().sum().backward()
    assert all(bool(layer.weight.grad.any()) for layer in residual_layers(model).values())


class Mixed(nn.Sequential):
    """A net whose frames are not independent within a batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the mean of the batch off."""
        return super().forward(x - x.mean(0, keepdim=True) * (len(x) > 1))


def test_errors_say_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"calibration\.fit"):
        ResQConfig.parse("W4A4", calibration={"fit": "weight"})
    with pytest.raises(CalibrationError, match="recheck=4"):
        fitted(calibration={"recheck": 0})
    with pytest.raises(CalibrationError, match="each on its own"):
        fitted(lambda: Mixed(nn.Conv2d(3, 4, 3)))


def test_layers_that_are_left_alone_are_named(caplog: pytest.LogCaptureFixture) -> None:
    fitted("pyramid")
    assert "layers head are not fitted" in caplog.text

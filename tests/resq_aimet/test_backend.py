"""The backend on float models, where it is not as any other: see tests/test_host_backends.py."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from aimet_torch.nn import QuantizationMixin
from helpers import ZOO, assert_equal, assert_trains, eq6, play, seeded, video
from hypothesis import given
from hypothesis import strategies as st
from resq_aimet.quantizers import ActivationView, new_quantizer
from torch import Tensor, nn

from resq_plugin import (
    ResQConfig,
    calibrate,
    convert,
    load_checkpoint,
    save_checkpoint,
)
from resq_plugin.errors import CalibrationError, CheckpointError, ConversionError
from resq_plugin.method.layers import residual_layers
from resq_plugin.method.quantizer import quantize_to_integers

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"


def calibrated(name: str, backend: str, precision: str, clips: list[list[Tensor]], **settings: object) -> nn.Module:
    model = seeded(ZOO[name])
    convert(model, ResQConfig.parse(precision, backend=backend, **settings))
    calibrate(model, clips)
    return model


# --- golden numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "half_range", "expected"),
    [
        # s = 2 · 3 / 3 = 2: x / s = -2.25, -0.5, 0.25, 0.5, 1.5, 4 and half goes to even
        pytest.param(2, 3.0, [-2, 0, 0, 0, 1, 1], id="2 bits"),
        # s = 2 · 7.5 / 15 = 1
        pytest.param(4, 7.5, [-4, -1, 0, 1, 3, 7], id="4 bits"),
        # s = 2 · 127.5 / 255 = 1
        pytest.param(8, 127.5, [-4, -1, 0, 1, 3, 8], id="8 bits"),
    ],
)
def test_golden_integers(bits: int, half_range: float, expected: list[int]) -> None:
    view = ActivationView(new_quantizer(bits), "q")
    view.set_range(-half_range, half_range)
    x = torch.tensor([-4.5, -1.0, 0.5, 1.0, 3.0, 8.0])
    assert quantize_to_integers(x, view.scale, bits).tolist() == expected
    assert torch.equal(
        view.quantizer(x).as_subclass(Tensor), torch.tensor(expected) * view.scale
    )  # AIMET's own kernel


@given(st.floats(2.0**-9, 1000, width=32), st.integers(2, 16), st.booleans())
def test_the_scale_is_that_of_equation_6_to_the_last_bit(half_range: float, bits: int, signed: bool) -> None:
    view = ActivationView(new_quantizer(bits), "q")
    view.set_range(-half_range if signed else 0.0, half_range, signed=signed)
    r = torch.tensor(half_range)
    assert torch.equal(view.scale, eq6(-r, r, bits) if signed else r / (2**bits - 1))
    assert view.signed is signed
    assert view.bits == bits


def test_aimets_own_calibration_takes_the_range_of_equation_6() -> None:
    quantizer, x = new_quantizer(4), torch.tensor([-1.0, 3.0])
    with quantizer.compute_encodings():
        quantizer(x)
    assert torch.equal(quantizer.get_scale().detach(), torch.tensor(6 / 15))


# --- where things are -----------------------------------------------------------------------------------------------


def test_aimet_sees_two_quantized_modules_that_share_a_weight(clips: list[list[Tensor]]) -> None:
    layer = calibrated("residual", "aimet", DYNAMIC, clips).conv2
    assert isinstance(layer, QuantizationMixin)
    assert isinstance(layer.residual_path, QuantizationMixin)
    assert layer.residual_path.weight is layer.weight
    assert layer.residual_path.bias is None
    assert [None if q is None else q.bitwidth for q in layer.residual_pool.input_quantizers] == [None, 4, 8]
    assert (layer.input_quantizers[0].bitwidth, layer.param_quantizers["weight"].bitwidth) == (8, 8)
    assert layer.residual_path.param_quantizers["weight"].bitwidth == 4


# --- the core around it ---------------------------------------------------------------------------------------------


def test_a_state_dict_holds_a_shared_weight_once_and_can_be_loaded_twice(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    state = model.state_dict()
    pointers = [value.data_ptr() for key, value in state.items() if key.endswith("weight") and value.numel()]
    assert len(pointers) == len(set(pointers))
    fresh = convert(seeded(ZOO["residual"], seed=1), ResQConfig.parse(STATIC, backend="aimet"))
    for _ in range(2):
        fresh.load_state_dict(state, strict=True)
    assert_equal(play(fresh, video(4)), play(model, video(4)))


def test_learned_weight_ranges_come_back_with_their_checkpoint(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    for layer in residual_layers(model).values():
        layer.residual_path.param_quantizers["weight"].set_range(-0.3, 0.3)
    expected, state = play(model, video(4)), copy.deepcopy(model.state_dict())
    model.load_state_dict(seeded(ZOO["residual"], seed=1).state_dict(), strict=True)
    model.load_state_dict(state, strict=True)
    assert_equal(play(model, video(4)), expected)
    model.load_state_dict({}, strict=False)
    assert_equal(play(model, video(4)), expected)


def test_a_damaged_checkpoint_leaves_the_model_as_it_was(clips: list[list[Tensor]], tmp_path: Path) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    expected = play(model, video(3))
    broken = copy.deepcopy(model)
    broken.conv2.residual_path.input_quantizers[0].min.data.fill_(float("nan"))
    save_checkpoint(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"conv2\.residual_path\.input_quantizers\.0\.min holds values"):
        load_checkpoint(model, tmp_path / "broken.pth")
    assert_equal(play(model, video(3)), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_keep_the_tie(copied: object, clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", DYNAMIC, clips)
    twin = copied(model)
    assert_equal(play(twin, video(4)), play(model, video(4)))
    assert twin.conv2.residual_path.weight is twin.conv2.weight
    assert twin.conv2.weight is not model.conv2.weight


def test_the_tie_survives_a_replaced_weight(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    model.conv2.weight = nn.Parameter(model.conv2.weight.detach().flip(0))
    play(model, video(2))
    assert model.conv2.residual_path.weight is model.conv2.weight


def test_training_moves_weights_and_ranges_and_keeps_the_tie(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    model.train()
    layer = model.conv2
    learned = [layer.weight, layer.input_quantizers[0].max, layer.residual_path.input_quantizers[0].min]
    learned += [layer.param_quantizers["weight"].max, layer.residual_path.param_quantizers["weight"].max]
    assert_trains(model, learned)
    assert layer.residual_path.weight is layer.weight
    assert sum(parameter is layer.weight for parameter in model.parameters()) == 1


def test_gradients_are_those_of_aimets_kernel(clips: list[list[Tensor]]) -> None:
    layer = calibrated("residual", "aimet", STATIC, clips).conv2
    quantizer = layer.input_quantizers[0]
    x = 2 * torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    grads = []
    for run in (layer.quantize_keyframe, quantizer):
        leaf = x.clone().requires_grad_()
        z = run(leaf).as_subclass(Tensor)
        grads.append(torch.autograd.grad((z * x).sum(), [leaf, quantizer.min, quantizer.max]))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_dynamic_policy_without_its_norm_says_what_aimets_files_do_not_hold(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", DYNAMIC, clips)
    fresh = convert(seeded(ZOO["residual"]), ResQConfig.parse(DYNAMIC, backend="aimet"), example=video(1)[0])
    quantizers = {key: value for key, value in model.state_dict().items() if "quantizers" in key}
    fresh.load_state_dict(quantizers, strict=False)
    with pytest.raises(CalibrationError, match=r"no activation norm, which AIMET's own files do not hold"):
        play(fresh, video(2))


def test_aimets_calibration_refuses_a_folded_batch_norm_it_cannot_see(clips: list[list[Tensor]]) -> None:
    model = calibrated("residual", "aimet", STATIC, clips)
    with pytest.raises(ConversionError, match=r"batch norm folded in.*calibrate\(model, clips\)"):
        model.conv2.compute_param_encodings()
    with pytest.raises(ConversionError, match="fold_all_batch_norms"):
        model.conv2.fold_param_quantizers()

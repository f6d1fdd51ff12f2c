"""Eq. 1, 6 and 7 by hand, by their plain text, and by the properties a uniform quantizer has."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import eq1, eq6, eq7
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin.errors import CalibrationError, CheckpointError
from resq_plugin.method.quantizer import (
    SMALLEST_SCALE,
    UniformQuantizer,
    fake_quantize,
    fake_quantize_weight,
    integer_range,
    quantize_to_integers,
    scale_from_range,
    weight_range,
    weight_scale,
)

BITS = st.integers(2, 16)
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=32)
SCALES = st.floats(2**-10, 2**3, width=32)


def scalar(value: float) -> Tensor:
    return torch.tensor(value)


# --- golden values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [
        (2, True, (-2, 1)),
        (3, True, (-4, 3)),
        (4, True, (-8, 7)),
        (8, True, (-128, 127)),
        (16, True, (-32768, 32767)),
        (2, False, (0, 3)),
        (8, False, (0, 255)),
        (16, False, (0, 65535)),
        (0, True, (0, 0)),
        (0, False, (0, 0)),
    ],
)
def test_integer_range(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    assert integer_range(bits, signed=signed) == expected


@pytest.mark.parametrize(
    ("r_min", "r_max", "bits", "signed", "expected"),
    [
        (-1.0, 7.5, 4, True, 1.0),  # 2 · 7.5 / 15
        (-7.5, 1.0, 4, True, 1.0),  # the larger magnitude counts, whatever its sign
        (-3.0, 3.0, 2, True, 2.0),  # 2 · 3 / 3
        (0.0, 255.0, 8, True, 2.0),
        (0.0, 255.0, 8, False, 1.0),  # unsigned: r_max / 255
        (-9.0, 255.0, 8, False, 1.0),
        (0.0, 0.0, 8, True, SMALLEST_SCALE),
        (0.0, 0.0, 8, False, SMALLEST_SCALE),
        (-9.0, 0.0, 8, False, SMALLEST_SCALE),
        (-5.0, 5.0, 0, True, 1.0),
    ],
)
def test_scale_by_hand(r_min: float, r_max: float, bits: int, signed: bool, expected: float) -> None:
    assert scale_from_range(scalar(r_min), scalar(r_max), bits, signed=signed) == scalar(expected)


GOLDEN = torch.tensor([-100.0, -8.5, -2.5, -1.5, -0.5, -0.25, 0.0, 0.25, 0.5, 1.5, 2.5, 7.5, 100.0])


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [
        (2, True, [-2, -2, -2, -2, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (4, True, [-8, -8, -2, -2, 0, 0, 0, 0, 0, 2, 2, 7, 7]),
        (8, True, [-100, -8, -2, -2, 0, 0, 0, 0, 0, 2, 2, 8, 100]),
        (4, False, [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 8, 15]),
        (0, True, [0] * 13),
    ],
)
def test_golden_integers_round_half_to_even(bits: int, signed: bool, expected: list[int]) -> None:
    found = quantize_to_integers(GOLDEN, scalar(1.0), bits, signed=signed)
    assert found.tolist() == expected
    # The same integers at another power-of-two scale, and their values.
    assert quantize_to_integers(GOLDEN / 8, scalar(1 / 8), bits, signed=signed).tolist() == expected
    assert torch.equal(fake_quantize(GOLDEN / 8, scalar(1 / 8), bits, signed=signed), torch.tensor(expected) / 8)


def test_weight_range_and_scale_by_hand() -> None:
    # Two output channels; ranges (-7.5, 3) and (0, 1.5)
    weight = torch.tensor([[[-7.5, 3.0]], [[0.0, 1.5]]])  # (C_out, C_in, k) = (2, 1, 2)
    assert [end.item() for end in weight_range(weight)] == [-7.5, 3.0]
    assert [end.flatten().tolist() for end in weight_range(weight, (0,))] == [[-7.5, 0.0], [3.0, 1.5]]
    assert torch.equal(weight_scale(weight, 4), torch.full((1, 1, 1), 1.0))
    assert torch.equal(weight_scale(weight, 4, (0,)), torch.tensor([[[1.0]], [[0.2]]]))


# --- the paper's equations ------------------------------------------------------------------------------------------


@given(values=VALUES, scale=SCALES, bits=BITS)
def test_is_equation_1(values: list[float], scale: float, bits: int) -> None:
    x = torch.tensor(values)
    assert torch.equal(fake_quantize(x, scalar(scale), bits), eq1(x, scalar(scale), bits))


@given(low=st.floats(-100, 0, width=32), high=st.floats(0, 100, width=32), bits=BITS)
def test_is_equation_6(low: float, high: float, bits: int) -> None:
    found = scale_from_range(scalar(low), scalar(high), bits)
    assert found == eq6(scalar(low), scalar(high), bits).clamp_min(SMALLEST_SCALE)


@given(values=VALUES, bits=BITS)
def test_is_equation_7(values: list[float], bits: int) -> None:
    weight = torch.tensor([*values, 1.0])
    assert torch.equal(fake_quantize_weight(weight, weight_scale(weight, bits), bits), eq7(weight, bits))


# --- properties -----------------------------------------------------------------------------------------------------


@given(values=VALUES, bits=BITS, signed=st.booleans())
def test_error_is_at_most_half_a_step_inside_the_range(values: list[float], bits: int, signed: bool) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    x = x if signed else x.abs()
    scale = scale_from_range(x.min(), x.max(), bits, signed=signed)  # so everything is inside
    error = (x - fake_quantize(x, scale, bits, signed=signed)).abs().max()
    assert error <= scale / 2 * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(values=VALUES, bits=BITS)
def test_half_types_add_no_more_than_their_own_rounding(dtype: torch.dtype, values: list[float], bits: int) -> None:
    x = torch.tensor(values).to(dtype)
    scale = scale_from_range(x.min().float(), x.max().float(), bits)
    q = fake_quantize(x, scale, bits)
    assert q.dtype == dtype
    assert torch.equal(q, eq1(x.float(), scale, bits).to(dtype))
    error = (x.double() - q.double()).abs()
    assert bool((error <= scale.double() / 2 * (1 + 1e-6) + q.double().abs() * torch.finfo(dtype).eps).all())


@given(values=VALUES, scale=SCALES, bits=BITS, signed=st.booleans())
def test_is_idempotent(values: list[float], scale: float, bits: int, signed: bool) -> None:
    once = fake_quantize(torch.tensor(values), scalar(scale), bits, signed=signed)
    assert torch.equal(fake_quantize(once, scalar(scale), bits, signed=signed), once)


@given(values=VALUES, scale=SCALES, bits=BITS, signed=st.booleans())
def test_is_monotone(values: list[float], scale: float, bits: int, signed: bool) -> None:
    q = fake_quantize(torch.tensor(sorted(values)), scalar(scale), bits, signed=signed)
    assert bool((q.diff() >= 0).all())


@given(values=VALUES, scale=SCALES, bits=BITS)
def test_is_symmetric_where_the_grid_is(values: list[float], scale: float, bits: int) -> None:
    highest = scale * integer_range(bits)[1]
    x = torch.tensor(values).clamp(-highest, highest)
    assert torch.equal(fake_quantize(-x, scalar(scale), bits), -fake_quantize(x, scalar(scale), bits))


@given(scale=SCALES, bits=st.sampled_from([0, *range(2, 17)]), signed=st.booleans())
def test_zero_stays_exactly_zero(scale: float, bits: int, signed: bool) -> None:
    assert fake_quantize(torch.zeros(3), scalar(scale), bits, signed=signed).tolist() == [0.0] * 3


@given(values=VALUES, scale=SCALES, bits=BITS, signed=st.booleans())
def test_values_lie_on_the_grid(values: list[float], scale: float, bits: int, signed: bool) -> None:
    integers = quantize_to_integers(torch.tensor(values), scalar(scale), bits, signed=signed)
    low, high = integer_range(bits, signed=signed)
    assert torch.equal(integers, integers.round())
    assert low <= integers.min()
    assert integers.max() <= high


@given(values=VALUES)
def test_zero_bits_are_zeros(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(fake_quantize(x, scalar(1.0), 0), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@given(bits=BITS, tiny=st.sampled_from([0.0, 1e-30, -1e-30]))
def test_dead_channels_have_a_scale_above_zero_and_finite_values(dtype: torch.dtype, bits: int, tiny: float) -> None:
    weight = torch.tensor([[tiny, 0.0], [1.0, -1.0]]).to(dtype)
    scale = weight_scale(weight, bits, (0,))
    assert bool((scale > 0).all())
    q = fake_quantize(weight, scale, bits)
    assert q.isfinite().all()
    assert q[0].abs().max() <= 1e-9


@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [0, 4])
def test_the_result_is_a_new_tensor_and_the_input_is_left_alone(grad: bool, dtype: torch.dtype, bits: int) -> None:
    x = torch.tensor([0.3, -7.0, 100.0], dtype=dtype, requires_grad=grad)
    before = x.detach().clone()
    q = fake_quantize(x, scalar(1.0), bits)
    q.detach().fill_(5)
    assert torch.equal(x.detach(), before)
    assert q.data_ptr() != x.data_ptr()


# --- gradients ------------------------------------------------------------------------------------------------------


def test_straight_through_gradients_by_hand() -> None:
    """d q / d x is 1 inside the grid and 0 outside; d q / d s is q/s - x/s inside and the grid's end outside."""
    x = torch.tensor([-20.0, -16.0, -3.2, 0.4, 2.75, 14.5, 20.0], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    # x/s: -10, -8, -1.6, 0.2, 1.375, 7.25, 10; the integers -8 and 7 are the ends of the grid and belong to it
    q = fake_quantize(x, scale, 4)
    assert q.tolist() == [-16.0, -16.0, -4.0, 0.0, 2.0, 14.0, 14.0]
    q.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    inside = (-8 + 8) + (-2 + 1.6) + (0 - 0.2) + (1 - 1.375) + (7 - 7.25)
    assert scale.grad.item() == pytest.approx(-8 + inside + 7, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_point_of_the_grid_passes_gradients(bits: int) -> None:
    low, high = integer_range(bits)
    x = (torch.arange(low, high + 1) * 0.25).requires_grad_()
    fake_quantize(x, scalar(0.25), bits).sum().backward()
    assert x.grad.tolist() == [1.0] * 2**bits


@given(values=VALUES, bits=BITS, signed=st.booleans())
def test_gradient_mode_computes_the_same_values(values: list[float], bits: int, signed: bool) -> None:
    x, scale = torch.tensor(values), torch.tensor(0.37)
    with_graph = fake_quantize(x.clone().requires_grad_(), scale.clone().requires_grad_(), bits, signed=signed)
    assert torch.equal(with_graph, fake_quantize(x, scale, bits, signed=signed))


def test_the_weight_range_is_no_path_for_gradients() -> None:
    weight = torch.tensor([3.0, -1.0], requires_grad=True)
    assert not weight_scale(weight, 4).requires_grad


# --- the module -----------------------------------------------------------------------------------------------------


def test_uncalibrated_quantizer_says_what_to_call() -> None:
    quantizer = UniformQuantizer(8, owner="layer conv1 (keyframe)")
    assert not quantizer.is_calibrated
    with pytest.raises(CalibrationError, match=r"^layer conv1 \(keyframe\) has no range; call resq_plugin.calibrate"):
        quantizer(torch.ones(2))


@pytest.mark.parametrize("scale", [-0.25, float("nan")])
def test_a_scale_that_training_ruined_is_not_called_uncalibrated(scale: float) -> None:
    quantizer = UniformQuantizer(8, owner="layer conv1 (keyframe)")
    quantizer.set_range(-1, 1)
    quantizer(torch.ones(1))
    with torch.no_grad():
        quantizer.scale.fill_(scale)
    with pytest.raises(CalibrationError, match=rf"^layer conv1 \(keyframe\) has the scale {scale}; train the scales"):
        quantizer(torch.ones(1))


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantizer_is_equation_1_with_the_scale_of_its_range(bits: int, signed: bool) -> None:
    quantizer = UniformQuantizer(bits)
    quantizer.set_range(-3.0, 5.0, signed=signed)
    x = torch.linspace(-6, 6, 97)
    expected = eq6(scalar(-3.0), scalar(5.0), bits) if signed else scalar(5.0) / (2**bits - 1)
    assert quantizer.scale.detach() == expected
    assert quantizer.range == pytest.approx((-5.0, 5.0) if signed else (0.0, 5.0), rel=1e-6)
    if signed:
        assert torch.equal(quantizer(x).detach(), eq1(x, expected, bits))
    else:
        assert torch.equal(quantizer(x).detach(), torch.clamp(torch.round(x / expected), 0, 2**bits - 1) * expected)


def test_zero_bits_need_no_calibration() -> None:
    quantizer = UniformQuantizer(0)
    assert quantizer.is_calibrated
    assert quantizer(torch.ones(3)).tolist() == [0.0] * 3


def test_a_dead_input_is_calibrated() -> None:
    quantizer = UniformQuantizer(8)
    quantizer.set_range(0.0, 0.0)
    assert quantizer.is_calibrated
    assert quantizer(torch.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("half_range", [0.0, 1e-3, 1e3])
def test_the_scale_survives_a_change_of_dtype(dtype: torch.dtype, half_range: float) -> None:
    """A 16-bit scale of a small range is below what float16 can hold."""
    quantizer = UniformQuantizer(16)
    quantizer.set_range(-half_range, half_range)
    scale = quantizer.scale.detach().clone()
    quantizer = nn.ModuleList([quantizer]).to(dtype)[0]
    assert torch.equal(quantizer.scale.detach(), scale)
    x = torch.tensor([0.5 * half_range]).to(dtype)
    assert quantizer(x).dtype == dtype
    assert (
        float((quantizer(x).detach().double() - x.double()).abs()) <= float(scale) + float(x) * torch.finfo(dtype).eps
    )


def test_quantizers_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        quantizer = UniformQuantizer(4)
        with pytest.raises(CalibrationError):
            quantizer(torch.ones(1))
        quantizer.set_range(-7.5, 7.5)
        assert quantizer(torch.tensor([2.4])).tolist() == [2.0]
    with torch.no_grad():
        assert quantizer(torch.tensor([2.4])).tolist() == [2.0]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_grid(how: object) -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(0.0, 3.0, signed=False)
    twin = how(quantizer)
    assert (twin.bits, twin.signed, twin.range) == (4, False, quantizer.range)


def test_state_dict_carries_scale_and_grid() -> None:
    quantizer, twin = UniformQuantizer(4), UniformQuantizer(4)
    quantizer.set_range(0.0, 3.0, signed=False)
    twin.load_state_dict(quantizer.state_dict(), strict=True)
    assert (twin.signed, twin.range) == (False, quantizer.range)
    fresh = UniformQuantizer(4)
    twin.load_state_dict(fresh.state_dict(), strict=True)  # what is not calibrated loads as not calibrated
    with pytest.raises(CalibrationError):
        twin(torch.ones(1))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -0.5])
def test_damaged_scales_are_refused(scale: float) -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(-1.0, 1.0)
    state = {**quantizer.state_dict(), "scale": scalar(scale)}
    with pytest.raises(CheckpointError, match=rf"scale is {scale}; a scale is finite and not negative.*damaged"):
        quantizer.load_state_dict(state)
    assert quantizer.range == pytest.approx((-1.0, 1.0))


def test_repr_names_bits_grid_and_scale() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(-7.5, 7.5)
    assert repr(quantizer) == "UniformQuantizer(bits=4, signed, scale=1)"
    assert repr(UniformQuantizer(4, device=torch.device("meta"))) == "UniformQuantizer(bits=4, signed, scale=meta)"

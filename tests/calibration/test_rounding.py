"""Least squares and rounding in turn: hand-computed cases, and the matrices that layers make of their inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert
from resq_plugin.calibration.positions import choose_places, has_rows, input_rows, output_rows, weight_rows
from resq_plugin.calibration.rounding import DAMPING, Moments, fit_weight, round_in_turn
from resq_plugin.method.layers import residual_layers


def of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_alike_inputs_share_what_rounding_leaves() -> None:
    """Two inputs that are always equal: 0.4 + 0.4 is rounded to 0 + 1, not to 0 + 0."""
    gram = torch.ones(1, 2, 2)
    weight, scale = torch.tensor([[[0.4, 0.4], [-0.3, -0.4]]]), torch.ones(1, 2, 1)
    found = round_in_turn(weight, gram, scale, 4)
    assert found.sum(2).tolist() == [[1.0, -1.0]]
    assert found.abs().sum(2).tolist() == [[1.0, 1.0]]


def test_the_ends_of_the_grid_hold() -> None:
    gram = torch.ones(1, 2, 2)
    found = round_in_turn(torch.tensor([[[7.4, 5.0], [-9.0, -9.0]]]), gram, torch.ones(1, 2, 1), 4)
    assert found[0, 1].tolist() == [-8.0, -8.0]
    assert found.max() <= 7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]))
def test_unrelated_inputs_are_rounded_to_the_nearest(seed: int, bits: int) -> None:
    weight, scale = torch.randn(2, 3, 70, generator=of(seed)), torch.rand(2, 3, 1, generator=of(seed + 1)) + 0.1
    gram = torch.diag_embed(torch.rand(2, 70, generator=of(seed + 2)) + 0.1)
    expected = (weight.double() / scale.double()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(round_in_turn(weight, gram, scale, bits).double(), expected)


def test_related_inputs_lose_less_than_rounded_to_the_nearest() -> None:
    mixing = torch.randn(130, 130, generator=of(0))
    x = torch.randn(500, 130, generator=of(1)) @ mixing
    weight, scale = torch.randn(1, 8, 130, generator=of(2)), torch.full((1, 8, 1), 0.4)
    found = round_in_turn(weight, (x.T @ x / 500)[None], scale, 4) * scale
    nearest = (weight / scale).round().clamp(-8, 7) * scale
    errors = [float(((w - weight)[0] @ x.T).square().sum()) for w in (found, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_least_squares_of_one_input() -> None:
    """Inputs are read at half their size: w_0 + (E[x̂z] - E[x̂²] w_0) / (E[x̂²] (1 + λ)) with x̂ = x / 2, z = 3 x."""
    x = torch.tensor([[[2.0], [4.0], [-6.0]]])
    moments = Moments.of(x / 2, 3 * x, centred=False)
    gram, cross = (1 + 4 + 9) / 3, (6 + 24 + 54) / 3
    expected = 3 + (cross - gram * 3) / (gram * (1 + DAMPING))
    assert float(fit_weight(torch.full((1, 1, 1), 3.0), moments)) == pytest.approx(expected, rel=1e-6)


def test_means_are_the_work_of_the_bias() -> None:
    x, z = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[5.0], [9.0]]])
    moments = Moments.of(x, z, centred=True)
    assert (float(moments.gram), float(moments.cross)) == (1.0, 2.0)
    assert (float(moments.mean_x), float(moments.mean_z)) == (2.0, 7.0)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    moments = Moments.of(torch.zeros(1, 5, 3), torch.ones(1, 5, 2), centred=False)
    weight = torch.tensor([[[1.0, -2.0, 0.0], [3.0, 1.0, -1.0]]])
    assert torch.equal(fit_weight(weight, moments), weight)
    assert torch.equal(round_in_turn(weight, moments.gram, torch.ones(1, 2, 1), 4), weight)


LAYERS = {
    "2d": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 9)),
    "stride, dilation, groups": (
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=2, dilation=(1, 2), groups=2),
        (2, 4, 9, 8),
    ),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 9)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 7, 9)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2), (3, 4, 11)),
    "3d": (nn.Conv3d(2, 3, 2, padding=1), (1, 2, 3, 4, 5)),
    "linear": (nn.Linear(5, 3), (2, 7, 5)),
    "linear on (N, C)": (nn.Linear(5, 3), (20, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weight_are_the_outputs(name: str) -> None:
    module, shape = LAYERS[name]
    model = convert(nn.Sequential(module).double(), ResQConfig.parse("W4A4"))
    layer = residual_layers(model)["0"]
    x: Tensor = torch.randn(shape, generator=of(0), dtype=torch.float64)
    z = layer.linear(x, layer.weight_of("float"), None)
    places = choose_places(layer, z, 12, of(1))
    assert has_rows(layer)
    found = input_rows(layer, x, places) @ weight_rows(layer, layer.weight_of("float")).transpose(1, 2)
    expected = output_rows(layer, z, places)
    assert expected.shape[1] == 12
    assert float((found - expected).abs().max().detach()) < 1e-12

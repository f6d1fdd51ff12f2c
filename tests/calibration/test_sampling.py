"""Windows: the operation on windows equals the same crop of the operation on the full map, bit for bit.

Inputs and weights are small integers, so sums are exact in whatever order they are made.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import convert
from resq_plugin.calibration.sampling import SIDE, apply_to_windows, choose_windows, cut_windows
from resq_plugin.method.layers import ResidualLayer

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed), device="cpu").float()


def layer_of(module: nn.Module) -> Any:
    """The module as a ResQ layer with integer weights."""
    module.weight.data = integers(*module.weight.shape, seed=1)
    return convert(module, "W8A8->W4A4")


def conv(dims: int, kernel: int, channels: int = 2, outputs: int = 4, **options: Any) -> Any:
    return layer_of(CONVOLUTIONS[dims](channels, outputs, kernel, **options))


def every_window(x: Tensor, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places where a window can be."""
    return list(itertools.product(range(x.shape[0]), *(range(max(1, size - SIDE + 1)) for size in sizes)))


def assert_exact(layer: ResidualLayer, x: Tensor) -> None:
    """Every possible window of a convolution against the crop of the full map."""
    weight = layer.weight_of("float")
    full = layer.linear(x, weight, None)
    windows = every_window(x, tuple(full.shape[2:]))
    found = apply_to_windows(layer, cut_windows(layer, x, windows), weight)
    crops = [full[n][(slice(None), *(slice(start, start + SIDE) for start in starts))] for n, *starts in windows]
    assert torch.equal(found, torch.stack(crops))


CASES = {
    "1x1": {"kernel": 1},
    "3x3": {"kernel": 3},
    "3x3 padded": {"kernel": 3, "padding": 1},
    "5x5 padded": {"kernel": 5, "padding": 2},
    "5x5 padded by 1": {"kernel": 5, "padding": 1},
    "1x1 padded": {"kernel": 1, "padding": 1},
    "stride 2": {"kernel": 3, "stride": 2, "padding": 1},
    "stride 3": {"kernel": 5, "stride": 3, "padding": 2},
    "stride 2, 1x1": {"kernel": 1, "stride": 2},
    "dilation 2": {"kernel": 3, "dilation": 2, "padding": 2},
    "dilation 3, unpadded": {"kernel": 3, "dilation": 3},
    "stride and dilation": {"kernel": 3, "stride": 2, "dilation": 2, "padding": 2},
    "groups": {"kernel": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel": 5, "padding": 2, "channels": 4, "groups": 4},
    "same": {"kernel": 3, "padding": "same"},
    "same, even kernel": {"kernel": 4, "padding": "same"},
    "same, dilation": {"kernel": 3, "padding": "same", "dilation": 2},
    "valid": {"kernel": 3, "padding": "valid"},
    "reflect": {"kernel": 3, "padding": 1, "padding_mode": "reflect"},
    "reflect, stride": {"kernel": 5, "padding": 2, "stride": 2, "padding_mode": "reflect"},
    "replicate": {"kernel": 3, "padding": 1, "padding_mode": "replicate"},
    "replicate, dilation": {"kernel": 3, "padding": 2, "dilation": 2, "padding_mode": "replicate"},
    "circular": {"kernel": 3, "padding": 1, "padding_mode": "circular"},
    "circular, 5x5": {"kernel": 5, "padding": 2, "padding_mode": "circular"},
    "same, reflect": {"kernel": 5, "padding": "same", "padding_mode": "reflect"},
    "same, circular, even kernel": {"kernel": 2, "padding": "same", "padding_mode": "circular"},
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_windows_are_exact(case: str, dims: int) -> None:
    layer = conv(dims, **CASES[case])
    assert_exact(layer, integers(2, layer.in_channels, *(11, 9, 8)[:dims]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kernel": 3, "padding": 1}, id="3x3"),
        pytest.param({"kernel": 5, "padding": 2, "stride": 2}, id="5x5, stride 2"),
        pytest.param({"kernel": 3, "padding": 6, "dilation": 6}, id="dilation wider than the map"),
        pytest.param({"kernel": 2, "padding": "same"}, id="same, even kernel"),
        pytest.param({"kernel": 1, "padding": 6}, id="windows of padding only"),
        pytest.param({"kernel": 3, "padding": 2, "padding_mode": "replicate"}, id="replicate"),
    ],
)
def test_windows_are_exact_on_maps_smaller_than_a_window(options: dict[str, Any], size: int, dims: int) -> None:
    assert_exact(conv(dims, **options), integers(1, 2, *[size] * dims))


@pytest.mark.parametrize("shape", [(1, 13), (13, 1), (3, 16), (16, 3), (5, 5)], ids=str)
def test_windows_are_exact_on_slim_and_odd_maps(shape: tuple[int, int]) -> None:
    assert_exact(conv(2, 3, padding=1), integers(2, 2, *shape))


def test_windows_are_exact_with_a_geometry_of_its_own_in_every_dimension() -> None:
    layer = conv(2, (3, 5), stride=(2, 1), padding=(0, 4), dilation=(1, 2))  # type: ignore[arg-type]
    assert_exact(layer, integers(2, 2, 12, 10))


@given(data=st.data())
def test_windows_are_exact_whatever_the_geometry(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    size, kernel, stride, dilation, padding = pair(1, 12), pair(1, 5), pair(1, 3), pair(1, 3), pair(0, 5)
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    reach = {"reflect": 1, "circular": 0}  # torch pads less than the map itself
    assume(all(pad + reach[mode] <= n for pad, n in zip(padding, size, strict=True)) if mode in reach else True)
    assume(all(n + 2 * p > d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    layer = conv(2, kernel, stride=stride, padding=padding, dilation=dilation, padding_mode=mode)  # type: ignore[arg-type]
    assert_exact(layer, integers(1, 2, *size))


@pytest.mark.parametrize("shape", [(5, 3), (2, 7, 3), (2, 2, 3), (2, 6, 5, 3)], ids=str)
def test_windows_of_linear_layers_are_tokens(shape: tuple[int, ...]) -> None:
    layer, x = layer_of(nn.Linear(3, 4)), integers(*shape)
    full = layer.linear(x, layer.weight, None)
    windows = every_window(x, shape[1:-1])
    found = apply_to_windows(layer, cut_windows(layer, x, windows), layer.weight)
    crops = [full[n][tuple(slice(start, start + SIDE) for start in starts)] for n, *starts in windows]
    assert torch.equal(found, torch.stack(crops))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kernel_size": 2, "stride": 2}, id="2x2"),
        pytest.param({"kernel_size": 4, "stride": 2, "padding": 1}, id="4x4"),
        pytest.param({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, id="groups"),
        pytest.param({"kernel_size": 2, "dilation": 2}, id="dilation"),
    ],
)
def test_windows_of_transposed_convolutions_are_exact_inside(options: dict[str, Any], dims: int) -> None:
    """Outputs that no input outside the window reaches; those at its border lack some contributions."""
    layer = layer_of(TRANSPOSED[dims](2, 4, **options))
    kernel, stride, pad, dilation = layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.dilation[0]
    x = integers(1, 2, *(9, 7, 6)[:dims])
    full, windows = layer.linear(x, layer.weight, None), every_window(x, tuple(x.shape[2:]))
    found = apply_to_windows(layer, cut_windows(layer, x, windows), layer.weight)
    low, high = max(0, dilation * (kernel - 1) - stride - pad + 1), min(found.shape[2], SIDE * stride - pad)
    assert high > low
    for window, (_, *starts) in zip(found, windows, strict=True):
        crop = full[0][(slice(None), *(slice(start * stride + low, start * stride + high) for start in starts))]
        inside = window[(slice(None), *(slice(low, low + size) for size in crop.shape[1:]))]
        assert torch.equal(inside, crop)


# --- where windows are ----------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize(
    ("shape", "positions", "windows"),
    [
        pytest.param((2, 2, 12, 12), 64, 4, id="sixteen positions each"),
        pytest.param((2, 2, 12, 12), 1, 1, id="at least one"),
        pytest.param((40, 2, 2, 2), 64, 16, id="maps of four positions"),
        pytest.param((9, 2, 1, 12), 64, 16, id="maps of one row"),
        pytest.param((2, 2, 12, 12), 288, 18, id="no more than there are"),
        pytest.param((2, 2, 12, 12), 10**9, 18, id="no more than there are, however many are wanted"),
        pytest.param((1, 2, 2, 2), 64, 1, id="a map smaller than a window"),
    ],
)
def test_number_of_windows(shape: tuple[int, ...], positions: int, windows: int) -> None:
    assert len(choose_windows(conv(2, 3, padding=1), integers(*shape), positions, generator())) == windows


def test_random_windows_lie_in_the_map_and_reach_every_corner() -> None:
    layer, x, source = conv(2, 3, stride=2, padding=1), integers(2, 2, 15, 11), generator()  # 8 x 6 outputs
    found = [window for _ in range(1000) for window in choose_windows(layer, x, 64, source)]
    assert len(found) == 4000
    assert set(found) == set(itertools.product(range(2), range(8 - SIDE + 1), range(6 - SIDE + 1)))


@pytest.mark.parametrize("shape", [(3, 2, 8, 12), (1, 2, 9, 7), (2, 2, 1, 5), (1, 2, 4, 3)], ids=str)
def test_when_all_positions_are_wanted_windows_cover_the_map(shape: tuple[int, ...]) -> None:
    layer, x = conv(2, 3, padding=1), integers(*shape)
    windows = choose_windows(layer, x, shape[0] * shape[2] * shape[3], generator())
    times = torch.zeros(shape[0], *shape[2:])
    for index, row, column in windows:
        times[index, row : row + SIDE, column : column + SIDE] += 1
    assert times.min() == 1
    assert len(windows) == shape[0] * -(-shape[2] // SIDE) * -(-shape[3] // SIDE)


def test_windows_depend_on_the_generator_only() -> None:
    layer, x = conv(2, 3), integers(2, 2, 15, 11)
    before = torch.get_rng_state()
    first = choose_windows(layer, x, 160, generator())
    torch.rand(7)
    torch.set_rng_state(before)
    assert first == choose_windows(layer, x, 160, generator())
    assert first != choose_windows(layer, x, 160, generator(1))
    assert torch.equal(before, torch.get_rng_state())


def test_windows_are_chosen_on_the_cpu_whatever_the_default_device() -> None:
    layer, x = conv(2, 3), integers(2, 2, 15, 11)
    with torch.device("meta"):
        found = choose_windows(layer, x, 64, generator())
    assert found == choose_windows(layer, x, 64, generator())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        pytest.param(conv(2, 1), integers(1, 2, 5, 5), id="convolution"),
        pytest.param(conv(2, 3, padding=1), integers(1, 2, 5, 5), id="padded"),
        pytest.param(layer_of(nn.Linear(3, 3)), integers(2, 5, 3), id="linear"),
        pytest.param(layer_of(nn.ConvTranspose2d(2, 2, 2)), integers(1, 2, 5, 5), id="transposed"),
    ],
)
def test_windows_are_copies(layer: Any, x: Tensor) -> None:
    """The network around may work in place on what the layer has read."""
    x = x.clone()
    windows = cut_windows(layer, x, choose_windows(layer, x, 32, generator()))
    before = windows.clone()
    x.zero_()
    assert torch.equal(windows, before)
    assert before.any()

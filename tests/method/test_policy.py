"""Eq. 9-11 by hand on tiny tensors, and against their plain text pixel by pixel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import build, eq1, eq7, play, video
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import PolicyConfig, ResQConfig, convert
from resq_plugin.method.policy import choose, error_map, mix, share_error


def eq11(errors: list[float], tau: float) -> int:
    """Π = min i s.t. ε_i - ε_(i+1) < τ; the last quantizer when none qualifies. Counted from 0."""
    for i in range(len(errors) - 1):
        if errors[i] - errors[i + 1] < tau:
            return i
    return len(errors) - 1


# --- by hand --------------------------------------------------------------------------------------------------------

# Two channels, four pixels in a row; (N, C, H, W) = (1, 2, 1, 4)
DELTA = torch.tensor([[[[0.0, 0.3, 0.9, 3.0]], [[0.0, 0.4, 1.2, 4.0]]]])


def test_error_map_by_hand() -> None:
    step = torch.tensor(0.1)
    assert error_map(DELTA, None, step, 1).flatten().tolist() == pytest.approx([0.0, 0.5, 1.5, 5.0])
    integers = torch.tensor([[[[0.0, 0.0, 9.0, 30.0]], [[0.0, 4.0, 4.0, 40.0]]]])
    assert error_map(DELTA, integers, step, 1).flatten().tolist() == pytest.approx([0.0, 0.3, 0.8, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("tau", "expected"),
    # ε_1 - ε_2 of the four pixels: 0, 0.4, 1.4, 4.9; ε_2 - ε_3: 0, 0.1, 0.1, 0.1
    [
        (1e9, [0, 0, 0, 0]),
        (1.5, [0, 0, 0, 1]),
        (0.5, [0, 0, 1, 1]),
        (0.11, [0, 1, 1, 1]),
        (0.05, [0, 2, 2, 2]),
        (0.0, [2, 2, 2, 2]),  # a difference of 0 is not below 0
    ],
)
def test_equation_11_by_hand(tau: float, expected: list[int]) -> None:
    errors = [torch.tensor(row) for row in ([0.0, 0.5, 1.5, 5.0], [0.0, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0])]
    found = choose(errors, tau)
    assert found.dtype == torch.uint8
    assert found.tolist() == expected
    assert choose(errors, torch.tensor(tau)).tolist() == expected


def test_equation_11_stops_at_the_first_small_gain_even_if_a_later_one_is_large() -> None:
    errors = [torch.tensor([1.0]), torch.tensor([0.99]), torch.tensor([0.0])]
    assert choose(errors, 0.1).tolist() == [0]


def test_a_wider_quantizer_that_is_worse_is_not_taken() -> None:
    assert choose([torch.tensor([1.0]), torch.tensor([2.0])], 0.0).tolist() == [0]


def test_thresholds_may_differ_by_pixel() -> None:
    errors = [torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])]
    assert choose(errors, torch.tensor([[0.5, 2.0]])).tolist() == [[1, 0]]


@given(
    errors=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 8, width=32), min_size=n, max_size=n), min_size=1, max_size=8)
    ),
    tau=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_choice_is_equation_11(errors: list[list[float]], tau: float) -> None:
    maps = list(torch.tensor(errors, dtype=torch.float64).T)
    assert choose(maps, tau).tolist() == [eq11(pixel, tau) for pixel in errors]


def test_mix_by_hand() -> None:
    four = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]], [[-1.0, -2.0, -3.0, -4.0]]]])  # integers (N, C, H, W) = (1, 2, 1, 4)
    choice = torch.tensor([[[0, 1, 2, 0]]], dtype=torch.uint8)  # (N, H, W)
    scales = [torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.25)]
    mixed = mix([None, four, 10 * four], scales, choice, 1)
    assert mixed.tolist() == [[[[0.0, 2 * 0.5, 30 * 0.25, 0.0]], [[0.0, -2 * 0.5, -30 * 0.25, 0.0]]]]


def test_a_pool_of_zeros_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="needs a quantizer of more than 0 bits"):
        mix([None], [torch.tensor(1.0)], torch.zeros(1, 1), 1)


# --- granularity ----------------------------------------------------------------------------------------------------


def test_regions_share_the_root_mean_square_also_at_the_border() -> None:
    # A map of 3x3 in regions of 2x2: one whole region, two halves, one corner
    errors = torch.tensor([[[1.0, 1.0, 3.0], [1.0, 5.0, 4.0], [2.0, 6.0, 9.0]]])
    a, b, c, d = math.sqrt(28 / 4), math.sqrt(25 / 2), math.sqrt(40 / 2), 9.0
    shared = share_error(errors, PolicyConfig(granularity="region", region=2))
    assert shared.flatten().tolist() == pytest.approx([a, a, b, a, a, b, c, c, d])


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 7), (2, 3, 5, 7)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("region", [1, 2, 8])
def test_regions_of_any_dimension(shape: tuple[int, ...], region: int) -> None:
    errors = torch.rand(shape, dtype=torch.float64)
    shared = share_error(errors, PolicyConfig(granularity="region", region=region))
    assert shared.shape == errors.shape
    for n, *where in itertools.product(*map(range, shape)):
        spans = [slice(at - at % region, at - at % region + region) for at in where]
        assert float(shared[(n, *where)]) == pytest.approx(float(errors[(n, *spans)].square().mean().sqrt()))


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 7), (2, 3, 5, 7)], ids=["1d", "2d", "3d"])
def test_a_frame_shares_one_error_per_video(shape: tuple[int, ...]) -> None:
    errors = torch.rand(shape, dtype=torch.float64)
    shared = share_error(errors, PolicyConfig(granularity="frame"))
    assert shared.shape == errors.shape
    for n in range(shape[0]):
        assert shared[n].flatten().tolist() == pytest.approx(
            [float(errors[n].square().mean().sqrt())] * errors[n].numel()
        )


@pytest.mark.parametrize("granularity", ["pixel", "region", "frame"])
def test_inputs_without_space_share_nothing(granularity: str) -> None:
    """A linear layer's (N, C) has one error per sample."""
    errors = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(share_error(errors, PolicyConfig(granularity=granularity)), errors)


def test_pixels_keep_their_own_errors() -> None:
    errors = torch.rand(2, 5, 7)
    assert torch.equal(share_error(errors, PolicyConfig()), errors)


# --- in a layer -----------------------------------------------------------------------------------------------------

SHAPES = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3, padding=1), (2, 3, 3, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 6)),
    "linear-NC": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear-NLC": (lambda: nn.Linear(3, 4), (2, 6, 3)),
    "linear-NHWC": (lambda: nn.Linear(3, 4), (2, 5, 6, 3)),
}


def pixels(layer: nn.Module, x: Tensor) -> Tensor:
    """Input vectors of a layer, (pixels, C), whatever its kind."""
    return x.reshape(-1, x.shape[-1]) if isinstance(layer, nn.Linear) else x.movedim(1, -1).reshape(-1, x.shape[1])


def prepared(kind: str, precision: str, **policy: object) -> tuple[nn.Module, Tensor]:
    """A layer with the ranges of a short video, and the residual of its last frame."""
    make, shape = SHAPES[kind]
    frames = video(3, shape, motion=0.4)
    frames[2][0] = frames[0][0]  # of the first video nothing moves
    return build(make, precision, frames, policy=policy), frames[2] - frames[0]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("normalize", ["none", "layer"])
@pytest.mark.parametrize("precision", ["W8A8->W4A{0,4,8}", "W8A8->W4A{2,3,5}", "W8A8->W4A{0,4}", "W8A8->W8A{4,16}"])
def test_a_layer_applies_equations_9_to_11_to_every_pixel(kind: str, normalize: str, precision: str) -> None:
    """GIVEN a pool, THEN every pixel's δ̂ and Π are those of Eq. 10 and 11, with ‖ŵ‖ or divided by the layer's norm."""
    tau = 0.08 if normalize == "none" else 0.02
    layer, delta = prepared(kind, precision, threshold=tau, normalize=normalize)
    pool = layer.settings.residual.pool
    w_norm = float(eq7(layer.weight.detach(), layer.settings.residual.weight).norm())
    norm = w_norm if normalize == "none" else 1 / float(layer.activation_norm)
    scales = [quantizer.scale.detach() for quantizer in layer.residual_quantizers]

    with torch.no_grad():
        found, choice = layer.quantize_residual(delta)

    expected, indices = [], []
    for pixel in pixels(layer, delta):
        candidates = [eq1(pixel, scale, bits) for scale, bits in zip(scales, pool, strict=True)]
        i = eq11([float((pixel - candidate).norm()) * norm for candidate in candidates], tau)
        expected.append(candidates[i])
        indices.append(i)
    assert choice.flatten().tolist() == indices
    assert torch.equal(pixels(layer, found), torch.stack(expected))
    assert len(set(indices)) > 1  # the case is not trivial


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("granularity", ["pixel", "region", "frame"])
def test_residuals_of_zero_and_huge_thresholds_choose_the_lowest(kind: str, granularity: str) -> None:
    layer, delta = prepared(kind, "W8A8->W4A{3,4,8}", threshold=0.01, granularity=granularity)
    with torch.no_grad():
        quantized, choice = layer.quantize_residual(torch.zeros_like(delta))
    assert not choice.any()
    assert not quantized.any()
    layer, delta = prepared(kind, "W8A8->W4A{3,4,8}", threshold=1e6, granularity=granularity)
    with torch.no_grad():
        quantized, choice = layer.quantize_residual(delta)
    assert not choice.any()
    assert torch.equal(quantized, eq1(delta, layer.residual_quantizers[0].scale.detach(), 3))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_threshold_of_zero_takes_every_gain(kind: str) -> None:
    """Eq. 11 as written: only a wider quantizer that is worse is refused, so a residual of zero takes the widest."""
    layer, delta = prepared(kind, "W8A8->W4A{0,4,8}", threshold=0)
    with torch.no_grad():
        assert bool((layer.quantize_residual(torch.zeros_like(delta))[1] == 2).all())


@pytest.mark.parametrize("granularity", ["region", "frame"])
def test_a_coarse_choice_is_uniform_where_it_is_shared(granularity: str) -> None:
    layer, delta = prepared("conv2d", "W8A8->W4A{0,4,8}", threshold=0.05, granularity=granularity, region=3)
    with torch.no_grad():
        found, choice = layer.quantize_residual(delta)
    tile = 3 if granularity == "region" else 99
    groups = [
        choice[n, y : y + tile, x : x + tile] for n in range(2) for y in range(0, 5, tile) for x in range(0, 6, tile)
    ]
    assert all(len(group.unique()) == 1 for group in groups)
    assert not choice[0].any()  # the video that stands still
    assert choice[1].any()
    scales = [quantizer.scale.detach() for quantizer in layer.residual_quantizers]
    candidates = [eq1(delta, scale, bits) for scale, bits in zip(scales, (0, 4, 8), strict=True)]
    assert torch.equal(found, torch.stack(candidates).gather(0, choice.long()[None, :, None].expand(1, 2, 3, 5, 6))[0])


def test_equation_10_bounds_equation_9_for_pointwise_convolutions() -> None:
    layer = build(lambda: nn.Conv2d(4, 6, 1), "W8A8->W4A4", video(3, (2, 4, 5, 6)))
    delta = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        w_hat, error = layer.weight_of("residual"), delta - layer.quantize_residual(delta)[0]
    eq9 = F.conv2d(error, w_hat).norm(dim=1)
    assert bool((eq9 <= error.norm(dim=1) * w_hat.norm() * (1 + 1e-5)).all())


def test_a_pool_of_one_is_static() -> None:
    frames = video(4)
    dynamic, static = build("plain", "W8A8->W4A{4}", frames), build("plain", "W8A8->W4A4", frames)
    assert all(torch.equal(a, b) for a, b in zip(play(dynamic, frames), play(static, frames), strict=True))
    with torch.no_grad():
        assert dynamic[0].quantize_residual(frames[1] - frames[0])[1] is None


def test_normalizing_by_layer_makes_the_choice_scale_free() -> None:
    """GIVEN a layer whose inputs are 1000 times larger, THEN the same pixels get the same bits."""
    layer, delta = prepared("conv2d", "W8A8->W4A{0,4,8}", threshold=0.02)
    frames = video(3, (2, 3, 5, 6), motion=0.4)
    frames[2][0] = frames[0][0]
    large = build(
        SHAPES["conv2d"][0], "W8A8->W4A{0,4,8}", [1024 * frame for frame in frames], policy={"threshold": 0.02}
    )
    with torch.no_grad():
        choice = layer.quantize_residual(delta)[1]
        assert torch.equal(large.quantize_residual(1024 * delta)[1], choice)
    assert len(choice.unique()) > 1


def test_the_pool_is_checked_for_ranges() -> None:
    layer = convert(nn.Conv2d(3, 4, 1), ResQConfig.parse("W8A8->W4A{0,4,8}"))
    with pytest.raises(RuntimeError, match=r"\(residual, 4 bits\) has no range"):
        layer.quantize_residual(torch.ones(1, 3, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
def test_compiled_elementwise_code_computes_the_same(precision: str) -> None:
    frames = video(4)
    plain, fast = build("plain", precision, frames), build("plain", precision, frames, compile=True)
    for a, b in zip(play(plain, frames), play(fast, frames), strict=True):
        assert float((a - b).abs().max()) <= 1e-5

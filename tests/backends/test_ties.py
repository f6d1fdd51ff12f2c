"""The most negative weight of a channel lies on a rounding tie by Eq. 6 and 7; every backend takes it to -2^(b-1)."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.method.layers import residual_layers
from resq_plugin.method.quantizer import fake_quantize_weight, is_lowest, weight_range, weight_scale

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(toolkit) is None, reason=f"{toolkit} is not installed"))
    for name, toolkit in (("torch", "torch"), ("aimet", "aimet_torch"), ("brevitas", "brevitas"))
]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


def random_weight(seed: int, channels: int = 64) -> Tensor:
    """Channels whose most negative weight is their largest, of ranges from 2^-6 to 2^6 (C, 4, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 4, 3, 3, generator=generator) * torch.rand(channels, 1, 1, 1, generator=generator)
    weight *= 2.0 ** torch.randint(-6, 7, (channels, 1, 1, 1), generator=generator)
    weight[:, 0, 0, 0] = -1.5 * weight.flatten(1).abs().amax(1)
    return weight


def integers_of(values: Tensor, scale: Tensor) -> Tensor:
    quotient = values.double() / scale.double()
    assert float((quotient - quotient.round()).abs().max()) < 0.05
    return quotient.round()


def exact_integers(weight: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Eq. 1 in double precision where w / s is clear of a tie, and where that is."""
    quotient = weight.double() / scale.double()
    is_clear = ((quotient - quotient.floor()) - 0.5).abs() > 1e-2
    return quotient.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), is_clear


@given(st.integers(0, 10**6), st.integers(2, 16), st.booleans())
def test_single_double_and_reciprocal_arithmetic_give_the_same_integers(seed: int, bits: int, channel: bool) -> None:
    """What CUDA, Triton and DSPs do instead of a division must not move a weight by a step."""
    weight, dims = random_weight(seed, 8), (0,) if channel else ()
    low, high = weight_range(weight, dims)
    scale = weight_scale(weight, bits, dims)
    reciprocal = 2 * torch.maximum(high, -low) * torch.tensor(1 / (2**bits - 1))
    expected, is_clear = exact_integers(weight, scale, bits)
    for w, s in ((weight, scale), (weight, reciprocal), (weight.double(), weight_scale(weight.double(), bits, dims))):
        found = integers_of(fake_quantize_weight(w, s, bits), s.expand_as(w))
        assert torch.equal(found[is_clear], expected[is_clear])
        assert bool((found[weight == low] == -(2 ** (bits - 1))).all())


@pytest.mark.parametrize("ulps", [-3, -1, 0, 1, 3])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_scale_off_by_some_last_digits_does_not_move_the_lowest_weight(bits: int, ulps: int) -> None:
    weight, scale = random_weight(1), weight_scale(random_weight(1), bits, (0,))
    for _ in range(abs(ulps)):
        scale = torch.nextafter(scale, torch.tensor(float("inf") if ulps > 0 else 0.0))
    found = integers_of(fake_quantize_weight(weight, scale, bits), scale.expand_as(weight))[:, 0, 0, 0]
    assert found.tolist() == [-(2 ** (bits - 1))] * 64
    assert is_lowest(weight, scale, bits).sum() == 64


def test_the_highest_weight_is_clamped_from_both_sides_of_its_tie() -> None:
    weight = -random_weight(2)
    for bits in (2, 4, 8, 16):
        scale = weight_scale(weight, bits, (0,))
        found = integers_of(fake_quantize_weight(weight, scale, bits), scale.expand_as(weight))[:, 0, 0, 0]
        assert found.tolist() == [2 ** (bits - 1) - 1] * 64


def test_other_ties_are_taken_to_even() -> None:
    weight = torch.tensor([-7.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 6.5])
    assert fake_quantize_weight(weight, torch.tensor(1.0), 4).tolist() == [-8, -2, -2, 0, 0, 2, 2, 6]


def test_gradients_pass_straight_through_the_lowest_weight() -> None:
    """As through every point of the grid; the scale gets that of its integer."""
    weight, scale = torch.tensor([-7.5, 1.2], requires_grad=True), torch.tensor(1.0 + 2**-23, requires_grad=True)
    fake_quantize_weight(weight, scale, 4).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0]
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((-8 + 7.5) + (1 - 1.2), abs=1e-6)


# --- backends -------------------------------------------------------------------------------------------------------

KINDS: dict[str, nn.Module] = {
    "Conv2d": nn.Conv2d(4, 64, 3),
    "depthwise": nn.Conv2d(64, 64, 3, groups=64),
    "ConvTranspose2d": nn.ConvTranspose2d(64, 4, 3),
    "Linear": nn.Linear(36, 64),
}


def with_lowest_weights(kind: str, dtype: torch.dtype) -> nn.Module:
    layer: Any = copy.deepcopy(KINDS[kind])
    weight = random_weight(7, layer.weight.numel() // 36 + 1).flatten()[: layer.weight.numel()]
    layer.load_state_dict({"weight": weight.view_as(layer.weight), "bias": torch.zeros_like(layer.bias)})
    return nn.Sequential(layer).eval().to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lowest_weight_is_the_lowest_integer_in_every_backend(
    backend: str, kind: str, weights: str, dtype: torch.dtype, device: str
) -> None:
    bits = {"keyframe": 8, "residual": 4}
    if dtype in (torch.float16, torch.bfloat16):
        bits = {"keyframe": 7, "residual": 4}  # integers times a scale are rounded to the type of the weight
    config = ResQConfig.parse(f"W{bits['keyframe']}A8->W{bits['residual']}A4", backend=backend, weights=weights)
    model = convert(with_lowest_weights(kind, dtype).to(device), config)
    (layer,) = residual_layers(model).values()
    layer.calibrate_weights()
    view: Any = layer.grouped(layer.weight_of("float").detach())
    low, high = weight_range(view, layer.weight_channel_dims if weights == "channel" else ())
    at_end = (view == low) & (-low >= high)
    assert bool(at_end.any())
    for path, width in bits.items():
        quotient = layer.weight_of(path).double() / layer.weight_scale_of(path).double()
        found = layer.grouped(quotient.detach().round())
        assert set(found[at_end].tolist()) == {-(2.0 ** (width - 1))}
        assert int(found.min()) == -(2 ** (width - 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_exported_weights_are_the_same_integers(backend: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper  # an extra

    from resq_plugin.export import export_model  # an extra

    config = ResQConfig.parse("W8A8->W8A8", backend=backend, weights="channel")
    model = convert(with_lowest_weights("Conv2d", torch.float32), config)
    clip = [torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8)]
    calibrate(model, [clip])
    export_model(model, clip, tmp_path / "net")
    (layer,) = residual_layers(model).values()
    expected = integers_of(layer.weight_of("keyframe").detach(), layer.weight_scale_of("keyframe"))
    for graph in ("keyframe", "residual"):
        stored = [
            numpy_helper.to_array(tensor)
            for tensor in onnx.load(tmp_path / "net" / f"{graph}.onnx").graph.initializer
            if tuple(tensor.dims) == tuple(layer.weight.shape)
        ]
        assert len(stored) == 1
        assert torch.equal(torch.from_numpy(stored[0].astype("float64")), expected)
        assert int(stored[0].min()) == -128

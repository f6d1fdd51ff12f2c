"""Nets of the model zoos as they are: what is converted and what is not, and the exact contracts of a stream.

No net is left out and no bound is looser for one of them. Weights are random; batch norms have the statistics of a
batch, so that the activations of deep nets neither fade nor explode.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import assert_equal, exact_numbers, fit, flat, in_use, outside, play, video
from torch import Tensor, nn

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from resq_mmengine.tested import TESTED
from resq_mmengine.zoo import FrameModel, build_model

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, revert, stream, summarize

pytestmark = pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning")  # of MMDet's CSPNeXt

SIZES = {"RTMPose-s": (256, 192)}  # its head is made for one size
FAST = {"samples": 2, "candidates": 3, "positions": 16, "recheck": 1}

UNREACHED = {
    "DDRNet-23-slim": ("decode_head.aux_",),
    "DDRNet-23": ("decode_head.aux_",),
    "PIDNet-S": ("decode_head.p_", "decode_head.d_"),
    "Fast-SCNN": ("auxiliary_head.",),
    "BiSeNetV2": ("auxiliary_head.",),
    "STDC1": ("auxiliary_head.",),
    "PSPNet-R50": ("auxiliary_head.",),
    "DeepLabV3+-R18": ("auxiliary_head.",),
    "U-Net": ("auxiliary_head.",),
}
"""Beginnings of the names of the heads that exist for training only."""

BLOCKS = [f"backbone.layers.{stage}.1.{block}.attn.attn" for stage in range(4) for block in range(2)]
UNSUPPORTED = {"SegFormer-B0": [f"{block}{part}" for block in BLOCKS for part in ("", ".out_proj")]}
"""`torch.nn.MultiheadAttention` reads all its weights, those of ``out_proj`` too, behind the backs of layers."""

ATTENTION = {"SegFormer-B0": BLOCKS, "RTMPose-s": ["head.gau"]}
"""Modules that multiply activations with each other."""

MATRIX_PRODUCTS = {f"aten.{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention")}


@dataclass(frozen=True)
class Net:
    """A net of the zoo after conversion and calibration.

    Attributes:
        model: calibrated for W8A8->W4A4.
        frames: three frames (1, 3, H, W) that resemble each other.
        before: a copy of the float model.
    """

    name: str
    model: nn.Module
    frames: list[Tensor]
    before: nn.Module


@pytest.fixture(scope="module", params=list(TESTED))
def net(request: pytest.FixtureRequest) -> Net:
    name = request.param
    height, width = SIZES.get(name, (64, 64))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = in_use(FrameModel(build_model(TESTED[name])), torch.randn(4, 3, height, width))
    before = copy.deepcopy(model)
    frames = video(3, shape=(1, 3, height, width))
    convert(model, ResQConfig.parse("W8A8->W4A4", interval=3, calibration=FAST))
    calibrate(model, [frames])
    return Net(name, model, frames, before)


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference in units of the largest magnitude of the expected tensor."""
    assert [z.shape for z in found] == [z.shape for z in expected]
    return max(float((z - e).abs().max() / e.abs().max()) for z, e in zip(found, expected, strict=True))


# --- what is converted ----------------------------------------------------------------------------------------------


def test_every_layer_with_weights_is_converted_or_listed(net: Net) -> None:
    summary = summarize(net.model)
    unsupported = [name.partition(" ")[0] for name in summary.unsupported]
    assert unsupported == UNSUPPORTED.get(net.name, [])
    assert summary.excluded == ()
    listed = [*summary.converted, *unsupported, *summary.unreached]
    parameters = dict(net.model.named_parameters(remove_duplicate=False))
    weights = {name for name, value in parameters.items() if name.endswith("weight") and value.dim() >= 2}
    assert sorted(listed) == sorted(name.removesuffix(".weight").removesuffix(".in_proj_weight") for name in weights)


def test_only_heads_for_training_are_unreached(net: Net) -> None:
    prefixes = UNREACHED.get(net.name, ())
    unreached = summarize(net.model).unreached
    assert all(name.startswith(prefixes) for name in unreached)
    assert {prefix for prefix in prefixes if any(name.startswith(prefix) for name in unreached)} == set(prefixes)
    assert not any(name.startswith(prefixes) for name in summarize(net.model).converted)


def test_products_of_activations_stay_dense_and_are_listed(net: Net) -> None:
    cost = measure_cost(net.model, tuple(net.frames[0].shape))
    assert cost.float_layers == ()
    assert {layer.name for layer in cost.layers} == set(summarize(net.model).converted)
    products = [ops.module for ops in cost.uncounted if ops.operator in MATRIX_PRODUCTS]
    assert sorted(set(products)) == sorted(ATTENTION.get(net.name, []))


def test_a_float_model_costs_what_its_conversion_costs(net: Net) -> None:
    shape = tuple(net.frames[0].shape)
    converted = measure_cost(net.model, shape)
    planned = measure_cost(net.before, shape, ResQConfig.parse("W8A8->W4A4", interval=3))
    assert planned.layers == converted.layers


def test_reverting_gives_the_float_model_back(net: Net) -> None:
    model = revert(copy.deepcopy(net.model))
    assert [type(module) for module in model.modules()] == [type(module) for module in net.before.modules()]
    assert model.state_dict().keys() == net.before.state_dict().keys()
    assert_equal(flat(outside(model, net.frames[:1])), flat(outside(net.before, net.frames[:1])))


# --- the contracts of a stream --------------------------------------------------------------------------------------


def test_a_repeated_frame_repeats_the_keyframe_output(net: Net) -> None:
    outputs = flat(play(net.model, [net.frames[0]] * 3))
    count = len(outputs) // 3
    assert_equal(outputs[count:], outputs[:count] * 2)


def test_interval_one_and_keyframes_are_frame_quantization_and_residual_frames_are_not(net: Net) -> None:
    single = flat(outside(net.model, net.frames))
    assert_equal(flat(play(net.model, net.frames, interval=1)), single)
    moving, count = flat(play(net.model, net.frames)), len(single) // 3
    assert_equal(moving[:count], single[:count])
    assert all(z.isfinite().all() for z in moving)
    assert not any(torch.equal(*pair) for pair in zip(moving[count:], single[count:], strict=True))


def test_without_quantization_a_stream_is_the_dense_net(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 4: in float64, where rounding cannot hide a wrong or lost reference, nor a bias that counts twice."""
    exact_numbers(monkeypatch)
    frames = [frame.double() for frame in net.frames]
    model, before = (copy.deepcopy(model).double() for model in (net.model, net.before))
    assert error(flat(play(model, frames)), flat(outside(before, frames))) <= 1e-10


# --- more precisions and references ---------------------------------------------------------------------------------

SCHEMES = [
    ("W4A4->W3A3", "float"),
    ("W8A8->W4A4", "quantized"),
    ("W8A8->W4A4", "running"),
    ("W8A8->W4A{0,4,8}", "float"),
    ("W8A8->W4A{0,4,8}", "running"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "reference"), SCHEMES)
def test_the_contracts_hold_for_every_scheme(net: Net, precision: str, reference: str) -> None:
    model = revert(copy.deepcopy(net.model))
    convert(model, ResQConfig.parse(precision, reference=reference, interval=3, weights="channel"))
    fit(model, net.frames)
    moving, single = flat(play(model, net.frames)), flat(outside(model, net.frames))
    count = len(single) // 3
    assert_equal(moving[:count], single[:count])
    assert all(z.isfinite().all() for z in moving)
    assert not any(torch.equal(*pair) for pair in zip(moving[count:], single[count:], strict=True))
    assert_equal(flat(play(model, net.frames, interval=1)), single)
    if reference == "float":
        repeated = flat(play(model, [net.frames[0]] * 3))
        assert_equal(repeated[count:], repeated[:count] * 2)


@pytest.mark.slow
def test_two_streams_do_not_touch_each_other(net: Net) -> None:
    other = [frame.flip(-1) for frame in net.frames]
    with torch.no_grad(), stream(net.model) as first, stream(net.model) as second:
        pairs = [(flat(first(x)), flat(second(y))) for x, y in zip(net.frames, other, strict=True)]
    assert_equal([z for a, _ in pairs for z in a], flat(play(net.model, net.frames)))
    assert_equal([z for _, b in pairs for z in b], flat(play(net.model, other)))


@pytest.mark.slow
def test_more_bits_come_closer_to_float(net: Net) -> None:
    """Two bits make each step 4 times finer. Deep nets with random weights amplify what is left."""
    exact = flat(outside(net.before, net.frames))
    errors = []
    for bits in (14, 16):
        model = revert(copy.deepcopy(net.model))
        convert(model, ResQConfig.parse(f"W{bits}A{bits}->W{bits}A{bits}", interval=3))
        found = flat(play(fit(model, net.frames), net.frames))
        errors.append(max(float((z - e).norm() / e.norm()) for z, e in zip(found, exact, strict=True)))
    assert errors[1] <= errors[0] / 2
    assert errors[1] <= 0.03

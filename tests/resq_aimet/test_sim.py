"""ResQ in AIMET's own flow: the two placements of quantizers."""

from __future__ import annotations

from collections.abc import Callable

import aimet_torch
import pytest
import resq_aimet
import torch
from aimet_flow import AIMETS_OWN_WARNINGS, streamed
from aimet_torch.nn import QuantizedConv2d
from helpers import assert_equal, eq1, play
from resq_aimet.classes import ResQQuantizedConv2d
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.errors import ConfigError
from resq_plugin.method.layers import residual_layers

Clips = list[list[Tensor]]
MakeSim = Callable[..., aimet_torch.QuantizationSimModel]
Outputs = Callable[[nn.Module], list[Tensor]]

pytestmark = AIMETS_OWN_WARNINGS

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"


# --- hardware placement ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrate_first", [True, False])
def test_in_hardware_placement_the_sim_computes_bit_for_bit_what_it_did(
    calibrate_first: bool,
    make_sim: MakeSim,
    clips: Clips,
    outputs: Outputs,
    run_frames: Callable[[nn.Module], None],
) -> None:
    plain = make_sim()
    plain.compute_encodings(run_frames if calibrate_first else lambda model: [model(f) for c in clips for f in c])
    sim = make_sim()
    if calibrate_first:
        sim.compute_encodings(run_frames)
    resq = resq_aimet.convert(sim, STATIC, placement="hardware")
    if calibrate_first:
        assert_equal(outputs(sim.model), outputs(plain.model))
    resq.compute_encodings(clips)
    assert_equal(outputs(sim.model), outputs(plain.model))
    state, expected = sim.quantizer_state_dict(), plain.quantizer_state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items() if isinstance(value, Tensor))


def test_in_hardware_placement_a_stream_keeps_supergroups_and_adds_the_residual(
    make_resq: Callable[..., resq_aimet.ResQSim], frames: list[Tensor]
) -> None:
    """z_t of conv3 and the classifier by hand: inputs are quantized upstream, the output quantizer acts on z_t."""
    model = make_resq(placement="hardware").sim.model
    assert model.conv2.input_quantizers[0] is None
    assert model.relu1.output_quantizers[0] is not None
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.head
    layer.register_forward_hook(lambda _, args, z: seen.append((args[0].as_subclass(Tensor), z.as_subclass(Tensor))))
    play(model, frames[:2])
    (x_k, z_k), (x_t, z_t) = seen
    weight, bias, out = layer.param_quantizers["weight"], layer.bias, layer.output_quantizers[0]
    with torch.no_grad():
        accumulated = nn.functional.conv2d(x_k, weight(layer.weight).as_subclass(Tensor), bias)
        assert torch.equal(out(accumulated).as_subclass(Tensor), z_k)
        theta, s = layer.residual_path, layer.residual_path.input_quantizers[0].get_scale()
        w_hat = eq1(layer.weight, theta.param_quantizers["weight"].get_scale(), 4)
        accumulated = nn.functional.conv2d(eq1(x_t - x_k, s, 4), w_hat) + accumulated
        assert torch.equal(out(accumulated).as_subclass(Tensor), z_t)


def test_hardware_placement_wants_the_precision_of_the_sim(make_sim: MakeSim) -> None:
    sim = make_sim(default_param_bw=4)
    with pytest.raises(ConfigError, match=r"layer conv1 is W4A8 in the sim.*overrides=\{'conv1': 'W4A8->W4A4'\}"):
        resq_aimet.convert(sim, STATIC, placement="hardware")
    assert not any(isinstance(module, ResQQuantizedConv2d) for module in sim.model.modules())
    resq_aimet.convert(sim, "W4A8->W4A4", placement="hardware")


# --- paper placement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [STATIC, DYNAMIC])
def test_in_paper_placement_a_sim_equals_the_torch_backend(
    precision: str, make_resq: Callable[..., resq_aimet.ResQSim], net: nn.Module, clips: Clips, frames: list[Tensor]
) -> None:
    sim = make_resq(precision).sim
    convert(net, precision)
    calibrate(net, clips)
    assert_equal(streamed(sim, frames), play(net, frames))
    with torch.no_grad():
        assert torch.equal(sim.model(frames[0]), net(frames[0]))


def test_in_paper_placement_quantizers_sit_at_layer_inputs_only(
    make_resq: Callable[..., resq_aimet.ResQSim],
) -> None:
    sim = make_resq().sim
    layers = residual_layers(sim.model)
    assert all(layer.input_quantizers[0] is not None for layer in layers.values())
    inside = set(layers) | {f"{name}.residual_path" for name in layers}
    for name, module in sim.named_qmodules():
        assert module.output_quantizers[0] is None
        assert name in inside or not any(True for _ in module.input_quantizers.children())


@pytest.mark.parametrize("placement", ["paper", "hardware"])
def test_revert_gives_the_plain_sim_back(
    placement: str, make_sim: MakeSim, clips: Clips, outputs: Outputs, run_frames: Callable[[nn.Module], None]
) -> None:
    sim = make_sim()
    sim.compute_encodings(run_frames)
    expected, keys = outputs(sim.model), list(sim.quantizer_state_dict())
    resq = resq_aimet.convert(sim, DYNAMIC, placement=placement)
    resq.compute_encodings(clips)
    assert resq.revert() is sim
    assert_equal(outputs(sim.model), expected)
    assert list(sim.quantizer_state_dict()) == keys
    assert {type(m) for m in sim.model.modules() if isinstance(m, nn.Conv2d)} == {QuantizedConv2d}
    resq_aimet.convert(sim, STATIC)


def test_excluded_layers_are_float_in_paper_placement_and_aimets_in_hardware(make_sim: MakeSim) -> None:
    config = ResQConfig.parse(STATIC, exclude=("head",))
    head = resq_aimet.convert(make_sim(), config).sim.model.head
    assert (type(head), head.param_quantizers["weight"], head.output_quantizers[0]) == (QuantizedConv2d, None, None)
    head = resq_aimet.convert(make_sim(), config, placement="hardware").sim.model.head
    assert head.param_quantizers["weight"].bitwidth == 8


def test_an_unknown_placement_is_named(make_sim: MakeSim) -> None:
    with pytest.raises(ConfigError, match=r"placement='hardwear' is not allowed.*Did you mean 'hardware'"):
        resq_aimet.convert(make_sim(), STATIC, placement="hardwear")


def test_a_layer_that_no_frame_reaches_stays_float_until_the_sim_is_reverted(
    net: nn.Module, clips: Clips, frames: list[Tensor]
) -> None:
    net.auxiliary = nn.Conv2d(8, 4, 1)
    resq = resq_aimet.convert(aimet_torch.QuantizationSimModel(net, frames[0]), STATIC)
    resq.compute_encodings(clips)
    layer, x = resq.sim.model.auxiliary, torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        assert type(layer) is QuantizedConv2d
        assert torch.equal(layer(x), net.auxiliary(x))
    assert resq.revert().model.auxiliary.param_quantizers["weight"] is not None


@pytest.mark.parametrize("precision", ["W8A8->W8A0", "W8A8"])
def test_no_residual_bits_and_no_residual_frames(
    precision: str, make_resq: Callable[..., resq_aimet.ResQSim], frames: list[Tensor]
) -> None:
    model = make_resq(precision).sim.model
    expected = [model(frames[0])] * 3 if "->" in precision else [model(frame) for frame in frames[:3]]
    assert_equal(play(model, frames[:3]), [z.detach() for z in expected])

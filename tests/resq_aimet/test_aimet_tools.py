"""AIMET's own tools go on working on a converted sim: calibration, states, files, copies, training, exporters."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import aimet_torch
import pytest
import resq_aimet
import torch
from aimet_flow import AIMETS_OWN_WARNINGS, streamed
from aimet_torch.nn import QuantizedConv2d
from helpers import assert_equal, eq6, play, video
from resq_aimet import backend
from resq_aimet.classes import ResQQuantizedConv2d
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, revert, stream
from resq_plugin.errors import CalibrationError, ConversionError
from resq_plugin.export import verify

Clips = list[list[Tensor]]
MakeSim = Callable[..., aimet_torch.QuantizationSimModel]
Outputs = Callable[[nn.Module], list[Tensor]]

pytestmark = AIMETS_OWN_WARNINGS

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"


def test_aimets_compute_encodings_calibrates_both_paths(make_sim: MakeSim, frames: list[Tensor]) -> None:
    """Min-max on a clip, in AIMET's way: quantizers look on while everything runs in float."""
    sim, net = make_sim(), make_sim()
    resq_aimet.convert(sim, STATIC)
    inputs: list[Tensor] = []
    net.model.conv1.register_forward_hook(lambda _, args, __: inputs.append(args[0]))

    def show_clip(model: nn.Module) -> None:
        with stream(model) as player:
            for frame in frames[:3]:
                player(frame)

    sim.compute_encodings(show_clip)
    x_k, *rest = frames[:3]
    delta = torch.stack([x - x_k for x in rest])
    layer = sim.model.conv1
    weight = layer.weight.detach()
    found = [layer.input_quantizers[0], layer.residual_path.input_quantizers[0]]
    assert torch.equal(found[0].get_scale(), eq6(x_k.min(), x_k.max(), 8))
    assert torch.equal(found[1].get_scale(), eq6(delta.min(), delta.max(), 4))
    assert torch.equal(layer.residual_path.param_quantizers["weight"].get_scale(), eq6(weight.min(), weight.max(), 4))
    assert len(play(sim.model, frames)) == len(frames)


def test_aimets_compute_encodings_reaches_a_dynamic_pool(make_sim: MakeSim, frames: list[Tensor]) -> None:
    sim = make_sim()
    resq_aimet.convert(sim, DYNAMIC)
    sim.compute_encodings(lambda model: play(model, frames[:3]))
    delta = torch.stack([frame - frames[0] for frame in frames[1:3]])
    _, four, eight = sim.model.conv1.residual_pool.input_quantizers
    assert torch.equal(four.get_scale(), eq6(delta.min(), delta.max(), 4))
    assert torch.equal(eight.get_scale(), eq6(delta.min(), delta.max(), 8))


@pytest.mark.parametrize("placement", ["paper", "hardware"])
def test_quantizer_states_move_to_another_sim(
    placement: str, make_resq: Callable[..., resq_aimet.ResQSim], make_sim: MakeSim, frames: list[Tensor]
) -> None:
    sim, other = make_resq(placement=placement).sim, make_sim()
    resq_aimet.convert(other, STATIC, placement=placement)
    report = other.model.load_state_dict(sim.quantizer_state_dict(), strict=False)
    assert not report.unexpected_keys
    assert_equal(streamed(other, frames), streamed(sim, frames))


def test_whole_state_dicts_load_strictly(
    make_resq: Callable[..., resq_aimet.ResQSim], make_sim: MakeSim, frames: list[Tensor]
) -> None:
    sim, other = make_resq(DYNAMIC).sim, make_sim()
    resq_aimet.convert(other, DYNAMIC)
    other.model.load_state_dict(sim.model.state_dict(), strict=True)
    assert_equal(streamed(other, frames), streamed(sim, frames))


def test_the_state_of_a_plain_sim_loads_strictly_in_hardware_placement(
    make_resq: Callable[..., resq_aimet.ResQSim],
    make_sim: MakeSim,
    outputs: Outputs,
    run_frames: Callable[[nn.Module], None],
) -> None:
    plain, resq = make_sim(), make_resq(placement="hardware")
    plain.compute_encodings(run_frames)
    resq.sim.model.load_state_dict(plain.model.state_dict(), strict=True)
    assert_equal(outputs(resq.sim.model), outputs(plain.model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("placement", ["paper", "hardware"])
def test_encodings_files_hold_both_paths_and_load_again(
    placement: str,
    make_resq: Callable[..., resq_aimet.ResQSim],
    make_sim: MakeSim,
    frames: list[Tensor],
    tmp_path: Path,
) -> None:
    sim, other = make_resq(placement=placement).sim, make_sim()
    sim.save_encodings_to_json(str(tmp_path), "encodings")
    values = json.loads((tmp_path / "encodings.json").read_text())
    assert values["param_encodings"]["conv2.residual_path.weight"][0]["bitwidth"] == 4
    assert values["activation_encodings"]["conv2.residual_path"]["input"]["0"]["bitwidth"] == 4
    resq_aimet.convert(other, STATIC, placement=placement)
    other.load_encodings(str(tmp_path / "encodings.json"), strict=True, partial=False, allow_overwrite=True)
    for name, quantizer in sim.named_quantizers():
        found = dict(other.named_quantizers())[name].get_scale().detach()
        torch.testing.assert_close(found, quantizer.get_scale().detach(), rtol=2.0**-22, atol=0)
    lsb = 2 * float(play(sim.model, frames)[0].abs().max()) / 255
    for found, expected in zip(streamed(other, frames), streamed(sim, frames), strict=True):
        assert float((found - expected).abs().max()) <= lsb  # the file rounds scales


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sim: pickle.loads(pickle.dumps(sim))])
def test_copies_of_a_sim_are_equal(
    copied: Callable, make_resq: Callable[..., resq_aimet.ResQSim], frames: list[Tensor]
) -> None:
    sim = make_resq(DYNAMIC).sim
    twin = copied(sim)
    assert_equal(streamed(twin, frames), streamed(sim, frames))
    assert twin.model.conv2.residual_path.weight is twin.model.conv2.weight
    with pytest.raises(ConversionError, match="residual paths already"):
        twin.connected_graph.assert_safe()


@pytest.mark.parametrize("placement", ["paper", "hardware"])
@pytest.mark.parametrize("precision", [STATIC, DYNAMIC])
def test_folded_param_quantizers_compute_the_same(
    precision: str, placement: str, make_resq: Callable[..., resq_aimet.ResQSim], frames: list[Tensor]
) -> None:
    sim = make_resq(precision, placement).sim
    expected = streamed(sim, frames)
    scale = sim.model.conv2.weight_scale_of("residual")
    sim.fold_param_quantizers()
    layer = sim.model.conv2
    assert layer.param_quantizers["weight"] is None
    assert layer.residual_path.param_quantizers["weight"] is None
    assert layer.residual_path.weight is not layer.weight
    assert_equal(streamed(sim, frames), expected)
    assert torch.equal(layer.weight_scale_of("residual"), scale)


def test_training_the_sims_model_lowers_the_loss_and_keeps_the_tie(
    make_resq: Callable[..., resq_aimet.ResQSim], net: nn.Module, frames: list[Tensor]
) -> None:
    sim = make_resq().sim
    with torch.no_grad():
        target = [net(frame) for frame in frames[:3]]
    model = sim.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(5):
        with stream(model) as player:
            loss = sum((player(x) - y).square().mean() for x, y in zip(frames, target, strict=False))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert model.conv2.residual_path.weight is model.conv2.weight


def test_failed_calibration_leaves_the_encodings(
    make_resq: Callable[..., resq_aimet.ResQSim], clips: Clips, frames: list[Tensor]
) -> None:
    resq = make_resq(placement="hardware")
    expected = streamed(resq.sim, frames)
    with pytest.raises(CalibrationError, match="have one frame"):
        resq.compute_encodings([clip[:1] for clip in clips])
    assert_equal(streamed(resq.sim, frames), expected)


def test_the_core_converts_a_sims_model_and_reverts_it(make_sim: MakeSim, clips: Clips, frames: list[Tensor]) -> None:
    model = make_sim().model
    convert(model, ResQConfig.parse(STATIC, backend="aimet"))
    assert isinstance(model.conv1, ResQQuantizedConv2d)
    revert(model)
    assert type(model.conv1) is QuantizedConv2d


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("placement", ["paper", "hardware"])
def test_aimets_onnx_export_writes_the_keyframe_path(
    placement: str, make_resq: Callable[..., resq_aimet.ResQSim], tmp_path: Path
) -> None:
    sim = make_resq(placement=placement).sim
    sim.onnx.export(
        (video(1)[0],),
        str(tmp_path / "net.onnx"),
        input_names=["x"],
        output_names=["y"],
        dynamo=False,
        encoding_version="1.0.0",
    )
    values = json.loads((tmp_path / "net.encodings").read_text())
    params = {item["name"]: item["bw"] for item in values["param_encodings"]}
    assert {name: params[name] for name in ("conv1.weight", "conv2.weight", "head.weight")} == dict.fromkeys(
        ("conv1.weight", "conv2.weight", "head.weight"), 8
    )
    assert {item["bw"] for item in values["activation_encodings"]} == {8}
    assert "x" in {item["name"] for item in values["activation_encodings"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("placement", "precision"), [("paper", DYNAMIC), ("hardware", STATIC)])
def test_export_writes_two_graphs_that_onnx_runtime_plays_alike(
    placement: str, precision: str, make_resq: Callable[..., resq_aimet.ResQSim], tmp_path: Path
) -> None:
    resq = make_resq(precision, placement)
    before = copy.deepcopy(resq.sim.model.state_dict())
    resq.export(tmp_path / "net", [frame[:1] for frame in video(4)])
    found = verify(tmp_path / "net")
    assert {tensor.graph for tensor in found.tensors} == {"keyframe", "residual"}
    assert max(tensor.lsb for tensor in found.tensors) <= 1
    grids = backend.export_quantizers(resq.sim.model)
    assert bool(grids) is (placement == "hardware")
    state = resq.sim.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.items() if isinstance(value, Tensor))


def test_aimets_quantizers_are_handed_to_the_export_with_their_grids(
    make_resq: Callable[..., resq_aimet.ResQSim],
) -> None:
    model = make_resq(placement="hardware").sim.model
    grids = backend.export_quantizers(model)
    names = {quantizer: name for name, quantizer in model.named_modules()}
    assert {names[quantizer].rpartition(".")[0] for quantizer in grids} == {
        "conv1.input_quantizers",
        "relu1.output_quantizers",
        "relu2.output_quantizers",
        "conv3.output_quantizers",
        "add.output_quantizers",
        "head.output_quantizers",
    }
    for quantizer, grid in grids.items():
        x = torch.linspace(-3, 3, 101)
        integers = (x / grid.scale[0]).round() + grid.zero_point
        expected = (integers.clamp(grid.low, grid.high) - grid.zero_point) * grid.scale[0]
        step = float(grid.scale[0])
        assert float((quantizer(x).detach().as_subclass(Tensor) - expected).abs().max()) < 1e-3 * step
        assert (grid.bits, grid.signed, grid.axis, grid.weight) == (8, False, None, False)

"""AIMET's algorithms in the stated order, and refusals where the order is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import aimet_torch
import onnx
import pytest
import resq_aimet
import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms, fold_all_batch_norms_to_scale
from aimet_torch.cross_layer_equalization import equalize_model
from aimet_torch.mixed_precision import MixedPrecisionConfigurator
from aimet_torch.seq_mse import apply_seq_mse
from helpers import ZOO, assert_equal, play, seeded
from torch import Tensor, nn

from resq_plugin import calibrate, convert
from resq_plugin.errors import ConfigError, ConversionError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:All modules in `aimet_torch.v2`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
]

Clips = list[list[Tensor]]
STATIC = "W8A8->W4A4"


def weight_scales(layer: nn.Module) -> tuple[Tensor, Tensor]:
    quantizers = layer.param_quantizers["weight"], layer.residual_path.param_quantizers["weight"]
    return tuple(quantizer.get_scale().detach().clone() for quantizer in quantizers)


@pytest.mark.parametrize("prepare", [fold_all_batch_norms, equalize_model])
def test_folding_and_equalization_before_the_sim(prepare: Callable, clips: Clips, frames: list[Tensor]) -> None:
    net = seeded(ZOO["plain"])
    prepare(net, dummy_input=frames[0]) if prepare is equalize_model else prepare(net, None, dummy_input=frames[0])
    sim = aimet_torch.QuantizationSimModel(net, frames[0])
    resq_aimet.convert(sim, STATIC).compute_encodings(clips)
    convert(net, STATIC)
    calibrate(net, clips)
    assert_equal(play(sim.model, frames), play(net, frames))


def test_folding_to_scale_comes_before_the_conversion(
    clips: Clips, frames: list[Tensor], outputs: Callable, run_frames: Callable
) -> None:
    sim = aimet_torch.QuantizationSimModel(seeded(ZOO["plain"]), frames[0])
    sim.compute_encodings(run_frames)
    late = copy.deepcopy(sim)
    fold_all_batch_norms_to_scale(sim)
    expected = outputs(sim.model)
    resq_aimet.convert(sim, STATIC, placement="hardware").compute_encodings(clips)
    assert_equal(outputs(sim.model), expected)

    resq = resq_aimet.convert(late, STATIC, placement="hardware")
    resq.compute_encodings(clips)
    before = play(late.model, frames)
    with pytest.raises(
        ConversionError, match=r"The order is: fold_all_batch_norms .*resq_aimet\.convert\(sim, config\)"
    ):
        fold_all_batch_norms_to_scale(late)
    assert_equal([z.as_subclass(Tensor) for z in play(late.model, frames)], [z.as_subclass(Tensor) for z in before])
    fold_all_batch_norms_to_scale(resq.revert())


def test_adaround_stays_frozen(net: nn.Module, clips: Clips, frames: list[Tensor], tmp_path: Path) -> None:
    parameters = AdaroundParameters([frame[:1] for frame in frames], 7, default_num_iterations=10)
    rounded = Adaround.apply_adaround(net, frames[0][:1], parameters, str(tmp_path), "net", default_param_bw=4)
    sim = aimet_torch.QuantizationSimModel(rounded, frames[0], default_param_bw=4)
    sim.set_and_freeze_param_encodings(str(tmp_path / "net.encodings"))
    quantizer = sim.model.conv2.param_quantizers["weight"]
    expected = quantizer(sim.model.conv2.weight).as_subclass(Tensor).detach()
    with pytest.raises(ConfigError, match=r"layer conv1 is W4A8 in the sim and its encoding stays"):
        resq_aimet.convert(sim, STATIC)
    resq_aimet.convert(sim, "W4A8->W3A4").compute_encodings(clips)
    assert sim.model.conv2.param_quantizers["weight"] is quantizer
    assert torch.equal(sim.model.conv2.weight_of("keyframe"), expected)
    assert len(play(sim.model, frames)) == len(frames)


def test_exported_weights_are_the_integers_that_adaround_chose(
    net: nn.Module, clips: Clips, frames: list[Tensor], tmp_path: Path
) -> None:
    images = [frame[:1] for frame in frames]
    parameters = AdaroundParameters(images, len(images), default_num_iterations=300)
    rounded = Adaround.apply_adaround(net, images[0], parameters, str(tmp_path), "net", default_param_bw=4)
    sim = aimet_torch.QuantizationSimModel(rounded, frames[0], default_param_bw=4)
    sim.set_and_freeze_param_encodings(str(tmp_path / "net.encodings"))
    resq = resq_aimet.convert(sim, "W4A8->W4A4")
    resq.compute_encodings(clips)
    resq.export(tmp_path / "out", images)

    graph = onnx.load(tmp_path / "out" / "keyframe.onnx").graph
    exported = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(int) for tensor in graph.initializer}
    encodings = json.loads((tmp_path / "net.encodings").read_text())["param_encodings"]
    away = 0
    for name, channels in encodings.items():
        scale = torch.tensor([channel["scale"] for channel in channels]).view(-1, 1, 1, 1)
        chosen, nearest = ((of.get_parameter(name) / scale).round().clamp(-8, 7).int() for of in (rounded, net))
        assert torch.equal(torch.from_numpy(exported[name]).int(), chosen)
        away += int((chosen != nearest).sum())
    assert away > 0


def test_sequential_mse_before_the_conversion_is_kept_and_after_it_leaves_the_residual_path(
    make_sim: Callable, clips: Clips, frames: list[Tensor]
) -> None:
    early = make_sim(default_param_bw=4)
    apply_seq_mse(early, frames[:3], num_candidates=5)
    expected = early.model.conv2.param_quantizers["weight"].get_scale().detach().clone()
    resq_aimet.convert(early, "W4A8->W4A4").compute_encodings(clips)
    assert torch.equal(weight_scales(early.model.conv2)[0], expected)

    late = make_sim(default_param_bw=4)
    resq_aimet.convert(late, "W4A8->W4A4", placement="hardware").compute_encodings(clips)
    phi, theta = weight_scales(late.model.conv2)
    apply_seq_mse(late, frames[:3], num_candidates=5)
    found_phi, found_theta = weight_scales(late.model.conv2)
    assert not torch.equal(found_phi, phi)
    assert torch.equal(found_theta, theta)


def test_mixed_precision_comes_before_the_conversion(
    make_sim: Callable, clips: Clips, frames: list[Tensor], tmp_path: Path
) -> None:
    sim = make_sim()
    configurator = MixedPrecisionConfigurator(sim)
    configurator.set_precision(sim.model.conv2, "int8", {"weight": "int4"})
    configurator.apply(str(tmp_path / "log.txt"))
    with pytest.raises(ConfigError, match=r"layer conv2 is W4A8 in the sim"):
        resq_aimet.convert(sim, STATIC, placement="hardware")
    config = resq_aimet.sim.ResQConfig.parse(STATIC, overrides={"conv2": "W4A8->W4A4"})
    resq_aimet.convert(sim, config, placement="hardware").compute_encodings(clips)
    assert sim.model.conv2.param_quantizers["weight"].bitwidth == 4
    assert len(play(sim.model, frames)) == len(frames)
    with pytest.raises(ConversionError, match="mixed precision, then"):
        MixedPrecisionConfigurator(sim)


def test_batch_norms_that_stay_are_named(frames: list[Tensor], caplog: pytest.LogCaptureFixture) -> None:
    sim = aimet_torch.QuantizationSimModel(seeded(ZOO["plain"]), frames[0])
    resq_aimet.convert(sim, STATIC)
    assert "batch norms 1 act on the full output of every frame" in caplog.text
    assert "fold_all_batch_norms(model, None, dummy_input=x)" in caplog.text

"""The backend on float models: the torch backend's numbers, out of Brevitas' quantizers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from brevitas.nn import QuantConv2d
from helpers import ZOO, assert_equal, build, eq1, eq6, play, seeded, video
from torch import Tensor, nn

from resq_plugin import (
    ResQConfig,
    calibrate,
    convert,
    evaluate,
    float_state_dict,
    load_checkpoint,
    measure_cost,
    revert,
    save_checkpoint,
    save_ranges,
    stream,
    summarize,
)
from resq_plugin.checkpoint import load_ranges
from resq_plugin.errors import CalibrationError, ConversionError
from resq_plugin.evaluate import Agreement
from resq_plugin.layers import residual_layers

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"
BOTH = ("torch", "brevitas")
Make = Callable[..., nn.Module]

# --- the torch backend's numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "weights"),
    [(STATIC, "tensor"), (STATIC, "channel"), (DYNAMIC, "channel"), ("W4A4->W3A3", "tensor"), ("W8A8", "channel")],
)
def test_outputs_equal_the_torch_backends(zoo: str, precision: str, weights: str, calibrated: Make) -> None:
    expected, found = (calibrated(zoo, precision, backend, weights=weights) for backend in BOTH)
    assert_equal(play(found, video(7)), play(expected, video(7)))
    for layer, other in zip(residual_layers(found).values(), residual_layers(expected).values(), strict=True):
        for kind in ("keyframe", "residual"):
            assert torch.equal(layer.weight_of(kind), other.weight_of(kind))
            assert torch.equal(layer.weight_scale_of(kind), other.weight_scale_of(kind))


def test_references_and_grids_equal_the_torch_backends(reference: str, calibrated: Make) -> None:
    settings = {"reference": reference, "keyframe_grid": "unsigned"}
    expected, found = (calibrated("residual", STATIC, backend, **settings) for backend in BOTH)
    assert not found.conv2.keyframe_quantizer.signed
    assert_equal(play(found, video(7)), play(expected, video(7)))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions_equal_the_torch_backends(dims: int) -> None:
    def net() -> nn.Module:
        conv, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
        return nn.Sequential(conv(2, 6, 3, padding=1), nn.ReLU(), transposed(6, 4, 2, stride=2, groups=2))

    frames = video(5, (2, 2) + (8,) * dims)
    models = []
    for backend in BOTH:
        models.append(convert(seeded(net), ResQConfig.parse(STATIC, backend=backend, weights="channel")))
        calibrate(models[-1], [frames[:3]])
    assert_equal(play(models[1], frames), play(models[0], frames))


def test_zero_bits_are_a_residual_of_zero(calibrated: Make) -> None:
    expected, found = (calibrated("unet", "W8A8->W4A0", backend) for backend in BOTH)
    assert_equal(play(found, video(4)), play(expected, video(4)))
    layer = found.blocks[0]
    assert not layer.residual_path.input_quant.is_quant_enabled
    assert torch.equal(layer.residual(torch.ones(1, 3, 4, 4)), torch.zeros(1, 6, 4, 4))


def test_a_single_frame_without_a_batch_dimension_works(calibrated: Make) -> None:
    model, frames = calibrated("plain", DYNAMIC), video(4)
    batched = play(model, [frame[:1] for frame in frames])
    assert_equal(play(model, [frame[0] for frame in frames]), [z[0] for z in batched])


# --- where things are -----------------------------------------------------------------------------------------------


def test_brevitas_sees_a_quantized_layer_with_a_child(calibrated: Make) -> None:
    layer = calibrated("residual", DYNAMIC).conv2
    assert isinstance(layer, QuantConv2d)
    assert (int(layer.input_quant.bit_width()), int(layer.weight_quant.bit_width())) == (8, 8)
    assert int(layer.residual_path.weight_quant.bit_width()) == 4
    assert [int(quantizer.bit_width()) for quantizer in layer.residual_path.pool] == [4, 8]
    assert [name for name, _ in layer.residual_path.named_parameters() if name == "weight"] == []


def test_weights_are_quantized_by_equations_6_and_7(calibrated: Make) -> None:
    layer = calibrated("unet", STATIC, weights="tensor").blocks[1]
    weight = layer.weight.detach()
    assert torch.equal(layer.weight_of("residual"), eq1(weight, eq6(weight.min(), weight.max(), 4), 4))
    assert torch.equal(layer.weight_of("keyframe"), eq1(weight, eq6(weight.min(), weight.max(), 8), 8))


def test_interval_of_one_is_frame_quantization_and_a_repeated_frame_changes_nothing(zoo: str) -> None:
    frames = video(3)
    model = build(zoo, STATIC, frames, backend="brevitas", fold=False)
    with torch.no_grad():
        assert_equal(play(model, frames, interval=1), [model(frame) for frame in frames])
        first, second, third = play(model, [frames[0]] * 3)
    assert_equal([second, third], [first, first])


def test_threads_do_not_disturb_each_other(calibrated: Make) -> None:
    model = calibrated("mobile", DYNAMIC)
    videos = [video(7, seed=seed) for seed in range(4)]
    expected = [play(model, frames) for frames in videos]
    found: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: play(model, videos[index])}))
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in enumerate(expected):
        assert_equal(found[index], outputs)


# --- the core around it ---------------------------------------------------------------------------------------------


def test_revert_gives_the_float_model_back(zoo: str, calibrated: Make) -> None:
    model, expected = calibrated(zoo, DYNAMIC), seeded(ZOO[zoo])
    revert(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]
    assert [sorted(vars(module)) for module in model.modules()] == [sorted(vars(m)) for m in expected.modules()]
    assert list(model.state_dict()) == list(expected.state_dict())
    assert_equal(list(model.state_dict().values()), list(expected.state_dict().values()))
    with torch.no_grad():
        assert torch.equal(model(video(1)[0]), expected(video(1)[0]))


def test_float_checkpoints_load_strictly_and_quantized_weights_follow(zoo: str, calibrated: Make) -> None:
    models = [calibrated(zoo, STATIC, backend) for backend in BOTH]
    other = seeded(ZOO[zoo], seed=1).state_dict()
    for model in models:
        model.load_state_dict(other, strict=True)
    assert_equal(play(models[1], video(4)), play(models[0], video(4)))
    assert float_state_dict(models[1]).keys() == other.keys()
    fresh = convert(seeded(ZOO[zoo]), ResQConfig.parse(STATIC, backend="brevitas"))
    fresh.load_state_dict(other, strict=True)
    missing = {key: value for key, value in other.items() if not key.endswith("weight")}
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        fresh.load_state_dict(missing, strict=True)


@pytest.mark.parametrize("precision", [STATIC, DYNAMIC])
def test_checkpoints_and_ranges_make_an_equal_model(precision: str, calibrated: Make, tmp_path: Path) -> None:
    model = calibrated("residual", precision, keyframe_grid="unsigned")
    expected = play(model, video(5))
    save_checkpoint(model, tmp_path / "model.pth")
    save_ranges(model, tmp_path / "ranges.pth")
    config = ResQConfig.parse(precision, backend="brevitas", keyframe_grid="unsigned")
    for load, name, seed in ((load_checkpoint, "model.pth", 1), (load_ranges, "ranges.pth", 0)):
        fresh = convert(seeded(ZOO["residual"], seed=seed), config)
        load(fresh, tmp_path / name)
        load(fresh, tmp_path / name)
        assert_equal(play(fresh, video(5)), expected)


def test_state_dicts_hold_a_weight_once_and_load_strictly(calibrated: Make, tmp_path: Path) -> None:
    model = calibrated("residual")
    state = model.state_dict()
    shapes = [value.shape for key, value in state.items() if value.dim() == 4]
    assert len(shapes) == 4
    torch.save(state, tmp_path / "state.pth")
    fresh = convert(seeded(ZOO["residual"], seed=1), ResQConfig.parse(STATIC, backend="brevitas"))
    for _ in range(2):
        fresh.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True), strict=True)
    assert_equal(play(fresh, video(4)), play(model, video(4)))


def test_deep_copies_are_equal_and_read_their_own_weight(calibrated: Make) -> None:
    model = calibrated("residual", DYNAMIC)
    twin = copy.deepcopy(model)
    assert_equal(play(twin, video(4)), play(model, video(4)))
    expected = play(model, video(4))
    with torch.no_grad():
        twin.conv2.weight.mul_(0.5)
    assert not torch.equal(twin.conv2.weight_of("residual"), model.conv2.weight_of("residual"))
    assert_equal(play(model, video(4)), expected)


def test_a_replaced_weight_has_a_new_range(calibrated: Make) -> None:
    layer = calibrated("residual").conv2
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    weight = layer.float_weight()[0].detach()
    assert torch.equal(layer.weight_of("residual"), eq1(weight, eq6(weight.min(), weight.max(), 4), 4))


def test_training_moves_weights_and_ranges(calibrated: Make) -> None:
    model = calibrated("residual").train()
    frames, target = video(3), torch.zeros(2, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    layer, path = model.conv2, model.conv2.residual_path
    learned = [layer.weight, layer.input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value]
    learned += [path.input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value]
    learned += [side.weight_quant.tensor_quant.scaling_impl.value for side in (layer, path)]
    losses = []
    for _ in range(4):
        with stream(model) as player:
            loss = sum((player(frame) - target).square().mean() for frame in frames)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learned)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_cost_summary_and_evaluation_work_unchanged(calibrated: Make) -> None:
    models = [calibrated("residual", DYNAMIC, backend) for backend in BOTH]
    assert measure_cost(models[1], (1, 3, 12, 16)) == measure_cost(models[0], (1, 3, 12, 16))
    assert summarize(models[1]) == summarize(models[0])
    frames = [frame[:1] for frame in video(6)]
    results = [
        evaluate(
            model,
            [frames],
            {"agreement": [[torch.zeros(1, dtype=torch.long)] * 6]},
            {"agreement": Agreement},
            predict=lambda z: z.argmax(1),
        )
        for model in models
    ]
    assert results[0] == results[1]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_uncalibrated_model_names_the_call() -> None:
    model = convert(seeded(ZOO["residual"]), ResQConfig.parse(STATIC, backend="brevitas"))
    with pytest.raises(
        CalibrationError, match=r"layer stem\.0 \(keyframe\) has no range; call resq_plugin\.calibrate"
    ):
        model(video(1)[0])


def test_converting_twice_is_refused(calibrated: Make) -> None:
    with pytest.raises(ConversionError, match="already converted"):
        convert(calibrated("residual"), STATIC)

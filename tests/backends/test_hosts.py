"""The backends whose quantizers a toolkit holds: the torch backend's numbers, and all that it can do."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ZOO, assert_equal, build, eq7, play, seeded, video
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
from resq_plugin.calibration import Statistics
from resq_plugin.conversion.checkpoint import load_ranges
from resq_plugin.errors import CalibrationError, ConversionError
from resq_plugin.evaluation.metrics import Agreement
from resq_plugin.method.layers import residual_layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"
Make = Callable[..., nn.Module]


@pytest.fixture(params=["aimet", "brevitas"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backend that is compared with ``torch``."""
    return str(request.param)


@pytest.fixture
def calibrated(frames: list[Tensor], backend: str) -> Make:
    """Return a function that converts and calibrates a small net of the zoo, by the backend under test or another."""

    def make(name: str = "residual", precision: str = STATIC, by: str | None = None, **settings: object) -> nn.Module:
        model = convert(seeded(ZOO[name]), ResQConfig.parse(precision, backend=by or backend, **settings))
        calibrate(model, [frames[:3], frames[3:6]])
        return model

    return make


# --- the torch backend's numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["quantized", "running"])
@pytest.mark.parametrize("state", [{}, {"reference_bits": 8, "output_bits": 8}, {"stateless": ["conv1"]}])
def test_state_is_kept_as_by_the_torch_backend(reference: str, state: dict[str, object], calibrated: Make) -> None:
    found, expected = (calibrated("residual", by=by, reference=reference, state=state) for by in (None, "torch"))
    for model in (found, expected):
        with torch.no_grad(), stream(model) as player:
            outputs = [player(frame) for frame in video(4)]
            assert player.state_bytes() == measure_cost(model, (2, 3, 12, 16)).state_bytes
            kept = {key: [t.dtype for t in pair] for key, pair in player.get_state()["caches"].items()}
        if model is found:
            first, dtypes = outputs, kept
    assert_equal(first, outputs)
    assert dtypes == kept
    assert (("conv1", 0) in kept) == ("stateless" not in state)
    if reference == "quantized":
        assert all(x in (torch.int8, torch.uint8) for x, _ in kept.values())


@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("precision", [STATIC, DYNAMIC, "W4A4->W3A3", "W8A8"])
def test_outputs_equal_the_torch_backends(zoo: str, precision: str, weights: str, calibrated: Make) -> None:
    found, expected = calibrated(zoo, precision, weights=weights), calibrated(zoo, precision, "torch", weights=weights)
    assert_equal(play(found, video(7)), play(expected, video(7)))
    for layer, other in zip(residual_layers(found).values(), residual_layers(expected).values(), strict=True):
        for kind in ("keyframe", "residual"):
            assert torch.equal(layer.weight_of(kind), other.weight_of(kind))
            assert torch.equal(layer.weight_scale_of(kind), other.weight_scale_of(kind))


def test_ranges_from_shared_statistics_are_those_without(reference: str, backend: str) -> None:
    """One torch net, whose statistics three backends share as far as they may: each asks for its own."""
    clips, shared, net = [video(4), video(4, seed=1)], Statistics(), seeded(ZOO["plain"])
    search = {"samples": 5, "positions": 40, "recheck": 2}
    for precision, by in ((STATIC, backend), ("W8A8", backend), (STATIC, "torch"), (DYNAMIC, backend)):
        config = ResQConfig.parse(precision, backend=by, reference=reference, weights="channel", calibration=search)
        found = []
        for statistics in (shared, None):
            calibrate(convert(net, config), clips, statistics=statistics)
            state = net.state_dict().items()
            found.append({key: value.clone() for key, value in state if isinstance(value, Tensor)})
            revert(net)
        assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_references_and_grids_equal_the_torch_backends(reference: str, backend: str, calibrated: Make) -> None:
    settings = {"reference": reference, "keyframe_grid": "unsigned"}
    found, expected = (calibrated("residual", STATIC, by, **settings) for by in (backend, "torch"))
    assert not found.conv2.keyframe_quantizer.signed
    assert_equal(play(found, video(7)), play(expected, video(7)))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions_equal_the_torch_backends(dims: int, backend: str) -> None:
    def net() -> nn.Module:
        conv, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
        return nn.Sequential(conv(2, 6, 3, padding=1), nn.ReLU(), transposed(6, 4, 2, stride=2, groups=2))

    frames = video(5, (2, 2) + (8,) * dims)
    models = []
    for by in (backend, "torch"):
        models.append(convert(seeded(net), ResQConfig.parse(STATIC, backend=by, weights="channel")))
        calibrate(models[-1], [frames[:3]])
    assert_equal(play(models[0], frames), play(models[1], frames))


def test_weights_are_quantized_by_equations_6_and_7(calibrated: Make) -> None:
    layer = calibrated("unet", weights="tensor").blocks[1]
    weight = layer.weight.detach()
    assert torch.equal(layer.weight_of("residual"), eq7(weight, 4))
    assert torch.equal(layer.weight_of("keyframe"), eq7(weight, 8))


def test_interval_of_one_is_frame_quantization_and_a_repeated_frame_changes_nothing(zoo: str, backend: str) -> None:
    frames = video(3)
    model = build(zoo, STATIC, frames, backend=backend, fold=False)
    with torch.no_grad():
        assert_equal(play(model, frames, interval=1), [model(frame) for frame in frames])
        first, second, third = play(model, [frames[0]] * 3)
    assert_equal([second, third], [first, first])


@pytest.mark.parametrize("precision", [STATIC, DYNAMIC])
def test_threads_do_not_disturb_each_other(precision: str, calibrated: Make) -> None:
    model = calibrated("mobile", precision)
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


def test_float_checkpoints_load_strictly_and_quantized_weights_follow(
    zoo: str, backend: str, calibrated: Make
) -> None:
    found, expected = calibrated(zoo), calibrated(zoo, STATIC, "torch")
    other = seeded(ZOO[zoo], seed=1).state_dict()
    for model in (found, expected):
        model.load_state_dict(other, strict=True)
    assert_equal(play(found, video(4)), play(expected, video(4)))
    assert float_state_dict(found).keys() == other.keys()
    fresh = convert(seeded(ZOO[zoo]), ResQConfig.parse(STATIC, backend=backend))
    fresh.load_state_dict(other, strict=True)
    missing = {key: value for key, value in other.items() if not key.endswith("weight")}
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        fresh.load_state_dict(missing, strict=True)


@pytest.mark.parametrize("precision", [STATIC, DYNAMIC])
@pytest.mark.parametrize("grid", ["symmetric", "unsigned"])
def test_checkpoints_and_ranges_make_an_equal_model(
    precision: str, grid: str, backend: str, calibrated: Make, tmp_path: Path
) -> None:
    model = calibrated("residual", precision, keyframe_grid=grid)
    expected = play(model, video(5))
    save_checkpoint(model, tmp_path / "model.pth")
    save_ranges(model, tmp_path / "ranges.pth")
    config = ResQConfig.parse(precision, backend=backend, keyframe_grid=grid)
    for load, name, seed in ((load_checkpoint, "model.pth", 1), (load_ranges, "ranges.pth", 0)):
        fresh = convert(seeded(ZOO["residual"], seed=seed), config)
        load(fresh, tmp_path / name)
        load(fresh, tmp_path / name)
        assert_equal(play(fresh, video(5)), expected)


def test_cost_summary_and_evaluation_work_unchanged(calibrated: Make) -> None:
    models = calibrated("residual", DYNAMIC), calibrated("residual", DYNAMIC, "torch")
    costs = [measure_cost(model, (1, 3, 12, 16)) for model in models]
    assert costs[0] == costs[1]
    assert summarize(models[0]) == summarize(models[1])
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


def test_an_uncalibrated_model_names_the_call(backend: str) -> None:
    model = convert(seeded(ZOO["residual"]), ResQConfig.parse(STATIC, backend=backend))
    with pytest.raises(
        CalibrationError, match=r"layer stem\.0 \(keyframe\) has no range; call resq_plugin\.calibrate"
    ):
        model(video(1)[0])


def test_converting_twice_is_refused(calibrated: Make) -> None:
    with pytest.raises(ConversionError, match="already converted"):
        convert(calibrated(), STATIC)


def test_fitting_is_refused_before_anything_runs(frames: list[Tensor], backend: str) -> None:
    model = convert(seeded(ZOO["residual"]), ResQConfig.parse(STATIC, backend=backend, calibration={"fit": "bias"}))
    with pytest.raises(
        CalibrationError, match=r"calibration\.fit='bias' is of backend='torch', and layer .*fit='none'"
    ):
        calibrate(model, [frames[:3]])

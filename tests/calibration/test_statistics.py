"""Statistics shared between calibrations: the ranges are exactly those found without, and the work is less."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import ZOO, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, revert
from resq_plugin.calibration import Statistics
from resq_plugin.comparison import DEFAULT_SETTINGS
from resq_plugin.errors import CalibrationError

SEARCH = {"samples": 5, "candidates": 8, "positions": 40, "recheck": 2}
Settings = Sequence[tuple[str, dict[str, Any]]]


def clips_of(count: int = 3, length: int = 4, seed: int = 0) -> list[list[Tensor]]:
    return [video(length, (1, 3, 12, 16), seed=10 * seed + index) for index in range(count)]


def config_of(precision: str, **settings: Any) -> ResQConfig:
    return ResQConfig.parse(precision, calibration=SEARCH, **settings)


def assert_shared_is_alone(net: nn.Module, settings: Settings, clips: Any, **options: Any) -> None:
    """One net in many settings with statistics, and each setting alone: every number of the model is the same."""
    shared, alone = Statistics(), copy.deepcopy(net)
    for precision, more in settings:
        config, found = config_of(precision, **more), []
        for model, statistics in ((net, shared), (alone, None)):
            calibrate(convert(model, config), clips, statistics=statistics, **options)
            found.append({key: value.clone() for key, value in model.state_dict().items()})
            revert(model)
        assert list(found[0]) == list(found[1])
        different = [key for key, value in found[0].items() if not torch.equal(value, found[1][key])]
        assert not different, (precision, more, different)


def settings_of(precisions: Sequence[str], weights: Sequence[str]) -> Settings:
    """Three references, intervals shorter and longer than the clips, both kinds of weight scales and grids."""
    settings: list[tuple[str, dict[str, Any]]] = []
    for reference, interval, kind in zip(("float", "quantized", "running"), (4, 6, 2), weights, strict=True):
        common = {"reference": reference, "interval": interval, "weights": kind}
        settings += [(precision, common) for precision in precisions]
        settings += [(precisions[-1], {**common, "keyframe_grid": "unsigned"})]
    return settings


@pytest.mark.parametrize("net", ZOO)
def test_ranges_are_exactly_those_without_sharing(net: str) -> None:
    assert_shared_is_alone(
        seeded(ZOO[net]),
        settings_of(("W8A8->W4A{0,4,8}", "W8A8", "W8A8->W8A4"), ("tensor", "channel", "tensor")),
        clips_of(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("net", ZOO)
def test_ranges_of_all_settings_are_exactly_those_without_sharing(net: str, weights: str) -> None:
    assert_shared_is_alone(seeded(ZOO[net]), settings_of(DEFAULT_SETTINGS, [weights] * 3), clips_of())


@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
def test_the_order_of_settings_changes_nothing(step: int) -> None:
    settings = [
        (precision, {"interval": interval, "reference": "quantized"})
        for interval, precision in itertools.product((1, 3), ("W4A4", "W8A8->W4A4", "W8A8", "W4A4->W4A{0,3}"))
    ]
    assert_shared_is_alone(seeded(ZOO["plain"]), settings[::step], clips_of(5, 3))


def test_scenes_exclusions_and_overrides_are_told_apart() -> None:
    settings: Settings = [
        ("W8A8->W4A4", {}),
        ("W8A8->W4A4", {"schedule": {"kind": "scene_change"}}),
        ("W8A8", {"schedule": {"kind": "scene_change"}}),
        ("W8A8->W4A4", {"exclude": ("3",)}),
        ("W8A8->W4A4", {"overrides": {"3": "W4A4->W8A3"}}),
        ("W8A8", {"overrides": {"3": "W4A4"}}),
    ]
    assert_shared_is_alone(seeded(ZOO["plain"]), settings, clips_of())


def test_frames_that_stand_still_and_layers_that_no_frame_reaches() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.never = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, frame: Tensor) -> Tensor:
            return self.first(frame)

    still = [[clip[0]] * 3 for clip in clips_of()]
    settings: Settings = [("W8A8->W4A4", {}), ("W8A8", {}), ("W8A8->W8A{0,4}", {})]
    assert_shared_is_alone(seeded(Partly), settings, still)


class Counted(nn.Sequential):
    """Counts its frames."""

    frames = 0

    def forward(self, x: Tensor) -> Tensor:
        self.frames += 1
        return super().forward(x)


def test_clips_run_once_and_no_range_is_searched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 frames are looked at, for 5 residuals in clips of four; two pairs of frames are rechecked."""
    ranked: list[int] = []
    rank = torch.linspace  # one call per quantizer that is searched
    monkeypatch.setattr(
        "resq_plugin.calibration.ranges.torch.linspace", lambda *a, **k: ranked.append(1) or rank(*a, **k)
    )
    net = Counted(*seeded(ZOO["plain"])).eval()
    statistics, clips = Statistics(), clips_of()
    seen = []
    for precision in ("W8A8->W4A4", "W8A8->W4A8", "W8A8->W4A{0,4,8}", "W8A8", "W8A8", "W4A8->W4A4"):
        net.frames = 0
        ranked.clear()
        convert(net, config_of(precision, interval=4))
        calibrate(net, clips, statistics=statistics)
        revert(net)
        seen.append((net.frames, len(ranked)))
    fold, look, recheck, layers = 1, 7, 4, 3
    assert seen == [
        (fold + look + recheck, 2 * layers),  # both quantizers of every layer
        (recheck, layers),  # W4A8 of residuals
        (0, 0),
        (0, 0),  # the pairs of frame quantization are others, but of frames that were compared
        (0, 0),
        (recheck, layers),  # W4A8 of keyframes
    ]


def test_copies_of_a_model_share() -> None:
    net, statistics, clips = seeded(ZOO["residual"]), Statistics(), clips_of()
    for precision in ("W8A8->W4A4", "W8A8->W8A8"):
        one, other = (convert(copy.deepcopy(net), config_of(precision)) for _ in range(2))
        calibrate(one, clips, statistics=statistics)
        calibrate(other, clips)
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


class Loop:
    """Keeps a state between frames; the first frame of a video is given and calls no layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.start()

    def start(self) -> None:
        self.state: Tensor | None = None

    def __call__(self, frame: Tensor) -> Tensor:
        self.state = frame if self.state is None else self.model(frame + 0.3 * self.state)
        return self.state


def test_programs_that_keep_state_between_frames() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)))
    clips, shared = clips_of(2, 9), Statistics()
    for precision in ("W8A8", "W8A8->W4A4", "W8A8->W8A4", "W8A8"):
        found = []
        for statistics in (shared, None):
            loop = Loop(convert(model, config_of(precision)))
            calibrate(model, clips, run=loop, start=loop.start, statistics=statistics)
            found.append({key: value.clone() for key, value in model.state_dict().items()})
            revert(model)
        assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("weights", "of this model with other weights", id="weights"),
        pytest.param("norm", "of this model with other weights", id="statistics of a batch norm"),
        pytest.param("module", "of another model", id="another activation"),
        pytest.param("stride", "of another model", id="another stride"),
        pytest.param("net", "of another model", id="another net"),
        pytest.param("frame", "on other clips", id="a frame"),
        pytest.param("length", "on other clips", id="shorter clips"),
    ],
)
def test_statistics_of_something_else_are_refused(change: str, message: str) -> None:
    net, clips, statistics = seeded(ZOO["plain"]), clips_of(), Statistics()
    calibrate(convert(net, config_of("W8A8->W4A4")), clips, statistics=statistics)
    revert(net)
    with torch.no_grad():
        if change == "weights":
            net[0].weight[0, 0, 0, 0] += 1e-3
        elif change == "norm":
            net[1].running_mean[0] += 1e-3
        elif change == "module":
            net[2] = nn.ReLU6()
        elif change == "stride":
            net[3].stride = (1, 1)
        elif change == "net":
            net = seeded(ZOO["mobile"])
        elif change == "frame":
            clips[1][0] = clips[1][0] + 1e-3
        else:
            clips[2] = clips[2][:3]
    convert(net, config_of("W4A4->W4A4"))
    with pytest.raises(CalibrationError, match=rf"these statistics were collected {message}, .*=Statistics\(\)"):
        calibrate(net, clips, statistics=statistics)


def test_clips_that_come_once_are_refused() -> None:
    net = convert(seeded(ZOO["plain"]), config_of("W8A8->W4A4"))
    with pytest.raises(CalibrationError, match=r"clips are a list_iterator, .* pass a list: clips = list\(clips\)"):
        calibrate(net, iter(clips_of()), statistics=Statistics())


def test_an_error_leaves_statistics_that_work() -> None:
    net, statistics, clips = seeded(ZOO["plain"]), Statistics(), clips_of()
    for unusable, message in (([[clips[0][0] * float("nan")]], "NaN"), ([clip[:1] for clip in clips], "one frame")):
        with pytest.raises(CalibrationError, match=message):
            calibrate(convert(net, config_of("W8A8->W4A4")), unusable, statistics=statistics)
        revert(net)
    found = []
    for given in (statistics, None):
        calibrate(convert(net, config_of("W8A8->W4A4")), clips, statistics=given)
        found.append({key: value.clone() for key, value in net.state_dict().items()})
        revert(net)
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())

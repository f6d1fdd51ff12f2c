"""Where intervals start: every T frames, and where the picture changes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Plain, assert_equal, build, play, seeded, video
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, float_state_dict, revert, stream
from resq_plugin.errors import CalibrationError, ConfigError
from resq_plugin.method.schedule import Schedule, make_schedule, relative_change, scene_threshold, set_scene_threshold

SCENE = {"kind": "scene_change"}


def keyframes(model: nn.Module, frames: list[Tensor], **options: object) -> list[int]:
    """Positions in the video at which intervals start."""
    with torch.no_grad(), stream(model, **options) as player:
        found = []
        for t, frame in enumerate(frames):
            player(frame)
            if player.is_keyframe:
                found.append(t)
    return found


# --- how much a frame changes ---------------------------------------------------------------------------------------


def test_relative_change_by_hand() -> None:
    # Mean 2, deviations (2, 2, 2, 2): spread 2; changes (1, 0, 0, 3): mean 1. Second video: spread 1, change 0.
    keyframe = torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]], [[[1.0, 3.0], [1.0, 3.0]]]])
    frame = keyframe + torch.tensor([[[[1.0, 0.0], [0.0, -3.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert relative_change(frame, keyframe).tolist() == [0.5, 0.0]


def test_change_does_not_depend_on_contrast_or_brightness(frames: list[Tensor]) -> None:
    a, b = frames[:2]
    expected = relative_change(b, a)
    assert relative_change(1000 * b + 77, 1000 * a + 77).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_change_of_unrelated_frames_is_about_the_square_root_of_two() -> None:
    a, b = video(1, (4, 3, 40, 40), seed=1)[0], video(1, (4, 3, 40, 40), seed=2)[0]
    assert relative_change(b, a).tolist() == pytest.approx([math.sqrt(2)] * 4, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_change_of_a_plain_frame_is_finite(dtype: torch.dtype) -> None:
    plain = torch.full((1, 3, 4, 4), 200, dtype=dtype)
    assert relative_change(plain, plain).tolist() == [0.0]
    assert relative_change(plain - 1, plain).isfinite().all()
    assert relative_change(plain - 1, plain) > 1e3


# --- the schedule ---------------------------------------------------------------------------------------------------


@given(interval=st.integers(1, 9), position=st.integers(1, 20))
def test_a_fixed_interval_counts_frames(interval: int, position: int) -> None:
    frame = torch.zeros(1, 1, 1, 1)
    assert Schedule(interval).is_keyframe(position, frame, frame + 1e6) == (position >= interval)


@pytest.mark.parametrize(
    ("position", "change", "expected"),
    [(1, 0.4, False), (1, 0.5, False), (1, 0.6, True), (3, 0.0, False), (4, 0.0, True)],
)
def test_a_scene_change_starts_an_interval_earlier(position: int, change: float, expected: bool) -> None:
    keyframe = torch.tensor([[[[-1.0, 1.0]]]])  # spread 1
    assert Schedule(4, 0.5).is_keyframe(position, keyframe + change, keyframe) is expected


def test_a_scene_change_of_one_video_takes_the_batch_along() -> None:
    keyframe = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    frame = keyframe + torch.tensor([[0.0], [0.9]])
    assert Schedule(4, 0.5).is_keyframe(1, frame, keyframe)
    assert not Schedule(4, 0.5).is_keyframe(1, frame[:1], keyframe[:1])


# --- in streams -----------------------------------------------------------------------------------------------------


def scenes(lengths: tuple[int, ...]) -> list[Tensor]:
    """Videos of that many frames, one after another."""
    return [frame for seed, length in enumerate(lengths) for frame in video(length, seed=seed, motion=0.02)]


def test_intervals_start_at_cuts_and_after_t_frames() -> None:
    model = build("plain", interval=4, schedule={**SCENE, "threshold": 0.5})
    frames = scenes((3, 6, 1, 2))
    assert keyframes(model, frames) == [0, 3, 7, 9, 10]
    assert keyframes(build("plain", interval=4), frames) == [0, 4, 8]


def test_a_cut_makes_the_output_independent_of_the_past(reference: str) -> None:
    model = build("residual", interval=100, reference=reference, schedule={**SCENE, "threshold": 0.5})
    first, second = scenes((3, 3))[:3], scenes((3, 3))[3:]
    assert_equal(play(model, [*first, *second])[3:], play(model, second))


def test_the_keyframe_that_frames_are_compared_with_is_a_copy() -> None:
    """A camera that reuses its buffer must not make every frame look like the keyframe."""
    model = build("plain", interval=100, schedule={**SCENE, "threshold": 0.5})
    buffer = torch.empty(2, 3, 12, 16)
    found = []
    with torch.no_grad(), stream(model) as player:
        for frame in scenes((2, 2)):
            player(buffer.copy_(frame))
            found.append(player.is_keyframe)
    assert found == [True, False, True, False]


def test_a_cut_in_one_video_of_a_batch() -> None:
    model = build("plain", interval=100, schedule={**SCENE, "threshold": 0.5})
    steady, cut = scenes((6,)), scenes((2, 4))
    both = [torch.cat([a[:1], b[:1]]) for a, b in zip(steady, cut, strict=True)]
    assert keyframes(model, both) == [0, 2]
    assert keyframes(model, [a[:1] for a in steady]) == [0]


def test_the_frame_is_compared_with_the_keyframe_not_with_its_predecessor() -> None:
    """A slow pan changes little from frame to frame and much from the keyframe."""
    model = build("plain", interval=100, schedule={**SCENE, "threshold": 0.5})
    a, b = scenes((1, 1))
    pan = [a + (b - a) * step for step in torch.linspace(0, 1, 9)]
    found = keyframes(model, pan)
    assert found[0] == 0
    assert len(found) in (3, 4)


def test_the_threshold_of_the_configuration_needs_no_calibration() -> None:
    model = convert(seeded(Plain), ResQConfig.parse("W8A8->W4A4", interval=7, schedule={**SCENE, "threshold": 0.25}))
    assert make_schedule(model, model[0].settings.config) == Schedule(7, 0.25)


def test_a_missing_threshold_says_what_to_do() -> None:
    model = build("plain", schedule=SCENE)
    with pytest.raises(
        CalibrationError,
        match=r"scene-change schedule has no threshold; call resq_plugin\.calibrate\(model, clips\), or write "
        r"schedule=dict\(kind='scene_change', threshold=0\.5\)",
    ):
        stream(model)


def test_an_impossible_interval_says_so() -> None:
    with pytest.raises(ConfigError, match=r"interval=0 is not allowed; write a whole number of at least 1"):
        make_schedule(build("plain"), ResQConfig(), interval=0)


# --- the calibrated threshold ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated() -> nn.Module:
    """A model whose threshold was found by calibration on one steady video."""
    config = ResQConfig.parse(
        "W8A8->W4A4", schedule=SCENE, calibration={"samples": 4, "candidates": 4, "positions": 32, "recheck": 0}
    )
    model = convert(seeded(Plain), config)
    calibrate(model, [video(4, motion=0.02)])
    return model


def test_calibration_finds_a_threshold_that_tells_motion_from_cuts(calibrated: nn.Module) -> None:
    assert 0 < scene_threshold(calibrated) < 1
    assert keyframes(calibrated, scenes((4, 4)), interval=100) == [0, 4]


def test_the_configured_threshold_wins(calibrated: nn.Module) -> None:
    config = calibrated[0].settings.config.replace(schedule={**SCENE, "threshold": 0.125})
    assert make_schedule(calibrated, config).scene_threshold == 0.125


def test_the_threshold_travels_with_checkpoints(calibrated: nn.Module) -> None:
    fresh = convert(seeded(Plain, seed=1), calibrated[0].settings.config)
    fresh.load_state_dict(calibrated.state_dict(), strict=True)
    assert scene_threshold(fresh) == scene_threshold(calibrated)
    frames = scenes((3, 2))
    assert_equal(play(fresh, frames), play(calibrated, frames))


def test_the_threshold_of_a_part_is_found_and_saved(calibrated: nn.Module) -> None:
    whole = nn.ModuleDict({"net": calibrated})
    assert "net.resq.scene_threshold" in whole.state_dict()
    assert make_schedule(whole, calibrated[0].settings.config).scene_threshold == scene_threshold(calibrated)
    assert not [key for key in float_state_dict(whole) if "resq" in key]


def test_float_weights_keep_the_threshold() -> None:
    model = build("plain", schedule=SCENE)
    set_scene_threshold(model, 0.3)
    model.load_state_dict(seeded(Plain, seed=1).state_dict(), strict=True)
    assert scene_threshold(model) == 0.3


def test_revert_forgets_the_threshold() -> None:
    model = build("plain", schedule=SCENE)
    set_scene_threshold(model, 0.3)
    revert(model)
    assert scene_threshold(model) is None
    assert list(model.state_dict()) == list(seeded(Plain).state_dict())


@pytest.mark.parametrize("threshold", [5e11, float("inf"), 0.0, float("nan")])
def test_a_calibrated_threshold_that_tells_nothing_is_refused(threshold: float) -> None:
    """As an older release found it after a fade from black, and wrote it into checkpoints."""
    model = build("plain", schedule=SCENE)
    set_scene_threshold(model, threshold)
    with pytest.raises(CalibrationError, match=r"threshold of scene changes is .* calibrate again"):
        stream(model)


def test_an_infinite_threshold_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"schedule.threshold=inf is not allowed; write a number above 0"):
        ResQConfig.parse("W8A8->W4A4", schedule={**SCENE, "threshold": float("inf")})

"""What a user gets wrong with frames, clips, models and arguments is told, by an error or a warning."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Plain, UNet, build, play, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, compare, convert, evaluate, measure_cost, stream
from resq_plugin.backends import find_backend
from resq_plugin.errors import CalibrationError, ConfigError, ConversionError, FrameError, MissingExtraError, ResQError
from resq_plugin.evaluation import Agreement, MeanIoU
from resq_plugin.export import export_model
from resq_plugin.files import json_text

CLIP = torch.cat([frame[:1] for frame in video(8)])
SEARCH = {"samples": 4, "candidates": 3, "recheck": 0}


def seeded_unet() -> nn.Module:
    """Takes frames whose sides 2 divides."""
    return seeded(UNet)


def converted(**settings: Any) -> nn.Module:
    return convert(seeded_unet(), ResQConfig.parse("W8A8->W4A4", calibration=SEARCH, **settings))


def export(frames: Any) -> None:
    export_model(build("unet", "W8A8->W4A8", list(CLIP[:, None])), frames, "never-written", encodings=())


DOORS: dict[str, Callable[[Tensor], Any]] = {
    "calibrate": lambda clip: calibrate(converted(), [list(clip[:, None])]),
    "stream": lambda clip: play(build("unet"), list(clip[:, None])),
    "evaluate": lambda clip: evaluate(
        build("unet"), [list(clip[:, None])], {"a": [[None] * len(clip)]}, {"a": Agreement}, predict=lambda z: z
    ),
    "compare": lambda clip: compare(seeded_unet(), clip, ["W8A8"], progress=False, calibration=0.5),
    "convert": lambda clip: convert(seeded_unet(), "W8A8->W4A4", example=clip[:1]),
    "export": export,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_size_that_the_net_cannot_take_is_told_with_sizes_that_it_can(door: str) -> None:
    with pytest.raises(ResQError) as caught:
        DOORS[door](CLIP[..., :11, :13])
    message = str(caught.value)
    assert message.startswith("the model fails on frames of 11 × 13 (")
    assert message.endswith("; it runs on 16 × 16, 32 × 32, 64 × 64: resize frames to such a size.")


def test_measure_cost_tells_sizes_and_layouts() -> None:
    with pytest.raises(ResQError, match=r"UNet fails on an input of shape \(1, 3, 11, 13\).*; it runs on 16 × 16, 32"):
        measure_cost(seeded_unet(), (1, 3, 11, 13))
    with pytest.raises(
        ResQError, match=r"fails on an input of shape \(16, 16\).*; it runs on \(1, 3, 16, 16\) float32"
    ):
        measure_cost(seeded_unet(), (16, 16))
    with pytest.raises(ConfigError, match=r"shape is a tensor; write .*measure_cost\(model, \(1, 3, 12, 16\)\)"):
        measure_cost(seeded_unet(), CLIP[:1])  # type: ignore[arg-type]


def test_a_size_that_a_net_asserts_is_told_too() -> None:
    """GIVEN a net that checks its input with an assertion, as those of MMSegmentation do."""

    class Asserting(UNet):
        def forward(self, frame: Tensor) -> Tensor:
            assert frame.shape[-1] % 16 == 0, "should be divisible"
            return super().forward(frame)

    clip = CLIP[..., :11, :13]
    message = r"the model fails on frames of 11 × 13 \(should be divisible.*\); it runs on 16 × 16, "
    with pytest.raises(ConfigError, match=message):
        compare(seeded(Asserting), clip, ["W8A8"], progress=False, calibration=0.5)
    with pytest.raises(CalibrationError, match=message):
        calibrate(convert(seeded(Asserting), "W8A8->W4A4"), [list(clip[:, None])])


@pytest.mark.parametrize("door", DOORS)
def test_channels_last_is_told_with_the_line(door: str) -> None:
    with pytest.raises(ResQError) as caught:
        DOORS[door](CLIP.permute(0, 2, 3, 1))
    assert "it runs on (1, 3, 12, 16) float32: write frame.permute(0, 3, 1, 2)." in str(caught.value)


@pytest.mark.parametrize("door", DOORS)
def test_integers_are_refused(door: str) -> None:
    with pytest.raises(ResQError) as caught:
        DOORS[door]((40 * CLIP).to(torch.uint8))
    assert "uint8" in str(caught.value)
    assert "linalg" not in str(caught.value)  # it is the network that cannot take them, and no bookkeeping of ours
    assert "resq_plugin.video.read(path, mean=..., std=...)" in str(caught.value) or "float32" in str(caught.value)


def test_frames_without_a_batch_are_told_with_the_line() -> None:
    with pytest.raises(CalibrationError, match=r"it runs on \(1, 3, 12, 16\) float32: write frame\[None\]\."):
        calibrate(convert(seeded(Plain), "W8A8->W4A4"), [list(CLIP)])
    with pytest.raises(ConfigError, match=r"frame 0 of video 0 has shape \(3, 12, 16\).*write frame.unsqueeze\(0\)"):
        compare(seeded_unet(), list(CLIP), ["W8A8"], progress=False)
    with pytest.raises(ResQError, match=r"got \(3, 12, 16\) float32. Write a list of frames \(N, C, H, W\)"):
        export(list(CLIP))


def test_other_types_are_told_with_the_line() -> None:
    with pytest.raises(FrameError, match=r"float64 .*; it runs on \(1, 3, 12, 16\) float32: write frame.float\(\)\."):
        play(build("plain"), list(CLIP[:, None].double()))
    with pytest.raises(CalibrationError, match=r"is of type ndarray;.* Write torch.from_numpy\(clip\)"):
        calibrate(converted(), [CLIP.numpy()])
    with pytest.raises(ResQError, match=r"a frame is of type ndarray. Write torch.from_numpy\(frames\)"):
        export(CLIP.numpy())


@pytest.mark.parametrize("strange", [{"image": CLIP[:1]}, None, 3])
def test_frames_of_compare_that_are_no_tensors_are_told(strange: object) -> None:
    with pytest.raises(
        ConfigError, match=rf"frames hold a {type(strange).__name__}; a frame is a tensor \(1, C, H, W\)"
    ):
        compare(seeded_unet(), [strange] * 8, ["W8A8"], progress=False)  # type: ignore[list-item]


def test_what_is_no_fault_of_the_frame_is_raised_as_it_is() -> None:
    """GIVEN a net that fails once, THEN its own error comes out, although other sizes run, too."""
    model = build("plain")
    failures = iter([RuntimeError("mine")])
    model[2].register_forward_hook(
        lambda *_: (_ for _ in ()).throw(error) if (error := next(failures, None)) else None
    )
    with pytest.raises(RuntimeError, match=r"^mine$"), stream(model) as player:
        player(CLIP[:1])


def test_training_flags_survive_the_search_for_a_size() -> None:
    model = build("unet").train()
    norm = model.up["norm"]
    before = norm.running_mean.clone()
    with pytest.raises(FrameError), stream(model) as player:
        player(CLIP[:1, :, :11, :13])
    assert model.training
    assert torch.equal(norm.running_mean, before)


# --- clips --------------------------------------------------------------------------------------------------------


def test_one_clip_where_clips_are_wanted() -> None:
    with pytest.raises(CalibrationError, match=r"Of one clip alone make a list: calibrate\(model, \[clip\]\)\."):
        calibrate(converted(), CLIP)


def test_a_whole_clip_as_one_frame() -> None:
    with pytest.raises(CalibrationError, match=r"If the 8 pictures in it are a clip, .*: \[clip\], not \[\[clip\]\]"):
        calibrate(converted(), [[CLIP]])
    with pytest.raises(
        ResQError, match=r"the clip has one frame \(8, 3, 12, 16\).* If these are 8 frames of one video"
    ):
        export([CLIP])


def test_a_whole_clip_in_one_call_of_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    model = build("plain", frames=[CLIP])
    play(model, [CLIP])
    assert "the only frame of a stream, (8, 3, 12, 16), holds 8 pictures that follow each other" in caplog.text
    assert "[video(frame[None]) for frame in clip]" in caplog.text
    caplog.clear()
    play(model, [CLIP, CLIP])  # several videos in step
    play(model, [torch.randn(8, 3, 12, 16)])  # pictures that have nothing in common
    play(model, [CLIP[:1].expand(8, -1, -1, -1)])
    assert not caplog.text


def test_the_model_called_beside_its_open_stream(caplog: pytest.LogCaptureFixture) -> None:
    model = build("plain")
    with stream(model), torch.no_grad():
        model(CLIP[:1])
    assert "a stream was open and ran no frame, while the model itself was called" in caplog.text
    assert "with stream(model) as video: video(frame)" in caplog.text
    caplog.clear()
    with stream(model) as player, torch.no_grad():  # both, as in a comparison
        model(CLIP[:1])
        player(CLIP[:1])
    with stream(model), torch.no_grad():
        build("plain")(CLIP[:1])
    assert not caplog.text


def test_calibration_clips_shorter_than_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    calibrate(converted(interval=5), [CLIP[:2], CLIP[3:6]])
    assert "the longest clip has 3 frames, but T=5: residuals of frames farther than 2" in caplog.text
    caplog.clear()
    calibrate(converted(interval=5), [CLIP[:5]])
    calibrate(converted(interval=5, reference="running"), [CLIP[:2]])
    assert "the longest clip" not in caplog.text


def test_videos_shorter_than_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    frames = [list(CLIP[:2, None]), list(CLIP[2:5, None])]
    targets = {"a": [[torch.zeros(1, 24, 32)] * len(video) for video in frames]}
    model, args = build("unet"), (frames, targets, {"a": Agreement})
    found = evaluate(model, *args, predict=lambda z: z[:, 0], interval=5)
    assert [math.isnan(value) for value in found.by_distance["a"]] == [False, False, False, True, True]
    assert (
        "T = 5 is longer than the longest video, of which 3 frames ran: positions from 3 on never ran" in caplog.text
    )
    caplog.clear()
    evaluate(model, *args, predict=lambda z: z[:, 0], interval=3)
    assert "never ran" not in caplog.text


PIXELS = (60 * CLIP + 128).clamp(0, 255)


def test_pixels_that_nobody_normalised_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = converted()
    calibrate(model, [PIXELS, PIXELS])
    calibrate(model, [PIXELS])
    compare(seeded_unet(), PIXELS, ["W8A8", "W4A4"], progress=False, calibration=0.5)
    lines = [record.getMessage() for record in caplog.records if "like pixels of 0 ... 255" in record.getMessage()]
    assert [line.partition(" has ")[0] for line in lines] == ["calibration clip 0", "frame 0 of video 0"]


@pytest.mark.parametrize("frames", [CLIP, PIXELS / 255, PIXELS - 128, CLIP.abs()])
def test_normalised_frames_are_no_pixels(frames: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    calibrate(converted(), [frames])
    assert "pixels of 0" not in caplog.text


def test_agreement_with_a_constant_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    frames = [list(CLIP[:, None])]
    for value, expected in ((torch.zeros(1, 24, 32), True), (torch.eye(24, 32)[None], False)):
        caplog.clear()
        evaluate(build("unet"), frames, {"a": [[value] * 8]}, {"a": Agreement}, predict=lambda z: z[:, 0])
        assert ("predicts one and the same value everywhere" in caplog.text) is expected


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"threshold": 0.3}, "Write policy={'threshold': 0.3}."),
        ({"tau": 0.3}, "Write policy={'threshold': 0.3}."),
        ({"samples": 8}, "Write calibration={'samples': 8}."),
        ({"kind": "scene_change"}, "Write schedule={'kind': 'scene_change'}."),
        ({"T": 5}, "Write interval=5."),
        ({"intervall": 5}, "Did you mean 'interval'?"),
    ],
)
def test_a_setting_of_a_section(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResQConfig.parse("W8A8->W4A{0,4}", **settings)
    assert line in str(caught.value)


@pytest.mark.parametrize("settings", [{"interval": 5}, {"threshold": 0.3}, {"policy": {"threshold": 0.3}}])
def test_what_lists_of_a_comparison_would_overrule(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"by a list; write (intervals=\[5\]|thresholds=\[0\.3\])\."):
        compare(seeded_unet(), CLIP, ["W8A8"], **settings)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (MeanIoU(4), "is of class MeanIoU and has counted already, .* pass what makes it: lambda: MeanIoU\\(4\\)"),
        (MeanIoU, "cannot be made: .*'classes'; pass a function without arguments: lambda: MeanIoU\\(...\\)"),
        (dict, "makes a dict; it must make what has update"),
        ("mIoU", "is of class str, which makes none; pass what makes it"),
    ],
)
def test_a_metric_in_place_of_what_makes_it(metric: Any, message: str) -> None:
    frames = list(CLIP[:, None])
    with pytest.raises(ConfigError, match=message):
        evaluate(build("unet"), [frames], {"m": [[None] * 8]}, {"m": metric}, predict=lambda z: z)
    with pytest.raises(ConfigError, match=message):
        compare(seeded_unet(), CLIP, ["W8A8"], metric=("m", metric))
    with pytest.raises(ConfigError, match=message):
        compare(seeded_unet(), CLIP, ["W8A8"], agreement=metric)
    with pytest.raises(ConfigError, match=r"metric=.* must be a name and what makes it, e.g. metric=\('mIoU', lambda"):
        compare(seeded_unet(), CLIP, ["W8A8"], metric=metric)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: torch.jit.trace(seeded_unet(), CLIP[:1]),
            "this model is a graph of torch.jit, .*; convert the model that it was made of, before it is traced",
        ),
        (lambda: torch.export.export(seeded_unet(), (CLIP[:1],)).module(), "is a graph of torch.export or torch.fx"),
        (lambda: seeded_unet().state_dict(), "a OrderedDict is no torch.nn.Module; pass the model"),
        (nn.ReLU, "ReLU has no convolution, transposed convolution or linear layer to convert"),
    ],
    ids=["traced", "exported", "state dict", "nothing"],
)
def test_what_cannot_be_converted(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(model(), "W8A8->W4A4")


@pytest.mark.parametrize(("backend", "package"), [("aimet", "aimet_torch"), ("brevitas", "brevitas")])
def test_a_backend_without_its_toolkit_names_the_extra(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"resq_{backend}"
    for name in [name for name in sys.modules if name.partition(".")[0] in (package, own)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as Python has it for what cannot be imported
    find_backend.cache_clear()
    line = rf"pip install 'resq-plugin\[{backend}\]'"
    try:
        with pytest.raises(MissingExtraError, match=line):
            convert(seeded_unet(), ResQConfig.parse("W8A8->W4A4", backend=backend))
        with pytest.raises(MissingExtraError, match=line):
            __import__(own)
    finally:
        find_backend.cache_clear()


# --- what is written ------------------------------------------------------------------------------------------------


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    values = {"a": nan, "b": [1.5, infinity, {"c": (nan, 2)}], "d": "NaN", "e": None, 3: -infinity}
    text = json_text(values)
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None, "3": None}

    assert json.loads(text, parse_constant=pytest.fail) == expected


def test_rows_without_a_number_are_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GIVEN labels that are all ignored, THEN rows.json is JSON, and a second run shows the same from it."""
    caplog.set_level(logging.ERROR)
    labels = [torch.full((1, 24, 32), 255)] * 8
    common = {"labels": labels, "calibration": 0.5, "folder": tmp_path, "progress": False}
    net = seeded_unet()
    first = compare(net, CLIP, ["W8A8"], **common)
    assert "NaN" not in (tmp_path / "rows.json").read_text()
    again = compare(net, CLIP, ["W8A8"], **common)
    assert str(again) == str(first)
    assert "–" in again.table()

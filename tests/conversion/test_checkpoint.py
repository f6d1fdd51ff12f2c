"""Files: what is written comes back bit for bit; what does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from helpers import ZOO, assert_equal, build, fit, play, seeded, video
from torch import Tensor, nn

from resq_plugin import (
    ResQConfig,
    calibrate,
    convert,
    float_state_dict,
    load_checkpoint,
    load_ranges,
    save_checkpoint,
    save_ranges,
    stream,
    summarize,
)
from resq_plugin.conversion.checkpoint import FORMAT_VERSION
from resq_plugin.errors import CalibrationError, CheckpointError
from resq_plugin.method.layers import residual_layers
from resq_plugin.method.schedule import scene_threshold, set_scene_threshold

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"

Load = Callable[[nn.Module, Path], None]
MODELS: dict[str, nn.Module] = {}
"""Made by `calibrated`, which hands out copies."""


def fresh(net: str | Callable[[], nn.Module] = "residual", precision: str = STATIC, **settings: Any) -> Any:
    """A converted net without ranges, with weights of its own."""
    model = seeded(ZOO[net] if isinstance(net, str) else net, seed=99)
    return convert(model, ResQConfig.parse(precision, **settings))


def calibrated(
    net: str | Callable[[], nn.Module] = "residual", precision: str = STATIC, seed: int = 0, **settings: Any
) -> Any:
    """A net with folded batch norms, ranges and, if it has such a schedule, a threshold of scene changes."""
    key = repr((net, precision, seed, settings))
    if key not in MODELS:
        MODELS[key] = build(net, precision, video(3, seed=seed), **settings)
        if "schedule" in settings:
            set_scene_threshold(MODELS[key], 0.4)
    return copy.deepcopy(MODELS[key])


def facts(model: nn.Module) -> dict[str, Any]:
    """All that a load may change, beside what the state dict carries."""
    state: dict[str, Any] = copy.deepcopy(dict(model.state_dict()))
    state["folded"], state["threshold"] = summarize(model).folded, scene_threshold(model)
    state["classes"] = [type(module).__name__ for module in model.modules()]
    state["bits"] = [
        (quantizer.bits, quantizer.signed)
        for layer in residual_layers(model).values()
        for quantizer in layer.activation_quantizers().values()
    ]
    return state


def assert_same_facts(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        same = torch.equal(value, expected[key]) if isinstance(value, Tensor) else value == expected[key]
        assert same, key


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        pytest.param("W8A8", {}, id="frame quantization"),
        pytest.param(STATIC, {}, id="static"),
        pytest.param(DYNAMIC, {}, id="dynamic"),
        pytest.param(STATIC, {"keyframe_grid": "unsigned"}, id="unsigned grid"),
        pytest.param(DYNAMIC, {"weights": "channel", "reference": "running"}, id="channel weights, running reference"),
        pytest.param(STATIC, {"overrides": {"*": "W8A8->W3A3"}}, id="overrides"),
        pytest.param(STATIC, {"schedule": {"kind": "scene_change"}, "interval": 5}, id="scene changes"),
    ],
)
def test_a_checkpoint_gives_the_same_outputs_in_a_fresh_model(
    zoo: str, precision: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, other = calibrated(zoo, precision, **settings), fresh(zoo, precision, **settings)
    save_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(other, tmp_path / "model.pth")
    assert_same_facts(facts(other), facts(model))
    frames = [*video(4), *video(2, seed=1)]
    assert_equal(play(other, frames), play(model, frames))
    if "schedule" in settings:
        with stream(other) as player:
            assert player.schedule == stream(model).schedule
            assert player.schedule.scene_threshold is not None


def test_paths_may_be_strings_and_folders_are_made(tmp_path: Path) -> None:
    model, other = calibrated(), fresh()
    path = str(tmp_path / "a" / "b" / "model.pth")
    save_checkpoint(model, path)
    load_checkpoint(other, path)
    assert_same_facts(facts(other), facts(model))
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["model.pth"]


@pytest.mark.parametrize(
    "settings", [{}, {"keyframe_grid": "unsigned", "schedule": {"kind": "scene_change"}}], ids=str
)
def test_ranges_are_loaded_without_weights(zoo: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """GIVEN a model with other weights, WHEN it loads the ranges, THEN it has both its weights and the ranges."""
    model, other = calibrated(zoo, DYNAMIC, **settings), fresh(zoo, DYNAMIC, **settings)
    weights = copy.deepcopy(float_state_dict(other))
    save_ranges(model, tmp_path / "ranges.pth")
    load_ranges(other, tmp_path / "ranges.pth")
    expected = facts(model) | weights
    assert_same_facts(facts(other), expected)
    # The weights of the first model make it the first model.
    other.load_state_dict({**other.state_dict(), **float_state_dict(model)})
    assert_equal(play(other, video(4)), play(model, video(4)))


def test_a_file_of_ranges_holds_no_weight(tmp_path: Path) -> None:
    model = calibrated("pyramid")
    save_ranges(model, tmp_path / "ranges.pth")
    content = torch.load(tmp_path / "ranges.pth", weights_only=True)
    assert content["state_dict"].keys() == model.state_dict().keys() - float_state_dict(model).keys()
    assert not [key for key in content["state_dict"] if key.endswith(("weight", "bias", "running_mean"))]


def test_a_file_tells_what_it_is(tmp_path: Path) -> None:
    model = calibrated("plain", DYNAMIC, interval=7)
    save_checkpoint(model, tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert (content["format"], content["version"], content["kind"]) == ("resq-plugin", FORMAT_VERSION, "checkpoint")
    assert ResQConfig.from_dict(content["config"]) == model[0].settings.config


def test_quantized_weights_follow_the_loaded_ones(tmp_path: Path) -> None:
    """GIVEN a model that has run, and so holds quantized weights, WHEN it loads others, THEN it runs with those."""
    model, other = calibrated("plain"), fit(fresh("plain"), video(3))
    assert not torch.equal(play(other, video(3))[2], play(model, video(3))[2])
    save_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(other, tmp_path / "model.pth")
    assert_equal(play(other, video(3)), play(model, video(3)))


def test_a_layer_that_calibration_released_is_no_obstacle(tmp_path: Path) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(frame)

    model = convert(seeded(Auxiliary), STATIC)
    calibrate(model, [video(3)])
    assert type(model.aux) is nn.Conv2d
    other = fresh(Auxiliary)
    save_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(other, tmp_path / "model.pth")
    assert torch.equal(other.aux.weight, model.aux.weight)
    assert_equal(play(other, video(3)), play(model, video(3)))


# --- float checkpoints ----------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "meta": {"epoch": 3}},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
}


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_float_checkpoints_give_their_weights(zoo: str, wrapper: str, tmp_path: Path) -> None:
    net = seeded(ZOO[zoo])
    torch.save(WRAPPERS[wrapper](net.state_dict()), tmp_path / "float.pth")
    model = fresh(zoo)
    load_checkpoint(model, tmp_path / "float.pth")
    assert_same_facts(dict(float_state_dict(model)), dict(net.state_dict()))
    with pytest.raises(CalibrationError, match="has no range"):
        play(model, video(1))


def test_a_float_checkpoint_leaves_ranges_and_folding_as_they_are(tmp_path: Path) -> None:
    net, model = seeded(ZOO["residual"], seed=5), calibrated("residual", keyframe_grid="unsigned")
    before, weights = facts(model), net.state_dict()
    torch.save(weights, tmp_path / "float.pth")
    load_checkpoint(model, tmp_path / "float.pth")
    assert_same_facts(facts(model), before | weights)
    assert len(before["folded"]) == 4


def test_the_weights_of_a_checkpoint_fit_the_float_net(tmp_path: Path) -> None:
    model, net = calibrated("residual"), seeded(ZOO["residual"], seed=5)
    torch.save(float_state_dict(model), tmp_path / "float.pth")
    net.load_state_dict(torch.load(tmp_path / "float.pth", weights_only=True), strict=True)


# --- files that do not fit ------------------------------------------------------------------------------------------


class Stranger:
    """Not a tensor; a file with it must not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a foreign object was unpickled",)


class Wider(nn.Module):
    """`Residual` with another width of one layer in the middle."""

    def __init__(self) -> None:
        super().__init__()
        net = ZOO["residual"]()
        net.conv2 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
        self.__dict__.update(net.__dict__)
        self.run = type(net).forward.__get__(self)

    def forward(self, frame: Tensor) -> Tensor:
        return self.run(frame)


def changed(**changes: Any) -> Callable[[Path], None]:
    """A file of `save_checkpoint` with some entries changed; None takes them away."""

    def write(path: Path) -> None:
        save_checkpoint(calibrated(), path)
        content = torch.load(path, weights_only=True)
        for key, value in changes.items():
            content[key] = value(content[key]) if callable(value) else value
        torch.save({key: value for key, value in content.items() if value is not None}, path)

    return write


def truncated(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_checkpoint(calibrated(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


def other_scale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"conv2.keyframe_quantizer.scale": torch.tensor(float("nan"))}


def without_scale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != "conv2.keyframe_quantizer.scale"}


def other_folding(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"resq.folded": torch.tensor(list(b'{"conv1": "relu"}'), dtype=torch.uint8)}


UNREADABLE = "is truncated or no PyTorch file that loads with weights_only=True .* The model is unchanged"
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, r"model.pth does not exist\."),
    "a folder": (lambda path: path.mkdir(), UNREADABLE),
    "empty": (lambda path: path.touch(), UNREADABLE),
    "cut in the middle": (truncated(0.5), UNREADABLE),
    "cut at the end": (truncated(0.99), UNREADABLE),
    "cut at the start": (truncated(0.01), UNREADABLE),
    "text": (lambda path: path.write_text("weights: none\n"), UNREADABLE),
    "text that looks like a pickle": (lambda path: path.write_text("(l.\n"), UNREADABLE),
    "pickled object": (lambda path: path.write_bytes(pickle.dumps({"state_dict": Stranger()})), UNREADABLE),
    "object of torch.save": (lambda path: torch.save({"state_dict": Stranger()}, path), UNREADABLE),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor, not a state dict"),
    "a list": (lambda path: torch.save([torch.zeros(3)], path), "holds a list, not a state dict"),
    "an empty dict": (
        lambda path: torch.save({}, path),
        "does not fit Residual; the model is unchanged. .*Missing key",
    ),
    "a dict of other keys": (
        lambda path: torch.save({"a": torch.zeros(3)}, path),
        "does not fit Residual; .*Unexpected",
    ),
    "a dict of numbers": (lambda path: torch.save({1: 2}, path), "does not fit Residual; the model is unchanged"),
    "values that are no tensors": (
        lambda path: torch.save(dict.fromkeys(seeded(ZOO["residual"]).state_dict(), 1.0), path),
        "does not fit Residual; the model is unchanged",
    ),
    "another precision": (
        lambda path: save_checkpoint(calibrated("residual", "W8A8->W8A4"), path),
        "calibrated with layer stem.0 in W8A8->W8A4; here it is W8A8->W4A4. The model is unchanged",
    ),
    "another precision of one layer": (
        lambda path: save_checkpoint(calibrated("residual", overrides={"conv2": "W8A8->W8A8"}), path),
        "calibrated with layer conv2 in W8A8->W8A8; here it is W8A8->W4A4",
    ),
    "no residual precision": (
        lambda path: save_checkpoint(calibrated("residual", "W8A8"), path),
        "calibrated with layer stem.0 in W8A8; here it is W8A8->W4A4",
    ),
    "another net": (lambda path: save_checkpoint(calibrated("tokens"), path), "does not fit Residual; .*Missing key"),
    "another net with batch norm": (
        lambda path: save_checkpoint(calibrated("plain"), path),
        "does not fit Residual; .*batch norm 1 is folded into layer 0, which this model cannot do",
    ),
    "another width in the middle": (
        lambda path: save_checkpoint(calibrated(Wider), path),
        "does not fit Residual; the model is unchanged. .*size mismatch for conv2.weight",
    ),
    "another float net": (
        lambda path: torch.save({"state_dict": seeded(Wider).state_dict()}, path),
        "does not fit Residual; the model is unchanged. .*size mismatch for conv2.weight",
    ),
    "a newer format": (changed(version=2), "has format version 2; this release reads version 1"),
    "no format version": (changed(version=None), "has format version None"),
    "a newer configuration": (
        changed(config=lambda config: config | {"version": 2}),
        "has a configuration that this release cannot read .version=2 .* The model is unchanged",
    ),
    "an unknown setting": (
        changed(config=lambda config: config | {"magic": 1}),
        "has a configuration that this release cannot read .unknown setting magic",
    ),
    "no configuration": (changed(config=None), "configuration that this release cannot read"),
    "no state dict": (changed(state_dict=None), "does not fit Residual; the model is unchanged"),
    "a scale that is NaN": (
        changed(state_dict=other_scale),
        "conv2.keyframe_quantizer.scale is nan; a scale is finite and not negative",
    ),
    "a scale that is missing": (
        changed(state_dict=without_scale),
        "does not fit Residual; .*Missing key.*conv2.keyframe_quantizer.scale",
    ),
    "another folding": (
        changed(state_dict=other_folding),
        "batch norm relu is folded into layer conv1",
    ),
    "ranges only": (
        lambda path: save_ranges(calibrated(), path),
        r"holds ranges only; read it with load_ranges\(model, path\)",
    ),
}


@pytest.mark.parametrize("earlier", [False, True], ids=["uncalibrated model", "calibrated model"])
@pytest.mark.parametrize("kind", list(BAD_FILES))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(kind: str, earlier: bool, tmp_path: Path) -> None:
    write, message = BAD_FILES[kind]
    write(tmp_path / "model.pth")
    model = calibrated(seed=8) if earlier else fresh()
    frames = video(4) if earlier else []
    expected = play(model, frames)
    before = facts(model)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as caught:
        load_checkpoint(model, tmp_path / "model.pth")
    assert str(tmp_path / "model.pth") in str(caught.value)
    assert_same_facts(facts(model), before)
    assert_equal(play(model, frames), expected)


BAD_RANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, r"model.pth does not exist\."),
    "text": (lambda path: path.write_text("weights: none\n"), UNREADABLE),
    "a checkpoint": (
        lambda path: save_checkpoint(calibrated(), path),
        r"is no file of save_ranges\(model, path\); read a checkpoint with load_checkpoint\(model, path\)",
    ),
    "a float checkpoint": (
        lambda path: torch.save(seeded(ZOO["residual"]).state_dict(), path),
        r"is no file of save_ranges\(model, path\)",
    ),
    "another precision": (
        lambda path: save_ranges(calibrated("residual", DYNAMIC), path),
        "calibrated with layer stem.0 in W8A8->W4A{0,4,8}; here it is W8A8->W4A4",
    ),
    "another net": (lambda path: save_ranges(calibrated("tokens"), path), "does not fit Residual; .*Unexpected key"),
    "no ranges inside": (
        lambda path: torch.save({"format": "resq-plugin", "version": 1, "kind": "ranges"}, path),
        r"is no file of save_ranges\(model, path\)",
    ),
}


@pytest.mark.parametrize("kind", list(BAD_RANGES))
def test_ranges_that_do_not_fit_are_refused_and_change_nothing(kind: str, tmp_path: Path) -> None:
    write, message = BAD_RANGES[kind]
    write(tmp_path / "model.pth")
    model = calibrated(seed=8)
    before = facts(model)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_ranges(model, tmp_path / "model.pth")
    assert_same_facts(facts(model), before)


def test_a_scene_threshold_of_a_file_that_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"schedule": {"kind": "scene_change"}}
    save_checkpoint(calibrated(Wider, **settings), tmp_path / "model.pth")
    model = fresh(**settings)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(model, tmp_path / "model.pth")
    with pytest.raises(CalibrationError, match="scene-change schedule has no threshold"):
        stream(model)


def test_any_bytes_are_a_checkpoint_error(tmp_path: Path) -> None:
    """Whatever the unpickler stumbles over: a hundred truncations of a file in the old format, a hundred texts."""
    model, path = fresh("plain"), tmp_path / "model.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    junk = [content[: index * len(content) // 100] for index in range(100)]
    generator = torch.Generator("cpu").manual_seed(0)
    junk += [bytes(torch.randint(9, 127, (60,), generator=generator).tolist()) for _ in range(100)]
    before = facts(model)
    for data in junk:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(model, path)
    assert_same_facts(facts(model), before)


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_checkpoint, save_ranges], ids=["checkpoint", "ranges"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
def test_an_interrupted_write_leaves_the_old_file(
    save: Load, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    save(calibrated("plain"), path)
    before = path.read_bytes()

    def breaks(content: Any, file: IO[bytes]) -> None:
        file.write(b"half a file")
        raise error

    monkeypatch.setattr(torch, "save", breaks)
    expected, text = (type(error), None) if isinstance(error, KeyboardInterrupt) else (CheckpointError, "disk full")
    with pytest.raises(expected, match=text):
        save(calibrated("plain", DYNAMIC), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_old_file(tmp_path: Path) -> None:
    path, model, other = tmp_path / "model.pth", calibrated("plain"), fresh("plain")
    path.write_text("something else")
    save_checkpoint(model, path)
    load_checkpoint(other, path)
    assert_same_facts(facts(other), facts(model))
    assert list(tmp_path.iterdir()) == [path]


def test_saving_and_loading_leave_the_saved_model_alone(tmp_path: Path) -> None:
    model, other = calibrated("residual", DYNAMIC), fresh("residual", DYNAMIC)
    before = facts(model)
    save_checkpoint(model, tmp_path / "model.pth")
    save_ranges(model, tmp_path / "ranges.pth")
    load_checkpoint(other, tmp_path / "model.pth")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_same_facts(facts(model), before)


# --- ranges of other settings ---------------------------------------------------------------------------------------

OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"weights": "channel"}, "weights='channel'; here it is weights='tensor'.*weights='channel'"),
    "reference": ({"reference": "running"}, "reference='running'; here it is reference='float'.*reference='running'"),
    "grid": (
        {"keyframe_grid": "unsigned"},
        "keyframe_grid='unsigned'; here it is keyframe_grid='symmetric'.*keyframe_grid='unsigned'",
    ),
    "left out": ({"exclude": ("conv2",)}, r"layer conv2 in float; here it is converted.*exclude=\('conv2',\)"),
    "one layer": (
        {"overrides": {"conv2": "W8A8->W8A8"}},
        "layer conv2 in W8A8->W8A8; here it is W8A8->W4A4.*overrides={'conv2': 'W8A8->W8A8'}",
    ),
}


def as_mmengine(path: Path) -> None:
    """Rewrite a file of `save_checkpoint` as MMEngine's hook writes it."""
    content = torch.load(path, weights_only=True)
    torch.save({"meta": {"resq": content["config"]}, "state_dict": content["state_dict"]}, path)


@pytest.mark.parametrize("door", ["checkpoint", "ranges", "mmengine"])
@pytest.mark.parametrize("setting", list(OTHER_SETTINGS))
def test_ranges_of_other_settings_are_refused_at_every_door(setting: str, door: str, tmp_path: Path) -> None:
    """The case of PoseNet: a channel-wise calibration in a tensor-wise model put every joint at a wrong place."""
    settings, message = OTHER_SETTINGS[setting]
    other, model, path = calibrated(**settings), calibrated(seed=8), tmp_path / "model.pth"
    (save_ranges if door == "ranges" else save_checkpoint)(other, path)
    if door == "mmengine":
        as_mmengine(path)
    before = facts(model)
    with pytest.raises(CheckpointError, match=f"(?s)calibrated with {message}") as caught:
        (load_ranges if door == "ranges" else load_checkpoint)(model, path)
    assert_same_facts(facts(model), before)
    line = str(caught.value).split("Write convert(model, ")[1].split("), or load")[0]
    fitting = convert(seeded(ZOO["residual"]), eval(line, {"ResQConfig": ResQConfig}))  # our own line
    if door == "ranges":
        load_ranges(fitting, path)
    else:
        load_checkpoint(fitting, path)
        assert_equal(play(fitting, video(3)), play(other, video(3)))


def test_settings_that_ranges_do_not_depend_on_may_differ(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"interval": 9, "policy": {"threshold": 0.3}, "on_change": "keyframe"}
    save_checkpoint(calibrated("plain", DYNAMIC), tmp_path / "model.pth")
    model = fresh("plain", DYNAMIC, **settings)
    load_checkpoint(model, tmp_path / "model.pth")
    frame, resq = calibrated("plain", "W8A8", reference="running"), fresh("plain", "W8A8")
    save_checkpoint(frame, tmp_path / "frame.pth")
    load_checkpoint(resq, tmp_path / "frame.pth")  # without residuals there is no reference


def test_ranges_without_their_settings_load_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A plain state dict of a converted model, as older releases of other tools wrote it, does not say what it is."""
    model, other = calibrated("plain"), fresh("plain")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "old.pth")
    load_checkpoint(other, tmp_path / "old.pth")
    assert "old.pth has ranges but does not say which settings they were found with" in caplog.text
    assert "W8A8->W4A4, weights='tensor', reference='float'" in caplog.text
    assert_equal(play(other, video(3)), play(model, video(3)))


def test_float_weights_load_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": seeded(ZOO["plain"]).state_dict()}, tmp_path / "float.pth")
    load_checkpoint(calibrated("plain"), tmp_path / "float.pth")
    assert caplog.text == ""

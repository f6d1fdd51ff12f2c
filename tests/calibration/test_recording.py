"""Frames of any type, and float runs that are recorded and run again exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Residual, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.calibration.recording import chosen_pair, recording, replay
from resq_plugin.conversion import fold_batch_norms
from resq_plugin.errors import CalibrationError
from resq_plugin.method import dense_execution, residual_layers


class Recurrent(nn.Module):
    """Reads a frame and the state before: (frame, state) -> (output, state)."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, frame: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, state = frame
        state = torch.tanh(self.mix(torch.cat([self.look(image), state], 1)))
        return self.out(state), state


class Loop:
    """Keeps the state of a `Recurrent` outside of it, as a user's program does."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.frames = 0
        self.reset()

    def reset(self) -> None:
        self.state = torch.zeros(2, 4, 12, 16)
        self.time = 0

    def __call__(self, frame: Tensor) -> Tensor:
        self.frames += 1
        output, self.state = self.model((frame, self.state))
        self.state.mul_(0.9)  # in place, on what the next frame reads
        return output


def converted(precision: str = "W8A8->W4A4", build: Callable[[], nn.Module] = Recurrent, **settings: Any) -> nn.Module:
    calibration = {"samples": 8, "positions": 64, "recheck": 3}
    config = ResQConfig.parse(precision, **({"interval": 3, "calibration": calibration} | settings))
    return convert(seeded(build), config)


def ranges(model: nn.Module) -> dict[str, float]:
    return {
        f"{name}.{key}": float(quantizer.scale.detach())
        for name, layer in residual_layers(model).items()
        for key, quantizer in layer.activation_quantizers().items()
    }


def steps_of(model: nn.Module, frames: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The frames with the states that a float run has before them."""
    loop, found = Loop(model), []
    with torch.no_grad(), dense_execution():
        for frame in frames:
            found.append((frame, loop.state.clone()))
            loop(frame)
    return found


def test_frames_may_be_pytrees() -> None:
    """A tuple of image and state gives the ranges that a dict or list of the same gives."""
    found = []
    for kind in (tuple, list, lambda pair: {"image": pair[0], "more": {"state": pair[1]}}):
        model = converted()
        clip = [kind(step) for step in steps_of(model, video(6))]

        def run(frame: Any, model: nn.Module = model) -> Any:
            pair = (frame["image"], frame["more"]["state"]) if isinstance(frame, dict) else tuple(frame)
            return model(pair)

        calibrate(model, [clip], run=run)
        found.append(ranges(model))
    assert found[0] == found[1] == found[2]
    model = converted()
    calibrate(model, [steps_of(model, video(6))])
    assert ranges(model) == found[0]


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}", "W8A8"])
def test_a_run_with_state_gives_the_ranges_of_its_recorded_steps(precision: str, reference: str) -> None:
    frames = video(9)
    pure = converted(precision, reference=reference)
    fold_batch_norms(pure, (frames[0], torch.zeros(2, 4, 12, 16)))  # folded weights round differently
    calibrate(pure, [steps_of(pure, frames)])
    model = converted(precision, reference=reference)
    loop = Loop(model)
    calibrate(model, [frames], run=loop, start=loop.reset)
    assert ranges(model) == ranges(pure)


def test_every_frame_is_run_once_and_in_order() -> None:
    model = converted(calibration={"samples": 64, "positions": 64, "recheck": 3})
    for layer in residual_layers(model).values():
        assert hasattr(layer, "_folded")
    loop, seen = Loop(model), []

    def run(frame: Tensor) -> Tensor:
        seen.append(float(frame.sum()))
        return loop(frame)

    clips = [video(7, seed=seed) for seed in range(2)]
    calibrate(model, clips, run=run, start=loop.reset)
    expected = [float(frame.sum()) for clip in clips for frame in clip]
    assert seen == [expected[0], *expected]  # the first is also run to find the batch norms


def test_frames_that_call_no_layer_are_passed_over() -> None:
    """As the first frame of a mask that is given."""
    frames = video(9)
    model, plain = converted(), converted()

    def build(model: nn.Module) -> tuple[Callable[[Tensor], Any], Callable[[], None]]:
        loop, state = Loop(model), {"first": True}

        def run(frame: Tensor) -> Any:
            if state.pop("first", False):
                return None
            return loop(frame)

        def start() -> None:
            loop.reset()
            state["first"] = True

        return run, start

    run, start = build(model)
    calibrate(model, [frames], run=run, start=start)
    # T = 3: of frames 0, 1, 2 the first passes, so intervals of the run are (1, 2), (3, 4, 5), (6, 7, 8).
    loop = Loop(plain)
    steps = steps_of(plain, frames[1:])
    calibrate(plain, [steps[:2], steps[2:5], steps[5:8]])
    assert loop.frames == 0
    assert ranges(model) == pytest.approx(ranges(plain), rel=0.3)
    assert set(ranges(model)) == set(ranges(plain))


class Hidden(Recurrent):
    """Keeps its state inside, where nobody can record it."""

    def forward(self, frame: Tensor) -> Tensor:
        state = getattr(self, "state", None)
        state = frame.new_zeros(2, 4, *frame.shape[2:]) if state is None else state
        output, self.state = super().forward((frame, state))
        return output


def test_hidden_state_is_told_and_ranges_stay() -> None:
    model = converted(build=Hidden)
    with pytest.raises(CalibrationError, match=r"layer mix reads other values .* a module keeps state of its own"):
        calibrate(model, [video(6)])
    for layer in residual_layers(model).values():
        assert not layer.activation_quantizers()["keyframe"].is_calibrated
    other = converted(build=Hidden, calibration={"samples": 8, "positions": 64, "recheck": 0})
    calibrate(other, [video(6)])
    assert all(scale > 0 for scale in ranges(other).values())


class Steps(nn.Module):
    """Two steps as methods, which no hook of the model itself sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Residual(), nn.Linear(5, 3)

    def encode(self, frame: Tensor, factor: float) -> Tensor:
        return self.first(frame) * factor

    def decode(self, x: Tensor) -> Tensor:
        return self.second(x)


def test_methods_are_recorded_as_the_modules_they_call() -> None:
    model = convert(seeded(Steps), "W8A8->W4A4")
    frame = video(1)[0]
    with torch.no_grad(), dense_execution(), recording(model) as found:
        x = model.encode(frame, 2.0)
        x.mul_(3.0)
        model.decode(x)
        x.zero_()
    assert [name for name, _, _ in found.calls] == ["first", "second"]
    assert float(found.calls[1][1][0].abs().sum()) > 0  # a private copy
    assert [name for name, _ in found.inputs][-1] == "second"
    with torch.no_grad(), dense_execution():
        replay(model, found)
        found.calls[1][1][0].mul_(2)
        with pytest.raises(CalibrationError, match="layer second reads other values"):
            replay(model, found)


def test_the_pair_that_is_compared_on_full_maps() -> None:
    config = ResQConfig.parse("W8A8->W4A4", calibration={"recheck": 3})
    assert [tuple(chosen_pair(index, 4, config)) for index in range(3)] == [(0, 1), (0, 2), (0, 3)]
    assert tuple(chosen_pair(0, 1, config)) == (0,)
    running = config.replace(reference="running")
    assert [tuple(chosen_pair(index, 4, running)) for index in range(3)] == [(0, 1), (1, 2), (2, 3)]
    assert not chosen_pair(0, 4, config.replace(calibration={"recheck": 0}))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ((torch.zeros(1, 3, 4, 4), torch.tensor(torch.nan)), "1 NaN or Inf of 1"),
        ({"image": torch.full((1, 3, 4, 4), torch.inf)}, "48 NaN or Inf of 48"),
        ({"text": "frame"}, "is of type dict; a frame is a tensor"),
    ],
    ids=["a part", "the image", "no tensor"],
)
def test_pytrees_are_checked(frame: object, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        calibrate(converted(), [[frame, frame]])

"""The protocol for networks that keep state between frames: every pass begins at frame 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import build, video
from torch import Tensor, nn

from resq_plugin import dense_execution, stream
from resq_plugin.errors import ConfigError
from resq_plugin.evaluation.protocol import evaluate, float_predictions


class Recorder:
    """A metric that keeps the numbers of the frames it gets."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.values: list[float] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.frames.append(int(target))
        self.values.append(float(prediction.double().sum()))

    def compute(self) -> float:
        return float(len(self.frames))


class Loop:
    """Adds up what it saw, outside of the network; the first frames are given and call nothing."""

    def __init__(self, model: nn.Module, given: int = 0) -> None:
        self.model, self.given = model, given
        self.starts = 0
        self.reset()

    def reset(self) -> None:
        self.starts += 1
        self.time, self.total = 0, torch.zeros(())

    def __call__(self, frame: Tensor) -> Tensor:
        self.time += 1
        if self.time <= self.given:
            return torch.zeros(1)
        output = self.model(frame + 0.1 * torch.tanh(self.total))
        self.total = self.total + output.mean()
        return output


def run(loop: Loop, frames: list[Tensor], **options: Any) -> list[Recorder]:
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        return made[-1]

    targets = {"seen": [[torch.tensor(t) for t in range(len(frames))]] * 2}
    evaluate(
        loop.model,
        [frames, frames],
        targets,
        {"seen": make},
        predict=lambda x: x,
        run=loop,
        start=loop.reset,
        **options,
    )
    return made


@pytest.mark.parametrize("given", [0, 1])
def test_every_pass_begins_at_frame_0_and_every_position_is_seen(given: int) -> None:
    frames = video(8)
    loop = Loop(build("plain", interval=3), given)
    tables = run(loop, frames, every_position=True, given=given)
    assert loop.starts == 1 + 2 * 3
    for distance, table in enumerate(tables):
        # Of pass o the second interval starts at frame given + o; before it nothing is measured.
        once = [t for o in range(3) for t in range(given + o, 8) if (t - given - o) % 3 == distance]
        assert table.frames == once * 2


@pytest.mark.parametrize("given", [0, 2])
def test_what_is_measured_is_the_users_own_loop_through_a_stream(given: int) -> None:
    frames = video(8)
    model = build("plain", interval=3)
    tables = run(Loop(model, given), frames, given=given)
    loop, expected = Loop(model, given), {}
    with torch.no_grad(), stream(model) as player:
        for t, frame in enumerate(frames):
            if t < given:
                loop(frame)
                continue
            with player.frame(frame):
                expected[t] = float(loop(frame).double().sum())
    found = dict(pair for table in tables for pair in zip(table.frames, table.values, strict=True))
    assert found == expected


def test_float_predictions_of_a_loop() -> None:
    frames = video(4)
    model = build("plain")
    found = float_predictions(model, [frames, frames], lambda x: x, run=(loop := Loop(model)), start=loop.reset)
    with torch.no_grad(), dense_execution():
        again = Loop(model)
        expected = [again(frame) for frame in frames]
    assert all(torch.equal(a, b) for video in found for a, b in zip(video, expected, strict=True))


@pytest.mark.parametrize("given", [-1, 1.5])
def test_given_is_a_number_of_frames(given: object) -> None:
    with pytest.raises(ConfigError, match="given="):
        run(Loop(build("plain")), video(3), given=given)

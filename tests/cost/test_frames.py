"""Costs amortized over the frames that really ran, by hand."""

from __future__ import annotations

import io
import math

import pytest
import torch
from helpers import build, video
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from resq_plugin import ResQConfig, stream
from resq_plugin.cost import Cost, cost_table, measure_cost
from resq_plugin.errors import ConfigError
from resq_plugin.method import FrameCounts

NET = nn.Conv2d(3, 4, 3, padding=1)
MACS = 4 * 10 * 20 * 27
SHAPE = (1, 3, 10, 20)


def cost_of(frames: FrameCounts | None, precision: str = "W8A8->W4A4", **settings: object) -> Cost:
    return measure_cost(NET, SHAPE, ResQConfig.parse(precision, interval=3, **settings), frames=frames)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
def test_the_average_is_over_the_frames_that_ran(counts: list[int]) -> None:
    cost = cost_of(FrameCounts(tuple(counts)))
    keyframes, residual = counts[0], sum(counts[1:])
    expected = MACS * (keyframes * 64 + residual * 16) / (keyframes + residual)
    assert cost.bops_per_frame == pytest.approx(expected, rel=1e-12)
    assert cost.bops_keyframe == pytest.approx(MACS * 64 if keyframes else math.nan, nan_ok=True)
    assert cost.bops_residual == pytest.approx(MACS * 16 if residual else math.nan, nan_ok=True)
    assert cost.peak_bops == MACS * (64 if keyframes else 16)


def test_twenty_keyframes_of_twenty_cost_what_keyframes_cost() -> None:
    """The wrong number that this mends said 50 %."""
    cost = cost_of(FrameCounts((20,)), "W8A8->W4A{0,4,8}")
    assert cost.bops_per_frame == cost.bops_keyframe == MACS * 64
    assert math.isnan(cost.bops_residual)
    assert not cost.is_upper_bound


def test_whole_intervals_without_counts() -> None:
    """A fixed T: (1 + (T - 1) r) / T, whatever ran."""
    cost = cost_of(None)
    assert cost.bops_per_frame == pytest.approx(MACS * (64 + 2 * 16) / 3, rel=1e-12)
    assert cost.frames is None


def test_layers_without_a_choice_cost_the_same_in_every_frame() -> None:
    for frames in (None, FrameCounts((1, 9))):
        assert cost_of(frames, "W8A8").bops_per_frame == MACS * 64
        assert measure_cost(NET, SHAPE, frames=frames).bops_per_frame == MACS * 1024


def test_no_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="frames counts no frame at all; run the stream first"):
        cost_of(FrameCounts())


def text_of(cost: Cost) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(cost_table(cost))
    return console.file.getvalue()


def test_the_table_says_over_what_it_averages() -> None:
    table = text_of(cost_of(FrameCounts((4,))))
    assert "averaged over 4 keyframes and 0 residual frames" in table
    assert "–" in table
    assert "nan" not in table
    assert "averaged over T=3 frames" in text_of(cost_of(None))
    schedule = {"kind": "scene_change", "threshold": 0.5}
    assert "averaged over T=3 frames without scene changes" in text_of(cost_of(None, schedule=schedule))


def test_a_stream_counts_what_ran() -> None:
    """GIVEN a cut every two frames at T = 3, THEN the cost is that of two kinds of frames in turn."""
    frames = video(4, (1, 3, 10, 20))
    frames = [frame + 5 * (t // 2) for t, frame in enumerate(frames)]
    schedule = {"kind": "scene_change", "threshold": 0.8}
    model = build(lambda: nn.Conv2d(3, 4, 3, padding=1), frames=frames, interval=3, schedule=schedule)
    with torch.no_grad(), stream(model) as player:
        assert player.frame_counts == FrameCounts()
        for frame in frames:
            player(frame)
        assert player.frame_counts == FrameCounts((2, 2))
        cost = measure_cost(model, SHAPE, frames=player.frame_counts)
    assert cost.bops_per_frame == pytest.approx(MACS * (64 + 16) / 2)


def test_counts_add_up() -> None:
    total = sum([FrameCounts((2, 1)), FrameCounts(), FrameCounts((1, 1, 4))], FrameCounts())
    assert total == FrameCounts((3, 2, 4))
    assert (total.keyframes, total.residual, total.total) == (3, 6, 9)
    assert FrameCounts.of({0: 2, 3: 1}) == FrameCounts((2, 0, 0, 1))

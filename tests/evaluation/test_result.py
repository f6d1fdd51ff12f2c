"""How an evaluation averages: over distances with a fixed T, over what ran where content decides; pixels by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build, video
from torch import Tensor, nn

from resq_plugin import measure_cost, stream
from resq_plugin.errors import ConfigError
from resq_plugin.evaluation import Agreement, Evaluation, evaluate, float_predictions, sum_pixels
from resq_plugin.method import FrameCounts

NAN = math.nan
POOL = "W8A8->W8A{0,3,8}"


def net() -> nn.Module:
    return nn.Conv2d(1, 3, 3, padding=1)


def labels(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def measured(model: nn.Module, videos: list[list[Tensor]], **options: object) -> Evaluation:
    targets = {"agreement": float_predictions(model, videos, labels)}
    return evaluate(model, videos, targets, {"agreement": Agreement}, predict=labels, **options)


def cuts(count: int, every: int) -> list[Tensor]:
    """A video with a new scene every so many frames."""
    return [frame + 5 * (t // every) for t, frame in enumerate(video(count, (1, 1, 6, 8)))]


def test_shares_weigh_pixels() -> None:
    """A distance that saw ten times the pixels counts ten times; one that saw none does not."""
    found = Evaluation(
        {"m": (1.0, 1.0, 1.0)},
        ({"a": {0: 90, 8: 10}, "b": {0: 1, 8: 3}}, {"a": {0: 2, 8: 8}}, {}),
    )
    assert found.bit_shares == {"a": {0: 92 / 110, 8: 18 / 110}, "b": {0: 0.25, 8: 0.75}}
    assert found.shares_by_distance[1] == {"a": {0: 0.2, 8: 0.8}}
    assert sum_pixels([{"a": {0: 1, 8: 2}}, {}, {"a": {0: 4, 8: 0}}]) == {"a": {0: 5, 8: 2}}


def test_a_whole_interval_has_every_distance_once() -> None:
    """GIVEN a fixed T, THEN the cost is of an interval, whatever number of frames was run at each distance."""
    found = Evaluation({"m": (1.0,)}, ({"a": {0: 90, 8: 10}}, {"a": {0: 2, 8: 8}}), FrameCounts((20, 10, 1)))
    assert found.amortized() == {"shares": {"a": {0: pytest.approx(0.55), 8: pytest.approx(0.45)}}, "frames": None}
    content = Evaluation(found.by_distance, found.pixels_by_distance, found.frame_counts, is_fixed=False)
    assert content.amortized() == {"shares": content.bit_shares, "frames": FrameCounts((20, 10, 1))}


def test_the_mean_weighs_distances_by_what_ran_where_content_decides() -> None:
    by_distance, counts = {"m": (80.0, 50.0, NAN)}, FrameCounts((9, 1))
    assert Evaluation(by_distance, (), counts).mean("m") == 65.0
    assert Evaluation(by_distance, (), counts, is_fixed=False).mean("m") == (9 * 80 + 50) / 10
    assert math.isnan(Evaluation({"m": (NAN, NAN)}, (), FrameCounts((1,)), is_fixed=False).mean("m"))


@pytest.mark.parametrize("precision", ["W8A8->W4A4", POOL])
def test_all_keyframes_cost_keyframes(precision: str) -> None:
    schedule = {"kind": "scene_change", "threshold": 0.8}
    frames = cuts(20, 1)
    model = build(net, precision, frames, interval=20, schedule=schedule)
    found = measured(model, [frames])
    assert found.frame_counts == FrameCounts((20,))
    assert found.by_distance["agreement"][1:] == pytest.approx((NAN,) * 19, nan_ok=True)
    cost = measure_cost(model, (1, 1, 6, 8), **found.amortized())
    assert cost.bops_per_frame == cost.bops_keyframe
    assert math.isnan(cost.bops_residual)


def test_content_splits_a_video_in_one_way_only() -> None:
    schedule = {"kind": "scene_change", "threshold": 0.8}
    frames = cuts(7, 3)
    model = build(net, POOL, frames, interval=5, schedule=schedule)
    found = measured(model, [frames], every_position=True)
    assert found.frame_counts == FrameCounts((3, 2, 2))
    assert not found.is_fixed
    with pytest.raises(ConfigError, match=r"intervals have no fixed length; evaluate\(\.\.\., interval=2\)"):
        found.until(2)
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            player(frame)
        assert player.bit_shares() == found.bit_shares == found.amortized()["shares"]


def test_shares_are_over_all_pixels_of_a_stream() -> None:
    """Streams, sizes and calls of a layer add up pixel by pixel: a large video counts more than a small one."""
    small, large = video(3, (1, 1, 6, 8)), video(3, (1, 1, 24, 32), seed=1)
    model = build(net, POOL, [*small], interval=3, policy={"threshold": 0.05})
    apart = [measured(model, [frames]) for frames in (small, large)]
    together = measured(model, [small, large])
    total = sum_pixels(pixels for each in apart for pixels in each.pixels_by_distance)
    assert sum_pixels(together.pixels_by_distance) == total
    assert sum(total[""].values()) == 2 * (6 * 8 + 24 * 32)
    assert together.bit_shares[""] == {bits: count / sum(total[""].values()) for bits, count in total[""].items()}


def test_a_frame_with_nan_is_at_no_position() -> None:
    frames = video(5, (1, 1, 6, 8))
    spoiled = [frame.clone() for frame in frames]
    spoiled[2][0, 0, 1, 1] = NAN
    model = build(net, frames=frames, interval=3, on_change="keyframe")
    predictions = float_predictions(model, [frames], labels)
    found = evaluate(model, [spoiled], {"a": predictions}, {"a": Count}, predict=labels)
    assert found.frame_counts == FrameCounts((2, 2))
    assert found.by_distance["a"] == pytest.approx((2.0, 2.0, NAN), nan_ok=True)


class Count:
    """Number of frames."""

    def __init__(self) -> None:
        self.frames = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        assert prediction.shape == target.shape
        self.frames += 1

    def compute(self) -> float:
        return float(self.frames)

"""What happens in the middle of an interval: an old z_k is never mixed with new numbers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, build, fit, play, seeded, video
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from resq_plugin import ResQConfig, calibrate, convert, revert, stream
from resq_plugin.backends import FoldedNorm
from resq_plugin.errors import StreamError
from resq_plugin.method import Stream, residual_layers
from resq_plugin.method.numbers import Numbers


def trained(model: nn.Module) -> None:
    with torch.enable_grad():
        model(video(1)[0]).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def loaded(model: nn.Module, **options: bool) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    model.load_state_dict(other.state_dict(), **options)


def replaced(model: nn.Module) -> None:
    layer = next(iter(residual_layers(model).values()))
    layer.weight = nn.Parameter(layer.weight.detach() * 1.1)


def pointed(model: nn.Module) -> None:
    layer = next(iter(residual_layers(model).values()))
    layer.weight.data = layer.weight.data * 1.1


def norm_learned(model: nn.Module) -> None:
    norm = next(module for module in model.modules() if isinstance(module, FoldedNorm))
    norm.running_mean.add_(0.1)


def recalibrated(model: nn.Module) -> None:
    calibrate(model, [[frame * 1.5 for frame in video(3, seed=8)]])


def ranged(model: nn.Module) -> None:
    next(iter(residual_layers(model).values())).keyframe_quantizer.set_range(-2, 2)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "trained": trained,
    "loaded": loaded,
    "assigned": lambda model: loaded(model, assign=True),
    "replaced": replaced,
    "pointed elsewhere": pointed,
    "folded norm": norm_learned,
    "calibrated": recalibrated,
    "range set": ranged,
    "train": lambda model: model.train(),
    "part in train mode": lambda model: model[0].train(),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_starts_an_interval(kind: str, reference: str, frames: list[Tensor]) -> None:
    model = build("plain", reference=reference, interval=7)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        CHANGES[kind](model)
        found = [player(frame) for frame in frames[2:5]]
        assert player.position == 2
    assert_equal(found, play(model, frames[2:5]))


def test_without_a_change_there_is_none(zoo: str, reference: str, frames: list[Tensor]) -> None:
    """Also in training mode, where batch norms and quantizers of other backends write their own state."""
    model = build(zoo, reference=reference, interval=7)
    for mode in (False, True):
        model.train(mode)
        with stream(model) as player:
            for frame in frames:
                player(frame)
            assert player.position == 6


def test_training_between_frames_starts_an_interval(frames: list[Tensor]) -> None:
    """WHEN an optimizer steps in mid-interval, THEN the next frame does not reach into the graph that is gone."""
    model = build("plain", interval=7).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stream(model) as player:
        for frame in frames:
            player(frame).square().mean().backward()
            optimizer.step()
            assert player.position == 0


def test_autocast_starts_an_interval(frames: list[Tensor]) -> None:
    model = build("plain", interval=7)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        with torch.autocast(frames[0].device.type, torch.bfloat16):
            found = [player(frame) for frame in frames[1:3]]
            assert player.position == 1
            assert_equal(found, play(model, frames[1:3]))
        assert torch.equal(player(frames[3]), play(model, frames[3:4])[0])
        assert player.position == 0


def test_a_graph_is_kept_when_training_begins_in_mid_stream(frames: list[Tensor]) -> None:
    model = build("plain", interval=7)
    with stream(model) as player:
        player(frames[0])
        model.train()
        player(frames[1])
        player(frames[2]).square().mean().backward()
    assert float(model[0].keyframe_quantizer.scale.grad.abs()) > 0


def test_a_weight_that_becomes_parametrized_starts_an_interval(frames: list[Tensor]) -> None:
    model = build(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), interval=7)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        numbers = Numbers(residual_layers(model).values())
        before = numbers.version()
        layer = nn.Conv2d(3, 4, 3)
        parametrizations.weight_norm(layer)
        del model[0]._parameters["weight"]
        model[0].weight = nn.Parameter(layer.weight.detach())
        assert numbers.version() != before
        player(frames[1])
        assert player.position == 0


@pytest.mark.parametrize("again", [False, True], ids=["reverted", "converted anew"])
def test_a_reverted_model_needs_a_new_stream(again: bool, frames: list[Tensor]) -> None:
    model = build("plain", interval=7)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        revert(model)
        if again:
            fit(convert(model, ResQConfig.parse("W4A4->W3A3")), frames)
        with pytest.raises(StreamError, match=r"layer 0 was reverted or converted anew .*; open a new one with `with"):
            player(frames[1])


# --- states ---------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module, frames: list[Tensor]) -> dict[str, Any]:
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        return player.get_state()


@pytest.mark.parametrize(
    ("precision", "settings", "message"),
    [
        (
            "W8A8->W4A4",
            {"reference": "quantized"},
            "a model with reference='float', this one is W8A8->W4A4.* with ref",
        ),
        ("W8A8->W4A8", {}, "a model with layer 0 W8A8->W4A4, this one is W8A8->W4A8"),
        ("W4A4->W4A4", {}, "a model with layer 0 W8A8->W4A4, this one is W4A4"),
        ("W8A8", {}, "a model with layer 0 W8A8->W4A4, this one is W8A8"),
    ],
)
def test_a_state_of_another_configuration_is_refused(
    precision: str, settings: dict[str, Any], message: str, frames: list[Tensor]
) -> None:
    state = state_of(build("plain", interval=5), frames)
    other = build("plain", precision, interval=5, **settings)
    expected = play(other, frames[:2])
    with torch.no_grad(), stream(other) as player:
        player(frames[0])
        with pytest.raises(StreamError, match=message):
            player.set_state(state)
        assert torch.equal(player(frames[1]), expected[1])


@pytest.mark.parametrize("kind", ["trained", "loaded", "folded norm", "range set"])
def test_a_state_of_other_weights_is_refused(kind: str, frames: list[Tensor]) -> None:
    model = build("plain", interval=5)
    state = state_of(model, frames)
    CHANGES[kind](model)
    with stream(model) as player, pytest.raises(StreamError, match=r"other weights or ranges.* copies of one model"):
        player.set_state(state)


def test_a_moved_state_notices_what_changes_later(frames: list[Tensor]) -> None:
    model = build("plain", interval=5)
    state = state_of(model, frames)
    with torch.no_grad(), stream(model) as heir:
        heir.set_state(state)
        heir(frames[1])
        assert heir.position == 1
        heir.set_state(state)
        loaded(model)
        heir(frames[1])
        assert heir.position == 0


# --- NaN frames -----------------------------------------------------------------------------------------------------


def test_a_frame_outside_the_interval_is_at_no_position(frames: list[Tensor]) -> None:
    model = build("plain", "W8A8->W4A{0,4,8}", interval=7, on_change="keyframe")
    bad = frames[2].clone()
    bad[0, 0, 0, 0] = math.nan
    positions = []
    with torch.no_grad(), stream(model) as player:
        for frame in (bad, frames[0], frames[1], bad, frames[3], frames[4]):
            player(frame)
            positions.append((player.position, player.is_keyframe))
        assert player.frame_counts.by_distance == (4, 4)
        pixels = sum(player.pixel_counts()["0"].values())
        assert pixels == 2 * frames[0].shape[0] * 12 * 16
    assert positions == [(-1, False), (0, True), (1, False), (-1, False), (0, True), (1, False)]


# --- cost -----------------------------------------------------------------------------------------------------------


def test_watching_costs_next_to_nothing() -> None:
    """GIVEN a hundred layers, THEN asking takes a small part of what running the smallest of them takes."""
    model = build(lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(100)]), frames=video(2))
    numbers = Numbers(residual_layers(model).values())

    def spent(work: Callable[[], object]) -> float:
        start = time.thread_time()
        work()
        return time.thread_time() - start

    frames = video(2, (1, 3, 4, 4))
    with torch.no_grad(), stream(model) as player:
        pairs = [(spent(numbers.version), spent(lambda: run_both(player, frames))) for _ in range(20)]
    asking, running = map(min, zip(*pairs, strict=True))
    assert asking < 0.3 * running


def run_both(player: Stream, frames: list[Tensor]) -> None:
    player.start_interval()
    for frame in frames:
        player(frame)


def test_the_checksum_is_of_values() -> None:
    first, second = (build(seeded(lambda: nn.Conv2d(3, 4, 3))) for _ in range(2))
    sums = [Numbers(residual_layers(model).values()).checksum() for model in (first, second)]
    assert sums[0] == sums[1]
    with torch.no_grad():
        second.weight[0, 0, 0, 0] += 1e-6
    assert Numbers(residual_layers(second).values()).checksum() != sums[0]

"""A keyframe spread over T frames: which layers are refreshed when, and that everything else of a stream holds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Plain, assert_equal, build, outside, play, video
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resq_plugin import ResQConfig, measure_cost, stream
from resq_plugin.errors import ExportError, StreamError
from resq_plugin.evaluation import evaluate
from resq_plugin.export import export_model
from resq_plugin.method import FrameCounts, refresh_groups, residual_layers
from resq_plugin.training import unroll

SPREAD = {"kind": "spread"}
DYNAMIC = "W8A8->W4A{0,4,8}"


def spread(net: Any = "residual", precision: str = "W8A8->W4A4", **settings: Any) -> nn.Module:
    return build(net, precision, **{"interval": 3, "schedule": SPREAD, **settings})


# --- groups ---------------------------------------------------------------------------------------------------------


@given(work=st.lists(st.integers(0, 20), min_size=1, max_size=7), count=st.integers(1, 8))
def test_the_largest_group_is_as_small_as_it_can_be(work: list[int], count: int) -> None:
    groups = list(refresh_groups({str(index): own for index, own in enumerate(work)}, count).values())
    assert groups == sorted(groups)
    assert set(groups) == set(range(groups[-1] + 1))
    assert groups[-1] < count
    largest = max(sum(own for own, group in zip(work, groups, strict=True) if group == g) for g in set(groups))
    cuts = itertools.combinations(range(1, len(work)), min(count, len(work)) - 1)
    ways = ([*itertools.pairwise((0, *cut, len(work)))] for cut in cuts)
    assert largest == min(max(sum(work[a:b]) for a, b in way) for way in ways)


# --- Eq. 5 with references of different ages ------------------------------------------------------------------------


def test_every_frame_is_eq_5_with_each_layers_own_reference(reference: str, frames: list[Tensor]) -> None:
    """T = 2 and three layers: the first group is refreshed in even frames, the second in odd ones."""
    model = spread(Plain, reference=reference, interval=2)
    with torch.no_grad():
        found = play(model, frames)
        layers = residual_layers(model)
        # MACs at 12 × 16: 8·27·192, then 8·36·48 and 4·8·48, so that the first layer is a group of its own.
        refreshed = dict(zip(layers, (0, 1, 1), strict=True))
        memory: dict[str, list[Tensor]] = {}
        for t, frame in enumerate(frames):
            x = frame
            for name, layer in layers.items():
                if t == 0 or t % 2 == refreshed[name]:
                    x_hat = layer.quantize_keyframe(x)
                    z = layer.apply_keyframe(x_hat)
                    memory[name] = [x if reference == "float" else x_hat, z]
                else:
                    x_k, z_k = memory[name]
                    delta_hat = layer.quantize_residual(x - x_k)[0]
                    z = z_k + layer.apply_residual(delta_hat)
                    if reference == "running":
                        memory[name] = [x_k + delta_hat, z]
                x = z if layer is list(layers.values())[-1] else torch.relu(z)
            assert torch.allclose(found[t], x, rtol=0, atol=1e-6)


def test_a_repeated_frame_stays_the_keyframes(zoo: str) -> None:
    frames = [video(1)[0]] * 5
    found = play(spread(zoo), frames)
    assert_equal(found, [found[0]] * 5)


def test_an_interval_of_one_refreshes_everything(zoo: str, frames: list[Tensor]) -> None:
    model = spread(zoo, interval=1)
    assert_equal(play(model, frames), outside(model, frames))


# --- the stream -----------------------------------------------------------------------------------------------------


def test_only_the_first_frame_is_a_keyframe(frames: list[Tensor]) -> None:
    with torch.no_grad(), stream(spread()) as player:
        seen = []
        for frame in frames:
            player(frame)
            seen.append((player.position, player.is_keyframe))
        assert seen == [(t, t == 0) for t in range(7)]
        assert player.frame_counts == FrameCounts((2,) * 7)
        player.start_interval()
        player(frames[0])
        assert player.is_keyframe


def test_bits_are_counted_by_the_distance_from_a_layers_own_refresh(frames: list[Tensor]) -> None:
    with torch.no_grad(), stream(spread(Plain, DYNAMIC, interval=2)) as player:
        for frame in frames:
            player(frame)
        assert not player.pixel_counts(2)
        found = player.pixel_counts(1)
    # Of 6 residual frames the first layer runs its residual path in the odd 3, the others in the even 3.
    assert {name: sum(pool.values()) for name, pool in found.items()} == {
        "0": 3 * 2 * 12 * 16,
        "3": 3 * 2 * 12 * 16,
        "5": 3 * 2 * 6 * 8,
    }


def test_a_state_goes_on_elsewhere_bit_for_bit(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = spread(zoo, DYNAMIC, reference=reference)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:4]:
            player(frame)
        state = player.get_state()
    with torch.no_grad(), stream(model) as other:
        other.set_state(state)
        assert_equal([other(frame) for frame in frames[4:]], expected[4:])


def test_a_frame_that_fails_leaves_nothing_half_refreshed(frames: list[Tensor]) -> None:
    class Fails(Plain):
        fails = False

        def forward(self, frame: Tensor) -> Tensor:
            if self.fails:
                return nn.Sequential(*list(self)[:3])(frame)
            return super().forward(frame)

    model = spread(Fails)
    expected = play(model, frames[2:4])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.fails = True
        with pytest.raises(StreamError, match="layer 3 was called"):
            player(frames[1])
        model.fails = False
        assert_equal([player(frame) for frame in frames[2:4]], expected)


def test_changed_frames_start_a_whole_keyframe(frames: list[Tensor]) -> None:
    model = spread(on_change="keyframe")
    smaller = [frame[..., :8, :8] for frame in frames[:2]]
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        assert_equal([player(frame) for frame in smaller], play(model, smaller))


# --- cost, evaluation, training, export -----------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [None, FrameCounts((1, 1, 1, 7))])
def test_the_peak_is_that_of_the_dearest_group(frames: FrameCounts | None) -> None:
    macs = 8 * 27 * 192, 8 * 36 * 48, 4 * 8 * 48
    config = ResQConfig.parse("W8A8->W4A4", interval=2, schedule=SPREAD)
    cost = measure_cost(Plain(), (1, 3, 12, 16), config, frames=frames)
    assert cost.groups == {"0": 0, "3": 1, "5": 1}
    assert cost.peak_bops == macs[0] * 64 + (macs[1] + macs[2]) * 16
    assert cost.bops_keyframe == sum(macs) * 64
    assert "keyframes spread" in str(cost)
    mean = sum(macs) * (64 + 16) / 2
    assert cost.bops_per_frame == pytest.approx(mean if frames is None else (sum(macs) * 64 + 9 * mean) / 10)


def test_the_plain_interval_peaks_at_its_keyframe() -> None:
    cost = measure_cost(Plain(), (1, 3, 12, 16), ResQConfig.parse("W8A8->W4A4", interval=2))
    assert cost.peak_bops == cost.bops_keyframe


def test_an_evaluation_is_by_place_among_t_frames() -> None:
    class Count:
        def __init__(self) -> None:
            self.count = 0

        def update(self, prediction: Tensor, target: Tensor) -> None:
            self.count += 1

        def compute(self) -> float:
            return float(self.count)

    found = evaluate(
        *(spread(), [video(8)], {"a": [[torch.zeros(1)] * 8]}, {"a": Count}), predict=lambda z: z, every_position=True
    )
    assert found.by_distance["a"] == (3.0, 3.0, 2.0)
    assert found.frame_counts.keyframes == 2
    assert not found.is_fixed


def test_training_unrolls_what_a_stream_runs(reference: str, frames: list[Tensor]) -> None:
    model = spread(reference=reference)
    with torch.no_grad():
        assert_equal(list(unroll(model, frames[:3])), play(model, frames[:3]))
    sum(output.square().mean() for output in unroll(model, frames[:3])).backward()
    assert all(layer.weight.grad.any() for layer in residual_layers(model).values())


def test_two_graphs_cannot_refresh_in_turn(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="refreshes other layers in every frame"):
        export_model(spread(), video(3), tmp_path / "out", encodings=())


class Fork(nn.Module):
    """Three layers that read one tensor, which differ in their work."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle, self.thin = (nn.Conv2d(3, count, 3, padding=1) for count in (8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.wide(x), self.middle(x), self.thin(x)], 1)


@pytest.mark.parametrize("bits", [None, 8])
def test_layers_that_are_refreshed_apart_share_no_reference(frames: list[Tensor], bits: int | None) -> None:
    """T = 2: the first layer is a group of its own, the others share one x_k; bytes are those that a stream holds."""
    state = {"reference_bits": bits, "output_bits": bits}
    together, apart = (
        build(Fork, "W8A8->W4A4", interval=2, state=state, schedule={"kind": kind}) for kind in ("interval", "spread")
    )
    costs = [measure_cost(model, (2, 3, 12, 16)).state_bytes for model in (together, apart)]
    if bits is None:
        pixels = 2 * 12 * 16
        assert costs == [4 * pixels * (3 + 16), 4 * pixels * (3 + 3 + 16)]
    with torch.no_grad(), stream(together) as shared, stream(apart) as own:
        for frame in frames[:4]:
            shared(frame)
            own(frame)
        assert [shared.state_bytes(), own.state_bytes()] == costs
    assert costs[1] > costs[0]

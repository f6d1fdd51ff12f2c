"""One video, frame by frame: numbers by hand, what goes wrong in mid-stream, and training through time."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Plain, Pyramid, Residual, assert_equal, build, fit, play, seeded, video
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resq_plugin import ResQConfig, convert, stream
from resq_plugin.errors import CalibrationError, ConfigError, FrameError, StreamError


def single(model: nn.Module, frame: Tensor) -> Tensor:
    """Frame quantization."""
    with torch.no_grad():
        return model(frame)


# --- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "second", "third"),
    [
        # δ = (0.9, 0) -> integers (2, 0) of s = 0.5 -> (1.0, 0); then δ = (0.9, 4.6) -> (2, 3 clamped) -> (1.0, 1.5)
        ("float", -21.5 + 15 / 7 * 1.0, -21.5 + 15 / 7 * 1.0 + 45 / 7 * 1.5),
        # δ = (1.3, 0.4) to x̂_k = (2, -4) -> (3, 1) -> (1.5, 0.5); then δ = (1.3, 5.0) -> (3, 3) -> (1.5, 1.5)
        ("quantized", -21.5 + 15 / 7 * 1.5 + 45 / 7 * 0.5, -21.5 + 15 / 7 * 1.5 + 45 / 7 * 1.5),
        # x̂ = (3.5, -3.5) now; then δ = (-0.2, 4.5) -> (0, 3) -> (0, 1.5)
        ("running", -21.5 + 15 / 7 * 1.5 + 45 / 7 * 0.5, -21.5 + 15 / 7 * 1.5 + 45 / 7 * 0.5 + 45 / 7 * 1.5),
    ],
)
def test_three_frames_by_hand(reference: str, second: float, third: float) -> None:
    """w = (3, 7.5), b = 0.5, W4A4->W3A3.

    Keyframe weights: s = 2 · 7.5 / 15 = 1, integers (3, 7). Residual weights: s = 15 / 7, integers (1, 3).
    Keyframe x = (2.4, -3.6), s = 1: integers (2, -4), so z = 3 · 2 + 7 · (-4) + 0.5 = -21.5.
    """
    model = convert(nn.Linear(2, 1), ResQConfig.parse("W4A4->W3A3", reference=reference))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 7.5]]))
        model.bias.fill_(0.5)
    model.keyframe_quantizer.set_range(-7.5, 7.5)  # s = 1
    model.residual_quantizers[0].set_range(-1.75, 1.75)  # s = 0.5

    found = play(model.eval(), [torch.tensor([x]) for x in ([2.4, -3.6], [3.3, -3.6], [3.3, 1.0])])

    assert [z.item() for z in found] == pytest.approx([-21.5, second, third], rel=1e-6)


# --- position and schedule ------------------------------------------------------------------------------------------


def test_positions_follow_the_interval(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)
    with torch.no_grad(), stream(model) as player:
        assert (player.position, player.is_keyframe) == (-1, False)
        seen = []
        for frame in frames:
            player(frame)
            seen.append((player.position, player.is_keyframe))
    assert seen == [(0, True), (1, False), (2, False), (0, True), (1, False), (2, False), (0, True)]


def test_the_interval_of_a_stream_may_differ_from_the_configured_one(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)
    assert_equal(play(model, frames, interval=5), play(build("plain", interval=5), frames))


@pytest.mark.parametrize("interval", [0, -1, 2.5, "3"])
def test_an_impossible_interval_is_refused(interval: object) -> None:
    model = build("plain")
    with pytest.raises(
        ConfigError, match=rf"interval={interval!r} is not allowed; write a whole number of at least 1"
    ):
        stream(model, interval=interval)  # type: ignore[arg-type]


def test_start_interval_counts_anew(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)
    positions = []
    with torch.no_grad(), stream(model) as player:
        for t, frame in enumerate(frames):
            if t == 2:
                player.start_interval()
            player(frame)
            positions.append(player.position)
    assert positions == [0, 1, 0, 1, 2, 0, 1]


# --- what is handed through -----------------------------------------------------------------------------------------


class Options(nn.Module):
    """Takes more than a frame and returns more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, frame: Tensor, gain: float = 1.0, *, name: str = "z") -> dict[str, Any]:
        return {name: gain * self.conv(frame), "shape": frame.shape}


def test_arguments_and_outputs_pass_through(frames: list[Tensor]) -> None:
    model = build(Options)
    with torch.no_grad(), stream(model) as player:
        plain, more = player(frames[0]), player(frames[1], 2.0, name="out")
        player.reset()
        player(frames[0])
        residual = player(frames[1])["z"]
    assert plain["shape"] == frames[0].shape
    assert torch.equal(more["out"], 2 * residual)


def test_model_calls_inside_frame_belong_to_it(frames: list[Tensor]) -> None:
    """A host that calls parts of the model itself, e.g. a backbone and a head."""
    model = build(Residual, interval=3)
    expected = play(model, frames)
    found = []
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            with player.frame(frame):
                x = model.stem(frame)
                out = model.bn2(model.conv2(model.relu(model.bn1(model.conv1(x))))) + model.downsample(x)
                found.append(model.head(model.relu(out).mean((2, 3))))
    assert_equal(found, expected)


def test_state_bytes_are_those_of_inputs_and_outputs(frames: list[Tensor], reference: str) -> None:
    model = build("plain", reference=reference)
    with torch.no_grad(), stream(model) as player:
        assert player.state_bytes() == 0
        player(frames[0])
        # 2 videos of 12x16: (3 in, 8 out), then 8 in to 8 out at half the size, then (8 in, 4 out)
        inputs, outputs = 2 * (12 * 16 * (3 + 8) + 6 * 8 * 8), 2 * (12 * 16 * 8 + 6 * 8 * (8 + 4))
        expected = (1 if reference == "quantized" else 4) * inputs + 4 * outputs  # x̂_k is kept as 8-bit integers
        assert player.state_bytes() == expected
        player(frames[1])
        assert player.state_bytes() == expected
    assert player.state_bytes() == 0  # a closed stream holds nothing


def test_bit_shares_average_the_choices_of_all_residual_frames(frames: list[Tensor]) -> None:
    model = build("plain", "W8A8->W4A{0,4,8}", interval=3, policy={"threshold": 0.02})
    seen: dict[str, list[Tensor]] = {}
    with torch.no_grad(), stream(model, record_choices=True) as player:
        assert player.bit_shares() == {}
        for frame in frames:
            player(frame)
            if not player.is_keyframe:
                for name, bits in player.choices.items():
                    seen.setdefault(name, []).append(bits)
        shares = player.bit_shares()
    assert list(shares) == ["0", "3", "5"]
    for name, maps in seen.items():
        bits = torch.stack(maps)
        assert shares[name] == pytest.approx({b: float((bits == b).double().mean()) for b in (0, 4, 8)})
        assert sum(shares[name].values()) == pytest.approx(1)
    assert 0 < shares["3"][0] < 1


def test_static_residuals_have_no_shares(frames: list[Tensor]) -> None:
    with torch.no_grad(), stream(build("plain"), record_choices=True) as player:
        for frame in frames:
            player(frame)
        assert (player.bit_shares(), player.choices) == ({}, {})


# --- changes in mid-stream ------------------------------------------------------------------------------------------

CHANGED = {
    "batch": (lambda frame: frame[:1], r"\(1, 3, 12, 16\) float32 on \w+.* from \(2, 3, 12, 16\) float32"),
    "resolution": (lambda frame: frame[..., :8], r"\(2, 3, 12, 8\) float32"),
    "dtype": (lambda frame: frame.double(), r"\(2, 3, 12, 16\) float64"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_changed_frame_raises_and_the_stream_goes_on(kind: str, reference: str, frames: list[Tensor]) -> None:
    change, described = CHANGED[kind]
    model = build("plain", reference=reference, interval=5)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        found = [player(frame) for frame in frames[:3]]
        state = player.get_state()
        with pytest.raises(
            StreamError, match=rf"changed to {described}.*; the stream is unchanged\. Call video\.start_"
        ):
            player(change(frames[3]))
        assert_states_equal(player.get_state(), state)
        found += [player(frame) for frame in frames[3:]]
    assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["batch", "resolution"])
def test_a_changed_frame_may_start_an_interval(
    kind: str, reference: str, frames: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    change, _ = CHANGED[kind]
    model = build("plain", reference=reference, interval=3, on_change="keyframe")
    other = [change(frame) for frame in frames]
    with torch.no_grad(), stream(model) as player, caplog.at_level(logging.WARNING):
        player(frames[0])
        player(frames[1])
        assert not caplog.records
        found = [player(frame) for frame in other[2:]]
    assert_equal(found, play(model, other[2:]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a new interval starts" in caplog.text


def test_a_changed_dtype_may_start_an_interval(frames: list[Tensor]) -> None:
    model = build("plain", interval=3, on_change="keyframe")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.double()
        found = [player(frame.double()) for frame in frames]
    assert_equal(found, play(model, [frame.double() for frame in frames]))


@pytest.mark.parametrize("kind", ["batch", "resolution"])
def test_an_announced_change_is_fine(kind: str, frames: list[Tensor]) -> None:
    change, _ = CHANGED[kind]
    model = build("plain", interval=3)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player.start_interval()
        found = [player(change(frame)) for frame in frames[1:]]
    assert_equal(found, play(model, [change(frame) for frame in frames[1:]]))


@pytest.mark.parametrize("interval", [1, 3])
def test_a_change_where_an_interval_ends_anyway_is_fine(interval: int, frames: list[Tensor]) -> None:
    model = build("plain", interval=interval)
    small = [frame[..., :8] for frame in frames[:interval]]
    with torch.no_grad(), stream(model) as player:
        found = [player(frame) for frame in [*frames[:interval], *small]]
    assert_equal(found[interval:], play(model, small))


class Cropped(nn.Module):
    """Crops as it likes, so that a layer's input may change where the frame does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.width = nn.Conv2d(3, 4, 3), 16

    def forward(self, frame: Tensor) -> Tensor:
        return self.conv(frame[..., : self.width])


def test_a_layer_whose_input_alone_changes_is_named(frames: list[Tensor]) -> None:
    model = build(Cropped, interval=3)
    expected = play(model, frames[:2])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.width = 8
        with pytest.raises(
            StreamError, match=r"layer conv got \(2, 3, 12, 8\) .* but its keyframe was \(2, 3, 12, 16\)"
        ):
            player(frames[1])
        model.width = 16
        assert torch.equal(player(frames[1]), expected[1])


# --- bad frames -----------------------------------------------------------------------------------------------------


def spoiled(frame: Tensor, value: float) -> Tensor:
    frame = frame.clone()
    frame[0, 1, 2, 3] = value
    return frame


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 3], ids=["first", "residual", "keyframe"])
def test_a_frame_that_is_not_finite_raises_and_later_ones_are_clean(
    value: float, at: int, reference: str, frames: list[Tensor]
) -> None:
    model = build("plain", reference=reference, interval=3)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        found = [player(frame) for frame in frames[:at]]
        with pytest.raises(
            FrameError, match=rf"after position {(at - 1) % 3 if at else -1} holds 1 NaN or Inf of 1152 values"
        ):
            player(spoiled(frames[at], value))
        found += [player(frame) for frame in frames[at:]]
    assert_equal(found, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_frame_that_is_not_finite_may_start_an_interval(
    value: float, reference: str, frames: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """With on_change='keyframe' the frame is run on its own, and the next one is a keyframe."""
    model = build("plain", reference=reference, interval=3, on_change="keyframe")
    bad = spoiled(frames[2], value)
    with torch.no_grad(), stream(model) as player, caplog.at_level(logging.WARNING):
        found = [player(frame) for frame in frames[:2]]
        assert torch.equal(player(bad).nan_to_num(7, 8, 9), single(model, bad).nan_to_num(7, 8, 9))
        found += [player(frame) for frame in frames[3:]]
    assert "it is run outside the stream and a new interval starts after it" in caplog.text
    assert_equal(found, play(model, frames[:2]) + play(model, frames[3:]))
    assert all(z.isfinite().all() for z in found)


@pytest.mark.parametrize("frame", [None, [1, 2], "frame"])
def test_what_is_no_frame_is_refused(frame: object) -> None:
    with stream(build("plain")) as player, pytest.raises(FrameError, match=r"must be a tensor \(N, C, H, W\); got "):
        player(frame)  # type: ignore[arg-type]


class Scaled(nn.Module):
    """Takes camera images as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, frame: Tensor) -> Tensor:
        return self.conv(frame.float() / 255 - 0.5)


def test_integer_images_are_frames() -> None:
    images = [(100 + 20 * frame).clamp(0, 255).to(torch.uint8) for frame in video(4)]
    model = build(Scaled, frames=images)
    outputs = play(model, images)
    assert torch.equal(outputs[3], single(model, images[3]))
    assert not torch.equal(outputs[1], single(model, images[1]))


# --- exceptions in mid-frame ----------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Fails between its layers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.error: BaseException | None = None

    def forward(self, frame: Tensor) -> Tensor:
        x = self.first(frame)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.second(F.relu_(x))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_after_a_failed_residual_frame_nothing_of_it_is_left(
    reference: str, error: BaseException, frames: list[Tensor]
) -> None:
    """The frames after it are those of a stream that never saw it, or (running reference) of a new interval."""
    model = build(Fragile, "W8A8->W4A{0,4,8}", reference=reference, interval=4)
    expected = play(model, frames[:2])
    with torch.no_grad(), stream(model) as player:
        assert_equal([player(frame) for frame in frames[:2]], expected)
        shares = player.bit_shares()
        model.error = error
        with pytest.raises(type(error)):
            player(frames[6])
        assert player.bit_shares() == shares
        found = [player(frame) for frame in frames[2:5]]
    skipped = play(model, frames[:5])[2:] if reference != "running" else play(model, frames[2:5])
    assert_equal(found, skipped)


def test_after_a_failed_keyframe_the_next_frame_is_one(reference: str, frames: list[Tensor]) -> None:
    model = build(Fragile, reference=reference, interval=2)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        model.error = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            player(frames[2])
        found = [player(frame) for frame in frames[3:]]
        assert player.position == 1
    assert_equal(found, play(model, frames[3:]))


def test_after_a_failed_frame_of_another_shape_the_next_is_a_keyframe(reference: str, frames: list[Tensor]) -> None:
    """WHEN the frame that would have started an interval early fails, THEN the caches it cleared are not missed."""
    model = build(Fragile, reference=reference, interval=10, on_change="keyframe")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.error = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            player(frames[1][..., :8])
        found = [player(frame) for frame in frames[2:]]
    assert_equal(found, play(model, frames[2:]))


def test_after_an_exception_the_model_is_frame_by_frame_again(frames: list[Tensor]) -> None:
    model = build(Fragile)
    expected = single(model, frames[1])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.error = RuntimeError("out of memory")
        with pytest.raises(RuntimeError):
            player(frames[1])
    assert torch.equal(single(model, frames[1]), expected)


# --- closing --------------------------------------------------------------------------------------------------------


def test_a_closed_stream_says_so(frames: list[Tensor]) -> None:
    model = build("plain")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
    with pytest.raises(
        StreamError, match=r"this stream is closed; open a new one with `with stream\(model\) as video:`"
    ):
        player(frames[1])
    with pytest.raises(StreamError, match="closed"), player.frame(frames[1]):
        pass


def test_a_stream_is_closed_by_an_exception_too(frames: list[Tensor]) -> None:
    model = build("plain")
    with pytest.raises(FrameError), torch.no_grad(), stream(model) as player:
        [player(frame) for frame in (frames[0], spoiled(frames[1], math.nan))]
    assert player.state_bytes() == 0
    assert torch.equal(play(model, frames[1:2])[0], single(model, frames[1]))


# --- reuse within a frame -------------------------------------------------------------------------------------------


def test_two_uses_of_a_layer_in_a_frame_have_their_own_state(reference: str, frames: list[Tensor]) -> None:
    """GIVEN a head used at two scales under two names, THEN it computes as two heads with the same weights."""
    net = seeded(Pyramid)

    class Unshared(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.alias = nn.Conv2d(6, 6, 3, padding=1)

    twin = seeded(Unshared)
    twin.load_state_dict(net.state_dict())
    shared, unshared = build(net, reference=reference, fold=False), build(twin, reference=reference, fold=False)
    for quantizer in ("keyframe", "residual.0"):  # the range of the shared head covers both uses
        source = shared.head.activation_quantizers()[quantizer]
        for head in (unshared.head, unshared.alias):
            head.activation_quantizers()[quantizer].set_range(*source.range)
    assert_equal(play(shared, frames), play(unshared, frames))
    with torch.no_grad(), stream(shared) as player:
        player(frames[0])
        assert sorted(player.get_state()["caches"]) == [("head", 0), ("head", 1), ("stem", 0)]


class Twice(nn.Module):
    """Calls its layer as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 3, 3, padding=1), 1

    def forward(self, frame: Tensor) -> Tensor:
        x = frame
        for _ in range(self.calls):
            x = self.conv(x)
        return x


def test_more_calls_than_at_the_keyframe_are_an_error(frames: list[Tensor]) -> None:
    model = build(Twice, interval=4)
    expected = play(model, frames[:3])
    with torch.no_grad(), stream(model) as player:
        found = [player(frame) for frame in frames[:2]]
        model.calls = 2
        with pytest.raises(
            StreamError,
            match=r"layer conv was called 1 time\(s\) at the keyframe and more often now\..*start_interval\(\), or "
            r"exclude=\('conv',\)",
        ):
            player(frames[2])
        model.calls = 1
        assert_equal([*found, player(frames[2])], expected)
        model.calls = 2
        player.start_interval()  # as the message says
        player(frames[3])
        player(frames[4])
        assert player.position == 1


def test_calls_of_an_earlier_interval_do_not_count(frames: list[Tensor]) -> None:
    model = build(Twice, interval=2)
    model.calls = 2
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        model.calls = 1
        player(frames[2])
        model.calls = 2
        with pytest.raises(StreamError, match=r"called 1 time\(s\) at the keyframe and more often now"):
            player(frames[3])


# --- training through time ------------------------------------------------------------------------------------------

QAT = [
    pytest.param("W8A8->W4A4", "tensor", id="static"),
    pytest.param("W8A8->W4A{0,4,8}", "channel", id="dynamic"),
]


@pytest.mark.parametrize(("precision", "weights"), QAT)
def test_gradients_reach_everything_through_a_clip(
    precision: str, weights: str, zoo: str, reference: str, frames: list[Tensor]
) -> None:
    model = build(zoo, precision, reference=reference, weights=weights, interval=3, policy={"threshold": 0.02}).train()
    with stream(model) as player:
        player.clip(torch.stack(frames[:3], dim=1)).square().mean().backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and not touched(parameter)
    ]
    # A quantizer of the pool that no pixel chose has nothing to learn.
    unused = [name for name in missing if "residual_quantizers" not in name or precision == "W8A8->W4A4"]
    assert unused == []
    assert any("residual_quantizers" in name and touched(p) for name, p in model.named_parameters())


def touched(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0)


@pytest.mark.parametrize(("precision", "weights"), QAT)
def test_a_residual_frame_alone_teaches_the_keyframe_path(
    precision: str, weights: str, reference: str, frames: list[Tensor]
) -> None:
    """GIVEN a loss of the third frame only, THEN its gradient flows through the cached z_k to Φ, weights and bias."""
    model = build("residual", precision, reference=reference, weights=weights, interval=3).train()
    with stream(model) as player:
        player(frames[0])
        player(frames[1])
        player(frames[2]).square().mean().backward()
    for layer in (model.stem[0], model.conv1, model.head):
        assert touched(layer.keyframe_quantizer.scale)
        assert touched(layer.weight)
    assert touched(model.head.bias)
    assert touched(model.bn1.weight)
    assert touched(model.bn1.bias)


def test_gradients_of_two_frames_by_hand() -> None:
    """z = ŵ_Φ x̂ + b + ŵ_Θ δ̂; straight through: dz/dw = x̂ + δ̂, dz/db = 1, dz/ds = w · (integer - x/s)."""
    model = convert(nn.Linear(1, 1), ResQConfig.parse("W4A4->W4A4", interval=2)).train()
    with torch.no_grad():
        model.weight.fill_(7.5)  # s_w = 1, integer 7 (clamped from 7.5, which rounds to 8): ŵ = 7, outside the grid
        model.bias.fill_(0.25)
    phi, theta = model.keyframe_quantizer, model.residual_quantizers[0]
    phi.set_range(-15, 15)  # s = 2
    theta.set_range(-3.75, 3.75)  # s = 0.5
    with stream(model) as player:
        player(torch.tensor([[5.2]]))  # 2.6 -> 3 -> x̂ = 6
        z = player(torch.tensor([[6.0]]))  # δ = 0.8 -> 1.6 -> 2 -> δ̂ = 1
    assert z.item() == pytest.approx(7 * 6 + 0.25 + 7 * 1)
    z.backward()
    assert model.bias.grad.item() == 1
    assert phi.scale.grad.item() == pytest.approx(7 * (3 - 2.6), rel=1e-5)
    assert theta.scale.grad.item() == pytest.approx(7 * (2 - 1.6), rel=1e-5)
    assert model.weight.grad.item() == 0  # the clamp cuts it off

    model.zero_grad()
    with torch.no_grad():
        model.weight.fill_(-7.5)  # -7.5 rounds to -8, inside the grid
    with stream(model) as player:
        player(torch.tensor([[5.2]]))
        player(torch.tensor([[6.0]])).backward()
    assert model.weight.grad.item() == pytest.approx(6 + 1)


@pytest.mark.parametrize("reference", ["quantized", "running"])
def test_gradients_flow_through_a_quantized_reference_by_hand(reference: str) -> None:
    """z = ŵ x̂_k + b + ŵ q(x_t - x̂_k): with one ŵ for both, the keyframe's own rounding error cancels in dz/ds_Φ."""
    model = convert(nn.Linear(1, 1), ResQConfig.parse("W4A4->W4A4", interval=2, reference=reference)).train()
    with torch.no_grad():
        model.weight.fill_(-7.5)  # ŵ = -8
        model.bias.fill_(0.25)
    phi, theta = model.keyframe_quantizer, model.residual_quantizers[0]
    phi.set_range(-15, 15)  # s = 2
    theta.set_range(-3.75, 3.75)  # s = 0.5
    with stream(model) as player:
        player(torch.tensor([[5.2]]))  # x̂_k = 6
        z = player(torch.tensor([[6.8]]))  # δ = 0.8 -> 1.6 -> 2 -> δ̂ = 1
    assert z.item() == pytest.approx(-8 * (6 + 1) + 0.25)
    z.backward()
    assert phi.scale.grad.item() == pytest.approx(0, abs=1e-5)
    assert theta.scale.grad.item() == pytest.approx(-8 * (2 - 1.6), rel=1e-5)
    assert model.weight.grad.item() == pytest.approx(6 + 1)


def test_in_evaluation_mode_no_graph_is_kept(reference: str, frames: list[Tensor]) -> None:
    model = build("residual", reference=reference, interval=4)
    with stream(model) as player:
        for frame in frames[:3]:
            z = player(frame)
            assert z.requires_grad  # gradients are enabled
            assert not any(t.requires_grad for pair in player.get_state()["caches"].values() for t in pair)


def test_training_and_evaluation_compute_the_same_where_batch_norm_is_folded(
    reference: str, frames: list[Tensor]
) -> None:
    model = build("plain", "W8A8->W4A{0,4,8}", reference=reference)
    expected = play(model, frames)
    with stream(model.train()) as player:
        assert_equal([player(frame).detach() for frame in frames], expected)


@pytest.mark.parametrize(
    ("precision", "weights"), [("W3A4->W3A3", "tensor"), ("W3A4->W3A{0,3,8}", "channel")], ids=["static", "dynamic"]
)
def test_an_optimizer_built_before_conversion_trains_the_model(
    precision: str, weights: str, frames: list[Tensor]
) -> None:
    """QAT lowers the loss with the optimizer the user had, and every weight moves."""
    net = seeded(Plain)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        target = [net(frame) for frame in frames[:3]]
    model = fit(convert(net, ResQConfig.parse(precision, weights=weights, interval=3)), frames).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    losses = []
    for _ in range(30):
        with stream(model) as player:
            loss = sum(F.mse_loss(player(frame), z) for frame, z in zip(frames[:3], target, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert min(losses) < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        known = "quantizer" not in name  # quantizers came after the optimizer
        assert torch.equal(parameter, before[name]) != known, name
    after = play(model.eval(), frames[:3])  # with weights quantized anew
    assert sum(float(F.mse_loss(a, b)) for a, b in zip(after, target, strict=True)) < 0.9 * losses[0]


def test_scales_can_be_learned(frames: list[Tensor]) -> None:
    """GIVEN ranges that are far too narrow, WHEN only the scales are trained, THEN the loss falls."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))
    with torch.no_grad():
        target = [net(frame) for frame in frames[:3]]
    model = build(net, "W8A4->W8A4", frames, interval=3).train()
    quantizers = [model[0].keyframe_quantizer, model[0].residual_quantizers[0]]
    for quantizer in quantizers:
        quantizer.set_range(*(end / 6 for end in quantizer.range))
    optimizer = torch.optim.SGD([quantizer.scale for quantizer in quantizers], lr=0.05)
    losses = []
    for _ in range(20):
        with stream(model) as player:
            loss = sum(F.mse_loss(player(frame), z) for frame, z in zip(frames[:3], target, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_averaged_models_follow_training_during_an_open_stream(frames: list[Tensor]) -> None:
    """EMA copies the model, and its updates are seen by the copy's quantized weights."""
    model = build("residual", frames=frames).train()
    with stream(model) as player:
        player(frames[0])
        average = AveragedModel(model, use_buffers=True)
        player(frames[1]).sum().backward()
    average.update_parameters(model)
    before = play(average.module.eval(), frames)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    average.update_parameters(model)
    found = play(average.module.eval(), frames)
    average.module.load_state_dict(average.module.state_dict())  # forgets what was quantized
    assert_equal(found, play(average.module, frames))
    assert not torch.equal(found[0], before[0])


def test_uncalibrated_training_is_refused(frames: list[Tensor]) -> None:
    model = convert(seeded(Plain), "W8A8->W4A4").train()
    with stream(model) as player, pytest.raises(CalibrationError, match=r"layer 0 \(keyframe\) has no range"):
        player(frames[0])


def assert_states_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key in ("position", "is_keyframe", "demanded"):
        assert found[key] == expected[key]
    assert torch.equal(found["keyframe_input"], expected["keyframe_input"])
    assert found["caches"].keys() == expected["caches"].keys()
    for key, (x, z) in expected["caches"].items():
        assert torch.equal(found["caches"][key][0], x)
        assert torch.equal(found["caches"][key][1], z)


def test_an_endless_interval_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN an interval without end, THEN choices far from the keyframe are counted together."""
    monkeypatch.setattr(sys.modules["resq_plugin.method.stream_state"], "FARTHEST", 3)
    model = build("plain", "W8A8->W4A{0,4,8}", interval=10**9)
    with torch.no_grad(), stream(model) as player:
        for frame in video(4):
            player(frame)
        size = len(player._state.counts)
        for frame in video(9):
            player(frame)
        assert len(player._state.counts) == size
        pixels = {
            name: int(counts.sum()) for (position, name), counts in player._state.counts.items() if position == 3
        }
        near = {name: int(counts.sum()) for (position, name), counts in player._state.counts.items() if position == 1}
        assert pixels == {name: 10 * count for name, count in near.items()}
        assert player.bit_shares(4) == {}

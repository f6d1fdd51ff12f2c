"""The evaluation protocol of §5 with a metric that writes down what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import build, play, seeded, video
from torch import Tensor, nn

from resq_plugin import dense_execution, stream
from resq_plugin.errors import ConfigError, ConversionError
from resq_plugin.evaluation.metrics import Agreement
from resq_plugin.evaluation.protocol import Evaluation, evaluate, float_predictions

DYNAMIC = "W8A8->W8A{0,3,8}"
NAN = float("nan")


class Recorder:
    """A metric that keeps what it gets; its figure is the number of frames."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Any]] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.seen.append((prediction, target))

    def compute(self) -> float:
        return float(len(self.seen))

    @property
    def frames(self) -> list[int]:
        return [int(target) for _, target in self.seen]


class Recorders(list[Recorder]):
    """Makes recorders and keeps them: one per distance from the keyframe."""

    def __call__(self) -> Recorder:
        self.append(Recorder())
        return self[-1]

    @property
    def frames(self) -> list[list[int]]:
        return [recorder.frames for recorder in self]


class Tiny(nn.Module):
    """One convolution, 1 channel in, 3 classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, frame: Tensor) -> Tensor:
        return self.conv(frame)


def tiny(precision: str = "W8A4->W4A3", **settings: Any) -> nn.Module:
    return build(Tiny, precision, frames_of(5), **settings)


def frames_of(count: int, seed: int = 0) -> list[Tensor]:
    return video(count, (1, 1, 6, 8), seed=seed)


def targets_of(*labelled: Sequence[int | None]) -> list[list[Tensor | None]]:
    """Per video and frame its number, or None."""
    return [[None if number is None else torch.tensor(number) for number in video] for video in labelled]


def record(videos: Any, targets: Any, **options: Any) -> tuple[Recorders, Evaluation]:
    recorders = Recorders()
    found = evaluate(tiny(), videos, {"seen": targets}, {"seen": recorders}, predict=torch.clone, **options)
    return recorders, found


# --- the protocol ---------------------------------------------------------------------------------------------------


def test_a_video_is_split_into_sequences_of_length_t() -> None:
    recorders, found = record([frames_of(7)], targets_of(range(7)), interval=3)
    assert recorders.frames == [[0, 3, 6], [1, 4], [2, 5]]
    assert found.by_distance == {"seen": (3.0, 2.0, 2.0)}


def test_every_position_shows_every_labelled_frame_at_every_position() -> None:
    recorders, _ = record([frames_of(7)], targets_of(range(7)), interval=3, every_position=True)
    found = [sorted(frames) for frames in recorders.frames]
    # The first T - 1 frames have too few before them.
    assert found == [[0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]


@pytest.mark.parametrize("frame", [3, 4, 5, 6])
def test_one_labelled_frame_is_seen_once_at_every_position(frame: int) -> None:
    targets = targets_of([number if number == frame else None for number in range(7)])
    recorders, found = record([frames_of(7)], targets, interval=4, every_position=True)
    assert recorders.frames == [[frame]] * 4
    assert found.by_distance == {"seen": (1.0,) * 4}


def test_positions_without_a_target_are_nan_and_do_not_count() -> None:
    """Frame 5 of 7 at T = 3 is at distance 2 only."""
    recorders, found = record([frames_of(7)], targets_of([None] * 5 + [5, None]), interval=3)
    assert recorders.frames == [[], [], [5]]
    assert found.by_distance["seen"] == pytest.approx((NAN, NAN, 1.0), nan_ok=True)
    assert found.mean("seen") == 1.0
    assert math.isnan(found.until(2).mean("seen"))


def test_metrics_have_targets_of_their_own() -> None:
    videos, recorders = [frames_of(4)], {"first": Recorders(), "second": Recorders()}
    targets = {"first": targets_of([0, None, 2, None]), "second": targets_of([None, 1, None, None])}
    found = evaluate(tiny(), videos, targets, recorders, predict=torch.clone, interval=2)
    assert recorders["first"].frames == [[0, 2], []]
    assert recorders["second"].frames == [[], [1]]
    assert found.by_distance["first"] == pytest.approx((2.0, NAN), nan_ok=True)
    assert found.by_distance["second"] == pytest.approx((NAN, 1.0), nan_ok=True)


def test_the_interval_is_the_configured_one_unless_given() -> None:
    recorders = Recorders()
    videos, targets = [frames_of(5)], {"seen": targets_of(range(5))}
    evaluate(tiny(interval=4), videos, targets, {"seen": recorders}, predict=torch.clone)
    assert recorders.frames == [[0, 4], [1], [2], [3]]


@pytest.mark.parametrize("every_position", [False, True])
def test_videos_do_not_share_state(every_position: bool, reference: str) -> None:
    """GIVEN videos whose lengths are no multiples of T, THEN each is predicted as if it were alone."""
    model = tiny(reference=reference)
    videos = [frames_of(4), frames_of(2, seed=1), frames_of(5, seed=2)]
    targets = {"seen": targets_of(range(4), range(100, 102), range(200, 205))}
    recorders = Recorders()
    evaluate(
        model, videos, targets, {"seen": recorders}, predict=torch.clone, interval=3, every_position=every_position
    )
    found = {
        (distance, int(target)): prediction
        for distance, recorder in enumerate(recorders)
        for prediction, target in recorder.seen
    }
    expected = {}
    for index, frames in enumerate(videos):
        for offset in range(3 if every_position else 1):
            for time, output in enumerate(play(model, frames[offset:], interval=3)):
                expected[time % 3, 100 * index + offset + time] = output
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_videos_may_be_tensors() -> None:
    frames = frames_of(4)
    recorders, _ = record(torch.stack([torch.stack(frames)] * 2), targets_of(range(4), range(4)), interval=2)
    expected, _ = record([frames, frames], targets_of(range(4), range(4)), interval=2)
    assert recorders.frames == expected.frames == [[0, 2, 0, 2], [1, 3, 1, 3]]
    for found, same in zip(recorders, expected, strict=True):
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found.seen, same.seen, strict=True))


def test_frames_before_the_offset_are_not_run() -> None:
    """With every position T runs of a video of n frames take n, n - 1, ..., n - T + 1 frames."""
    model, calls = tiny(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    targets = {"seen": targets_of(range(6))}
    evaluate(model, [frames_of(6)], targets, {"seen": Recorder}, predict=torch.clone, interval=3, every_position=True)
    assert len(calls) == 6 + 5 + 4


def labels(logits: Tensor) -> Tensor:
    return logits.argmax(1)


@pytest.mark.parametrize("precision", ["W8A4->W4A3", DYNAMIC])
@pytest.mark.parametrize("shorter", [1, 2, 3])
def test_until_equals_an_evaluation_at_that_interval(shorter: int, precision: str, reference: str) -> None:
    model = tiny(precision, reference=reference)
    videos = [frames_of(9), frames_of(7, seed=1)]
    agreement = {"agreement": float_predictions(model, videos, labels)}
    found, direct = (
        evaluate(
            model, videos, agreement, {"agreement": Agreement}, predict=labels, interval=interval, every_position=True
        )
        for interval in (4, shorter)
    )
    until = found.until(shorter)
    assert until == direct
    assert until.mean("agreement") == sum(found.by_distance["agreement"][:shorter]) / shorter
    assert until.bit_shares == direct.bit_shares
    assert found.until(4) == found
    assert len(until.by_distance["agreement"]) == shorter


# --- what is measured -----------------------------------------------------------------------------------------------


def test_mean_over_positions() -> None:
    assert Evaluation({"miou": (80.0, 70.0, 60.0)}).mean("miou") == 70.0
    assert Evaluation({"miou": (80.0, NAN, 60.0)}).mean("miou") == 70.0
    assert Evaluation({"miou": (80.0, 70.0, 60.0)}).until(2).mean("miou") == 75.0


def test_the_float_model_agrees_with_itself() -> None:
    net = seeded(Tiny)
    model, videos = build(net, frames=frames_of(3)), [frames_of(4), frames_of(2, seed=1)]
    with torch.no_grad():
        exact = [[labels(net(frame)) for frame in frames] for frames in videos]
    agreement = Agreement()
    for found, expected in zip(float_predictions(model, videos, labels), exact, strict=True):
        for a, b in zip(found, expected, strict=True):
            agreement.update(a, b)
    assert agreement.compute() == 100.0
    assert agreement.total == 6 * 6 * 8


def test_float_predictions_take_no_gradient_and_leave_execution_as_it_was() -> None:
    model, frames = tiny(), frames_of(1)
    [[prediction]] = float_predictions(model, [frames], torch.clone)
    assert not prediction.requires_grad
    with torch.no_grad(), dense_execution():
        assert torch.equal(model(frames[0]), prediction)
    assert not torch.equal(model(frames[0]), prediction)  # quantized


def test_bit_shares_add_up_and_follow_the_distance() -> None:
    model = tiny(DYNAMIC, interval=4, policy={"threshold": 0.05})
    videos = [frames_of(8)]
    targets = {"agreement": float_predictions(model, videos, labels)}
    found = evaluate(model, videos, targets, {"agreement": Agreement}, predict=labels)
    assert [set(shares) for shares in found.shares_by_distance] == [{"conv"}] * 3
    for shares in (*found.shares_by_distance, found.bit_shares):
        assert set(shares["conv"]) == {0, 3, 8}
        assert sum(shares["conv"].values()) == pytest.approx(1)
    mean = [sum(shares["conv"][bits] for shares in found.shares_by_distance) / 3 for bits in (0, 3, 8)]
    assert list(found.bit_shares["conv"].values()) == pytest.approx(mean)
    with torch.no_grad(), stream(model, record_choices=True) as player:
        choices = {distance: [] for distance in range(4)}
        for frame in videos[0]:
            player(frame)
            choices[player.position] += [player.choices["conv"]] if player.position else []
    for distance, shares in enumerate(found.shares_by_distance, start=1):
        expected = torch.cat(choices[distance])
        assert all(
            share == pytest.approx(float((expected == bits).double().mean())) for bits, share in shares["conv"].items()
        )


def test_bit_shares_of_videos_shorter_than_the_interval() -> None:
    """Distances that no video reaches have no shares and do not count."""
    videos, targets = [frames_of(3)], {"seen": targets_of(range(3))}
    found = evaluate(tiny(DYNAMIC), videos, targets, {"seen": Recorder}, predict=torch.clone, interval=5)
    assert [bool(shares) for shares in found.shares_by_distance] == [True, True, False, False]
    assert sum(found.bit_shares["conv"].values()) == pytest.approx(1)
    assert found.bit_shares == found.until(3).bit_shares
    assert found.mean("seen") == 1.0


@pytest.mark.parametrize("precision", ["W8A8", "W8A8->W4A4"])
def test_no_bit_shares_without_a_pool(precision: str) -> None:
    videos, targets = [frames_of(3)], {"seen": targets_of(range(3))}
    found = evaluate(tiny(precision), videos, targets, {"seen": Recorder}, predict=torch.clone)
    assert found.bit_shares == {}
    assert found.shares_by_distance == ()


def test_evaluation_takes_no_gradient() -> None:
    recorders, _ = record([frames_of(3)], targets_of(range(3)))
    assert not any(prediction.requires_grad for recorder in recorders for prediction, _ in recorder.seen)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param({}, r"targets are given for \[\] but metrics are \['seen'\]; name both alike", id="none"),
        pytest.param({"iou": targets_of(range(3))}, r"given for \['iou'\] but metrics are \['seen'\]", id="names"),
        pytest.param(
            {"seen": targets_of(range(2))}, r"have \[2\] frames per video but the videos have \[3\]", id="few"
        ),
        pytest.param({"seen": targets_of(range(3), range(3))}, r"have \[3, 3\] frames per video", id="videos"),
        pytest.param({"seen": []}, r"have \[\] frames .* use None for a frame without a label", id="no video"),
    ],
)
def test_targets_that_do_not_match_are_refused_before_anything_runs(targets: Any, message: str) -> None:
    model = tiny()
    model.register_forward_hook(lambda *_: pytest.fail("a frame was run"))
    with pytest.raises(ConfigError, match=message):
        evaluate(model, [frames_of(3)], targets, {"seen": Recorder}, predict=torch.clone)


def test_a_model_that_is_not_converted_is_refused() -> None:
    with pytest.raises(ConversionError, match="Tiny has no ResQ layer"):
        evaluate(Tiny(), [], {}, {}, predict=torch.clone)

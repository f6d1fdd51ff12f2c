from __future__ import annotations

import logging
import threading

import pytest
import torch
from resq_vos.bank import Readable
from resq_vos.calibration import record_clips, step_runner
from resq_vos.propagation import Propagation
from resq_vos.stm import FLOAT_LAYERS, STM
from torch import Tensor, nn
from vos_helpers import moving_squares, tiny_stm

from resq_plugin import ResQConfig, convert, stream
from resq_plugin.errors import CalibrationError, ConfigError, FrameError, StreamError
from resq_plugin.method import dense_execution, residual_layers

FRAMES, LABELS = moving_squares(8)


def converted(precision: str = "W8A8->W4A8", model: nn.Module | None = None, **settings: object) -> STM:
    """A converted net with ranges that clip nothing."""
    model = convert(
        tiny_stm() if model is None else model, ResQConfig.parse(precision, exclude=FLOAT_LAYERS, **settings)
    )
    for layer in residual_layers(model).values():
        for quantizer in layer.activation_quantizers().values():
            quantizer.set_range(-4, 4)
        layer.activation_norm.fill_(1.0)
    return model


def play(tracker: Propagation, frames: Tensor, labels: Tensor) -> list[Tensor]:
    """Probabilities of every frame."""
    found = []
    for t, frame in enumerate(frames):
        tracker(frame[None], labels if t == 0 else None)
        found.append(tracker.masks)
    return found


@torch.no_grad()
def test_the_loop_written_out() -> None:
    from resq_vos.bank import TensorBank
    from resq_vos.masks import aggregate

    model, tracker = tiny_stm(), Propagation(tiny_stm(), every=3)
    found = play(tracker, FRAMES, LABELS[0])
    masks = torch.stack([(LABELS[0] == number).float() for number in (1, 2)])
    kept: list[tuple[Tensor, Tensor]] = []
    for t in range(1, len(FRAMES)):
        entry = model.memorize(FRAMES[t - 1 : t], masks)
        entries = [*kept, entry]
        if (t - 1) % 3 == 0:
            kept.append(entry)
        bank = TensorBank(*(torch.cat([part.flatten(2) for part in parts], 2) for parts in zip(*entries, strict=True)))
        masks = aggregate(model.segment(FRAMES[t : t + 1], bank))
        assert torch.allclose(found[t], masks, atol=1e-5)
    assert tracker.objects == [(0, 1), (0, 2)]
    assert tracker.time == 7


def test_the_first_labels_come_back() -> None:
    tracker = Propagation(tiny_stm())
    assert torch.equal(tracker(FRAMES[:1], LABELS[0])[0], LABELS[0])
    assert tracker(FRAMES[1:2]).shape == (1, 32, 44)
    assert tracker.labels((64, 88)).shape == (1, 64, 88)


def test_without_objects_everything_is_background() -> None:
    tracker = Propagation(tiny_stm())
    assert not tracker(FRAMES[:1]).any()
    assert not tracker(FRAMES[1:2]).any()
    assert tracker.next_step(FRAMES[2:3]) is None


@torch.no_grad()
def test_videos_in_step_are_those_alone() -> None:
    frames = torch.stack([FRAMES, FRAMES.flip(-1)], dim=1)
    labels = torch.stack([LABELS[0], (LABELS[0] == 1).long()])
    together, model = Propagation(tiny_stm()), tiny_stm()
    alone = [Propagation(model), Propagation(model)]
    for t in range(5):
        together(frames[t], labels if t == 0 else None)
        for video, tracker in enumerate(alone):
            tracker(frames[t, video : video + 1], labels[video] if t == 0 else None)
    assert together.objects == [(0, 1), (0, 2), (1, 1)]
    assert torch.allclose(together.masks, torch.cat([tracker.masks for tracker in alone]), atol=1e-5)


@torch.no_grad()
def test_a_stream_runs_memorize_and_segment_as_one_frame() -> None:
    model = converted(interval=3)
    with stream(model) as video:
        tracker = Propagation(model, video=video)
        tracker(FRAMES[:1], LABELS[0])
        positions = []
        for t in range(1, 8):
            tracker(FRAMES[t : t + 1])
            positions.append(video.position)
        assert positions == [0, 1, 2, 0, 1, 2, 0]
        assert tracker.state_bytes()["caches"] == video.state_bytes() > 0
        assert tracker.state_bytes()["bank"] == tracker.bank.bytes() > 0


@torch.no_grad()
def test_keyframes_are_the_frame_by_frame_model_and_float_is_float() -> None:
    model = converted(interval=1)
    with stream(model) as video:
        as_stream = play(Propagation(model, video=video), FRAMES, LABELS[0])
    by_frame = play(Propagation(model), FRAMES, LABELS[0])
    with dense_execution():
        in_float = play(Propagation(model), FRAMES, LABELS[0])
    plain = play(Propagation(tiny_stm()), FRAMES, LABELS[0])
    for t in range(8):
        assert torch.equal(as_stream[t], by_frame[t])
        assert torch.allclose(in_float[t], plain[t], atol=1e-5)
    assert not torch.allclose(by_frame[1], plain[1], atol=1e-6)


@torch.no_grad()
def test_an_object_that_appears_starts_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    model = converted(interval=4)
    first, later = LABELS[0] * (LABELS[0] == 1), LABELS[3] * (LABELS[3] == 2)
    with stream(model) as video, caplog.at_level(logging.INFO, logger="resq_vos"):
        tracker = Propagation(model, video=video)
        positions, rows = [], []
        for t in range(8):
            labels = tracker(FRAMES[t : t + 1], {0: first, 3: later}.get(t))
            positions.append(video.position)
            rows.append(tracker.masks.shape[0])
            if t == 3:
                assert torch.equal(labels[0] == 2, LABELS[3] == 2)
    assert rows == [1, 1, 1, 2, 2, 2, 2, 2]
    assert positions == [-1, 0, 1, 2, 0, 1, 2, 3]
    assert "objects (video, id) [(0, 2)] appeared, none left; the main part starts a new interval" in caplog.text
    # Frames 0 and 5 are kept for the first; the second is remembered from the frame where it was labelled.
    assert [len(tracker.bank.memories[0, number].kept) for number in (1, 2)] == [2, 2]


@torch.no_grad()
def test_an_object_that_leaves_starts_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    model = converted(interval=4)
    with stream(model) as video, caplog.at_level(logging.INFO, logger="resq_vos"):
        tracker = Propagation(model, video=video)
        positions = []
        for t in range(6):
            labels = tracker(FRAMES[t : t + 1], LABELS[0] if t == 0 else None)
            positions.append(video.position)
            if t == 2:
                tracker.remove(1)
        assert positions == [-1, 0, 1, 0, 1, 2]
        assert tracker.objects == tracker.bank.objects == [(0, 2)]
        assert set(labels.unique().tolist()) <= {0, 2}
        assert "appeared, [(0, 1)] left" in caplog.text
        tracker.remove(2)
        assert not tracker(FRAMES[6:7]).any()
        with pytest.raises(ConfigError, match="object 2 of video 0 is not followed; there are none"):
            tracker.remove(2)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_state_moves_to_another_propagation(cut: int) -> None:
    model = converted("W8A8->W4A{0,4,8}", interval=3)
    with stream(model) as video, stream(model) as other:
        whole = play(Propagation(model, video=video), FRAMES, LABELS[0])
        video.reset()
        first, second = Propagation(model, video=video), Propagation(model, video=other)
        play(first, FRAMES[:cut], LABELS[0])
        state = first.get_state()
        first.reset()
        assert first.state_bytes() == {"bank": 0, "caches": 0}
        second.set_state(state)
        for t in range(cut, 8):
            second(FRAMES[t : t + 1])
            assert torch.equal(second.masks, whole[t])


@torch.no_grad()
def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    model = converted()
    with stream(model) as video:
        tracker, plain = Propagation(model, video=video), Propagation(model)
        play(tracker, FRAMES[:3], LABELS[0])
        play(plain, FRAMES[:4], LABELS[0])
        masks = tracker.masks
        with pytest.raises(StreamError, match="the state has no video"):
            tracker.set_state(plain.get_state())
        with pytest.raises(StreamError, match="no state of a propagation"):
            tracker.set_state({"bank": 3})
        broken = tracker.get_state()
        broken["video"]["caches"] = {("elsewhere", 0): (torch.zeros(1), torch.zeros(1))}
        broken["video"]["grids"] = {("elsewhere", 0): (None, None)}
        with pytest.raises(StreamError, match="another model"):
            tracker.set_state(broken)
        assert tracker.masks is masks
        assert (tracker.time, video.position) == (2, 1)


@torch.no_grad()
def test_a_reset_forgets_everything() -> None:
    model = converted(interval=3)
    with stream(model) as video:
        tracker = Propagation(model, video=video)
        first = play(tracker, FRAMES, LABELS[0])
        tracker.reset()
        again = play(tracker, FRAMES, LABELS[0])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@torch.no_grad()
def test_bad_frames_change_nothing() -> None:
    model = converted(interval=3)
    with stream(model) as video:
        tracker = Propagation(model, video=video)
        whole = play(Propagation(model, video=stream(model)), FRAMES, LABELS[0])
        play(tracker, FRAMES[:3], LABELS[0])
        bank = tracker.bank
        bad = FRAMES[3:4].clone()
        bad[0, 0, 0, 0] = torch.nan
        for frame, labels, error in (
            (bad, None, FrameError),
            (FRAMES[3], None, FrameError),
            (FRAMES[3:4, :, :16], None, FrameError),
            (FRAMES[3:4], LABELS[3].float(), FrameError),
            (FRAMES[3:4], LABELS[:2], FrameError),
        ):
            with pytest.raises(error):
                tracker(frame, labels)
        assert tracker.bank is bank
        for t in range(3, 8):
            tracker(FRAMES[t : t + 1])
            assert torch.equal(tracker.masks, whole[t])


@torch.no_grad()
def test_propagations_on_threads_are_independent() -> None:
    model = converted(interval=3)
    videos = [FRAMES, FRAMES.flip(-1), FRAMES.flip(0), FRAMES * 0.5]

    def run(frames: Tensor) -> list[Tensor]:
        with torch.no_grad(), stream(model) as video:
            return play(Propagation(model, video=video), frames, LABELS[0])

    serial = [run(frames) for frames in videos]
    found: dict[int, list[Tensor]] = {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, run(videos[i]))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(serial):
        assert all(torch.equal(a, b) for a, b in zip(found[index], expected, strict=True))


class StandIn(nn.Module):
    """The smallest model whose memory part runs every n-th frame, as in XMem, STCN and Cutie."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            self.encode = nn.Conv2d(4, 3, 3, stride=4, padding=1)
            self.look = nn.Conv2d(3, 3, 3, stride=4, padding=1)
            self.decode = nn.Conv2d(3, 1, 1)
        self.calls = {"memorize": 0, "segment": 0}

    def memorize(self, frame: Tensor, masks: Tensor, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.calls["memorize"] += 1
        rows = frame.expand(masks.shape[0], -1, -1, -1) if owners is None else frame[owners]
        feature = self.encode(torch.cat([rows, masks[:, None]], 1))
        return feature, feature

    def segment(self, frame: Tensor, bank: Readable) -> Tensor:
        self.calls["segment"] += 1
        read = bank.read(self.look(frame))
        z = self.decode(read)
        return nn.functional.interpolate(z, size=frame.shape[-2:])[:, 0]


@torch.no_grad()
def test_a_part_that_runs_every_nth_frame_has_a_stream_of_its_own() -> None:
    frames, labels = moving_squares(17)
    model = StandIn().eval()
    convert(model, ResQConfig.parse("W8A8->W8A8", interval=3))
    for layer in residual_layers(model).values():
        for quantizer in layer.activation_quantizers().values():
            quantizer.set_range(-2, 2)
    with stream(model) as video:
        tracker = Propagation(model, video=video, every=5, last=False)
        positions: list[tuple[int, int]] = []
        for t, frame in enumerate(frames):
            tracker(frame[None], labels[0] if t == 0 else None)
            positions.append((video.position, tracker.memory_video.position))
        # Memorized before frames 1, 6, 11 and 16: its keyframes are every third of its own calls.
        assert model.calls == {"memorize": 4, "segment": 16}
        memory = [positions[t][1] for t in (1, 6, 11, 16)]
        assert memory == [0, 1, 2, 0]
        assert [main for main, _ in positions[1:]] == [t % 3 for t in range(16)]
        assert tracker.state_bytes()["caches"] == video.state_bytes() + tracker.memory_video.state_bytes()
        whole = tracker.masks

        tracker.reset()
        for t, frame in enumerate(frames[:8]):
            tracker(frame[None], labels[0] if t == 0 else None)
        state = tracker.get_state()
        tracker.reset()
        tracker.set_state(state)
        for frame in frames[8:]:
            tracker(frame[None])
        assert torch.equal(tracker.masks, whole)


@torch.no_grad()
def test_new_objects_restart_both_parts() -> None:
    frames, labels = moving_squares(8)
    model = StandIn().eval()
    convert(model, ResQConfig.parse("W8A8->W8A8", interval=4))
    for layer in residual_layers(model).values():
        for quantizer in layer.activation_quantizers().values():
            quantizer.set_range(-2, 2)
    with stream(model) as video:
        tracker = Propagation(model, video=video, every=5, last=False)
        for t, frame in enumerate(frames):
            given = {0: labels[0] * (labels[0] == 1), 2: labels[2] * (labels[2] == 2)}.get(t)
            tracker(frame[None], given)
            if t == 3:  # memorized because object 2 is new, for both
                assert (video.position, tracker.memory_video.position) == (0, 0)
        assert [len(tracker.bank.memories[0, n].kept) for n in (1, 2)] == [3, 2]


@pytest.mark.parametrize("every", [0, 2.5])
def test_every_is_checked(every: object) -> None:
    with pytest.raises(ConfigError, match="every="):
        Propagation(tiny_stm(), every=every)


@torch.no_grad()
def test_recorded_steps_run_again_exactly() -> None:
    model = converted(interval=3)
    clips = record_clips(model, (frame[None] for frame in FRAMES), LABELS[0], length=3, gap=1)
    assert [len(clip) for clip in clips] == [3, 3]
    clips = record_clips(model, (frame[None] for frame in FRAMES), LABELS[0], length=2, gap=1)
    assert [len(clip) for clip in clips] == [2, 2]
    reference = play(Propagation(tiny_stm()), FRAMES, LABELS[0])
    from resq_vos.masks import aggregate

    run = step_runner(tiny_stm())
    for number, clip in zip((1, 4), clips, strict=True):
        for offset, step in enumerate(clip):
            for _ in range(2):
                assert torch.allclose(aggregate(run(step)), reference[number + offset], atol=1e-5)
    with pytest.raises(CalibrationError, match="too short"):
        record_clips(model, [FRAMES[:1]], LABELS[0])

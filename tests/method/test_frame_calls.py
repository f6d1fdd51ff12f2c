"""Which call is which: fewer calls, another order, other threads, generators; and what each is told to do."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, build, outside, play, video
from torch import Tensor, nn

from resq_plugin import stream
from resq_plugin.errors import StreamError
from resq_plugin.method import Stream
from resq_plugin.method.frame_calls import compare_calls


class Heads(nn.Module):
    """A stem and a head that is used on two halves of the picture; ``route`` says what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.extra = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.route = "left extra right"

    def forward(self, frame: Tensor) -> Tensor:
        x = self.stem(frame)
        left, right = x.chunk(2, dim=-1)
        parts = {"left": left * 0, "right": right * 0, "extra": left * 0}
        for part in self.route.split():
            layer = self.extra if part == "extra" else self.head
            parts[part] = layer(right if part == "right" else left)
        return torch.cat([parts["left"] + parts["extra"], parts["right"]], dim=-1)


FEWER = r"layer head was called 2 time\(s\) at the keyframe and 1 time\(s\) now"
WAY_OUT = r"must start a new interval: video\.start_interval\(\), or exclude=\('{}',\)"


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("extra right", f"{FEWER}.*{WAY_OUT.format('head')}"),
        (
            "left right",
            r"layer extra was called 1 time\(s\) at the keyframe and 0 time\(s\) now.*exclude=\('extra',\)",
        ),
        ("left", f"{FEWER}, as were 1 other layers"),
        ("extra right left", r"call 1 of the frame is of layer extra and was of head .* which call of layer head is"),
        ("left extra right right", r"layer head was called 2 time\(s\) at the keyframe and more often now"),
        ("right extra", FEWER),
    ],
)
def test_other_calls_than_at_the_keyframe_are_refused(
    route: str, message: str, reference: str, frames: list[Tensor]
) -> None:
    """THEN nothing of the frame is kept: the next one goes on, or (running reference) is a keyframe."""
    model = build(Heads, "W8A8->W4A{0,4,8}", reference=reference, interval=5)
    expected = play(model, frames[:3]) if reference != "running" else play(model, [frames[2]])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        before = player.bit_shares(), player.frame_counts, player.position
        model.route = route
        with pytest.raises(StreamError, match=message):
            player(frames[2])
        assert (player.bit_shares(), player.frame_counts, player.position) == before
        model.route = "left extra right"
        assert torch.equal(player(frames[2]), expected[-1])
        player.start_interval()  # as the message says
        model.route = route
        assert_equal([player(frame) for frame in frames[3:6]], play(model, frames[3:6]))


@pytest.mark.parametrize("route", ["extra right", "extra right left", "left extra right right"])
def test_other_calls_may_start_an_interval(
    route: str, reference: str, frames: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = build(Heads, reference=reference, interval=5, on_change="keyframe")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        model.route = route
        found = [player(frame) for frame in frames[2:5]]
        assert (player.position, player.frame_counts.by_distance) == (2, (4, 4, 2))  # two videos in step
    assert_equal(found, play(model, frames[2:5]))
    assert "Now a new interval starts" in caplog.text


def test_an_inner_shape_may_start_an_interval(reference: str, frames: list[Tensor]) -> None:
    """WHEN the frame keeps its shape and a layer's input does not."""

    class Cropped(nn.Sequential):
        width = 16

        def forward(self, frame: Tensor) -> Tensor:
            return super().forward(frame[..., : self.width])

    model = build(lambda: Cropped(nn.Conv2d(3, 4, 3)), reference=reference, interval=5, on_change="keyframe")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        player(frames[1])
        model.width = 8
        found = [player(frame) for frame in frames[2:5]]
        assert player.position == 2
        model.width = 16
        with pytest.raises(StreamError, match="but its keyframe was"), player.frame(frames[5]):
            model(frames[5])  # what runs inside `frame` cannot be run again
    model.width = 8
    assert_equal(found, play(model, frames[2:5]))


def test_layers_that_are_used_once_may_change_their_order(frames: list[Tensor]) -> None:
    """Every call finds its memory by the layer's name."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.first = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), True

        def forward(self, frame: Tensor) -> Tensor:
            if self.first:
                return self.a(frame) - self.b(frame)
            z = self.b(frame)
            return self.a(frame) - z

    model = build(Either, interval=4)
    expected = play(model, frames[:3])
    with torch.no_grad(), stream(model) as player:
        found = [player(frames[0])]
        for model.first, frame in zip((False, True), frames[1:3], strict=True):
            found.append(player(frame))
    assert_equal(found, expected)


class Shared(nn.Module):
    """One layer on several things of one shape; ``order`` says in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.order = nn.Conv2d(3, 4, 3, padding=1), (0, 1, 2)

    def forward(self, frame: Tensor) -> Tensor:
        views = frame, frame.flip(-1), -frame
        outputs = {view: self.conv(views[view]) for view in self.order}
        return torch.cat([outputs[view] for view in sorted(outputs)], dim=1)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_calls_that_change_places_are_refused(
    order: tuple[int, ...], reference: str, frames: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """WHEN nothing but their inputs tells them apart."""
    model = build(Shared, reference=reference, interval=7)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        found = [player(frame) for frame in frames[:2]]
        model.order = order
        with pytest.raises(
            StreamError, match=r"calls of layer conv with inputs of one shape have changed places since"
        ):
            player(frames[2])
        model.order = (0, 1, 2)
        if reference != "running":
            assert_equal([*found, *(player(frame) for frame in frames[2:])], expected)
    model = build(Shared, reference=reference, interval=7, on_change="keyframe")
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        model.order = order
        found = [player(frame) for frame in frames[1:4]]
    assert_equal(found, play(model, frames[1:4]))
    assert "have changed places" in caplog.text


@pytest.mark.parametrize("scene", ["still", "black", "cut", "noise"])
def test_calls_in_their_places_are_not_suspected(scene: str, reference: str, frames: list[Tensor]) -> None:
    clips = {
        "still": [frames[0]] * 4,
        "black": [torch.zeros_like(frames[0]), *frames[:3]],
        "cut": [frames[0], *video(3, seed=9, motion=1.0)],
        "noise": video(4, seed=11, motion=5.0),
    }
    model = build(Shared, reference=reference, interval=7)
    with torch.no_grad(), stream(model) as player:
        for frame in clips[scene]:
            player(frame)
        assert player.position == 3


def test_what_the_comparison_says() -> None:
    assert compare_calls("abcb", "abcb") == ("", "")
    assert compare_calls("ba", "ab") == ("", "")
    assert compare_calls("bab", "abb")[0] == "b"
    assert compare_calls("b", "abb", {"a"}) == (
        "a",
        "layer a was called 1 time(s) at the keyframe and 0 time(s) now, while it ran in another thread, which does "
        "not see the stream, as were 1 other layers",
    )


# --- layers that do not run here ------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        with torch.no_grad():
            found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


class Threaded(nn.Module):
    """Runs some of its layers in a thread of its own; replicates them before, as nn.DataParallel does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.threads: tuple[str, ...] = ()
        self.replicate = False

    def run(self, name: str, x: Tensor) -> Tensor:
        layer = getattr(self, name)
        layer = layer._replicate_for_data_parallel() if self.replicate else layer
        if self.replicate:
            layer.weight, layer.bias = self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")
        return in_thread(lambda: layer(x)) if name in self.threads else layer(x)

    def forward(self, frame: Tensor) -> Tensor:
        return self.run("head", self.run("stem", frame).relu_())


@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (("stem", "head"), r"no ResQ layer of the model ran in this frame; .* without nn\.DataParallel and without"),
        (("head",), r"layer head ran in another thread; .* or exclude=\('head',\)"),
    ],
)
def test_layers_in_another_thread_are_refused(
    threads: tuple[str, ...], message: str, replicate: bool, frames: list[Tensor]
) -> None:
    model = build(Threaded, interval=3)
    expected = play(model, frames[:2])
    with torch.no_grad(), stream(model) as player:
        model.threads, model.replicate = threads, replicate
        for _ in range(2):
            with pytest.raises(StreamError, match=message):
                player(frames[0])
        model.threads = ()
        found = [player(frame) for frame in frames[:2]]
        model.threads = threads
        with pytest.raises(StreamError, match=r"no ResQ layer|1 time.* 0 time.* while it ran in another thread"):
            player(frames[2])
    assert_equal(found, expected)


def test_a_frame_without_a_model_call_is_an_error(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)
    with torch.no_grad(), stream(model) as player:
        with pytest.raises(StreamError, match="no ResQ layer of the model ran in this frame"), player.frame(frames[0]):
            pass
        assert player.position == -1
        player(frames[0])
        with pytest.raises(StreamError, match="no ResQ layer of the model ran in this frame"), player.frame(frames[1]):
            copy.deepcopy(model).eval()
        assert player.position == 0


def test_the_model_may_run_elsewhere_at_the_same_time(frames: list[Tensor]) -> None:
    """Frame by frame in another thread, while a frame of a stream is open here."""
    model = build("residual", interval=3)
    expected, single = play(model, frames[:3]), outside(model, frames[:3])
    with torch.no_grad(), stream(model) as player:
        for frame, z, alone in zip(frames, expected, single, strict=False):
            with player.frame(frame):
                assert torch.equal(in_thread(lambda frame=frame: model(frame)), alone)
                assert torch.equal(model(frame), z)


# --- generators -----------------------------------------------------------------------------------------------------


def test_a_generator_in_a_frame_does_not_take_its_consumers_calls(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)

    def outputs(player: Stream) -> Iterator[Tensor]:
        for frame in frames:
            with player.frame(frame):
                yield model(frame)

    with torch.no_grad(), stream(model) as player:
        running = outputs(player)
        next(running)
        with pytest.raises(
            StreamError, match=r"layer 0 was called while the generator outputs waits in `with video\.frame"
        ):
            model(frames[5])
        running.close()
        assert player.position == -1
    assert torch.equal(outside(model, frames[:1])[0], play(model, frames[:1])[0])


def test_a_generator_that_yields_outside_of_the_frame_is_fine(frames: list[Tensor]) -> None:
    model = build("plain", interval=3)
    expected, single = play(model, frames), outside(model, frames)

    def outputs(player: Stream) -> Iterator[Tensor]:
        for frame in frames:
            with player.frame(frame):
                z = model(frame)
            yield z

    with torch.no_grad(), stream(model) as player:
        for frame, z, found, alone in zip(frames, expected, outputs(player), single, strict=True):
            assert torch.equal(found, z)
            assert torch.equal(model(frame), alone)


def test_a_generator_may_be_a_context_manager(frames: list[Tensor]) -> None:
    """Whose body is the caller's on purpose."""
    model = build("plain", interval=3)

    @contextlib.contextmanager
    def my_frame(player: Stream, frame: Tensor) -> Iterator[None]:
        with player.frame(frame):
            yield

    found = []
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            with my_frame(player, frame), contextlib.ExitStack():
                found.append(model(frame))
    assert_equal(found, play(model, frames))


def test_generators_of_two_videos_in_turn(frames: list[Tensor]) -> None:
    """Each holds its frame while the other begins and ends; neither takes the other's memory."""
    model = build("plain", interval=3)

    def outputs(player: Stream, clip: list[Tensor]) -> Iterator[Tensor]:
        for frame in clip:
            with player.frame(frame):
                z = model(frame)
                yield z

    others = video(7, seed=4)
    single = outside(model, frames[:1])[0]
    with torch.no_grad(), stream(model) as first, stream(model) as second:
        expected = play(model, frames), play(model, others)
        pairs = zip(outputs(first, frames), outputs(second, others), strict=True)
        for (a, b), x, y in zip(pairs, *expected, strict=True):
            assert torch.equal(a, x)
            assert torch.equal(b, y)
    assert torch.equal(outside(model, frames[:1])[0], single)  # nothing stays active

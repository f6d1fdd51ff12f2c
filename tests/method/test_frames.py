"""What stands for a frame that is more than a tensor, and streams of such frames."""

from __future__ import annotations

import pytest
import torch
from helpers import build, play, video
from torch import Tensor, nn

from resq_plugin import stream
from resq_plugin.errors import FrameError, StreamError
from resq_plugin.method import frame_to, image_of, unusable_values


def test_the_image_is_the_first_of_four_dimensions() -> None:
    points, image, state = torch.zeros(2, 5), torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 2, 2)
    assert image_of(image) is image
    assert image_of((points, image, state)) is image
    assert image_of({"a": points, "b": [state, image]}) is state
    assert image_of([points]) is points
    with pytest.raises(FrameError, match="got dict"):
        image_of({"image": None})


def test_unusable_values_by_hand() -> None:
    image = torch.zeros(1, 1, 2, 2)
    mask = torch.tensor([0.0, -torch.inf, torch.nan])
    assert unusable_values(image) == (0, 0)
    assert unusable_values((image, mask)) == (1, 3)
    image = torch.tensor([[[[torch.inf, torch.nan, 0.0, 0.0]]]])
    assert unusable_values((mask[:2], image, torch.tensor([1, 2]))) == (2, 4)


def test_moving_a_frame_keeps_its_structure() -> None:
    frame = {"image": torch.zeros(1, 3, 2, 2), "prompt": ("text", torch.ones(2))}
    moved = frame_to(frame, torch.device("meta"))
    assert moved["image"].is_meta
    assert moved["prompt"][1].is_meta
    assert moved["prompt"][0] == "text"


class TakesPairs(nn.Module):
    """A net of the zoo that reads a frame and a growing list."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frame: tuple[Tensor, list[Tensor]]) -> Tensor:
        return self.net(frame[0]) + sum(part.mean() for part in frame[1])


def test_a_stream_of_pairs_is_the_stream_of_images() -> None:
    frames = video(7)
    net = build("plain", interval=3)
    expected = play(net, frames)
    model = TakesPairs(net)
    state: list[Tensor] = []
    with torch.no_grad(), stream(model) as player:
        for t, frame in enumerate(frames):
            found = player((frame, state))
            assert player.position == t % 3
            assert torch.equal(found - sum(part.mean() for part in state), expected[t]) or torch.allclose(
                found - sum(part.mean() for part in state), expected[t], atol=1e-5
            )
            state = [*state, torch.ones(t + 1)]  # grows within an interval


def test_bad_parts_leave_the_stream_as_it_was() -> None:
    frames = video(4)
    model = TakesPairs(build("plain", interval=3))
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:2]:
            player((frame, []))
        with pytest.raises(FrameError, match="after position 1 holds 1 NaN or Inf of 1 values"):
            player((frames[2], [torch.tensor(torch.nan)]))
        with pytest.raises(StreamError, match="inside an interval"):
            player((frames[2][..., :8], []))
        player((frames[2], []))
        assert player.position == 2

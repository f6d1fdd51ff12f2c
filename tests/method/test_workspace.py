"""The memory that residuals take in turn."""

from __future__ import annotations

import pytest
import torch
from helpers import Pyramid, assert_equal, build, play, video
from torch import Tensor

from resq_plugin import stream
from resq_plugin.method.workspace import Workspace

LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 3, 4, 5),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "tokens": lambda: torch.randn(2, 7, 4),
    "double": lambda: torch.randn(2, 3, dtype=torch.float64),
    "empty": lambda: torch.randn(0, 3, 4, 5),
}


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shape_type_and_layout_are_those_of_the_input(layout: str) -> None:
    x = LAYOUTS[layout]()
    found = Workspace().like(x, 3)
    assert found is not None
    for index, tensor in enumerate(found):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (x.shape, x.stride(), x.dtype)
        torch.mul(x, index, out=tensor)
    assert all(torch.equal(tensor, x * index) for index, tensor in enumerate(found)), "they do not overlap"


def test_all_take_the_same_memory_which_grows_to_the_largest() -> None:
    workspace = Workspace()
    (large,), (small, _), (larger,) = (workspace.like(torch.ones(size), n) for size, n in ((10, 1), (5, 2), (20, 1)))
    assert large.data_ptr() == small.data_ptr() != larger.data_ptr()
    assert workspace.like(torch.ones(10), 2)[0].data_ptr() == larger.data_ptr()
    workspace.clear()
    assert workspace.like(torch.ones(4))[0].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.ones(4, dtype=torch.bfloat16), id="half precision"),
        pytest.param(torch.ones(1, 3).expand(4, 3), id="overlaps"),
        pytest.param(torch.ones(4, 6)[:, ::2], id="gaps"),
    ],
)
def test_inputs_that_get_a_tensor_of_their_own(x: Tensor) -> None:
    assert Workspace().like(x) is None


def test_none_while_gradients_are_recorded() -> None:
    with torch.enable_grad():
        assert Workspace().like(torch.ones(4)) is None


def test_made_in_inference_mode_it_is_written_outside_too() -> None:
    workspace = Workspace()
    with torch.inference_mode():
        workspace.like(torch.ones(4))[0].fill_(2)
    assert workspace.like(torch.ones(4))[0].mul_(2).tolist() == [4.0] * 4


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A0", "W8A8->W8A{0,4,8}"])
@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_streams_compute_the_same_bits_without_it(
    precision: str, reference: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [frame.to(memory_format=layout) for frame in video(5)]
    model = build(Pyramid, precision, frames, reference=reference)
    found = play(model, frames)
    monkeypatch.setattr(Workspace, "like", lambda self, x, count=1, dtype=None: None)
    assert_equal(found, play(model, frames))


def test_two_streams_in_turn_do_not_share_it() -> None:
    frames = video(6)
    model = build(Pyramid, "W8A8->W4A4", frames, reference="running")
    alone = play(model, frames[:3]), play(model, frames[3:])
    with stream(model) as first, stream(model) as second:
        turns = [(first(a), second(b)) for a, b in zip(frames[:3], frames[3:], strict=True)]
    for found, expected in zip(zip(*turns, strict=True), alone, strict=True):
        assert_equal(found, expected)


def test_a_reset_frees_it() -> None:
    frames = video(2)
    with stream(build(Pyramid, "W8A8->W4A4", frames)) as opened:
        for frame in frames:
            opened(frame)
        workspace = opened._state.workspace
        assert workspace._memory is not None
        opened.reset()
        assert workspace._memory is None

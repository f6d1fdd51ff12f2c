"""One cache for layers that read the same tensor: what is kept, what it weighs, and that the output is the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from helpers import assert_equal, build, play, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, measure_cost, stream
from resq_plugin.method.held import Held
from resq_plugin.method.held_grid import HeldGrid
from resq_plugin.method.keeping import Keeper
from resq_plugin.method.layers import residual_layers
from resq_plugin.method.shared_tensors import SharedTensors


class Branches(nn.Module):
    """Three layers of one input, of which an in-place ReLU changes what the third reads; a fourth reads a z."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right, self.late = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.direct = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).abs() - 0.5
        left, right = self.left(x), self.right(x)
        x.relu_()
        return left + right + self.late(x) + self.direct(left)


def one_grid(model: nn.Module) -> nn.Module:
    """Give all keyframe quantizers of a model the same range."""
    for layer in residual_layers(model).values():
        layer.activation_quantizers()["keyframe"].set_range(-4, 4)
    return model


def references_of(model: nn.Module, frame: Tensor) -> dict[str, int]:
    """Identity of what every layer keeps as its reference after a keyframe."""
    with torch.no_grad(), stream(model) as player:
        player(frame)
        caches = player._state.caches
        return {name: id(cache.held_x) for (name, _), cache in caches.items()} | {
            f"{name}.z": id(cache.held_z) for (name, _), cache in caches.items()
        }


def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every layer keep its own."""
    monkeypatch.setattr(SharedTensors, "find", lambda *_: iter(()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_layers_share_what_they_read_until_it_is_written(mode: type[AbstractContextManager[None]]) -> None:
    model, frames = build(Branches, reference="float", interval=5), video()
    with mode(), stream(model, keep_graph=False) as player:
        player(frames[0])
        caches = player._state.caches
        held = {name: cache.held_x for (name, _), cache in caches.items()}
        assert held["left"] is held["right"]
        assert held["direct"] is caches["left", 0].held_z
        assert held["late"] is not held["left"]
        assert torch.equal(held["late"].data, held["left"].data.relu())


def test_quantized_references_are_shared_on_one_grid_only() -> None:
    model, frame = build(Branches, reference="quantized", interval=5), video()[0]
    model.right.keyframe_quantizer.set_range(-1, 1)
    own = references_of(model, frame)
    assert own["left"] != own["right"]
    shared = references_of(one_grid(model), frame)
    assert shared["left"] == shared["right"] != shared["late"]


def test_a_running_reference_is_of_its_layer() -> None:
    shared = references_of(one_grid(build(Branches, reference="running", interval=5)), video()[0])
    assert len(set(shared.values())) == len(shared)


@pytest.mark.parametrize("net", ["branches", "residual", "unet", "mobile", "pyramid", "tokens"])
@pytest.mark.parametrize("same_grid", [False, True])
def test_sharing_changes_no_bit_and_bytes_are_those_of_measure_cost(
    net: str, same_grid: bool, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(Branches if net == "branches" else net, "W8A8->W4A{0,4}", reference=reference, interval=3)
    model = one_grid(model) if same_grid else model
    frames = video()
    cost = measure_cost(model, frames[0].shape)
    with torch.no_grad(), stream(model) as player:
        outputs = [player(frame) for frame in frames]
        kept = player.state_bytes()
        assert kept == cost.state_bytes
    with torch.inference_mode(), stream(model) as player:
        assert_equal([player(frame) for frame in frames], outputs)
        assert player.state_bytes() <= kept  # values tell, and what is written may be what was there
    unshared(monkeypatch)
    assert_equal(play(model, frames), outputs)
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        if net == "branches" and (reference == "float" or (same_grid and reference == "quantized")):
            assert kept < player.state_bytes()
        assert kept <= player.state_bytes()


def test_bytes_of_a_branch_by_hand() -> None:
    frames, pixels = video(), 2 * 12 * 16
    net = seeded(Branches)
    for reference, per_input, inputs in (
        ("float", 4, 3 + 6 + 6),  # of `direct` x_k is the z_k of `left`
        ("quantized", 1, 3 + 6 + 6 + 6 + 4),  # nobody knows the ranges
        ("running", 4, 3 + 6 + 6 + 6 + 4),
    ):
        config = ResQConfig.parse("W8A8->W4A4", reference=reference)
        expected = pixels * (per_input * inputs + 4 * (6 + 4 + 4 + 4 + 4))
        assert measure_cost(net, frames[0].shape, config).state_bytes == expected
    convert(net, ResQConfig.parse("W8A8->W4A4", reference="quantized"))
    calibrated = measure_cost(one_grid(net), frames[0].shape).state_bytes
    assert calibrated == pixels * (1 * (3 + 6 + 6 + 4) + 4 * (6 + 4 + 4 + 4 + 4))


def test_what_is_shared_stays_shared_in_a_state() -> None:
    model, frames = build(Branches, reference="float", interval=5), video()
    with torch.no_grad(), stream(model) as player, stream(model) as heir:
        player(frames[0])
        heir.set_state(player.get_state())
        assert heir.state_bytes() == player.state_bytes()
        assert torch.equal(heir(frames[1]), player(frames[1]))


@pytest.mark.parametrize("bits", [2, 4, 8, 9, 16])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_integers_of_the_keyframe_grid_lose_nothing(bits: int, signed: bool, dtype: torch.dtype) -> None:
    layer = build(lambda: nn.Conv2d(3, 5, 1), f"W8A{bits}->W8A4", reference="quantized").to(dtype)
    layer.keyframe_quantizer.set_range(-3.1 if signed else 0, 3.1, signed=signed)
    x_hat = layer.quantize_keyframe((torch.randn(2, 3, 40, 40) * 2).to(dtype))
    held = Keeper(keep_graph=False).reference(layer, x_hat, x_hat)

    assert torch.equal(held.values(), x_hat)
    if dtype in (torch.float32, torch.float64):
        assert held.data.dtype in (torch.int8, torch.uint8, torch.int16)
        assert held.bytes == x_hat.numel() * (1 if bits <= 8 else 2)


def test_every_integer_of_a_grid_comes_back() -> None:
    for bits, signed in ((8, True), (8, False), (16, True), (16, False)):
        grid = HeldGrid.of_quantizer(torch.tensor(0.037), bits, signed=signed)
        steps = torch.arange(grid.low, grid.high + 1, dtype=torch.float32)
        held = Held.of(steps * torch.tensor(0.037), grid)
        assert torch.equal(held.values(), steps * torch.tensor(0.037))
        assert held.data.unique().numel() == 2**bits

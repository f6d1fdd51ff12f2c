"""x_k and z_k in 8 or 16 bits, and layers that keep nothing."""

from __future__ import annotations

import io

import pytest
import torch
from helpers import ZOO, assert_equal, build, eq1, max_lsb, outside, play, step_of, video
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resq_plugin import ResQConfig, measure_cost, stream
from resq_plugin.errors import ConfigError, StreamError
from resq_plugin.method.held import Held
from resq_plugin.method.held_grid import HeldGrid
from resq_plugin.method.layers import residual_layers

EIGHT = {"reference_bits": 8, "output_bits": 8}
BITS = pytest.mark.parametrize("bits", [8, 16])


def one_layer() -> nn.Module:
    return nn.Conv2d(3, 5, 3, padding=1)


def rounded(values: Tensor, bits: int) -> Tensor:
    """The nearest of 2^b evenly spaced values from the least to the largest of each video and channel."""
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    step = (high - low) / (2**bits - 1)
    return torch.round((values - low) / step) * step + low


# --- grids ----------------------------------------------------------------------------------------------------------


def test_a_grid_by_hand() -> None:
    values = torch.tensor([[[[0.0, 2.55, 1.004]], [[-1.0, -1.0, -1.0]]]])
    grid = HeldGrid.measure(values, 8, (0, 1))
    held = Held.of(values, grid)

    assert grid.scale.flatten().tolist() == pytest.approx([0.01, 1e-12])
    assert held.data.dtype == torch.uint8
    assert held.data.tolist() == [[[[0, 255, 100]], [[0, 0, 0]]]]
    assert torch.allclose(held.values(), torch.tensor([[[[0.0, 2.55, 1.0]], [[-1.0, -1.0, -1.0]]]]))
    assert held.bytes == 6 + 2 * (4 + 4)


@given(st.integers(0, 2**16), st.sampled_from([8, 16]), st.floats(0.001, 1000), st.floats(-100, 100))
def test_values_are_kept_within_half_a_step_and_only_once(seed: int, bits: int, spread: float, offset: float) -> None:
    values = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(seed)) * spread + offset
    held = Held.of(values, HeldGrid.measure(values, bits, (0, 1)))
    kept = held.values()

    slack = 4e-7 * float(values.abs().max())  # of float32
    assert float(((kept - values).abs() - held.grid.scale / 2).max()) <= slack
    again = Held.of(kept, held.grid)
    assert float((again.values() - kept).abs().max()) <= slack


@BITS
def test_a_grid_grows_where_values_leave_it_and_nowhere_else(bits: int) -> None:
    values = torch.randn(2, 3, 8, 8)
    grid = HeldGrid.measure(values, bits, (0, 1), room=True)
    assert grid.grown(values, (0, 1)).equals(grid)
    more = values.clone()
    more[1, 2] *= 10
    grown = grid.grown(more, (0, 1))
    same = torch.ones(2, 3, dtype=torch.bool)
    same[1, 2] = False
    assert torch.equal((grown.scale == grid.scale)[:, :, 0, 0], same)
    kept = Held.of(more, grown).values()
    assert float(((kept - more).abs() / grown.scale).max()) <= 0.51


# --- streams --------------------------------------------------------------------------------------------------------


@BITS
def test_eq5_with_what_is_kept(bits: int) -> None:
    """ẑ_t = q(x_t - x̃_k; Θ_a) * q(w; Θ_w) + z̃_k."""
    state = {"reference_bits": bits, "output_bits": bits}
    model, frames = build(one_layer, "W8A8->W8A8", reference="float", interval=4, state=state), video(4)
    outputs = play(model, frames)
    z_k = model.apply_keyframe(model.quantize_keyframe(frames[0])).detach()
    scale = model.residual_quantizers[0].scale.detach()
    assert torch.equal(outputs[0], z_k)
    for frame, found in zip(frames[1:], outputs[1:], strict=True):
        delta = eq1(frame - rounded(frames[0], bits), scale, 8)
        expected = model.apply_residual(delta).detach() + rounded(z_k, bits)
        assert max_lsb(found, expected, step_of(z_k, 8)) <= 0.3  # a tie may fall to either side


def test_a_quantized_reference_is_kept_without_loss() -> None:
    frames = video(4)
    plain = play(build("unet", reference="quantized", interval=4), frames)
    assert_equal(play(build("unet", reference="quantized", interval=4, state={"reference_bits": 8}), frames), plain)
    assert_equal(play(build("unet", reference="quantized", interval=4, state={"reference_bits": 16}), frames), plain)


@pytest.mark.parametrize("net", list(ZOO))
def test_sixteen_bits_are_close_to_floats_and_bytes_are_counted(net: str, reference: str) -> None:
    """In nets that work in place on what layers return: what is kept is a private copy."""
    frames, state = video(5), {"reference_bits": 16, "output_bits": 16}
    model = build(net, "W16A16->W16A16", reference=reference, interval=5, state=state)
    floats = play(build(net, "W16A16->W16A16", reference=reference, interval=5), frames)
    with torch.no_grad(), stream(model) as player:
        outputs = [player(frame) for frame in frames]
        assert player.state_bytes() == measure_cost(model, frames[0].shape).state_bytes
    assert torch.equal(outputs[0], floats[0])
    for found, expected in zip(outputs[1:], floats[1:], strict=True):
        assert max_lsb(found, expected, step_of(expected, 8)) <= 1


@pytest.mark.parametrize("net", ["plain", "tokens"])
def test_eight_bits_take_a_quarter(net: str, reference: str) -> None:
    shape = (1, 3, 48, 64)
    model, frames = build(net, reference=reference, interval=3, state=EIGHT), video(3, shape)
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            player(frame)
        kept = player.state_bytes()
        tensors = [t for pair in player.get_state()["caches"].values() for t in pair if t.numel() > 1000]
    assert {t.dtype for t in tensors} <= {torch.int8, torch.uint8}
    assert kept == measure_cost(model, shape).state_bytes
    floats = measure_cost(build(net, reference="running", interval=3), shape).state_bytes
    assert kept < 0.3 * floats  # small nets have many grids


@pytest.mark.parametrize("precision", ["W8A8->W8A4", "W8A8->W4A{0,4}"])
def test_a_running_reference_in_eight_bits_neither_drifts_nor_runs_away(precision: str) -> None:
    """GIVEN a scene that leaves the ranges of its keyframe, THEN z_t stays that of x̂_t."""
    frames = video(1)
    settings = {"reference": "running", "interval": 10_000}
    phases = torch.linspace(0, 3, frames[0].numel()).view(frames[0].shape)
    clip = [frames[0] * (1 + 0.02 * min(t, 100)) + 0.4 * torch.sin(0.1 * t + phases) for t in range(300)]
    errors = {}
    for name, state in (("floats", {}), ("eight", EIGHT)):
        model = build(one_layer, precision, frames=clip[::20], state=state, **settings)
        with torch.no_grad():
            exact = [model.dense(frame) for frame in clip]
        outputs = play(model, clip)
        errors[name] = [float((z - e).square().mean().sqrt() / e.std()) for z, e in zip(outputs, exact, strict=True)]
    assert max(errors["eight"][200:]) < max(errors["floats"][200:]) + 0.05
    assert max(errors["eight"]) < max(errors["floats"]) + 0.05


def test_videos_of_a_batch_have_grids_of_their_own(reference: str) -> None:
    model, frames = build("plain", reference=reference, interval=4, state=EIGHT), video(4)
    frames = [torch.cat([frame[:1], 50 * frame[1:]]) for frame in frames]
    outputs = play(model, frames)
    for index in (0, 1):
        for found, expected in zip(outputs, play(model, [f[index : index + 1] for f in frames]), strict=True):
            # Sums in another order may round to the neighbour.
            assert max_lsb(found[index : index + 1], expected, step_of(expected, 8)) <= 2


def test_a_state_in_integers_moves_between_streams(reference: str) -> None:
    model, frames = build("unet", reference=reference, interval=5, state=EIGHT), video(4)
    with torch.no_grad(), stream(model) as player, stream(model) as heir:
        player(frames[0])
        player(frames[1])
        file = io.BytesIO()
        torch.save(player.get_state(), file)
        file.seek(0)
        heir.set_state(torch.load(file, weights_only=True))
        assert heir.state_bytes() == player.state_bytes()
        assert_equal([heir(frame) for frame in frames[2:]], [player(frame) for frame in frames[2:]])


def test_a_state_in_other_bits_is_refused() -> None:
    frame = video(1)[0]
    with torch.no_grad(), stream(build("plain", interval=5)) as player:
        player(frame)
        state = player.get_state()
    other = stream(build("plain", interval=5, state={"output_bits": 8}))
    with pytest.raises(StreamError, match=r"reference='float'.* reference='float \(output_bits=8\)'"):
        other.set_state(state)


# --- training -------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Two layers, the first behind activation checkpointing if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.again = False

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x, use_reentrant=False) if self.again else self.first(x)
        return self.second(x.relu())


def gradients(model: nn.Module, frames: list[Tensor], *, again: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    model.again = again
    model.zero_grad()
    with stream(model, keep_graph=True) as player:
        outputs = [player(frame) for frame in frames]
    sum(z.square().mean() for z in outputs).backward()
    return [z.detach() for z in outputs], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_training_sees_what_inference_keeps_and_gradients_pass(reference: str) -> None:
    model, frames = build(Checkpointed, reference=reference, interval=4, state=EIGHT), video(4)
    outputs, found = gradients(model, frames)
    for a, b in zip(outputs, play(model, frames), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert found
    assert all(bool(g.isfinite().all()) for g in found)
    again, repeated = gradients(model, frames, again=True)
    assert_equal(again, outputs)
    for a, b in zip(repeated, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_rounding_is_the_identity() -> None:
    values = torch.randn(1, 2, 4, 4, requires_grad=True)
    held = Held.of(values, HeldGrid.measure(values, 8, (0, 1)), keep_graph=True)
    weight = torch.randn(1, 2, 4, 4)
    (held.values() * weight).sum().backward()
    assert torch.equal(values.grad, weight)
    assert torch.equal(held.values(), Held.of(values.detach(), held.grid).values())


# --- layers without state -------------------------------------------------------------------------------------------


def test_a_stateless_layer_quantizes_every_frame_on_its_own() -> None:
    model, frames = build(Checkpointed, reference="float", interval=4, state={"stateless": ["first"]}), video(3)
    seen: list[Tensor] = []
    model.first.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            player(frame)
        assert list(player._state.caches) == [("second", 0)]
        kept = player.state_bytes()
    alone = seen.copy()
    seen.clear()
    outside(model, frames)
    assert_equal(alone, seen)
    assert kept == measure_cost(model, frames[0].shape).state_bytes
    settings = {name: layer.settings for name, layer in residual_layers(model).items()}
    assert settings["first"].residual is None
    assert settings["second"].residual is not None


def test_a_stateless_layer_costs_a_keyframe_in_every_frame() -> None:
    net, shape = Checkpointed(), (1, 3, 12, 16)
    config = ResQConfig.parse("W8A8->W4A4", interval=4, state={"stateless": ["first"]})
    first, second = measure_cost(net, shape, config).by_layer()
    assert (first.precision, first.state_bytes, first.bops_per_frame) == ("W8A8", 0, first.macs * 64)
    assert second.state_bytes == 4 * 12 * 16 * (6 + 4)


def test_settings_of_the_state_read_and_refuse() -> None:
    config = ResQConfig.parse("W8A8->W4A4", state={"reference_bits": 8, "stateless": ["a.*"]})
    assert ResQConfig.from_dict(config.to_dict()) == config
    assert [str(side) for side in config.precision_of("a.b")] == ["W8A8", "None"]
    for state, found in (
        ({"output_bits": 4}, r"state.output_bits=4 .* write 8 or 16, or None"),
        ({"reference_bits": True}, r"state.reference_bits=True"),
        ({"stateless": "head"}, r"state.stateless='head' must be a list of patterns"),
        ({"bits": 8}, r"unknown setting state.bits"),
    ):
        with pytest.raises(ConfigError, match=found):
            ResQConfig.parse("W8A8->W4A4", state=state)

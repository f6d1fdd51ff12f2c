"""The contracts a stateful video quantizer is trusted for, each on small nets that are typical of model zoos."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import ZOO, Plain, assert_equal, build, fit, max_lsb, play, seeded, step_of, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, dense_execution, float_state_dict, revert, stream
from resq_plugin.errors import StreamError

DYNAMIC = "W8A8->W4A{0,4,8}"
SCHEMES = pytest.mark.parametrize(
    ("precision", "reference"),
    [("W8A8->W4A4", "float"), ("W8A8->W4A4", "quantized"), (DYNAMIC, "float"), (DYNAMIC, "running")],
    ids=["static-float", "static-quantized", "dynamic-float", "dynamic-running"],
)


def outside(model: nn.Module, frames: list[Tensor]) -> list[Tensor]:
    """Frame quantization: the model called outside of any stream."""
    with torch.no_grad():
        return [model(frame) for frame in frames]


# --- what a stream computes -----------------------------------------------------------------------------------------


def test_interval_one_is_frame_quantization(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = build(zoo, reference=reference, interval=1)
    assert_equal(play(model, frames), outside(model, frames))


def test_without_residual_precision_a_stream_is_frame_quantization(zoo: str, frames: list[Tensor]) -> None:
    model = build(zoo, "W8A8", interval=3)
    assert_equal(play(model, frames), outside(model, frames))


def test_keyframes_equal_frame_quantization_and_residual_frames_do_not(
    zoo: str, reference: str, frames: list[Tensor]
) -> None:
    model = build(zoo, reference=reference, interval=3)
    outputs, single = play(model, frames), outside(model, frames)
    assert_equal(outputs[::3], single[::3])
    for t in (1, 2, 4, 5):
        assert not torch.equal(outputs[t], single[t])


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W4A4->W3A3", DYNAMIC, "W8A8->W8A0"])
def test_repeated_frame_repeats_the_keyframe_output(zoo: str, precision: str, frames: list[Tensor]) -> None:
    model = build(zoo, precision, reference="float", interval=4)
    outputs = play(model, [frames[0]] * 4)
    assert_equal(outputs, [outputs[0]] * 4)


@pytest.mark.parametrize("repaired", ["quantized", "running"])
@pytest.mark.parametrize("precision", ["W8A4->W8A4", "W8A3->W8A8", "W8A8->W4A8"])
def test_repeated_frame_does_not_move_away_from_the_float_output(
    repaired: str, precision: str, frames: list[Tensor]
) -> None:
    # One layer, so that its error is its own.
    model = build(lambda: nn.Conv2d(3, 5, 3, padding=1), precision, reference=repaired, interval=5)
    with torch.no_grad(), dense_execution():
        exact = model(frames[0])
    errors = [float((z - exact).norm()) for z in play(model, [frames[0]] * 5)]
    assert all(error <= errors[0] for error in errors)
    assert errors[1] < errors[0]  # and the first residual frame does repair something


def test_a_thousand_residual_frames_do_not_drift(frames: list[Tensor]) -> None:
    """GIVEN a grid wide enough, THEN x̂_t of the sigma-delta loop stays within s/2 of x_t, and z_t is that of x̂_t."""
    model = build(lambda: nn.Conv2d(3, 5, 3, padding=1), "W8A8->W8A4", reference="running", interval=10_000)
    step = float(model.residual_quantizers[0].scale.detach())
    phases = torch.linspace(0, 3, frames[0].numel()).view(frames[0].shape)
    with torch.no_grad(), stream(model) as player:
        for t in range(1001):
            frame = frames[0] + 0.4 * torch.sin(0.1 * t + phases)
            z = player(frame)
            if t % 100 == 1:
                ((x_hat, _),) = player.get_state()["caches"].values()
                assert float((frame - x_hat).abs().max()) <= step / 2 * (1 + 1e-4)
                expected = model.apply_keyframe(x_hat)
                assert max_lsb(z, expected, step_of(expected)) <= 1


def test_sixteen_bits_are_close_to_float(zoo: str, reference: str, frames: list[Tensor]) -> None:
    """Within 4 of the 2^16 steps of the output's range, on keyframes and residual frames; the bias counts once."""
    model = build(zoo, "W16A16->W16A16", reference=reference, interval=3, frames=frames)
    with torch.no_grad(), dense_execution():
        exact = [model(frame) for frame in frames]
    lsb = step_of(torch.stack(exact), 16)
    assert max(max_lsb(z, e, lsb) for z, e in zip(play(model, frames), exact, strict=True)) <= 4


def test_keyframe_output_does_not_depend_on_the_past(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = build(zoo, reference=reference, interval=3)
    other = video(3, seed=99, motion=1.0)
    assert torch.equal(play(model, [*frames[:3], frames[3]])[3], play(model, [*other, frames[3]])[3])


def test_on_demand_keyframe_does_not_depend_on_the_past(reference: str, frames: list[Tensor]) -> None:
    model = build("residual", reference=reference, interval=100)
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:3]:
            player(frame)
        player.start_interval()
        found = player(frames[3])
        assert (player.is_keyframe, player.position) == (True, 0)
    assert torch.equal(found, outside(model, [frames[3]])[0])


def test_reset_forgets_the_first_video(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = build(zoo, reference=reference, interval=3)
    first, second = frames[:5], video(5, seed=7)
    with torch.no_grad(), stream(model) as player:
        for frame in first:
            player(frame)
        player.reset()
        assert (player.position, player.is_keyframe, player.state_bytes()) == (-1, False, 0)
        found = [player(frame) for frame in second]
    assert_equal(found, play(model, second))


def test_clip_mode_equals_step_mode(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = build(zoo, reference=reference, interval=3)
    with torch.no_grad(), stream(model) as player:
        clip = player.clip(torch.stack(frames, dim=1))
    assert clip.shape[:2] == (2, 7)
    assert_equal(list(clip.unbind(1)), play(model, frames))


@SCHEMES
def test_interleaved_streams_equal_streams_run_apart(
    zoo: str, reference: str, precision: str, frames: list[Tensor]
) -> None:
    model = build(zoo, precision, reference=reference, interval=3)
    a, b = frames, video(7, shape=(1, 3, 16, 8), seed=5)
    with torch.no_grad(), stream(model) as first, stream(model, interval=2) as second:
        pairs = [(first(x), second(y)) for x, y in zip(a, b, strict=True)]
    assert_equal([x for x, _ in pairs], play(model, a))
    assert_equal([y for _, y in pairs], play(model, b, interval=2))


@SCHEMES
def test_permuting_the_batch_permutes_the_outputs(zoo: str, reference: str, precision: str) -> None:
    frames = video(4, shape=(3, 3, 12, 16))
    order = torch.tensor([2, 0, 1])
    model = build(zoo, precision, reference=reference, interval=4, frames=frames)
    assert_equal(play(model, [frame[order] for frame in frames]), [z[order] for z in play(model, frames)])


@SCHEMES
def test_gradient_modes_compute_the_same(zoo: str, reference: str, precision: str, frames: list[Tensor]) -> None:
    model = build(zoo, precision, reference=reference, interval=3)
    results = []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), stream(model) as player:
            results.append([player(frame).detach().clone() for frame in frames])
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


@SCHEMES
def test_gradient_modes_may_change_from_frame_to_frame(precision: str, reference: str, frames: list[Tensor]) -> None:
    model = build("residual", precision, reference=reference, interval=7)
    expected = play(model, frames)
    modes = [torch.inference_mode, torch.enable_grad, torch.no_grad, torch.inference_mode, torch.enable_grad] * 2
    with stream(model) as player:
        for mode, frame, z in zip(modes, frames, expected, strict=False):
            with mode():
                assert torch.equal(player(frame), z)


@pytest.mark.parametrize(
    ("dtype", "bits", "steps"),
    [(torch.float64, 8, 0.1), (torch.float16, 4, 1.0), (torch.bfloat16, 4, 2.0)],
    ids=["float64", "float16", "bfloat16"],
)
@SCHEMES
def test_other_dtypes_follow_model_to(
    zoo: str, reference: str, precision: str, dtype: torch.dtype, bits: int, steps: float, frames: list[Tensor]
) -> None:
    """The type is kept, repeated frames are repeated, and roundings that tip over cost a step or two of residuals."""
    model = build(zoo, precision, reference=reference, interval=3)
    expected = play(model, frames)
    found = play(model.to(dtype), [frame.to(dtype) for frame in frames])
    assert {z.dtype for z in found} == {dtype}
    lsb = step_of(torch.stack(expected), bits)
    assert max(max_lsb(z, e, lsb) for z, e in zip(found, expected, strict=True)) <= steps
    if reference == "float":
        repeated = play(model, [frames[0].to(dtype)] * 3)
        assert_equal(repeated, [repeated[0]] * 3)


@pytest.mark.parametrize("precision", ["W8A8->W4A4", DYNAMIC])
def test_autocast_keeps_the_contracts(zoo: str, precision: str, frames: list[Tensor]) -> None:
    model = build(zoo, precision, interval=3)
    with torch.autocast(frames[0].device.type, torch.bfloat16):
        outputs, single = play(model, frames), outside(model, frames)
        repeated = play(model, [frames[0]] * 3)
    assert_equal(outputs[::3], single[::3])
    assert_equal(repeated, [repeated[0]] * 3)
    assert all(z.isfinite().all() for z in outputs)


class TwoStages(nn.Module):
    """Runs a second network, with layers of the same names and a stream of its own, inside its frame."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = Plain(), [second]  # a list, so that conversion leaves it alone

    def forward(self, frame: Tensor) -> Tensor:
        return self.first(frame) + self.second[0](frame)


def test_streams_nest(reference: str, frames: list[Tensor]) -> None:
    inner = build("plain", reference=reference, interval=2)
    outer = build(lambda: TwoStages(inner), reference=reference, interval=3)
    alone = play(outer.first, frames), play(inner, frames)
    with torch.no_grad(), stream(inner) as video_of_inner:
        outer.second = [video_of_inner]
        found = play(outer, frames)
    assert_equal(found, [a + b for a, b in zip(*alone, strict=True)])


# --- aliasing -------------------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Overwrites what the layer has read and what it has returned."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.inplace = nn.Conv2d(3, 3, 3, padding=1), inplace

    def forward(self, frame: Tensor) -> Tensor:
        x = frame * 1
        z = self.conv(x)
        x = x.relu_() if self.inplace else x.relu()
        z = z.relu_() if self.inplace else z.relu()
        return x.add_(z) if self.inplace else x + z


def test_in_place_operations_around_a_layer_change_nothing(reference: str, frames: list[Tensor]) -> None:
    net = seeded(lambda: InPlace(True))
    model = build(net, reference=reference, interval=3)
    twin = build(net, reference=reference, interval=3)
    twin.inplace = False
    assert_equal(play(model, frames), play(twin, frames))


def test_the_user_may_reuse_the_frame_buffer(reference: str, frames: list[Tensor]) -> None:
    model = build("plain", reference=reference, interval=3)
    buffer = torch.empty_like(frames[0])
    found = []
    with torch.no_grad(), stream(model) as player:
        for frame in frames:
            found.append(player(buffer.copy_(frame)))
            buffer.fill_(1e6)
    assert_equal(found, play(model, frames))


def test_the_user_may_overwrite_the_outputs(reference: str, frames: list[Tensor]) -> None:
    model = build(lambda: nn.Conv2d(3, 4, 3), reference=reference, interval=3)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        for frame, z in zip(frames, expected, strict=True):
            found = player(frame)
            assert torch.equal(found, z)
            found.fill_(float("nan"))


# --- moving, copying, saving ----------------------------------------------------------------------------------------


@SCHEMES
def test_a_stream_moves_to_a_copy_of_the_model(zoo: str, reference: str, precision: str, frames: list[Tensor]) -> None:
    model = build(zoo, precision, reference=reference, interval=5)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:3]:
            player(frame)
        state = player.get_state()
        player(frames[5])  # what the first stream goes on with does not touch the state
    with torch.no_grad(), stream(copy.deepcopy(model)) as heir:
        heir.set_state(state)
        assert (heir.position, heir.is_keyframe) == (2, False)
        assert_equal([heir(frame) for frame in frames[3:]], expected[3:])
        heir.set_state(state)  # nor is it used up
        assert_equal([heir(frame) for frame in frames[3:]], expected[3:])


def test_a_state_is_a_copy_both_ways(reference: str, frames: list[Tensor]) -> None:
    """WHEN a state is overwritten after it was taken or handed over, THEN no stream notices."""
    model = build("plain", reference=reference, interval=5)
    expected = play(model, frames[:4])
    with torch.no_grad(), stream(model) as player, stream(model) as heir:
        player(frames[0])
        player(frames[1])
        state = player.get_state()
        heir.set_state(state)
        for tensor in [state["keyframe_input"], *(tensor for pair in state["caches"].values() for tensor in pair)]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        for one in (player, heir):
            assert_equal([one(frame) for frame in frames[2:4]], expected[2:])


def test_a_state_survives_torch_save(reference: str, frames: list[Tensor]) -> None:
    model = build("unet", reference=reference, interval=5)
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:2]:
            player(frame)
        file = io.BytesIO()
        torch.save(player.get_state(), file)
        expected = player(frames[2])
    file.seek(0)
    with torch.no_grad(), stream(model) as heir:
        heir.set_state(torch.load(file, weights_only=True))
        assert torch.equal(heir(frames[2]), expected)


@pytest.mark.parametrize("state", [{}, {"caches": {"conv": 1}}, {"caches": {}, "position": 0}, None])
def test_a_foreign_state_is_refused_and_changes_nothing(state: object, frames: list[Tensor]) -> None:
    model = build("plain", interval=5)
    expected = play(model, frames[:2])
    with torch.no_grad(), stream(model) as player:
        player(frames[0])
        with pytest.raises(StreamError, match=r"no state of a stream .* pass what video.get_state\(\) returned"):
            player.set_state(state)  # type: ignore[arg-type]
        assert torch.equal(player(frames[1]), expected[1])


def test_a_state_of_another_model_is_refused(frames: list[Tensor]) -> None:
    with torch.no_grad(), stream(build("plain")) as player:
        player(frames[0])
        state = player.get_state()
    with torch.no_grad(), stream(build("residual")) as other:
        with pytest.raises(StreamError, match=r"the state is of another model: it has layer 0"):
            other.set_state(state)
        assert other.position == -1


def test_the_model_holds_nothing_of_a_stream(zoo: str, reference: str, frames: list[Tensor]) -> None:
    model = build(zoo, reference=reference, interval=4)
    keys, buffers = list(model.state_dict()), dict(model.named_buffers()).keys()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    play(model, frames)  # what a layer keeps of its own weights is not a stream's
    size = len(pickle.dumps(model))
    with torch.no_grad(), stream(model) as player:
        for frame in frames[:3]:
            player(frame)
        assert player.state_bytes() > 0
        assert list(model.state_dict()) == keys
        assert dict(model.named_buffers()).keys() == buffers
        assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
        assert len(pickle.dumps(model)) == size


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_models_are_copied_and_pickled_during_an_open_stream(zoo: str, how: object, frames: list[Tensor]) -> None:
    model = build(zoo, DYNAMIC, interval=3)
    expected = play(model, frames)
    with torch.no_grad(), stream(model) as player:
        assert_equal([player(frame) for frame in frames[:2]], expected[:2])
        twin = how(model)
        assert_equal([player(frame) for frame in frames[2:]], expected[2:])
    assert_equal(play(twin, frames), expected)
    with torch.no_grad():  # the copy computes with its own weights, folded batch norms included
        for parameter in model.parameters():
            parameter.zero_()
    assert_equal(play(twin, frames), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keyframe_grid": "unsigned"},
        {"precision": DYNAMIC},
        {"weights": "channel", "reference": "running"},
        {"schedule": {"kind": "scene_change", "threshold": 0.2}},
    ],
    ids=["default", "unsigned", "dynamic", "channel", "scene-change"],
)
def test_a_state_dict_rebuilds_the_model_bit_for_bit(zoo: str, settings: dict, frames: list[Tensor]) -> None:
    config = ResQConfig.parse(**{"precision": "W8A8->W4A4", "interval": 3, **settings})
    model = fit(convert(seeded(ZOO[zoo]), config), video())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)

    fresh = convert(seeded(ZOO[zoo], seed=1), config)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)

    assert_equal(outside(fresh, frames), outside(model, frames))
    assert_equal(play(fresh, frames), play(model, frames))


@pytest.mark.parametrize("precision", ["W8A8->W4A4", DYNAMIC])
def test_a_state_dict_materializes_a_model_without_data(zoo: str, precision: str, frames: list[Tensor]) -> None:
    model = build(zoo, precision, interval=3, keyframe_grid="unsigned")
    with torch.device("meta"):
        empty = ZOO[zoo]().eval()
    convert(empty, ResQConfig.parse(precision, interval=3, keyframe_grid="unsigned"))
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert_equal(play(empty, frames), play(model, frames))


def test_float_weights_load_strictly_and_keep_the_ranges(zoo: str, frames: list[Tensor]) -> None:
    model = build(zoo)
    other = seeded(ZOO[zoo], seed=1)
    scales = {key: value for key, value in model.state_dict().items() if key.endswith("scale")}
    model.load_state_dict(other.state_dict(), strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in scales.items())
    with torch.no_grad(), dense_execution():
        found = model(frames[0])
    with torch.no_grad():
        expected = other(frames[0])
    assert max_lsb(found, expected, step_of(expected)) <= 1  # folded and not folded differ by rounding


@pytest.mark.parametrize("settings", [{}, {"precision": DYNAMIC}], ids=["static", "dynamic"])
def test_float_state_dict_loads_strictly_back(zoo: str, settings: dict) -> None:
    net = seeded(ZOO[zoo])
    expected = copy.deepcopy(net.state_dict())
    model = fit(convert(net, ResQConfig.parse(**{"precision": "W8A8->W4A4", **settings})), video())
    found = float_state_dict(model)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    seeded(ZOO[zoo], seed=1).load_state_dict(found, strict=True)


def test_revert_restores_the_float_model(zoo: str, frames: list[Tensor]) -> None:
    net = seeded(ZOO[zoo])
    expected, types = outside(net, frames), [type(module) for module in net.modules()]
    weights, attributes = copy.deepcopy(net.state_dict()), [set(vars(module)) for module in net.modules()]
    model = fit(convert(net, ResQConfig.parse(DYNAMIC, schedule={"kind": "scene_change", "threshold": 0.1})), frames)
    play(model, frames)

    assert revert(model) is net

    assert_equal(outside(net, frames), expected)
    assert [type(module) for module in net.modules()] == types
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert list(net.state_dict()) == list(weights)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in weights.items())
    assert_equal(play(fit(convert(net, DYNAMIC), video()), frames), play(build(zoo, DYNAMIC), frames))


# --- threads --------------------------------------------------------------------------------------------------------


def test_eight_threads_with_a_stream_each_equal_serial(reference: str) -> None:
    model = build("residual", DYNAMIC, reference=reference, interval=3)
    videos = [video(6, seed=seed) for seed in range(8)]
    expected = [play(model, frames) for frames in videos]
    together = threading.Barrier(8)

    def work(frames: list[Tensor]) -> list[Tensor]:
        together.wait()
        return play(model, frames)

    model.load_state_dict(model.state_dict())  # so that the threads also compete for the weight caches
    with ThreadPoolExecutor(8) as pool:
        for found, serial in zip(pool.map(work, videos), expected, strict=True):
            assert_equal(found, serial)


class Waits(nn.Module):
    """Stops in the middle of a frame until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.reached, self.go_on = None, None

    def forward(self, frame: Tensor) -> Tensor:
        z = self.conv(frame)
        if self.reached is not None:
            self.reached.set()
            assert self.go_on.wait(10)
        return z


def test_one_stream_in_two_threads_at_once_is_refused(frames: list[Tensor]) -> None:
    model = build(Waits, interval=3)
    expected = play(model, frames[:2])
    model.reached, model.go_on = threading.Event(), threading.Event()
    with torch.no_grad(), stream(model) as player, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: player(frames[0]).detach())
        assert model.reached.wait(10)
        with pytest.raises(StreamError, match=r"busy in another thread; open one stream per video"):
            player(frames[1])
        model.go_on.set()
        assert torch.equal(running.result(10), expected[0])
        assert torch.equal(player(frames[1]), expected[1])  # one after the other is fine


def test_an_executor_is_active_in_its_own_thread_only(frames: list[Tensor]) -> None:
    model = build(Plain, interval=3)
    expected = outside(model, [frames[1]])[0]
    with torch.no_grad(), stream(model) as player, ThreadPoolExecutor(1) as pool:
        player(frames[0])
        with player.frame(frames[1]):
            single = pool.submit(lambda: outside(model, [frames[1]])[0]).result(10)
            residual = model(frames[1])
    assert torch.equal(single, expected)
    assert not torch.equal(residual, expected)

"""The two paths of every kind of layer against Eq. 5 written out with plain `torch.nn` layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_equal, build, eq1, eq6, eq7, fit, max_lsb, play, seeded, step_of, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, dense_execution, stream
from resq_plugin.errors import CalibrationError, ConversionError
from resq_plugin.method.kept_numbers import settled_numbers
from resq_plugin.method.layers import ResidualLayer, residual_layers


class Case(NamedTuple):
    """A layer, the shape of its input, and the options of its call."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple has no mutable fields


CASES = {
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
    "conv1d-dilated": Case(lambda: nn.Conv1d(4, 6, 3, dilation=2, groups=2, padding=2), (2, 4, 9)),
    "conv2d": Case(lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 7)),
    "conv2d-1x1": Case(lambda: nn.Conv2d(3, 5, 1), (2, 3, 6, 7)),
    "conv2d-no-bias": Case(lambda: nn.Conv2d(3, 5, 3, bias=False), (2, 3, 6, 7)),
    "conv2d-stride": Case(lambda: nn.Conv2d(3, 5, (3, 5), stride=(2, 3), padding=(1, 2)), (2, 3, 9, 8)),
    "conv2d-dilation": Case(lambda: nn.Conv2d(3, 5, 3, dilation=(2, 1), padding=2), (2, 3, 8, 7)),
    "conv2d-groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 6, 7)),
    "conv2d-depthwise": Case(lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 6, 7)),
    "conv2d-same": Case(lambda: nn.Conv2d(3, 5, (3, 5), padding="same", dilation=(2, 1)), (2, 3, 8, 7)),
    "conv2d-valid": Case(lambda: nn.Conv2d(3, 5, 3, padding="valid"), (2, 3, 6, 7)),
    "conv2d-reflect": Case(lambda: nn.Conv2d(3, 5, 3, padding=2, padding_mode="reflect"), (2, 3, 6, 7)),
    "conv2d-replicate": Case(lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="replicate"), (2, 3, 6, 7)),
    "conv2d-circular": Case(lambda: nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 6, 7)),
    "conv2d-same-circular": Case(lambda: nn.Conv2d(3, 5, 3, padding="same", padding_mode="circular"), (2, 3, 6, 7)),
    "conv3d": Case(lambda: nn.Conv3d(2, 4, (2, 3, 3), stride=(1, 2, 2), padding=1), (2, 2, 4, 6, 5)),
    "conv3d-replicate": Case(
        lambda: nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate", groups=2), (2, 2, 3, 4, 5)
    ),
    "transposed1d": Case(lambda: nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1, output_padding=2), (2, 4, 6)),
    "transposed2d": Case(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 4)),
    "transposed2d-groups": Case(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2), (2, 4, 5, 4)
    ),
    "transposed2d-depthwise": Case(lambda: nn.ConvTranspose2d(4, 4, 4, stride=2, groups=4, bias=False), (2, 4, 5, 4)),
    "transposed2d-output-size": Case(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (2, 4, 5, 4), {"output_size": [10, 7]}
    ),
    "transposed3d": Case(
        lambda: nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1, groups=2), (2, 4, 3, 2, 2), {"output_size": [6, 3, 4]}
    ),
    "linear-NC": Case(lambda: nn.Linear(7, 5), (4, 7)),
    "linear-NLC": Case(lambda: nn.Linear(7, 5, bias=False), (2, 6, 7)),
    "linear-NHWC": Case(lambda: nn.Linear(7, 5), (2, 3, 4, 7)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """One kind of layer."""
    return CASES[request.param]


def plain(layer: nn.Module, weight: Tensor, *, bias: bool) -> nn.Module:
    """A plain `torch.nn` layer with another weight."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.copy_(weight)
    if not bias:
        twin.bias = None
    return twin.eval().requires_grad_(False)


def quantized_weight(layer: nn.Module, bits: int, weights: str) -> Tensor:
    """ŵ by Eq. 1, 6 and 7, output channel by output channel where asked for."""
    weight = layer.weight.detach()
    if weights == "tensor":
        return eq7(weight, bits)
    result = torch.empty_like(weight)
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        for channel in range(weight.shape[0]):
            result[channel] = eq7(weight[channel], bits)
        return result
    per_group = weight.shape[0] // layer.groups  # (C_in, C_out / groups, *kernel)
    for group in range(layer.groups):
        inputs = slice(group * per_group, (group + 1) * per_group)
        for channel in range(weight.shape[1]):
            result[inputs, channel] = eq7(weight[inputs, channel], bits)
    return result


def clip_of(case: Case, count: int = 4) -> list[Tensor]:
    return video(count, case.shape, motion=0.2)


# --- Eq. 5 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("precision", ["W4A8->W3A5", "W8A4->W4A{0,4,8}"])
def test_both_paths_are_equation_5(case: Case, weights: str, precision: str) -> None:
    frames = clip_of(case)
    layer = seeded(case.make)
    resq = build(layer, precision, frames, weights=weights)
    keyframe, residual = resq.settings.keyframe, resq.settings.residual
    x, delta = frames[0], frames[1] - frames[0]
    x_hat = eq1(x, eq6(*quantizer_range(resq.keyframe_quantizer), keyframe.pool[0]), keyframe.pool[0])
    w_phi, w_theta = (quantized_weight(layer, bits, weights) for bits in (keyframe.weight, residual.weight))

    with torch.no_grad():
        assert torch.equal(resq.weight_of("keyframe"), w_phi)
        assert torch.equal(resq.weight_of("residual"), w_theta)
        assert torch.equal(resq.quantize_keyframe(x), x_hat)
        assert torch.equal(resq.keyframe(x, **case.options), plain(layer, w_phi, bias=True)(x_hat, **case.options))
        delta_hat, _ = resq.quantize_residual(delta)
        if not residual.is_dynamic:
            s = eq6(*quantizer_range(resq.residual_quantizers[0]), residual.pool[0])
            assert torch.equal(delta_hat, eq1(delta, s, residual.pool[0]))
        found = resq.residual(delta, **case.options)
        assert torch.equal(found, plain(layer, w_theta, bias=False)(delta_hat, **case.options))


def quantizer_range(quantizer: nn.Module) -> tuple[Tensor, Tensor]:
    """The range whose Eq. 6 gives back the very scale of a quantizer."""
    half = quantizer.scale.detach().double() * (2**quantizer.bits - 1) / 2
    return (-half, half)


@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_an_interval_is_equation_5_for_every_reference(case: Case, weights: str, reference: str) -> None:
    """The three references written out, for a keyframe and three residual frames."""
    frames = clip_of(case)
    layer = seeded(case.make)
    resq = build(layer, "W8A8->W4A4", frames, weights=weights, reference=reference, interval=4)
    s_phi = resq.keyframe_quantizer.scale.detach()
    s_theta = resq.residual_quantizers[0].scale.detach()
    apply_phi = plain(layer, quantized_weight(layer, 8, weights), bias=True)
    apply_theta = plain(layer, quantized_weight(layer, 4, weights), bias=False)

    x_hat = eq1(frames[0], s_phi, 8)
    z = apply_phi(x_hat, **case.options)
    expected = [z]
    x_k = frames[0] if reference == "float" else x_hat
    for x_t in frames[1:]:
        delta_hat = eq1(x_t - x_k, s_theta, 4)
        expected.append(apply_theta(delta_hat, **case.options) + z)
        if reference == "running":
            x_k, z = x_k + delta_hat, expected[-1]

    with torch.no_grad(), stream(resq) as player:
        assert_equal([player(frame, **case.options) for frame in frames], expected)


def test_sixteen_bits_are_within_three_steps_of_float_and_the_bias_counts_once(case: Case, reference: str) -> None:
    frames = clip_of(case)
    layer = seeded(case.make)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 1.0)  # much more than three steps
    resq = build(layer, "W16A16->W16A16", frames, reference=reference, interval=4)
    with torch.no_grad():
        expected = [layer(frame, **case.options) for frame in frames]
        with stream(resq) as player:
            found = [player(frame, **case.options) for frame in frames]
    lsb = step_of(torch.stack(expected), 16)
    assert max(max_lsb(z, e, lsb) for z, e in zip(found, expected, strict=True)) <= 3


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_error_stays_below_its_bound(case: Case, bits: int) -> None:
    """|z_t - z| <= |x_k| * |w - ŵ| + s_Φ/2 * |ŵ| + |δ| * |w - ŵ| + s_Θ/2 * |ŵ|, in exact arithmetic."""
    frames = [frame.double() for frame in clip_of(case)]
    layer = seeded(case.make).double()
    resq = build(layer, f"W{bits}A{bits}->W{bits}A{bits}", frames, interval=4)
    w = layer.weight.detach()
    w_hat = eq7(w, bits)
    apply = lambda x, weight: plain(layer, weight, bias=False)(x, **case.options)  # noqa: E731

    def bound(x: Tensor, quantizer: nn.Module) -> Tensor:
        half_step = torch.full_like(x, float(quantizer.scale.detach()) / 2)
        return apply(x.abs(), (w - w_hat).abs()) + apply(half_step, w_hat.abs())

    with torch.no_grad(), stream(resq) as player:
        for t, frame in enumerate(frames):
            error = (player(frame, **case.options) - layer(frame, **case.options)).abs()
            limit = bound(frames[0], resq.keyframe_quantizer)
            if t:
                limit = limit + bound(frame - frames[0], resq.residual_quantizers[0])
            assert bool((error <= limit * (1 + 1e-6) + 1e-9).all())


def test_zero_bit_residuals_repeat_the_keyframe(case: Case) -> None:
    frames = clip_of(case)
    resq = build(seeded(case.make), "W8A8->W8A0", frames, interval=4)
    with torch.no_grad(), stream(resq) as player:
        found = [player(frame, **case.options) for frame in frames]
    assert_equal(found, [found[0]] * 4)


def test_choices_have_the_shape_of_the_input_pixels(case: Case) -> None:
    frames = clip_of(case)
    resq = build(seeded(case.make), "W8A8->W4A{0,4,8}", frames, interval=4)
    with torch.no_grad(), stream(resq, record_choices=True) as player:
        player(frames[0], **case.options)
        assert player.choices == {}
        player(frames[1], **case.options)
        (bits,) = player.choices.values()
        shares = player.bit_shares()[""]
    shape = case.shape[:-1] if isinstance(resq, nn.Linear) else (case.shape[0], *case.shape[2:])
    assert tuple(bits.shape) == shape
    assert set(bits.unique().tolist()) <= {0, 4, 8}
    assert shares == pytest.approx({b: float((bits == b).float().mean()) for b in (0, 4, 8)})


def test_dense_execution_is_the_float_layer(case: Case) -> None:
    frames = clip_of(case)
    layer = seeded(case.make)
    resq = build(layer, frames=frames)
    with torch.no_grad(), dense_execution():
        assert torch.equal(resq(frames[1], **case.options), layer(frames[1], **case.options))


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
@pytest.mark.parametrize("granularity", ["pixel", "region", "frame"])
def test_unbatched_inputs_work_as_in_torch(precision: str, granularity: str) -> None:
    frames = video(3)
    policy = {"granularity": granularity, "threshold": 0.05, "region": 4}
    resq = build(lambda: nn.Conv2d(3, 5, 3, padding=1), precision, frames, policy=policy)
    assert_equal(play(resq, [frame[0] for frame in frames]), [z[0] for z in play(resq, [f[:1] for f in frames])])


def test_output_size_may_be_positional() -> None:
    frames = video(3, (2, 4, 5, 4))
    resq = build(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), frames=frames)
    with torch.no_grad(), stream(resq) as player:
        assert [player(frame, [10, 8]).shape for frame in frames] == [(2, 6, 10, 8)] * 3
        player.reset()
        assert player(frames[0], output_size=[9, 7]).shape == (2, 6, 9, 7)


def test_the_input_may_be_named() -> None:
    frames = video(2)
    resq = build(lambda: nn.Conv2d(3, 5, 3), frames=frames)
    with torch.no_grad():
        assert torch.equal(resq(input=frames[0]), resq(frames[0]))


# --- grids ----------------------------------------------------------------------------------------------------------


def test_unsigned_keyframe_grid_uses_all_its_steps_where_inputs_are_not_negative() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    frames = video(4)
    model = build(Net, "W8A4->W4A4", frames, keyframe_grid="unsigned")
    first, second = model[0].keyframe_quantizer, model[2].keyframe_quantizer
    assert (first.signed, second.signed) == (True, False)  # the frame itself has negative values
    with torch.no_grad(), dense_execution():
        x = torch.relu(model[0](frames[0]))
    s = torch.tensor(second.range[1]) / 15
    with torch.no_grad():
        integers = (second(x) / s).round()
    assert torch.equal(integers, torch.clamp(torch.round(x / s), 0, 15))
    assert integers.max() > 7  # beyond the half that a symmetric grid of 4 bits would give
    assert all(quantizer.signed for layer in (model[0], model[2]) for quantizer in layer.residual_quantizers)


# --- the cache of quantized weights ---------------------------------------------------------------------------------


class Normed(nn.Sequential):
    """A convolution with a foldable batch norm, and one without."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3))


def sgd_step(model: nn.Module, frame: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(frame).square().mean().backward()
    optimizer.step()


def load(model: nn.Module, frame: Tensor, **options: Any) -> None:
    state = model.state_dict()
    state["0.weight"] = state["0.weight"] * 1.5
    model.load_state_dict(state, **options)


def flat_parameters(model: nn.Module, frame: Tensor) -> None:
    """Weights become views of one vector, at offsets of every alignment, as `vector_to_parameters` makes them."""
    parameters = [parameter for name, parameter in model.named_parameters() if not name.endswith("scale")]
    storage = torch.empty(1 + sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    offset = 1
    for parameter in parameters:
        view = storage[offset : offset + parameter.numel()].view(parameter.shape)
        parameter.data = view.copy_(1.5 * parameter.detach())
        offset += parameter.numel()


@torch.no_grad()
def in_place(model: nn.Module, frame: Tensor) -> None:
    model[0].weight.mul_(1.5)


CHANGES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "optimizer step": sgd_step,
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda model, frame: load(model, frame, assign=True),
    "in place": in_place,
    ".data in place": lambda model, frame: model[0].weight.data.mul_(1.5),
    ".data of one value": lambda model, frame: model[0].weight.data[1, 0].fill_(3.0),
    ".data of the bias": lambda model, frame: model[2].bias.data.add_(1.0),
    ".data replaced": lambda model, frame: setattr(model[0].weight, "data", model[0].weight.data * 1.5),
    "new Parameter": lambda model, frame: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach() * 1.5)),
    "flat parameters": flat_parameters,
    "batch norm mean": lambda model, frame: model[1].running_mean.add_(0.5),
    "batch norm variance": lambda model, frame: model[1].running_var.mul_(2),
    "batch norm affine": lambda model, frame: (model[1].weight.data.mul_(2), model[1].bias.data.add_(1)),
}


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "not-folded"])
@pytest.mark.parametrize(
    "kind",
    [torch.float32, torch.float64, torch.bfloat16, torch.channels_last],
    ids=["float32", "float64", "bfloat16", "channels_last"],
)
@pytest.mark.parametrize("change", CHANGES)
def test_quantized_weights_follow_every_change(change: str, kind: Any, fold: bool) -> None:
    """WHEN weights or statistics change by any route, THEN frames are computed with the new ones."""
    frames = video(3)
    model = build(Normed, frames=frames, fold=fold)
    if isinstance(kind, torch.memory_format):
        model.to(memory_format=kind)
    else:
        model.to(kind)
        frames = [frame.to(kind) for frame in frames]
    before = play(model, frames)

    CHANGES[change](model, frames[0])

    found = play(model, frames)
    assert not torch.equal(found[0], before[0])
    assert not torch.equal(found[1], before[1])
    assert_equal(found, play(copy.deepcopy(model), frames))  # copies start with an empty cache


def test_loading_forgets_quantized_weights_whatever_was_noticed(frames: list[Tensor]) -> None:
    """A permutation through ``.data`` leaves version and checksum as they were; loading makes up for it."""
    model = build(Normed, frames=frames)
    play(model, frames)
    model[2].weight.data.copy_(model[2].weight.data.flip(0).clone())
    model.load_state_dict(model.state_dict())
    assert_equal(play(model, frames), play(copy.deepcopy(model), frames))


def test_weights_are_quantized_once_as_long_as_nothing_changes() -> None:
    frames = video(3)
    model = build(Normed, frames=frames)
    play(model, frames)
    with torch.no_grad(), settled_numbers(layer for _, layer in layers_of(model)):
        kept = {(name, kind): layer.weight_of(kind) for name, layer in layers_of(model) for kind in KINDS}
    play(model, frames)
    with torch.inference_mode():
        play(model, frames)
        with settled_numbers(layer for _, layer in layers_of(model)):
            for name, layer in layers_of(model):
                for kind in KINDS:
                    assert layer.weight_of(kind) is kept[name, kind]


KINDS = ("float", "keyframe", "residual")


def layers_of(model: nn.Module) -> list[tuple[str, ResidualLayer]]:
    return list(residual_layers(model).items())


def test_weights_cached_in_inference_mode_serve_training() -> None:
    frames = video(2)
    model = build(Normed, frames=frames)
    with torch.inference_mode():
        expected = model(frames[0]).clone()
    model.requires_grad_(False)  # so that the cached weights are used with gradients enabled
    x = frames[0].clone().requires_grad_()
    z = model(x)
    z.sum().backward()
    assert torch.equal(z.detach(), expected)
    assert x.grad.abs().sum() > 0


def test_models_made_in_inference_mode_work() -> None:
    frames = video(4)
    expected = play(build("plain", frames=frames), frames)
    with torch.inference_mode():
        model = build("plain", frames=frames)
        assert_equal(play(model, frames), expected)
    assert_equal(play(model, frames), expected)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.ConvTranspose2d(4, 6, 3, groups=2)])
@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_channels_last_computes_the_same_values(make: Callable[[], nn.Module], weights: str) -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(make(), nn.BatchNorm2d(6))

    frames = video(4, (2, 4, 6, 5))
    model = build(Net, "W8A8->W4A{0,4,8}", frames, weights=weights)
    assert len(model[0]._folded) == 1
    expected = play(model, frames)
    found = play(
        model.to(memory_format=torch.channels_last), [f.to(memory_format=torch.channels_last) for f in frames]
    )
    lsb = step_of(torch.stack(expected), 16)
    assert max(max_lsb(a, b, lsb) for a, b in zip(found, expected, strict=True)) <= 1


# --- dead channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
def test_dead_weights_and_dead_inputs_are_finite(weights: str, dtype: torch.dtype, precision: str) -> None:
    """GIVEN a pruned filter, a pruned layer and an input that is always zero, THEN nothing divides by zero."""

    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
            nn.init.zeros_(self[0].weight[1])
            nn.init.zeros_(self[2].weight)
            nn.init.zeros_(self[2].bias)
            nn.init.constant_(self[3].bias, 0.5)

    with torch.no_grad():
        net = seeded(Net)
    frames = video(4)
    model = build(net, precision, frames, weights=weights).to(dtype)
    for z in play(model, [frame.to(dtype) for frame in frames]):
        assert torch.equal(z, torch.full_like(z, 0.5))


# --- uncalibrated ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_stream", [False, True], ids=["outside", "stream"])
def test_an_uncalibrated_model_names_layer_and_call(in_stream: bool) -> None:
    model = convert(seeded(Normed), ResQConfig.parse("W8A8->W4A4"))
    run = stream(model) if in_stream else model
    with pytest.raises(
        CalibrationError,
        match=r"^layer 0 \(keyframe\) has no range; call resq_plugin\.calibrate\(model, clips\) before you run",
    ):
        run(video(1)[0])


def test_an_uncalibrated_residual_quantizer_is_named_too() -> None:
    frames = video(2)
    model = build(Normed, "W8A8->W4A5", frames)
    with torch.no_grad():
        model[2].residual_quantizers[0].scale.zero_()
    with pytest.raises(CalibrationError, match=r"^layer 2 \(residual, 5 bits\) has no range"):
        play(model, frames)


def test_a_model_whose_parts_were_converted_apart_is_refused() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 3, 1)), "b": nn.Sequential(nn.Conv2d(3, 3, 1))})
    convert(model["a"], "W8A8->W4A4")
    convert(model["b"], "W8A8->W4A4")
    fit(model["a"], video(2))  # each part works alone
    with pytest.raises(
        ConversionError, match=r"two ResQ layers named '0', because its parts were converted one by one"
    ):
        stream(model)


def test_a_float_model_has_no_stream() -> None:
    with pytest.raises(
        ConversionError, match=r"Normed has no ResQ layer; call resq_plugin\.convert\(model, config\) first"
    ):
        stream(Normed())

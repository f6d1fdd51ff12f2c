"""Gradients of both paths, against finite differences of the unrounded function and between backends.

The straight-through gradient is the true gradient of the function in which every rounding error is a constant:
round(x / s) = x / s + e with e held at its value. So central differences of that function in float64 must agree.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_training import cross_entropy, labelled_clips, make_net
from torch import Tensor, nn

from resq_plugin import calibrate, convert
from resq_plugin.config import ResQConfig
from resq_plugin.errors import TrainingError
from resq_plugin.method.layers import residual_layers
from resq_plugin.training import TrainConfig, prepare_ranges, train, unroll
from resq_plugin.training.ranges import check_ranges

STEP = 1e-6


class Unrounded:
    """q(x) = s clamp(round(x / s)) whose rounding errors are recorded first and constant afterwards."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []
        self.recording = True
        self.place = 0

    def __call__(self, x: Tensor, s: Tensor, bits: int) -> Tensor:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        if self.recording:
            rounded = torch.round(x / s)
            inside = (rounded >= low) & (rounded <= high)
            self.errors.append(torch.where(inside, rounded - x / s, torch.full_like(x, torch.nan)))
            self.ends = (low, high)
            return s * rounded.clamp(low, high)
        error = self.errors[self.place]
        self.place += 1
        ends = torch.where(x > 0, float(high), float(low)).to(x.dtype)  # those outside stay outside
        return s * torch.where(error.isnan(), ends, x / s + error)


def by_hand(frames: list[Tensor], p: dict[str, Tensor], q: Unrounded, bits: dict[str, int], reference: str) -> Tensor:
    """Loss of two convolutions with a ReLU between, Eq. 5 written out for every frame."""
    q.place = 0
    caches: dict[str, tuple[Tensor, Tensor]] = {}
    w_k = {n: q(p[f"{n}.weight"], p[f"{n}.s_wk"], bits["wk"]) for n in ("0", "2")}
    w_r = {n: q(p[f"{n}.weight"], p[f"{n}.s_wr"], bits["wr"]) for n in ("0", "2")}
    loss = torch.zeros((), dtype=torch.float64)
    for t, frame in enumerate(frames):
        x = frame
        for name in ("0", "2"):
            if t == 0:
                x_hat = q(x, p[f"{name}.s_k"], bits["k"])
                z = F.conv2d(x_hat, w_k[name], p[f"{name}.bias"], padding=1)
                caches[name] = (x if reference == "float" else x_hat, z)
            else:
                before, z_before = caches[name]
                delta = q(x - before, p[f"{name}.s_r"], bits["r"])
                z = z_before + F.conv2d(delta, w_r[name], None, padding=1)
                if reference == "running":
                    caches[name] = (before + delta, z)
            x = z.relu() if name == "0" else z
        loss = loss + (t + 1) * x.square().mean()
    return loss


def net() -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model.eval()


def clip() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((3, 1, 2, 4, 5), generator=generator, dtype=torch.float64)
    noise[1:] *= 0.3
    return list(noise.cumsum(0))


def gradients(
    backend: str, reference: str, precision: str = "W4A4->W3A3", dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor]:
    """The converted net after one backward, and its loss."""
    frames = [frame.to(dtype) for frame in clip()]
    model = convert(
        net().to(dtype), ResQConfig.parse(precision, reference=reference, backend=backend, weights="channel")
    )
    calibrate(model, [frames])
    for layer in residual_layers(model).values():
        layer.learn_weight_scales()
    model.train()
    outputs = list(unroll(model, frames))
    loss = sum((t + 1) * output.square().mean() for t, output in enumerate(outputs))
    loss.backward()
    return model, loss.detach()


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_gradients_are_finite_differences_of_the_unrounded_function(reference: str) -> None:
    model, loss = gradients("torch", reference)
    layers = residual_layers(model)
    leaves: dict[str, Tensor] = {}
    for name, layer in layers.items():
        leaves[f"{name}.weight"], leaves[f"{name}.bias"] = layer.weight, layer.bias
        leaves[f"{name}.s_wk"], leaves[f"{name}.s_wr"] = layer.keyframe_weight_scale, layer.residual_weight_scale
        leaves[f"{name}.s_k"] = layer.keyframe_quantizer.scale
        leaves[f"{name}.s_r"] = layer.residual_quantizers[0].scale
    values = {name: leaf.detach().double() for name, leaf in leaves.items()}
    q, bits = Unrounded(), {"k": 4, "r": 3, "wk": 4, "wr": 3}
    frames = clip()
    assert float(by_hand(frames, values, q, bits, reference)) == pytest.approx(float(loss), abs=1e-9)
    q.recording = False
    assert float(by_hand(frames, values, q, bits, reference)) == pytest.approx(float(loss), abs=1e-9)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        expected = torch.zeros_like(values[name])
        for index in range(expected.numel()):
            for sign in (1, -1):
                moved = values[name].clone()
                moved.view(-1)[index] += sign * STEP
                expected.view(-1)[index] += (
                    sign * by_hand(frames, {**values, name: moved}, q, bits, reference) / (2 * STEP)
                )
        size = float(expected.abs().max())
        assert size > 1e-4, name
        assert float((leaf.grad.double() - expected).abs().max()) < 1e-5 * max(size, 1), name


@pytest.mark.parametrize("backend", ["aimet", "brevitas"])
@pytest.mark.parametrize("precision", ["W4A4->W3A3", "W4A4->W3A{0,2,4}"])
def test_other_backends_have_the_gradients_of_torch(backend: str, precision: str) -> None:
    pytest.importorskip({"aimet": "aimet_torch", "brevitas": "brevitas"}[backend])
    expected, loss = gradients("torch", "float", precision, torch.float32)
    found, other = gradients(backend, "float", precision, torch.float32)
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    theirs = residual_layers(found)
    for name, layer in residual_layers(expected).items():
        for key in ("weight", "bias"):
            ours, grad = getattr(layer, key).grad, getattr(theirs[name], key).grad
            assert float((ours - grad).abs().max()) < 1e-4 * float(ours.abs().max()), (name, key)


@pytest.mark.parametrize("backend", ["aimet", "brevitas"])
@pytest.mark.parametrize("precision", ["W4A4->W3A3", "W4A4->W4A{0,2,4}", "W4A4"])
def test_other_backends_train_through_the_same_trainer(backend: str, precision: str) -> None:
    """The loss curves of all backends start alike and fall; ranges are trained; a dead one is found."""
    pytest.importorskip({"aimet": "aimet_torch", "brevitas": "brevitas"}[backend])
    clips = labelled_clips()
    config = TrainConfig(steps=12, batch=4, lr=5e-3)
    curves = []
    for name in ("torch", backend):
        model = make_net(precision, backend=name, weights="channel")
        ranges = prepare_ranges(model, config)
        before = {key: found.scale().clone() for key, found in ranges.items()}
        curves.append(train(model, clips, cross_entropy, config).losses)
        moved = [key for key, found in ranges.items() if not torch.equal(found.scale(), before[key])]
        assert len(moved) == len(ranges)
        kinds = {key.rpartition(".")[2] for _, key in ranges}
        assert kinds == {"activation", "weight"}
        assert all(layer in {"0", "3", "5"} for layer, _ in ranges)
    assert curves[1][0] == pytest.approx(curves[0][0], abs=1e-3)
    assert sum(curves[1][-3:]) < sum(curves[1][:3])
    (layer, _), found = next(iter(ranges.items()))
    with torch.no_grad():
        for parameter in found.parameters:
            parameter.zero_()
    with pytest.raises(TrainingError, match=rf"layer {layer} .*became 0 in step 5; kept"):
        check_ranges(ranges, 5, "kept.")

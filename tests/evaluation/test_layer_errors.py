"""Errors per layer against the same written out by hand."""

from __future__ import annotations

import pytest
import torch
from helpers import Plain, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.evaluation import measure_layers
from resq_plugin.method import dense_execution


def relative(found: Tensor, expected: Tensor, z: Tensor) -> float:
    return float((found - expected).double().norm() / z.double().norm())


def test_one_layer_by_hand() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))
    frames = video(2, (1, 3, 10, 12))
    convert(net, ResQConfig.parse("W8A8->W4A4", interval=2))
    calibrate(net, [frames])
    (found,) = measure_layers(net, frames, 2)
    layer = net[0]
    with torch.no_grad():
        x_k, x_t = frames
        delta = x_t - x_k
        w, w_hat, bias = layer.weight_of("float"), layer.weight_of("residual"), layer.bias
        z, step = layer.dense(x_t), layer.residual_quantizers[0].scale
        exact = layer.linear(delta, w, None)
        delta_hat = (delta / step).round().clamp(-8, 7) * step
        ratio = x_t.abs().max() / delta.abs().max()
        x_hat = (x_t / ratio / step).round().clamp(-8, 7) * step * ratio
        expected = {
            "residual_error": relative(layer.linear(delta_hat, w_hat, None), exact, z),
            "weight_error": relative(layer.linear(delta, w_hat, None), exact, z),
            "activation_error": relative(layer.linear(delta_hat, w, None), exact, z),
            "frame_error": relative(layer.linear(x_hat, w_hat, bias), z, z),
        }
        assert {key: getattr(found, key) for key in expected} == pytest.approx(expected, rel=1e-5)
        assert found.frame_variance == pytest.approx(float(x_t.double().var(correction=0)), rel=1e-5)
        assert found.residual_variance == pytest.approx(float(delta.double().var(correction=0)), rel=1e-5)
    assert found.cause in ("weights", "activations")


def test_residuals_of_a_calm_video_vary_less_and_err_less_than_frames() -> None:
    net = seeded(Plain)
    frames = video(6, (1, 3, 16, 16), motion=0.02)
    convert(net, ResQConfig.parse("W8A8->W4A4", interval=3))
    calibrate(net, [frames[:3], frames[3:]])
    found = measure_layers(net, frames, 3)
    assert [layer.name for layer in found] == ["0", "3", "5"]
    assert all(layer.residual_variance < layer.frame_variance for layer in found)
    assert all(layer.residual_error < layer.frame_error for layer in found)


def test_nothing_of_the_model_changes_and_pools_are_measured_as_they_choose() -> None:
    net = seeded(Plain)
    frames = video(4, (1, 3, 12, 12))
    convert(net, ResQConfig.parse("W8A8->W4A{0,4,8}", interval=2))
    calibrate(net, [frames])
    with torch.no_grad(), dense_execution():
        before = net(frames[1])
        measure_layers(net, frames, 2)
        assert torch.equal(net(frames[1]), before)


def test_a_model_without_residuals_has_no_layer_to_show() -> None:
    net = seeded(Plain)
    convert(net, "W8A8")
    calibrate(net, [video(3, (1, 3, 12, 12))])
    assert measure_layers(net, video(3, (1, 3, 12, 12)), 3) == []

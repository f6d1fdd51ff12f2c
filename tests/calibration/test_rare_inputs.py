"""Inputs whose weight lies in a small place, such as a mask, that the sampled windows may miss."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import eq1, eq7, seeded
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.calibration.collect import Collector
from resq_plugin.calibration.layer_samples import LayerSamples
from resq_plugin.calibration.ranges import candidate_ranges
from resq_plugin.method import executing, residual_layers

FEW = {"samples": 4, "positions": 16}
"""One window of 4 × 4 per frame."""


def masks(length: int = 2) -> list[Tensor]:
    """Frames (1, 1, 64, 64): almost nothing everywhere, and a square of ones that moves by two pixels."""
    generator = torch.Generator().manual_seed(0)
    frames = 0.01 * torch.rand(length, 1, 1, 64, 64, generator=generator)
    for t, frame in enumerate(frames):
        frame[..., 8:16, 40 + 2 * t : 48 + 2 * t] = 1.0
    return list(frames)


def converted(reference: str = "float", **settings: Any) -> Any:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False)))
    config = ResQConfig.parse("W8A4->W8A4", interval=2, reference=reference, calibration={**FEW, **settings})
    return convert(net, config)


def optimum(x: Tensor, bounds: tuple[float, float], weight: Tensor) -> float:
    """The half range of the least loss of Eq. 8 on full maps."""
    target = F.conv2d(x, weight, padding=1)
    losses = {}
    for half in candidate_ranges(*bounds, 20):
        x_hat = eq1(x, 2 * half / 15, 4)
        losses[half] = float((F.conv2d(x_hat, eq7(weight, 8), padding=1) - target).double().square().sum())
    return min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_full_maps_decide_where_windows_miss_what_is_rare(reference: str) -> None:
    clip = masks()
    model = converted(reference, recheck=4)
    calibrate(model, [clip])
    layer = model[0]
    weight = layer.weight.detach()
    x = torch.cat(clip)
    half = optimum(x, (float(x.min()), float(x.max())), weight)
    assert half > 0.9
    assert layer.keyframe_quantizer.range[1] == pytest.approx(half, rel=1e-5)
    change = clip[1] - clip[0]
    if reference == "float":
        expected = optimum(change, (float(change.min()), float(change.max())), weight)
        assert layer.residual_quantizers[0].range[1] == pytest.approx(expected, rel=1e-5)
    assert layer.residual_quantizers[0].range[1] > 0.9  # a change from 0 to 1


def test_a_trusted_sample_that_is_not_typical_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        calibrate(converted(recheck=0), [masks()])
    assert "layers 0 hold less than half or more than twice" in caplog.text
    assert "calibration=dict(recheck=4)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        calibrate(converted(recheck=0, positions=65536), [masks()])
    assert "hold less than half" not in caplog.text


@pytest.mark.parametrize("bits", [8, 16])
def test_with_many_bits_a_single_pixel_that_no_window_shows_is_not_clipped(bits: int) -> None:
    """Windows are as typical as can be; at 8 bits the pixel is worth less than the steps of all others."""
    generator = torch.Generator().manual_seed(0)
    clip = list(torch.rand(2, 1, 1, 64, 64, generator=generator))
    for frame in clip:
        frame[..., 30, 30] = 2.0
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False)))
    config = ResQConfig.parse(f"W{bits}A{bits}->W{bits}A{bits}", interval=2, calibration={**FEW, "recheck": 1})
    calibrate(convert(net, config), [clip])
    half = net[0].keyframe_quantizer.range[1]
    assert half == pytest.approx(2.0, rel=1e-4) if bits == 16 else half < 1.5
    if bits == 16:
        change = float((clip[1] - clip[0]).abs().max())
        assert net[0].residual_quantizers[0].range[1] == pytest.approx(change, rel=1e-4)


def samples(window: float, square_sum: float, **values: Any) -> LayerSamples:
    """One clip of two frames with a window of four pixels, of a map of 16."""
    windows = {0: torch.full((1, 1, 2, 2), window), 1: torch.full((1, 1, 2, 2), 3 * window)}
    return LayerSamples(
        clips=[windows],
        keyframes=[[0, 1]],
        residuals=[[1]],
        complete=[False],
        inside=[4],
        square_sum=square_sum,
        pixels=32,
        **values,
    )


@pytest.mark.parametrize(
    ("window", "square_sum", "expected"),
    [
        (1.0, 160.0, True),  # windows: (4 · 1 + 4 · 9) / 8 = 5 per pixel, maps: 160 / 32 = 5
        (1.0, 319.0, True),  # half
        (1.0, 321.0, False),
        (1.0, 81.0, True),  # twice
        (1.0, 79.0, False),
        (0.0, 1.0, False),
        (0.0, 0.0, True),  # nothing to miss
    ],
)
def test_what_is_typical_by_hand(window: float, square_sum: float, expected: bool) -> None:
    assert samples(window, square_sum).is_typical("keyframe") is expected
    # The change in the window is 2 in each of 4 pixels, so 4 per pixel.
    changed = samples(1.0, 0.0, change_square_sum=square_sum, change_pixels=40)
    assert changed.is_typical("residual") is (not square_sum or 2 <= square_sum / 40 <= 8)


def test_pixels_that_pad_a_window_do_not_count() -> None:
    """A constant input is typical wherever its windows lie, also with most of a window outside of the map."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=12, dilation=12)))
    model = convert(net, ResQConfig.parse("W8A8->W4A4", interval=2, calibration={**FEW, "recheck": 0}))
    layers = residual_layers(model)
    collector = Collector(layers, next(iter(layers.values())).settings.config, 4)
    with executing(collector), torch.no_grad():
        for t in range(2):
            collector.start_frame(t)
            model(torch.full((1, 1, 16, 16), 1.0 + t))
    found = collector.samples["0"]
    assert not found.is_complete
    assert found.is_typical("keyframe")
    assert found.is_typical("residual")

"""Layers whose error is far above what their bits can give are named, with a setting that was measured to help."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ZOO, eq1, eq6, eq7, seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.calibration.needs import Need, describe_needs, error_limit, usual_error
from resq_plugin.config import Precision

FAST: dict[str, Any] = {"samples": 8, "candidates": 10, "positions": 10**4, "recheck": 0}


class Depthwise(nn.Sequential):
    """A MobileNet block in which one depthwise channel has weights 64 times those of the others, and next to no input.

    Folding a batch norm makes such channels: the variance of a dead channel is small, and its inverse large.
    """

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 14, 1), nn.Conv2d(14, 14, 3, padding=1, groups=14), nn.Conv2d(14, 4, 1))
        self[0].bias.data.zero_()
        self[0].weight.data[5] /= 4096
        self[1].weight.data[5] *= 64


def warned(caplog: pytest.LogCaptureFixture, net: Any, precision: str, **settings: Any) -> str:
    caplog.clear()
    model = seeded(net)
    convert(model, ResQConfig.parse(precision, calibration=FAST, **settings))
    calibrate(model, [video(3, (1, 3, 16, 16), seed=seed) for seed in range(2)])
    return caplog.text


def test_usual_errors_by_hand() -> None:
    """8 bits: steps of 1/256 of twice four deviations, so 8 / 256 / √12 = 0.9 % for each of the two factors."""
    one = 8 / 256 / math.sqrt(12)
    assert usual_error(8, 8) == pytest.approx(math.sqrt(2) * one)
    assert error_limit(8, 8) == pytest.approx(4 * math.sqrt(2) * one)
    assert (error_limit(2, 2), error_limit(16, 16)) == (0.9, 0.05)


def test_gaussian_values_have_the_usual_error() -> None:
    """Eq. 1 and 6 of values clipped at four deviations, as the search of Eq. 8 takes them at 8 bits."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, 256, generator=generator).clamp(-4, 4) for _ in range(2))
    s = eq6(torch.tensor(-4.0), torch.tensor(4.0), 8)
    target = F.linear(x, w)
    error = float((F.linear(eq1(x, s, 8), eq7(w, 8)) - target).norm() / target.norm())
    assert error == pytest.approx(usual_error(8, 8), rel=0.1)


def test_depthwise_channels_of_different_ranges_need_a_scale_each(caplog: pytest.LogCaptureFixture) -> None:
    text = warned(caplog, Depthwise, "W8A8->W8A8")
    assert "layer 1 (keyframe, W8A8)" in text
    assert "layer 1 (residual, W8A8)" in text
    assert "where 1.3% is usual" in text
    assert "Write weights='channel', and calibrate again" in text
    assert "layer 0" not in text
    assert len(caplog.records) == 1


def test_what_is_recommended_helps(caplog: pytest.LogCaptureFixture) -> None:
    """The error that was promised is the one that the recommended setting has."""
    assert "layer 1" in warned(caplog, Depthwise, "W8A8")
    assert "layer 1" not in warned(caplog, Depthwise, "W8A8", weights="channel")
    assert "layer 1" not in warned(caplog, Depthwise, "W8A8", overrides={"1": "W16A8"})


class Outliers(nn.Module):
    """A layer that reads two inputs, one 2^10 times the other, and weighs them alike: the scale is that of the large.

    Channels of the weight cannot help: every output channel reads both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, bias=False)
        self.conv.weight.data[:, 0] /= 2**11

    def forward(self, frame: Tensor) -> Tensor:
        return self.conv(frame * torch.tensor([2.0**10, 1.0, 1.0]).view(1, 3, 1, 1))


def test_more_activation_bits_are_recommended_where_they_help(caplog: pytest.LogCaptureFixture) -> None:
    text = warned(caplog, Outliers, "W16A8->W16A8", weights="channel")
    assert "layer conv (keyframe, W16A8)" in text
    assert "Write overrides={'conv': 'W16A16->W16A16'}, and calibrate again" in text
    assert "conv" not in warned(caplog, Outliers, "W16A8->W16A8", weights="channel", overrides={"*": "W16A16->W16A16"})


def test_a_layer_that_nothing_helps_is_to_be_left_out() -> None:
    need = Need("a", "keyframe", Precision(8, 8), 0.8, {"weights='channel'": 0.7, "W16A16": 0.6})
    assert need.remedy == "exclude"
    assert describe_needs([need], {}).endswith("Write exclude=('a',), and calibrate again.")


def test_only_the_worst_are_named_one_by_one() -> None:
    needs = [
        Need(f"layer{i}", "keyframe", Precision(8, 8), 0.1 + i / 100, {"weights='channel'": 0.01}) for i in range(9)
    ]
    text = describe_needs(needs, {})
    assert text.index("layer8") < text.index("layer7") < text.index("layer4")
    assert "layer3" not in text
    assert "; 4 more. Write weights='channel'" in text


@pytest.mark.parametrize("precision", ["W8A8", "W8A8->W4A4", "W4A4->W3A3", "W8A8->W8A0", "W16A16->W16A16"])
def test_ordinary_layers_need_nothing(precision: str, zoo: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warned(caplog, ZOO[zoo], precision) == ""

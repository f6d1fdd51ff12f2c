"""What the tests of the Brevitas adapter share: calibration clips and calibrated models."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from helpers import ZOO, seeded
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"


@pytest.fixture
def clips(frames: list[Tensor]) -> list[list[Tensor]]:
    """Two calibration clips of three frames."""
    return [frames[:3], frames[3:6]]


@pytest.fixture
def calibrated(clips: list[list[Tensor]]) -> Callable[..., nn.Module]:
    """Return a function that converts and calibrates a small net of the zoo."""

    def make(
        name: str = "residual", precision: str = STATIC, backend: str = "brevitas", **settings: object
    ) -> nn.Module:
        model = convert(seeded(ZOO[name]), ResQConfig.parse(precision, backend=backend, **settings))
        calibrate(model, clips)
        return model

    return make

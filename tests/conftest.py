"""Settings for all tests, and what the tests of the core share."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import ZOO, video
from hypothesis import settings
from torch import Tensor

torch.set_num_threads(1)  # the tests' tensors are tiny: threads would wait for each other most of the time
settings.register_profile("resq", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("resq")


def pytest_runtest_teardown() -> None:
    """Let each test compile anew: the compiler gives up on code that it compiled often, over the whole process."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(params=list(ZOO))
def zoo(request: pytest.FixtureRequest) -> str:
    """Name of a small net that is typical of model zoos."""
    return request.param


@pytest.fixture(params=["float", "quantized", "running"])
def reference(request: pytest.FixtureRequest) -> str:
    """What residuals are differences to."""
    return request.param


@pytest.fixture
def frames() -> list[Tensor]:
    """Seven frames (2, 3, 12, 16) of two videos in step: T = 3 gives two whole intervals and one keyframe."""
    return video(7)

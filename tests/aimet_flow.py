"""What tests of AIMET's own flow share: the warnings that AIMET itself causes, and a sim as a stream."""

from __future__ import annotations

import aimet_torch
import pytest
from helpers import play
from torch import Tensor

AIMETS_OWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_allow_overwrite is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:All modules in `aimet_torch.v2`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
]


def streamed(sim: aimet_torch.QuantizationSimModel, frames: list[Tensor]) -> list[Tensor]:
    """Run frames through a new stream of a sim, and return plain tensors."""
    return [z.as_subclass(Tensor) for z in play(sim.model, frames)]

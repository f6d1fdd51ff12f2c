"""``backend='brevitas'`` in the fragment of an MMSegmentation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.runner import Runner
from resq_brevitas import ResQConv2d
from tiny_video import config, make_frames

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_runner_gives_the_torch_backends_numbers(tmp_path: Path) -> None:
    make_frames(tmp_path, "calib", 6)
    make_frames(tmp_path, "val", 5)
    metrics: dict[str, dict[str, Any]] = {}
    for backend in ("torch", "brevitas"):
        torch.manual_seed(0)
        runner = Runner.from_cfg(config(tmp_path, tmp_path / backend, resq__backend=backend))
        metrics[backend] = {name: value for name, value in runner.test().items() if "time" not in name}
    assert metrics["brevitas"] == metrics["torch"]
    assert any(isinstance(module, ResQConv2d) for module in runner.model.modules())

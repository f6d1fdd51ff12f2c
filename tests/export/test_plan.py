"""A plan found for the bit widths of the HTP leaves as two graphs and plays what torch computes, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import play

from resq_plugin import Target, calibrate, convert, search
from resq_plugin.demo import SceneConfig, generate_clip, load_demo_net
from resq_plugin.export import OrtStream, export_model, verify
from resq_plugin.planning import SearchResult

HTP = Target(
    keyframes=("W8A8",),
    residuals=("W4A8", "W8A8"),
    pools=False,
    references=("quantized",),
    intervals=(3,),
)
COMMON = {"calibration": {"samples": 4, "positions": 256, "candidates": 10, "recheck": 0}}


@pytest.fixture(scope="module")
def clips() -> list[torch.Tensor]:
    return list(generate_clip(SceneConfig(height=48, width=64, seed=7), 9)[0].split(3))


@pytest.fixture(scope="module")
def found(clips: list[torch.Tensor]) -> SearchResult:
    net = load_demo_net()
    loose = search(net, clips, max_drop=100.0, target=HTP, points=0, progress=False, **COMMON)
    middle = loose.front[len(loose.front) // 2]  # where layers differ
    return search(net, clips, max_gbops=middle.gbops, target=HTP, points=0, progress=False, **COMMON)


def test_it_exports_verifies_in_lsb_and_plays(found: SearchResult, clips: list[torch.Tensor], tmp_path: Path) -> None:
    config = found.plan.config
    residuals = {str(layer.choice.residual) for layer in found.plan.layers}
    assert residuals == {"W4A8", "W8A8"}
    model = convert(load_demo_net(), config, example=clips[0][:1])
    calibrate(model, clips)
    frames = list(torch.cat(clips)[:6].split(1))
    folder = tmp_path / "out"

    manifest = export_model(model, frames, folder, encodings=())

    assert {path.name for path in folder.glob("*.onnx")} == {"keyframe.onnx", "residual.onnx"}
    assert manifest.float_layers == ()
    checked = verify(folder, threads=1)
    assert checked.passed
    assert checked.worst_part("keyframe") <= 1
    assert checked.worst_part("residual") <= 1
    assert checked.agreement > 99
    assert not checked.is_still
    assert not checked.is_constant
    player = OrtStream(folder, threads=1)
    assert player.interval == 3
    agreed = [
        np.mean(player(frame.numpy()).argmax(1) == expected.numpy().argmax(1))
        for frame, expected in zip(frames, play(model, frames), strict=True)
    ]
    assert min(agreed) > 0.99

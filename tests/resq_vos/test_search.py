"""`resq_plugin.search` on an STM: recorded steps, both trunks, the cost of its objects."""

from __future__ import annotations

import pytest
import torch
from resq_vos.calibration import record_clips
from resq_vos.cost import vos_cost
from resq_vos.step import SegmentationStep
from resq_vos.stm import FLOAT_LAYERS
from torch import Tensor
from vos_helpers import moving_squares, tiny_stm

from resq_plugin import ResQConfig, Target, search

FRAMES, LABELS = moving_squares(10)


def test_a_plan_of_an_stm_is_found_on_recorded_steps() -> None:
    model = tiny_stm()
    clips = record_clips(model, (frame[None] for frame in FRAMES), LABELS[0], length=3)
    assert len(clips) == 3

    def run(step: SegmentationStep) -> Tensor:
        logits: Tensor = step.run(model)[0] / 2
        return torch.stack([-logits, logits], 1)

    target = Target(
        keyframes=("W8A8",),
        residuals=("W4A8", "W8A8"),
        pools=False,
        intervals=(3,),
        references=("running",),
        weights=("channel",),
        grids=("symmetric",),
    )
    found = search(
        model,
        clips[:2],
        held_out=clips[2:],
        max_drop=100.0,
        target=target,
        run=run,
        arguments=(2,),
        exclude=FLOAT_LAYERS,
        calibration={"samples": 4, "positions": 200, "candidates": 6, "recheck": 0},
        points=0,
        progress=False,
    )

    plan = found.plan
    names = {layer.name for layer in plan.layers}
    assert {name.partition(".")[0] for name in names} >= {"query", "memory"}
    assert not names & set(FLOAT_LAYERS)
    assert not any(True for module in model.modules() if type(module).__module__.startswith("resq_plugin"))
    verified = plan.point.verified
    assert verified is not None
    expected = vos_cost(model, (1, 3, 32, 44), plan.config, objects=2).bops_per_frame / 1e9
    assert verified.gbops == expected
    assert plan.point.gbops == pytest.approx(expected)
    base = vos_cost(model, (1, 3, 32, 44), ResQConfig.parse("W8A8"), objects=2).bops_per_frame / 1e9
    assert verified.relative == expected / base
    assert found.front[0].gbops < found.front[-1].gbops

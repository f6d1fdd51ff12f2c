"""Calibration and evaluation of a propagation: recorded steps, and the user's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from resq_vos.calibration import record_clips, step_runner
from resq_vos.propagation import Propagation
from resq_vos.step import SegmentationStep
from resq_vos.stm import FLOAT_LAYERS, STM
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from vos_helpers import moving_squares, tiny_stm

from resq_plugin import ResQConfig, calibrate, convert, evaluate, stream
from resq_plugin.evaluation import Agreement, float_predictions
from resq_plugin.method import residual_layers

FRAMES, LABELS = moving_squares(10)
CLIP = [(frame[None], LABELS[0] if t == 0 else None) for t, frame in enumerate(FRAMES)]


def converted(precision: str = "W8A8->W4A8", **settings: Any) -> STM:
    calibration = {"samples": 64, "positions": 100_000, "recheck": 2}
    config = {"interval": 3, "exclude": FLOAT_LAYERS, "calibration": calibration} | settings
    return convert(tiny_stm(), ResQConfig.parse(precision, **config))


def ranges(model: STM) -> dict[str, float]:
    return {
        f"{name}.{key}": float(quantizer.scale.detach())
        for name, layer in residual_layers(model).items()
        for key, quantizer in layer.activation_quantizers().items()
    }


def test_a_step_is_a_pytree() -> None:
    step = record_clips(tiny_stm(), (frame[None] for frame in FRAMES), LABELS[0], length=8)[0][7]
    leaves, structure = tree_flatten(step)
    # Frame, frame before, masks, owners; keys and values of the frames 0, 5 and 6 of two objects.
    assert sum(isinstance(leaf, Tensor) for leaf in leaves) == 4 + 3 * 2 * 2
    again = tree_unflatten(leaves, structure)
    assert isinstance(again, SegmentationStep)
    assert torch.equal(again.run(tiny_stm())[0], step.run(tiny_stm())[0])
    moved = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), step)
    assert all(key.is_meta for memory in moved.bank.memories.values() for key, _ in memory.entries())


@pytest.mark.parametrize("precision", ["W8A8->W4A8", "W8A8->W8A{0,4,8}", "W8A8"])
def test_the_users_loop_and_its_recorded_steps_give_the_same_ranges(precision: str) -> None:
    model = converted(precision)
    tracker = Propagation(model)
    calibrate(model, [CLIP], run=lambda item: tracker(*item), start=tracker.reset)
    other = converted(precision)
    steps = record_clips(other, (frame[None] for frame in FRAMES), LABELS[0], length=9)[0]
    # Of the frames 0, 1, 2 of the first interval the first is given.
    calibrate(other, [steps[:2], steps[2:5], steps[5:8], steps[8:]], run=step_runner(other))
    assert ranges(model) == pytest.approx(ranges(other), rel=1e-5)


@torch.no_grad()
def test_the_protocol_runs_a_propagation_from_its_first_frame() -> None:
    model = converted()
    tracker = Propagation(model)
    calibrate(model, [CLIP], run=lambda item: tracker(*item), start=tracker.reset)
    loop = {"run": lambda item: tracker(*item), "start": tracker.reset}
    in_float = float_predictions(model, [CLIP], lambda labels: labels, **loop)
    found = evaluate(
        model, [CLIP], {"agreement": in_float}, {"agreement": Agreement}, predict=lambda x: x, given=1, **loop
    )
    with stream(model) as video:
        own, equal = Propagation(model, video=video), {0: [], 1: [], 2: []}
        for t, item in enumerate(CLIP):
            labels = own(*item)
            if t:
                equal[video.position].append(float((labels == in_float[0][t]).double().mean()))
    expected = [100 * sum(values) / len(values) for values in equal.values()]
    assert found.by_distance["agreement"] == pytest.approx(expected)

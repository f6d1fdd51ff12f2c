"""A search on STM: scores are those of the masks, and plans are measured over whole videos."""

from __future__ import annotations

import pytest
import torch
from resq_vos.calibration import record_clips, step_runner
from resq_vos.cost import vos_cost
from resq_vos.propagation import Propagation
from resq_vos.searching import labelled, score_runner, tracking_loop
from resq_vos.stm import FLOAT_LAYERS
from vos_helpers import moving_squares, tiny_stm

from resq_plugin import ResQConfig, Target, calibrate, convert, evaluate, search
from resq_plugin.errors import FrameError
from resq_plugin.evaluation import MeanIoU, float_predictions

FRAMES, LABELS = moving_squares(10)
VIDEO = labelled(FRAMES[:, None], LABELS[0])
TARGET = Target(
    keyframes=("W8A8",),
    residuals=("W4A4", "W8A8"),
    pools=False,
    intervals=(3,),
    references=("float",),
    weights=("channel",),
    grids=("symmetric",),
)
QUICK = {"samples": 4, "positions": 64, "recheck": 0}


@torch.no_grad()
def test_scores_of_a_step_are_half_its_log_odds_up_and_down() -> None:
    model = tiny_stm()
    step = record_clips(model, FRAMES[:, None], LABELS[0])[0][0]
    logits, scores = step_runner(model)(step), score_runner(model)(step)
    assert torch.equal(scores[:, 1] - scores[:, 0], logits)
    assert torch.allclose(scores.softmax(1)[:, 1], logits.sigmoid())


@torch.no_grad()
def test_a_loop_is_the_propagation_and_its_highest_score_the_label() -> None:
    model = tiny_stm()
    loop, tracker = tracking_loop(model), Propagation(model)
    for _ in range(2):  # the second time from the start
        loop.start()
        tracker.reset()
        for frame, labels in VIDEO:
            scores = loop.run((frame, labels))
            assert torch.equal(scores.argmax(1), tracker(frame, labels))
            assert scores.exp()[:, 1:] == pytest.approx(tracker.masks[None].clamp_min(1e-6), rel=1e-5)  # type: ignore[index]
            assert scores.exp().sum(1) == pytest.approx(torch.ones(1, 32, 44), abs=1e-4)


def test_a_search_measures_plans_over_whole_videos() -> None:
    model = tiny_stm()
    clips = record_clips(model, FRAMES[:, None], LABELS[0])
    loop = tracking_loop(model)
    result = search(
        model,
        clips,
        max_drop=100.0,
        target=TARGET,
        held_out=[VIDEO],
        run=score_runner(model),
        loop=loop,
        predict=lambda scores: scores.argmax(1),
        agreement=lambda: MeanIoU(3),
        criterion="kl",
        arguments=(2,),
        exclude=FLOAT_LAYERS,
        calibration=QUICK,
        points=1,
        progress=False,
    )
    found = result.plan.point.verified
    assert found is not None
    assert {layer.name for layer in result.plan.layers}.isdisjoint(FLOAT_LAYERS)
    predict = lambda scores: scores.argmax(1)  # noqa: E731
    playing = {"run": loop.run, "start": loop.start}
    in_float = float_predictions(model, [VIDEO], predict, **playing)
    convert(model, result.plan.config)
    calibrate(model, clips, run=step_runner(model))
    metrics = {"agreement": lambda: MeanIoU(3)}
    measured = evaluate(model, [VIDEO], {"agreement": in_float}, metrics, predict=predict, given=1, **playing)
    assert found.accuracy == measured.mean("agreement")


def test_a_plan_of_an_stm_is_found_on_recorded_steps() -> None:
    model = tiny_stm()
    clips = record_clips(model, FRAMES[:, None], LABELS[0], length=3)
    assert len(clips) == 3

    found = search(
        model,
        clips[:2],
        held_out=clips[2:],
        max_drop=100.0,
        target=TARGET,
        run=score_runner(model),
        arguments=(2,),
        exclude=FLOAT_LAYERS,
        calibration=QUICK,
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
    assert verified.relative == pytest.approx(expected / base, rel=1e-12)
    assert found.front[0].gbops < found.front[-1].gbops


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ((FRAMES[:2], None), r"frames of a loop are \(1, 3, H, W\).* got \(2, 3, 32, 44\)"),
        ((FRAMES[:1], None), r"has no object; give it as \(frame, labels\)"),
    ],
)
def test_what_a_loop_cannot_follow_is_told(frame: tuple[torch.Tensor, None], message: str) -> None:
    loop = tracking_loop(tiny_stm())
    loop.start()
    with pytest.raises(FrameError, match=message):
        loop.run(frame)

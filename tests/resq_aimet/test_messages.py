"""What a user of AIMET gets wrong is told with AIMET's words: the sim, and `compute_encodings`."""

from __future__ import annotations

from collections.abc import Callable

import aimet_torch
import pytest
import resq_aimet
import torch
from aimet_flow import AIMETS_OWN_WARNINGS
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert
from resq_plugin.errors import CalibrationError, ConversionError

MakeSim = Callable[..., aimet_torch.QuantizationSimModel]
PLACEMENTS = pytest.mark.parametrize("placement", ["paper", "hardware"])

pytestmark = AIMETS_OWN_WARNINGS


def test_a_model_in_place_of_its_sim(net: nn.Module, make_sim: MakeSim) -> None:
    line = r"takes AIMET's QuantizationSimModel, not a Skip; write sim = aimet_torch.QuantizationSimModel\(model"
    for model in (net, make_sim().model):
        with pytest.raises(ConversionError, match=line):
            resq_aimet.convert(model, "W8A8->W4A4")


def test_a_sim_in_place_of_a_model(make_sim: MakeSim) -> None:
    with pytest.raises(ConversionError, match=r"QuantizationSimModel takes resq_aimet.convert\(sim, config\)"):
        convert(make_sim(), "W8A8->W4A4")
    with pytest.raises(ConversionError, match=r"conv1 \(QuantizedConv2d\).* Write resq_aimet.convert\(sim, config\)"):
        convert(make_sim().model, ResQConfig.parse("W8A8->W4A4"))


@PLACEMENTS
def test_a_sim_without_encodings(placement: str, make_sim: MakeSim, frames: list[Tensor]) -> None:
    resq = resq_aimet.convert(make_sim(), "W8A8->W4A4", placement=placement)
    for use in (resq.stream, lambda: resq.export("never-written", frames)):
        with pytest.raises(CalibrationError, match=r"no encodings; call resq.compute_encodings\(clips\)"):
            use()
    with pytest.raises((CalibrationError, RuntimeError), match="compute_encodings"), torch.no_grad():
        resq.sim.model(frames[0])


def test_encodings_of_aimet_alone_have_no_residual(make_sim: MakeSim, frames: list[Tensor]) -> None:
    resq = resq_aimet.convert(make_sim(), "W8A8->W4A4")
    resq.sim.compute_encodings(lambda model: model(frames[0]))
    line = r"\(residual, 4 bits\) has no range; call resq.compute_encodings\(clips\) before"
    with resq.stream() as player, torch.no_grad():
        player(frames[0])
        with pytest.raises(CalibrationError, match=line):
            player(frames[1])


@PLACEMENTS
def test_what_are_no_clips(placement: str, make_sim: MakeSim, frames: list[Tensor]) -> None:
    resq = resq_aimet.convert(make_sim(), "W8A8->W4A4", placement=placement)
    clip = torch.cat([frame[:1] for frame in frames])
    for clips, message in [
        (lambda model: model(frames[0]), "takes clips, not a callback as AIMET's: write resq.compute_encodings"),
        (clip, r"Of one clip alone make a list: calibrate\(model, \[clip\]\)"),
        ([clip.to(torch.uint8)], r"uint8.*resq_plugin.video.read\(path, mean=..., std=...\)"),
        ([clip.permute(0, 2, 3, 1)], r"write frame.permute\(0, 3, 1, 2\)"),
    ]:
        with pytest.raises((CalibrationError, ValueError), match=message):
            resq.compute_encodings(clips)

"""AIMET's own AdaRound for ptq.py, in the order of docs/aimet.md: fold, Adaround, sim, freeze, convert, calibrate."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import aimet_torch
import resq_aimet
import torch
from aimet_torch._base.adaround import adaround_optimizer
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from torch import Tensor, nn

from resq_plugin import ResQConfig

Clips = list[list[Tensor]]
EVERY = 4
"""One clip of so many gives a frame: AIMET runs both networks up to each layer on every one of them."""

BIASED = "AIMET, AdaRound, then means"
ITERATIONS = {"AIMET, nearest": 0, "AIMET, AdaRound": 1000, BIASED: 1000}
"""Per layer, of 15000 by AIMET's default; without any the weights stay, and only the grid is AIMET's."""


def adaround(net: nn.Module, clips: Clips, bits: int, iterations: int, folder: Path) -> tuple[nn.Module, float]:
    """Return a folded copy with the weights that AIMET's Adaround leaves, and the seconds it took.

    Args:
        net: with batch norms; not changed.
        clips: calibration clips.
        bits: of weights.
        iterations: per layer, with one frame each; AIMET takes 32, which lasts as much longer.
        folder: holds weights, encodings (``rounded.encodings``) and seconds; what is there is not made again.
    """
    example = clips[0][0]
    aimet_torch.nn.QuantizationMixin.ignore_unknown_modules(True)  # MMSegmentation's losses and preprocessor
    model = copy.deepcopy(net)
    fold_all_batch_norms(model, None, dummy_input=example)
    if not (folder / "seconds.json").exists():
        torch.manual_seed(0)
        adaround_optimizer.BATCH_SIZE = 1
        frames = [clip[0] for clip in clips[::EVERY]]
        parameters = AdaroundParameters(frames, len(frames), default_num_iterations=iterations)
        start = time.process_time()
        rounded = Adaround.apply_adaround(model, example, parameters, str(folder), "rounded", default_param_bw=bits)
        seconds = time.process_time() - start
        torch.save(rounded.state_dict(), folder / "rounded.pth")
        (folder / "seconds.json").write_text(json.dumps(seconds))
    model.load_state_dict(torch.load(folder / "rounded.pth", weights_only=True))
    return model, float(json.loads((folder / "seconds.json").read_text()))


def calibrated(model: nn.Module, clips: Clips, config: ResQConfig, folder: Path) -> Any:
    """Return AIMET's model, converted and calibrated, whose keyframe weights keep the encodings that Adaround left."""
    bits = config.keyframe.weight
    sim = aimet_torch.QuantizationSimModel(model, clips[0][0], default_param_bw=bits)
    sim.set_and_freeze_param_encodings(str(folder / "rounded.encodings"))
    resq_aimet.convert(sim, config).compute_encodings(clips)
    return sim.model

"""The search that a config asks for, on its own calibration clips."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from resq_mmengine.calibration import KEY, ClipLoader
from resq_mmengine.own_video import joints_of_output, labels_of_output
from resq_mmengine.pipelines import build_dataset
from resq_mmengine.settings import Settings
from resq_mmengine.zoo import FrameModel
from resq_plugin import ResQConfig, search
from resq_plugin.errors import ConfigError, MissingExtraError
from resq_plugin.evaluation import Agreement

__all__ = ["common_of", "search_from_settings"]

logger = logging.getLogger(__name__)

LINES = "resq = dict(search=..., calibration=dict(dataset=dict(type='resq_mmseg.CamVidSequence', data_root=..., ...)))"


def search_from_settings(model: nn.Module, settings: Settings, folder: Path, scope: str) -> ResQConfig:
    """Find the plan that the settings ask for and leave it in a folder; what was measured there is not measured again.

    Args:
        model: float, with its weights.
        settings: with ``search``.
        folder: for ``plan.json``, ``plan.py``, ``front.json``, ``report.html`` and all that was measured.
        scope: ``mmseg`` or ``mmpose``.

    Raises:
        ConfigError: the config names no calibration clips, too few, or no plan does what is asked.
    """
    wanted, source = settings.search, settings.clips
    if wanted is None or source.dataset is None:
        msg = f"resq.search needs clips to look at, and the config names none; write {LINES}."
        raise ConfigError(msg)
    length = source.length or max(wanted.target.intervals)
    clips = ClipLoader(build_dataset(source.dataset, KEY), model, length, source.step)
    count = min(wanted.clips, len(clips))
    sample = clips.batch(0)["data_samples"][0]
    is_pose = scope == "mmpose"
    agreement: Any = Agreement
    if is_pose:
        from resq_mmpose.agreement import NearJoints  # noqa: PLC0415

        agreement = NearJoints
    found = search(
        FrameModel(model),
        [clips[index * len(clips) // count] for index in range(count)],
        max_drop=wanted.goal.max_drop,
        max_gbops=wanted.goal.max_gbops,
        max_state_mb=wanted.goal.max_state_mb,
        target=wanted.target,
        held_out=wanted.held_out,
        predict=partial(joints_of_output if is_pose else labels_of_output, model, sample),
        agreement=agreement,
        criterion="squared" if is_pose else "kl",
        seed=wanted.seed,
        folder=folder,
        **common_of(settings.config),
    )
    try:
        found.report(folder)
    except MissingExtraError as error:
        logger.info("no report.html: %s", error)
    path = found.save(folder)
    logger.info("the plan is %s: %s", path, found.finding)
    return found.plan.config


def common_of(config: ResQConfig) -> dict[str, Any]:
    """The fields of a configuration that a search takes as they are."""
    default, values = ResQConfig().to_dict(), config.to_dict()
    kept = ("include", "exclude", "calibration", "backend", "on_change")
    return {key: values[key] for key in kept if key in values and values[key] != default.get(key)}

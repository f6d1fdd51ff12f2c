"""Temporal calibration: activation ranges of keyframes and residuals from clips (§4.1)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.backends import find_backend
from resq_plugin.calibration.clips import Clip, expected_samples, select_intervals
from resq_plugin.calibration.collect import Collector, FullMapComparison, LayerSamples, best
from resq_plugin.calibration.findings import find_findings, log_findings
from resq_plugin.calibration.scenes import SceneChanges
from resq_plugin.calibration.search import search_layer
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import evaluating, fold_batch_norms
from resq_plugin.method import ResidualLayer, executing, residual_layers, set_scene_threshold

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    clips: Iterable[Clip],
    *,
    run: Callable[[Tensor], Any] | None = None,
    progress: bool = False,
) -> None:
    """Find every activation range by the line search of Eq. 8 and set it.

    The model runs in float. Every frame is an exemplar of keyframes, every frame after the first of its interval one
    of residuals to that first (to the last frame with ``reference="running"``), up to ``config.calibration.samples``
    of each. Clips longer than T are split into intervals as streams split them. Ranges are set at the very end, so an
    error leaves those of before. Layers that no frame reaches become plain float layers again, with a notice. One
    warning names what is wrong with the clips or the configuration: layers that saw no change (their residual range
    is that of the keyframes) or only zeros, and layers whose error is far above what their bit widths can give, with
    the setting that helps.

    Args:
        model: a model from `convert`.
        clips: consecutive frames, as (T, C, H, W) tensors or lists of frames (N, C, H, W); a list of more clips than
            needed is sampled evenly.
        run: what runs one frame, when it is not ``model(frame)``.
        progress: show a progress bar.

    Raises:
        CalibrationError: no clip, clips of one frame (residuals need two), NaN or Inf in a frame, or no layer reached.
    """
    layers = residual_layers(model)
    config = next(iter(layers.values())).settings.config
    if isinstance(clips, Tensor) and clips.dim() == 5:
        clips = list(clips)
    collector = Collector(layers, config, expected_samples(clips, config))
    kept: list[list[Tensor]] = []
    scenes = SceneChanges()
    numbers: list[int] = []
    device = _device(model)
    with evaluating(model):
        intervals = select_intervals(clips, config, lambda: collector.wanted, progress=progress)
        for index, (number, interval) in enumerate(intervals):
            frames = [frame.to(device) for frame in interval[: collector.wanted]]
            numbers.append(number)
            if index == 0:
                fold_batch_norms(model, frames[0], run)
            with executing(collector):
                for position, frame in enumerate(frames):
                    collector.start_frame(position)
                    (run or model)(frame)
            collector.end_clip()
            if config.schedule.kind == "scene_change":
                scenes.add(number, frames)
            _keep(kept, frames, index, config)
            if not collector.wanted:
                break
        collector.finish()
        samples = collector.samples
        for name in samples:
            layers[name].calibrate_weights()
        searches = {
            name: search_layer(layers[name], samples[name])
            for name in tqdm(samples, "searching ranges", disable=not progress)
        }
        findings = find_findings(layers, samples, searches, numbers)
        ranked = {name: search.ranked for name, search in searches.items()}
        if any(len(losses) > 1 for quantizers in ranked.values() for losses in quantizers.values()):
            comparison = FullMapComparison(config, ranked, samples)
            for frames in tqdm(kept, "comparing on full maps", disable=not progress):
                with executing(comparison):
                    for position, frame in enumerate(frames):
                        comparison.start_frame(position)
                        (run or model)(frame)
            ranked = comparison.finalists
    for name, losses in ranked.items():
        _set_ranges(layers[name], losses, samples[name])
    if config.schedule.kind == "scene_change" and scenes.changes:
        set_scene_threshold(model, scenes.threshold)
        findings += scenes.findings
    log_findings(findings)
    _release_unreached(layers, set(ranked), config)


def _device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)


def _keep(kept: list[list[Tensor]], frames: list[Tensor], index: int, config: ResQConfig) -> None:
    """Reservoir sample of frame pairs for the comparison on full maps; distances take turns.

    A pair is a frame and what its residual is a difference to: the first frame of the interval, or the last frame.
    """
    limit, pair = config.calibration.recheck, frames[:1]
    if len(frames) > 1:
        position = 1 + index % (len(frames) - 1)
        pair = [frames[position - 1 if config.reference == "running" else 0], frames[position]]
    if len(kept) < limit:
        kept.append(pair)
    elif limit and (slot := random.Random(index).randrange(index + 1)) < limit:
        kept[slot] = pair


def _set_ranges(layer: ResidualLayer, ranked: dict[str, dict[float, float]], samples: LayerSamples) -> None:
    layer.activation_norm.fill_(samples.activation_norm)
    quantizers = layer.activation_quantizers()
    for name, losses in ranked.items():
        half_range, signed = best(losses), name != "keyframe" or samples.is_signed(layer.settings.config)
        quantizers[name].set_range(-half_range, half_range, signed=signed)


def _release_unreached(layers: dict[str, ResidualLayer], reached: set[str], config: ResQConfig) -> None:
    unreached = [name for name in layers if name not in reached]
    backend = find_backend(config.backend)
    for name in unreached:
        backend.detach(layers[name])
    if unreached:
        logger.warning(
            "no calibration frame reached %s; they stay in float (add them to exclude=(...) to silence this notice)",
            ", ".join(unreached),
        )

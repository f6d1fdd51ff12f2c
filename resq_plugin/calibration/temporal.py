"""Temporal calibration: activation ranges of keyframes and residuals from clips (§4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.backends import find_backend
from resq_plugin.calibration.clips import Clip, expected_samples, select_intervals
from resq_plugin.calibration.collect import Collector, FullMapComparison, LayerSamples, best
from resq_plugin.calibration.findings import find_findings, log_findings
from resq_plugin.calibration.recording import Recording, chosen_pair, keep_pair, recording, replay
from resq_plugin.calibration.scenes import SceneChanges
from resq_plugin.calibration.search import search_layer
from resq_plugin.calibration.whole_clips import whole_clips
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import evaluating, fold_batch_norms
from resq_plugin.method import ResidualLayer, executing, frame_to, image_of, residual_layers, set_scene_threshold

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    clips: Iterable[Clip],
    *,
    run: Callable[[Any], Any] | None = None,
    start: Callable[[], Any] | None = None,
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
            needed is sampled evenly. A frame may be any pytree with such a tensor (frame, masks, previous state).
        run: what runs one frame, when it is not ``model(frame)``. What its frames read is recorded where they are
            looked at twice, so it runs each once; without ``start`` also the very first one for its batch norms.
        start: what begins a video, where ``run`` keeps state between frames: every clip is then run from its first
            frame on, in order, and frames that call no layer (a first frame that is given) are passed over.
        progress: show a progress bar.

    Raises:
        CalibrationError: no clip, clips of one frame (residuals need two), NaN or Inf in a frame, no layer reached, or
            a frame that is looked at twice depends on a state that the network keeps.
    """
    layers = residual_layers(model)
    config = next(iter(layers.values())).settings.config
    if isinstance(clips, Tensor) and clips.dim() == 5:
        clips = list(clips)
    collector = Collector(layers, config, expected_samples(clips, config))
    kept: list[list[Recording]] = []
    scenes = SceneChanges()
    numbers: list[int] = []
    device = _device(model)
    run = run or model
    with evaluating(model):
        select = select_intervals if start is None else partial(whole_clips, start=start)
        intervals = select(clips, config, lambda: collector.wanted, progress=progress)
        for index, (number, interval) in enumerate(intervals):
            frames = [frame_to(frame, device) for frame in interval[: collector.wanted]]
            numbers.append(number)
            if index == 0:
                _fold(model, frames, run, start)
            pair = chosen_pair(index, len(frames), config)
            recorded = _collect(model, frames, run, collector, pair)
            if config.schedule.kind == "scene_change":
                scenes.add(number, [image_of(frame) for frame in frames])
            keep_pair(kept, recorded, index, config)
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
            for pair in tqdm(kept, "comparing on full maps", disable=not progress):
                with executing(comparison):
                    for position, recorded in enumerate(pair):
                        comparison.start_frame(position)
                        replay(model, recorded)
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


def _collect(
    model: nn.Module, frames: list[Any], run: Callable[[Any], Any], collector: Collector, pair: Sequence[int]
) -> list[Recording]:
    """Run an interval in float; the positions of the pair are recorded."""
    recorded, position = [], 0
    with executing(collector):
        for frame in frames:
            collector.start_frame(position)
            with recording(model) if position in pair else nullcontext() as found:
                run(frame)
            if not collector.calls:  # such as a first frame that is given
                collector.pass_over_frame()
                continue
            if found is not None:
                recorded.append(found)
            position += 1
    collector.end_clip()
    return recorded


def _fold(model: nn.Module, frames: list[Any], run: Callable[[Any], Any], start: Callable[[], Any] | None) -> None:
    """Fold batch norms on the first frame that reaches a layer; a video of its own where ``run`` keeps state."""
    if start is None:
        fold_batch_norms(model, frames[0], run)
        return

    def first_reached(_: Any) -> Any:
        result = None
        for frame in frames:
            with recording(model, keep=False) as found:
                result = run(frame)
            if found.inputs:
                break
        return result

    fold_batch_norms(model, frames[0], first_reached)
    start()


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

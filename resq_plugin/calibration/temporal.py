"""Temporal calibration: activation ranges of keyframes and residuals from clips (§4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.backends import find_backend
from resq_plugin.calibration.clips import Clip
from resq_plugin.calibration.collection import collect
from resq_plugin.calibration.findings import find_findings, log_findings, too_short
from resq_plugin.calibration.fitting import fit_layers, require_fitting
from resq_plugin.calibration.full_maps import compare_on_full_maps
from resq_plugin.calibration.layer_samples import LayerSamples, best
from resq_plugin.calibration.line_search import search_layer
from resq_plugin.calibration.stacking import stack_pairs
from resq_plugin.calibration.statistics import Statistics
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import evaluating
from resq_plugin.errors import CalibrationError
from resq_plugin.method import ResidualLayer, residual_layers, set_scene_threshold, telling_unfit_frames

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    clips: Iterable[Clip],
    *,
    run: Callable[[Any], Any] | None = None,
    start: Callable[[], Any] | None = None,
    statistics: Statistics | None = None,
    progress: bool = False,
) -> None:
    """Find every activation range by the line search of Eq. 8 and set it.

    The model runs in float. Every frame is an exemplar of keyframes, every frame after the first of its interval one
    of residuals to that first (to the last frame with ``reference="running"``), up to ``config.calibration.samples``
    of each. Clips longer than T are split into intervals as streams split them. Ranges are set at the very end, so an
    error leaves those of before. With ``config.calibration.fit`` the bias of keyframes, or also the rounding of
    weights, is then fitted to the float outputs of each layer in turn, on the frames that were looked at twice. Layers
    that no frame reaches become plain float layers again, with a notice. One warning names what is wrong with the
    clips or the configuration: layers that saw no change (their residual range is that of the keyframes) or only
    zeros, and layers whose error is far above what their bit widths can give, with the setting that helps.

    Args:
        model: a model from `convert`.
        clips: consecutive frames, as (T, C, H, W) tensors or lists of frames (N, C, H, W); a list of more clips than
            needed is sampled evenly. A frame may be any pytree with such a tensor (frame, masks, previous state).
        run: what runs one frame, when it is not ``model(frame)``. What its frames read is recorded where they are
            looked at twice, so it runs each once; without ``start`` also the very first one for its batch norms.
        start: what begins a video, where ``run`` keeps state between frames: every clip is then run from its first
            frame on, in order, and frames that call no layer (a first frame that is given) are passed over.
        statistics: what other calibrations of this model on these clips have found, and this one adds to; see
            `resq_plugin.calibration.Statistics`. ``run`` and ``start`` have to do the same in all of them.
        progress: show a progress bar.

    Raises:
        CalibrationError: no clip, clips of one frame (residuals need two), NaN or Inf in a frame or in weights, no
            layer reached, a frame that is looked at twice depends on a state that the network keeps, the model fails
            on a frame and runs on one of another size, type or layout, or the statistics are of another model or
            other clips; ``fit`` on another backend than torch, without frames to fit to, or for a network whose
            frames depend on each other within a batch.
    """
    layers = residual_layers(model)
    config = next(iter(layers.values())).settings.config
    if isinstance(clips, Tensor) and clips.dim() == 5:
        clips = list(clips)
    fits = config.calibration.fit != "none"
    if fits:
        require_fitting(layers)
    run = _telling(model, run or model)
    look = partial(collect, model, layers, clips, config, run=run, start=start, progress=progress)
    with evaluating(model):
        found = look() if statistics is None else statistics.collected(model, layers, clips, look, run, start)
        samples = found.samples
        _require_finite({name: layers[name] for name in samples})
        stacked = stack_pairs(found.pairs, with_residuals=config.residual is not None) if fits else None
        for name in samples:
            layers[name].calibrate_weights()
        searches = {
            name: search_layer(layers[name], samples[name], found.ranked)
            for name in tqdm(samples, "searching ranges", disable=not progress)
        }
        findings = find_findings(layers, samples, searches, found.clips) + too_short(found.longest, config)
        ranked = compare_on_full_maps(model, config, searches, found, progress=progress)
    for name, losses in ranked.items():
        _set_ranges(layers[name], losses, samples[name])
    if stacked is not None:
        with evaluating(model):
            fit_layers(model, {name: layers[name] for name in ranked}, stacked, config)
    scenes = found.scenes
    if config.schedule.kind == "scene_change" and scenes.changes:
        set_scene_threshold(model, scenes.threshold)
        findings += scenes.findings
    log_findings(findings)
    _release_unreached(layers, set(ranked), config)


def _telling(model: nn.Module, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Say of a frame that the model cannot take what is wrong with it."""

    def told(frame: Any) -> Any:
        with telling_unfit_frames(model, frame, CalibrationError, run):
            return run(frame)

    return told


def _require_finite(layers: Mapping[str, ResidualLayer]) -> None:
    """Refuse weights that no output can be computed with; those before other layers are told by what these read."""
    for name, layer in layers.items():
        for kind, tensor in (("weights", layer.weight_of("float")), ("bias", layer.bias_of())):
            if tensor is not None and (count := int((~tensor.isfinite()).sum())):
                msg = (
                    f"the {kind} of layer {name}, batch norm included, hold {count} NaN or Inf of {tensor.numel()} "
                    f"values, so its output is none; load other weights, or leave it in float: exclude=({name!r},)."
                )
                raise CalibrationError(msg)


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

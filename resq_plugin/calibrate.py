"""Temporal calibration: activation ranges of keyframes and residuals from clips (§4.1)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.backends import find_backend
from resq_plugin.collect import Collector, FullMapComparison, LayerSamples
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.fold import evaluating, fold_batch_norms
from resq_plugin.layers import ResidualLayer, executing, residual_layers
from resq_plugin.quantizer import fake_quantize, scale_from_range
from resq_plugin.ranges import candidate_ranges, output_loss, search_range
from resq_plugin.sampling import apply_to_windows
from resq_plugin.schedule import relative_change, set_scene_threshold

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)

FINALISTS = 3
"""Candidates of the sampled search that are compared on full maps."""

Clip = Tensor | Sequence[Tensor]


@torch.no_grad()
def calibrate(
    model: nn.Module,
    clips: Iterable[Clip],
    *,
    run: Callable[[Tensor], Any] | None = None,
    progress: bool = False,
) -> None:
    """Find every activation range by the line search of Eq. 8 and set it.

    The model runs in float. Every frame is an exemplar of keyframes, every frame after the first of its clip one of
    residuals to that first, up to ``config.calibration.samples`` of each. Ranges are set at the very end, so an error
    leaves those of before. Layers that no frame reaches become plain float layers again, with a notice.

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
    collector = Collector(layers, config)
    kept: list[list[Tensor]] = []
    changes: list[float] = []
    with evaluating(model):
        for index, frames in enumerate(_select(clips, config, _device(model), progress)):
            if index == 0:
                fold_batch_norms(model, frames[0], run)
            with executing(collector):
                for position, frame in enumerate(frames):
                    collector.start_frame(position)
                    (run or model)(frame)
            collector.end_clip()
            changes += [float(relative_change(frame, frames[0]).max()) for frame in frames[1:]]
            _keep(kept, frames, index, config.calibration.recheck)
            if collector.is_full:
                break
        collector.check()
        finalists = {
            name: _search_layer(layers[name], samples, config)
            for name, samples in tqdm(collector.samples.items(), "searching ranges", disable=not progress)
        }
        if config.calibration.recheck:
            comparison = FullMapComparison(config, finalists, collector.samples)
            for frames in tqdm(kept, "comparing on full maps", disable=not progress):
                with executing(comparison):
                    for position, frame in enumerate(frames):
                        comparison.start_frame(position)
                        (run or model)(frame)
            finalists = comparison.ranked()
    for name, layer in layers.items():
        if name in finalists:
            _set_ranges(layer, finalists[name], collector.samples[name])
    if config.schedule.kind == "scene_change" and changes:
        set_scene_threshold(model, max(changes))
    _release_unreached(layers, set(finalists), config)


def _device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)


def _select(
    clips: Iterable[Clip], config: ResQConfig, device: torch.device | None, progress: bool
) -> Iterable[list[Tensor]]:
    """Yield checked clips as lists of frames (N, C, H, W), evenly chosen when there are more than needed."""
    needs_two = any(not precision.is_dynamic or precision.pool for precision in [config.residual] if precision)
    if isinstance(clips, Tensor) and clips.dim() == 5:
        clips = list(clips)
    if isinstance(clips, Sequence) and len(clips):
        per_clip = max(len(clips[0]) - 1, 1)
        wanted = min(len(clips), -(-config.calibration.samples // per_clip))
        clips = [clips[(index * len(clips)) // wanted] for index in range(wanted)]
    count = longest = 0
    for count, clip in enumerate(tqdm(clips, "running calibration clips", disable=not progress), start=1):  # noqa: B007
        frames = _frames(clip, count - 1, device)
        longest = max(longest, len(frames))
        yield frames
    if count == 0:
        msg = "calibration got no clip; pass clips such as [(T, C, H, W) tensor, ...] of consecutive frames."
        raise CalibrationError(msg)
    if needs_two and longest < 2:
        msg = (
            f"every calibration clip has one frame, but {config.notation} needs residuals; pass clips of at least two "
            f"consecutive frames (T={config.interval} fits the interval), or use precision='{config.keyframe}'."
        )
        raise CalibrationError(msg)


def _frames(clip: Clip, index: int, device: torch.device | None) -> list[Tensor]:
    if isinstance(clip, Tensor) and clip.dim() < 4:
        msg = f"calibration clip {index} has shape {tuple(clip.shape)}; a clip is (T, C, H, W) or a list of (N, C, H, W)."
        raise CalibrationError(msg)
    frames = list(clip.unsqueeze(1)) if isinstance(clip, Tensor) else list(clip)
    if not frames:
        msg = f"calibration clip {index} is empty; a clip holds at least one frame (N, C, H, W)."
        raise CalibrationError(msg)
    for position, frame in enumerate(frames):
        if not isinstance(frame, Tensor) or frame.shape != frames[0].shape:
            found = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            msg = f"frame {position} of calibration clip {index} is {found}; frame 0 is {tuple(frames[0].shape)}."
            raise CalibrationError(msg)
        if frame.is_floating_point() and not bool(torch.isfinite(frame).all()):
            bad = int((~torch.isfinite(frame)).sum())
            msg = f"frame {position} of calibration clip {index} holds {bad} NaN or Inf of {frame.numel()} values."
            raise CalibrationError(msg)
    return [frame.to(device) for frame in frames]


def _keep(kept: list[list[Tensor]], frames: list[Tensor], index: int, limit: int) -> None:
    """Reservoir sample of frame pairs (first, last) for the comparison on full maps."""
    pair = [frames[0], frames[-1]] if len(frames) > 1 else frames[:1]
    if len(kept) < limit:
        kept.append(pair)
    elif limit and (slot := random.Random(index).randrange(index + 1)) < limit:
        kept[slot] = pair


def _search_layer(layer: ResidualLayer, samples: LayerSamples, config: ResQConfig) -> dict[str, list[float]]:
    """Rank the half ranges of every quantizer of a layer on the sampled windows, best first."""
    weight = layer.weight_of("float")
    if not bool(weight.any()):
        logger.warning("layer %s: all weights are zero, so its output is its bias whatever the precision", layer.settings.name)
    r = config.calibration.candidates
    quantizers = layer.activation_quantizers()
    signed = samples.is_signed(config)
    x = samples.keyframe_inputs()
    ranked = {}

    def rank(name: str, x: Tensor, low: float, high: float, kind: str, signed: bool) -> None:
        target, w_hat, bits = apply_to_windows(layer, x, weight), layer.weight_of(kind), quantizers[name].bits

        def loss(half_range: float) -> float:
            return output_loss(
                x, target, w_hat, half_range, bits, signed, lambda x, weight: apply_to_windows(layer, x, weight)
            )

        ranked[name] = [0.0] if bits == 0 else search_range(candidate_ranges(low, high, r), loss)

    rank("keyframe", x, *samples.keyframe_range, "keyframe", signed)
    if samples.residual_range is not None:
        half = torch.tensor(ranked["keyframe"][0], dtype=torch.float64)
        bits = quantizers["keyframe"].bits
        scale = scale_from_range(-half, half, bits, signed=signed).to(x)
        delta = samples.residual_inputs(config.reference, lambda x: fake_quantize(x, scale, bits, signed=signed))
        low, high = torch.aminmax(delta)
        bounds = min(float(low), samples.residual_range[0]), max(float(high), samples.residual_range[1])
        for name in quantizers:
            if name != "keyframe":
                rank(name, delta, *bounds, "residual", True)
    return {name: half_ranges[:FINALISTS] for name, half_ranges in ranked.items()}


def _set_ranges(layer: ResidualLayer, ranked: dict[str, list[float]], samples: LayerSamples) -> None:
    layer.activation_norm.fill_(samples.activation_norm)
    for name, quantizer in layer.activation_quantizers().items():
        signed = name != "keyframe" or samples.is_signed(layer.settings.config)
        quantizer.set_range(-ranked[name][0], ranked[name][0], signed=signed)


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

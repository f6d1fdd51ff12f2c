"""Temporal calibration: activation ranges of keyframes and residuals from clips (§4.1)."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.backends import find_backend
from resq_plugin.calibration.collect import Collector, FullMapComparison, LayerSamples, best, widen
from resq_plugin.calibration.ranges import candidate_ranges, output_loss, search_range
from resq_plugin.calibration.sampling import apply_to_windows
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import evaluating, fold_batch_norms
from resq_plugin.errors import CalibrationError
from resq_plugin.method import (
    ResidualLayer,
    executing,
    fake_quantize,
    relative_change,
    residual_layers,
    scale_from_range,
    set_scene_threshold,
)

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
    if isinstance(clips, Tensor) and clips.dim() == 5:
        clips = list(clips)
    collector = Collector(layers, config, _expected_frames(clips, config))
    kept: list[list[Tensor]] = []
    changes: list[float] = []
    device = _device(model)
    with evaluating(model):
        for index, clip in enumerate(_select(clips, config, progress)):
            frames = [frame.to(device) for frame in clip[: collector.wanted]]
            if index == 0:
                fold_batch_norms(model, frames[0], run)
            with executing(collector):
                for position, frame in enumerate(frames):
                    collector.start_frame(position)
                    (run or model)(frame)
            collector.end_clip()
            changes += [float(relative_change(frame, frames[0]).max()) for frame in frames[1:]]
            _keep(kept, frames, index, config.calibration.recheck)
            if not collector.wanted:
                break
        collector.finish()
        for name in collector.samples:
            layers[name].calibrate_weights()
        ranked = {
            name: _search_layer(layers[name], samples, config)
            for name, samples in tqdm(collector.samples.items(), "searching ranges", disable=not progress)
        }
        if config.calibration.recheck:
            comparison = FullMapComparison(config, ranked, collector.samples)
            for frames in tqdm(kept, "comparing on full maps", disable=not progress):
                with executing(comparison):
                    for position, frame in enumerate(frames):
                        comparison.start_frame(position)
                        (run or model)(frame)
            ranked = comparison.finalists
    for name, losses in ranked.items():
        _set_ranges(layers[name], losses, collector.samples[name])
    if config.schedule.kind == "scene_change" and changes:
        set_scene_threshold(model, max(changes))
    _release_unreached(layers, set(ranked), config)


def _device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)


def _samples_per_clip(clips: Sequence[Clip]) -> int:
    """Residual samples of a clip; frame quantization counts alike, to get the same keyframe samples as ResQ."""
    return max(length_hint(clips[0], 1) - 1, 1)


def _expected_frames(clips: Iterable[Clip], config: ResQConfig) -> int:
    """How many samples of each kind there will be, as far as the clips tell."""
    samples = config.calibration.samples
    if isinstance(clips, Sequence) and clips:
        samples = min(samples, len(clips) * _samples_per_clip(clips))
    return samples


def _select(clips: Iterable[Clip], config: ResQConfig, progress: bool) -> Iterator[list[Tensor]]:
    """Yield checked clips as lists of frames (N, C, H, W); of more than needed, evenly chosen ones come first."""
    numbered: Iterable[tuple[int, Clip]] = enumerate(clips)
    if isinstance(clips, Sequence) and clips:
        wanted = min(len(clips), -(-config.calibration.samples // _samples_per_clip(clips)))
        first = [(index * len(clips)) // wanted for index in range(wanted)]
        rest = sorted(set(range(len(clips))) - set(first))
        numbered = ((index, clips[index]) for index in itertools.chain(first, rest))
    count = longest = 0
    for index, clip in tqdm(numbered, "running calibration clips", disable=not progress):
        frames = _frames(clip, index)
        count, longest = count + 1, max(longest, len(frames))
        yield frames
        if longest < 2 and count >= config.calibration.samples:
            break
    if count == 0:
        msg = "calibration got no clip; pass clips such as [(T, C, H, W) tensor, ...] of consecutive frames."
        raise CalibrationError(msg)
    if config.residual is not None and longest < 2:
        msg = (
            f"all {count} calibration clips have one frame, but {config.notation} needs residuals; pass clips of at "
            f"least two consecutive frames (T={config.interval} fits the interval), or use "
            f"precision='{config.keyframe}'."
        )
        raise CalibrationError(msg)


def _frames(clip: Clip, index: int) -> list[Tensor]:
    where = f"calibration clip {index}"
    if isinstance(clip, Tensor) and clip.dim() < 4:
        msg = f"{where} has shape {tuple(clip.shape)}; a clip is (T, C, H, W) or a list of frames (N, C, H, W)."
        raise CalibrationError(msg)
    frames = list(clip.unsqueeze(1)) if isinstance(clip, Tensor) else list(clip)
    if not frames:
        msg = f"{where} is empty; a clip holds at least one frame (N, C, H, W)."
        raise CalibrationError(msg)
    for position, frame in enumerate(frames):
        where = f"frame {position} of calibration clip {index}"
        if not isinstance(frame, Tensor):
            msg = f"{where} is of type {type(frame).__name__}; a frame is a tensor (N, C, H, W)."
            raise CalibrationError(msg)
        if frame.shape != frames[0].shape:
            msg = f"{where} has shape {tuple(frame.shape)}; frame 0 has {tuple(frames[0].shape)}."
            raise CalibrationError(msg)
        if frame.is_floating_point() and not bool(torch.isfinite(frame).all()):
            bad = int((~torch.isfinite(frame)).sum())
            msg = f"{where} holds {bad} NaN or Inf of {frame.numel()} values."
            raise CalibrationError(msg)
    return frames


def _keep(kept: list[list[Tensor]], frames: list[Tensor], index: int, limit: int) -> None:
    """Reservoir sample of frame pairs (first, a later one) for the comparison on full maps; distances take turns."""
    pair = [frames[0], frames[1 + index % (len(frames) - 1)]] if len(frames) > 1 else frames[:1]
    if len(kept) < limit:
        kept.append(pair)
    elif limit and (slot := random.Random(index).randrange(index + 1)) < limit:
        kept[slot] = pair


def _search_layer(layer: ResidualLayer, samples: LayerSamples, config: ResQConfig) -> dict[str, dict[float, float]]:
    """The best half ranges of every quantizer of a layer and their losses on the sampled windows, best first."""
    weight = layer.weight_of("float")
    if not bool(weight.any()):
        name = layer.settings.name
        logger.warning("layer %s: all weights are zero, so its output is its bias whatever the precision", name)
    r = config.calibration.candidates
    quantizers = layer.activation_quantizers()
    signed = samples.is_signed(config)
    apply = partial(apply_to_windows, layer)
    ranked: dict[str, dict[float, float]] = {}

    def rank(name: str, batches: list[Tensor], low: float, high: float, kind: str, signed: bool) -> None:
        w_hat, bits = layer.weight_of(kind), quantizers[name].bits
        targets = [apply(x, weight) for x in batches]

        def loss(half_range: float) -> float:
            return sum(
                output_loss(x, target, w_hat, half_range, bits, signed, apply)
                for x, target in zip(batches, targets, strict=True)
            )

        ranked[name] = {0.0: 0.0} if bits == 0 else search_range(candidate_ranges(low, high, r), loss)

    rank("keyframe", samples.keyframe_inputs(), *samples.keyframe_range, "keyframe", signed)
    if samples.residual_range is not None:
        half = torch.tensor(best(ranked["keyframe"]), dtype=torch.float64)
        bits = quantizers["keyframe"].bits
        scale = scale_from_range(-half, half, bits, signed=signed).to(weight.device)
        delta = samples.residual_inputs(config.reference, lambda x: fake_quantize(x, scale, bits, signed=signed))
        bounds = samples.residual_range
        for batch in delta:
            bounds = widen(bounds, batch, layer.settings.name)
        for name in quantizers:
            if name != "keyframe":
                rank(name, delta, *bounds, "residual", True)
    return {name: dict(itertools.islice(losses.items(), FINALISTS)) for name, losses in ranked.items()}


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

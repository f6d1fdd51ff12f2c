"""One look at the clips: windows of layer inputs, and pairs of frames to run again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from resq_plugin.calibration.clips import Clip, expected_samples, select_intervals, tell_of_pixels
from resq_plugin.calibration.collect import Collector
from resq_plugin.calibration.layer_samples import LayerSamples, Losses
from resq_plugin.calibration.recording import Recording, chosen_pair, keep_pair, recording
from resq_plugin.calibration.scenes import SceneChanges
from resq_plugin.calibration.whole_clips import whole_clips
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import fold_batch_norms
from resq_plugin.method import ResidualLayer, executing, frame_to, image_of

__all__ = ["Collected", "Run", "Start", "collect", "fold_on"]

Run = Callable[[Any], Any]
Start = Callable[[], Any]


@dataclass
class Collected:
    """What the clips told, and what was found in it; nothing of it depends on a precision but the last two.

    Attributes:
        first: frames of the first interval, on which batch norms are folded.
        clips: numbers of the clips that were looked at.
        longest: frames of the longest interval among them.
        samples: per layer, windows and statistics of its inputs.
        pairs: keyframe and residual frame, recorded to be run again for the comparison on full maps.
        scenes: changes of frames, where the schedule asks for them.
        of_keyframes: the same as frame quantization sees it, if that is part of it.
        ranked: what was searched on the windows: losses, and what 0 bits lose, by what they depend on.
        rechecked: losses of the finalists with those on full maps, by what they depend on.
    """

    first: list[Any] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)
    longest: int = 0
    samples: Mapping[str, LayerSamples] = field(default_factory=dict)
    pairs: list[list[Recording]] = field(default_factory=list)
    scenes: SceneChanges = field(default_factory=SceneChanges)
    of_keyframes: Collected | None = None
    ranked: dict[Hashable, Losses] = field(default_factory=dict)
    rechecked: dict[Hashable, Losses] = field(default_factory=dict)


def collect(
    model: nn.Module,
    layers: Mapping[str, ResidualLayer],
    clips: Iterable[Clip],
    config: ResQConfig,
    *,
    run: Run,
    start: Start | None = None,
    progress: bool = False,
) -> Collected:
    """Run clips in float, as `resq_plugin.calibrate` says.

    Args:
        model: a converted model in evaluation mode; batch norms are folded on the first frames.
        layers: its layers by name.
        clips: consecutive frames each.
        config: of the model.
        run: what runs one frame.
        start: what begins a video.
        progress: show a progress bar.

    Raises:
        CalibrationError: see `resq_plugin.calibrate`.
    """
    found, frames_only = Collected(), Collected()
    collector = Collector(layers, config, expected_samples(clips, config))
    device = next((parameter.device for parameter in model.parameters()), None)
    select = select_intervals if start is None else partial(whole_clips, start=start)
    intervals = select(clips, config, lambda: collector.wanted, progress=progress)
    for index, (number, interval) in enumerate(intervals):
        frames = [frame_to(frame, device) for frame in interval[: collector.wanted]]
        found.clips.append(number)
        found.longest = max(found.longest, len(interval))
        if index == 0:
            found.first = frames
            tell_of_pixels(model, frames[0], f"calibration clip {number}")
            fold_on(model, frames, run, start)
        pair = chosen_pair(index, len(frames), config)
        # Frame quantization stops earlier, where there are enough keyframes; its pairs are then others.
        left = min(len(frames), collector.missing_keyframes)
        other = chosen_pair(index, left, config) if left else ()
        recorded = _run_interval(model, frames, run, collector, {*pair, *other})
        if config.schedule.kind == "scene_change":
            found.scenes.add(number, [image_of(frame) for frame in frames])
        keep_pair(found.pairs, [recorded[t] for t in pair if t in recorded], index, config)
        keep_pair(frames_only.pairs, [recorded[t] for t in other if t in recorded], index, config)
        if not collector.wanted:
            break
    collector.finish()
    found.samples = collector.samples
    # Elsewhere it depends on the number of wanted frames which ones are looked at.
    is_prefix = isinstance(clips, Sequence) and start is None and not collector.passed_over
    if config.residual is not None and is_prefix and config.schedule.kind == "interval":
        frames_only.first, frames_only.clips, frames_only.ranked = found.first, found.clips, found.ranked
        frames_only.samples = {name: samples.of_keyframes() for name, samples in found.samples.items()}
        found.of_keyframes = frames_only
    return found


def _run_interval(
    model: nn.Module, frames: list[Any], run: Run, collector: Collector, chosen: Collection[int]
) -> dict[int, Recording]:
    """Run an interval in float; the chosen positions are recorded."""
    recorded: dict[int, Recording] = {}
    position = 0
    with executing(collector):
        for frame in frames:
            collector.start_frame(position)
            with recording(model) if position in chosen else nullcontext() as found:
                run(frame)
            if not collector.calls:  # such as a first frame that is given
                collector.pass_over_frame()
                continue
            if found is not None:
                recorded[position] = found
            position += 1
    collector.end_clip()
    return recorded


def fold_on(model: nn.Module, frames: list[Any], run: Run, start: Start | None = None) -> None:
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

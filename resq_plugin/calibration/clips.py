"""Which frames calibration looks at: clips are checked, split into intervals as streams split a video, and chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError, FrameError
from resq_plugin.method import image_of, is_news, looks_like_pixels, unusable_values

__all__ = [
    "NO_CLIP",
    "Clip",
    "checked_frames",
    "expected_samples",
    "longest_interval",
    "select_intervals",
    "split_clip",
    "tell_of_pixels",
]

logger = logging.getLogger(__name__)

Clip = Tensor | Sequence[Any]
"""(T, C, H, W), or frames: (N, C, H, W) or pytrees with such a tensor."""
Interval = tuple[int, list[Any]]
"""Number of the clip, and consecutive frames (N, C, H, W) of it, at most T."""


NO_CLIP = "calibration got no clip; pass clips such as [(T, C, H, W) tensor, ...] of consecutive frames."


def longest_interval(config: ResQConfig) -> int:
    """Frames of an interval, T; residuals need two even where a stream has only keyframes."""
    return max(config.interval, 2)


def _hint(clips: Sequence[Clip]) -> int:
    """Length of the clips as far as the first one tells."""
    return max(length_hint(clips[0], 1), 1)


def expected_samples(clips: Iterable[Clip], config: ResQConfig) -> int:
    """How many samples of each kind there will be, as far as the clips tell.

    Frame quantization counts residual samples, too, to get the same keyframe samples as ResQ.
    """
    samples = config.calibration.samples
    if isinstance(clips, Sequence) and clips:
        length = _hint(clips)
        residuals = length - -(-length // longest_interval(config))
        samples = min(samples, len(clips) * max(residuals, 1))
    return samples


def select_intervals(
    clips: Iterable[Clip], config: ResQConfig, missing: Callable[[], int], *, progress: bool = False
) -> Iterator[Interval]:
    """Yield intervals of T frames spread over the clips; a clip of up to T frames is one.

    A residual frame is at most T - 1 frames behind its keyframe, so longer distances would widen the ranges for
    nothing. A clip is split where `evaluate` splits it. Of more clips than needed, evenly chosen ones come first, with
    one interval each; of fewer, each gives intervals evenly chosen over its length; what is left comes last.

    Args:
        clips: consecutive frames each.
        config: for T and the number of samples.
        missing: how many frames are still wanted.
        progress: show a progress bar.

    Raises:
        CalibrationError: a clip is unusable, there is none, or none has the two frames that residuals need.
    """
    count = longest = batch = 0
    for index, intervals in tqdm(
        _clip_by_clip(clips, config, missing), "running calibration clips", disable=not progress
    ):
        count += 1
        for frames in intervals:
            longest, batch = max(longest, len(frames)), max(batch, len(image_of(frames[0])))
            yield index, frames
        if longest < 2 and count >= config.calibration.samples:
            break
    if count == 0:
        raise CalibrationError(NO_CLIP)
    if config.residual is not None and longest < 2:
        msg = (
            f"all {count} calibration clips have one frame, but {config.notation} needs residuals; pass clips of at "
            f"least two consecutive frames (T={config.interval} fits the interval), or use "
            f"precision='{config.keyframe}'."
        )
        if batch > 1:
            msg += f" If the {batch} pictures in it are a clip, pass the tensor itself: [clip], not [[clip]]."
        raise CalibrationError(msg)


def tell_of_pixels(model: nn.Module, frame: Any, where: str) -> None:
    """Warn, once for a model, of a frame with values of 0 ... 255.

    Args:
        model: what the frame is for.
        frame: (N, C, H, W), or a pytree with one.
        where: what the message calls it.
    """
    if looks_like_pixels(frame) and is_news(model, "pixels"):
        logger.warning(
            "%s has values up to %.0f and none below 0, like pixels of 0 ... 255 that nobody normalised; unless the "
            "model does it, pass frames as it was trained on: resq_plugin.video.read(path, mean=..., std=...)",
            where,
            float(image_of(frame).max()),
        )


def _clip_by_clip(
    clips: Iterable[Clip], config: ResQConfig, missing: Callable[[], int]
) -> Iterator[tuple[int, list[list[Any]]]]:
    longest = longest_interval(config)
    if not isinstance(clips, Sequence) or not clips:
        for index, clip in enumerate(clips):
            frames = checked_frames(clip, index)
            samples = max(min(len(frames), longest) - 1, 1)
            yield index, _spread(split_clip(frames, longest), -(-(missing() - 1) // samples))[0]
        return
    wanted = -(-config.calibration.samples // max(min(_hint(clips), longest) - 1, 1))
    chosen = min(len(clips), wanted)
    each = -(-wanted // len(clips))
    first = [(position * len(clips)) // chosen for position in range(chosen)]
    left: list[tuple[int, list[list[Any]]]] = []
    for index in first:
        now, later = _spread(split_clip(checked_frames(clips[index], index), longest), each)
        if later:
            left.append((index, later))
        yield index, now
    for index in sorted(set(range(len(clips))) - set(first)):
        yield index, split_clip(checked_frames(clips[index], index), longest)
    yield from left


def split_clip(frames: list[Any], length: int) -> list[list[Any]]:
    """Cut a clip into intervals of that length, as streams do."""
    return [frames[start : start + length] for start in range(0, len(frames), length)]


def _spread(intervals: list[list[Any]], wanted: int) -> tuple[list[list[Any]], list[list[Any]]]:
    """As many intervals as wanted, evenly chosen, and the others; a cut-off one at the end of a clip comes last."""
    whole = [interval for interval in intervals if len(interval) == len(intervals[0])]
    count = min(max(wanted, 1), len(whole))
    chosen = {(position * len(whole)) // count for position in range(count)}
    rest = [interval for position, interval in enumerate(whole) if position not in chosen]
    return [whole[position] for position in sorted(chosen)], rest + intervals[len(whole) :]


def checked_frames(clip: Clip, index: int) -> list[Any]:
    """Return the frames of a clip.

    Raises:
        CalibrationError: it is empty, or a frame is none, has another shape than the first, or holds NaN or Inf.
    """
    where = f"calibration clip {index}"
    if isinstance(clip, Tensor) and clip.dim() < 4:
        hint = " Of one clip alone make a list: calibrate(model, [clip])." if clip.dim() == 3 else ""
        msg = f"{where} has shape {tuple(clip.shape)}; a clip is (T, C, H, W) or a list of frames (N, C, H, W).{hint}"
        raise CalibrationError(msg)
    frames = list(clip.unsqueeze(1)) if isinstance(clip, Tensor) else list(clip)
    if not frames:
        msg = f"{where} is empty; a clip holds at least one frame (N, C, H, W)."
        raise CalibrationError(msg)
    for position, frame in enumerate(frames):
        where = f"frame {position} of calibration clip {index}"
        try:
            shape, first = image_of(frame).shape, image_of(frames[0]).shape
        except FrameError as error:
            name = type(frame).__name__
            hint = " Write torch.from_numpy(clip) for an array (T, C, H, W)." if name == "ndarray" else ""
            msg = f"{where} is of type {name}; a frame is a tensor (N, C, H, W), or a pytree with one.{hint}"
            raise CalibrationError(msg) from error
        if shape != first:
            msg = f"{where} has shape {tuple(shape)}; frame 0 has {tuple(first)}."
            raise CalibrationError(msg)
        bad, total = unusable_values(frame)
        if bad:
            msg = f"{where} holds {bad} NaN or Inf of {total} values."
            raise CalibrationError(msg)
    return frames

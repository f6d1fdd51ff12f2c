"""The videos of a comparison: what calibrates, what is measured, and what they must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resq_plugin.errors import ConfigError

__all__ = ["Videos", "identical", "split_videos"]

LEAST = 4
"""Frames of a calibration share from which it is worth its name."""


@dataclass(frozen=True)
class Videos:
    """Videos of one resolution.

    Attributes:
        measured: per video its frames (1, C, H, W), loaded when they are asked for.
        labels: per video and frame the label, or None.
        calibration: clips of consecutive frames.
        description: where the frames came from, for people.
    """

    measured: Sequence[Sequence[Tensor]]
    labels: Sequence[Sequence[Tensor | None]] | None
    calibration: Sequence[Sequence[Tensor]]
    description: str

    @property
    def frames(self) -> int:
        """How many frames are measured."""
        return sum(len(video) for video in self.measured)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return tuple(self.measured[0][0].shape)

    def named(self) -> Iterator[tuple[str, Tensor | None]]:
        """All frames and labels by a name of their own, each loaded as it is asked for."""
        for kind, sequences in (("frame", self.measured), ("clip", self.calibration), ("label", self.labels or ())):
            for number, sequence in enumerate(sequences):
                for index, value in enumerate(sequence):
                    yield f"{kind} {number} {index}", value


class _Part(Sequence[Tensor]):
    """Some consecutive frames of a video, loaded when they are asked for."""

    def __init__(self, video: Any, start: int, stop: int) -> None:
        self.video, self.start, self.stop = video, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        frame = self.video[self.start + index % len(self)]
        return frame[None] if isinstance(self.video, Tensor) else frame

    @property
    def picture(self) -> Any:
        """Number of a frame to its picture, of a video that has them."""
        picture = getattr(self.video, "picture", None)
        return None if picture is None else lambda index: picture(self.start + index)


def split_videos(frames: Any, labels: Any, calibration: float | Sequence[Any], interval: int, samples: int) -> Videos:
    """Part videos into what calibrates and what is measured.

    Args:
        frames: one video: (T, C, H, W) or a sequence of frames (1, C, H, W); or a list of such videos.
        labels: alike, None where there is none; or None.
        calibration: share of the first frames of each video that calibrate and are not measured; or clips of other
            videos.
        interval: the longest T, the length of a calibration clip.
        samples: frames to calibrate on, at most.

    Raises:
        ConfigError: frames of another form or not normalised, too few of them, or labels that do not fit.
    """
    videos, wrapped = _videos(frames)
    for index, video in enumerate(videos):
        _check_frame(_Part(video, 0, len(video))[0], index)
    if labels is not None:
        labels = [labels] if wrapped else list(labels)
        _check_labels(labels, videos)
    if not isinstance(calibration, (int, float)):
        parts = [_Part(video, 0, len(video)) for video in videos]
        return _checked(Videos(parts, labels, list(calibration), "other clips calibrate"), interval)
    if not 0 < calibration < 1:
        msg = f"calibration={calibration!r} is not allowed; write a share of the frames such as 0.25, or clips."
        raise ConfigError(msg)
    clips: list[_Part] = []
    measured: list[_Part] = []
    left: list[Sequence[Tensor | None]] = []
    used = 0
    for index, video in enumerate(videos):
        first = min(int(len(video) * calibration), -(-samples // len(videos)) + 1)
        if first < max(LEAST, min(interval, 2)) or len(video) - first < 2:
            msg = (
                f"video {index} has {len(video)} frames, of which {first} would calibrate (calibration={calibration}) "
                f"and {len(video) - first} be measured; give a longer video, or clips: calibration=[clip, ...]."
            )
            raise ConfigError(msg)
        length = max(interval, 2)
        clips += [_Part(video, start, min(start + length, first)) for start in range(0, first - 1, length)]
        measured.append(_Part(video, first, len(video)))
        used += first
        if labels is not None:
            left.append(list(labels[index])[first:])
    total = sum(len(part) for part in measured)
    text = f"{total} frames measured, after {used} that calibrate"
    return _checked(Videos(measured, left if labels is not None else None, clips, text), interval)


def _checked(videos: Videos, interval: int) -> Videos:
    longest = max(len(video) for video in videos.measured)
    if interval > longest:
        msg = (
            f"T = {interval} is longer than the longest video, which has {longest} frames to measure; positions from "
            f"{longest} on would never run. Write intervals of at most {longest}, or give longer videos."
        )
        raise ConfigError(msg)
    return videos


def _videos(frames: Any) -> tuple[list[Any], bool]:
    """A list of videos, and whether one was given without a list around it."""
    if isinstance(frames, Tensor):
        if frames.dim() == 5:
            return list(frames), False
        if frames.dim() != 4:
            msg = f"frames have shape {tuple(frames.shape)}; a video is (T, C, H, W), several are (V, T, C, H, W)."
            raise ConfigError(msg)
        frames, wrapped = [frames], True
    else:
        if not hasattr(frames, "__len__") or not hasattr(frames, "__getitem__"):
            msg = (
                f"frames are a {type(frames).__name__}; they are run once per setting, so pass a sequence such as a "
                "list of frames (1, C, H, W), a tensor (T, C, H, W), or resq_plugin.video.read(path)."
            )
            raise ConfigError(msg)
        wrapped = len(frames) > 0 and isinstance(frames[0], Tensor) and not _is_video(frames[0])
        frames = [frames] if wrapped else list(frames)
    for video in frames:
        if isinstance(video, Mapping) or not hasattr(video, "__len__"):
            msg = (
                f"frames hold a {type(video).__name__}; a frame is a tensor (1, C, H, W), which model(frame) runs. "
                "For a model that takes more, put a module around it whose forward takes the image alone."
            )
            raise ConfigError(msg)
    if not frames or not all(len(video) for video in frames):
        msg = "there is no frame to compare on; pass a video (T, C, H, W), a list of frames, or a list of videos."
        raise ConfigError(msg)
    return frames, wrapped


def _is_video(item: Tensor) -> bool:
    return item.dim() == 4 and item.shape[0] > 1


def _check_frame(frame: Any, index: int) -> None:
    where = f"frame 0 of video {index}"
    if not isinstance(frame, Tensor):
        msg = f"{where} is a {type(frame).__name__}; a frame is a tensor (1, C, H, W)."
        raise ConfigError(msg)
    if frame.dim() != 4 or frame.shape[0] != 1:
        hint = "frame.unsqueeze(0)" if frame.dim() == 3 else "list(clip.unsqueeze(1))"
        msg = f"{where} has shape {tuple(frame.shape)}; a frame is (1, C, H, W): write {hint}."
        raise ConfigError(msg)
    if not frame.is_floating_point():
        msg = (
            f"{where} is {str(frame.dtype).removeprefix('torch.')}; a model takes normalised floating-point frames: "
            "resq_plugin.video.read(path, mean=..., std=...) makes them."
        )
        raise ConfigError(msg)


def _check_labels(labels: Sequence[Any], videos: Sequence[Any]) -> None:
    found, expected = [len(label) for label in labels], [len(video) for video in videos]
    if found != expected:
        msg = f"there are {found} labels for videos of {expected} frames; use None for a frame without a label."
        raise ConfigError(msg)
    for video in labels:
        for label in video:
            if label is not None and not isinstance(label, Tensor):
                msg = f"a label is a {type(label).__name__}; labels are tensors such as (1, H, W), or None."
                raise ConfigError(msg)


def identical(predictions: Sequence[Sequence[Tensor]]) -> bool:
    """Whether every value of every prediction is the same."""
    first = predictions[0][0].flatten()[:1]
    return all(bool(torch.eq(prediction, first).all()) for video in predictions for prediction in video)

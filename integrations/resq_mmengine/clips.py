"""The clips of a dataset and the order in which the paper's evaluation visits their frames (§5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resq_plugin.errors import ConfigError

__all__ = ["Clip", "FrameIndex", "clips_of", "cut", "intervals_to_measure"]

KEYS = ("clip_id", "frame_index", "labelled")


class FrameIndex(int):
    """Index of a frame in its dataset, which also knows the keyframe that the frame refers to.

    Attributes:
        keyframe: index of that keyframe in the dataset.
        seed: seed of random transforms, the same for all frames of an interval; None leaves them alone.
    """

    keyframe: int
    seed: int | None

    def __new__(cls, index: int, keyframe: int | None = None, seed: int | None = None) -> FrameIndex:
        """Without a keyframe the frame is one itself."""
        self = super().__new__(cls, index)
        self.keyframe = int(index) if keyframe is None else int(keyframe)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type[FrameIndex], tuple[int, int, int | None]]:
        return FrameIndex, (int(self), self.keyframe, self.seed)


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one video or one track.

    Attributes:
        name: ``clip_id`` of the frames.
        indices: indices of the frames in the dataset, in order of time.
        labelled: whether each frame has a label.
    """

    name: str
    indices: tuple[int, ...]
    labelled: tuple[bool, ...]


def clips_of(dataset: Any) -> list[Clip]:
    """Group the frames of a dataset into clips of consecutive frames; a missing frame ends a clip.

    Args:
        dataset: an MMEngine dataset whose data infos carry ``clip_id``, ``frame_index`` and, unless all frames are
            labelled, ``labelled``.

    Raises:
        ConfigError: a data info does not tell its clip, or a frame occurs twice.
    """
    found: dict[str, dict[int, tuple[int, bool]]] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        missing = [key for key in KEYS[:2] if key not in info]
        if missing:
            msg = (
                f"{type(dataset).__name__} does not tell the clips of its frames: data info {index} has no "
                f"{' and no '.join(missing)}. ResQ needs consecutive frames: write a video dataset, such as "
                "dataset=dict(type='resq_mmseg.FrameFolder', ...) or dict(type='resq_mmpose.JhmdbVideo', ...)."
            )
            raise ConfigError(msg)
        clip = found.setdefault(str(info["clip_id"]), {})
        if info["frame_index"] in clip:
            msg = f"{type(dataset).__name__} has frame {info['frame_index']} of clip {info['clip_id']} twice."
            raise ConfigError(msg)
        clip[info["frame_index"]] = index, bool(info.get("labelled", True))
    return [clip for name, frames in found.items() for clip in _consecutive(name, frames)]


def _consecutive(name: str, frames: dict[int, tuple[int, bool]]) -> list[Clip]:
    times = sorted(frames)
    starts = [i for i, time in enumerate(times) if i == 0 or time != times[i - 1] + 1]
    parts = [times[a:b] for a, b in zip(starts, [*starts[1:], len(times)], strict=True)]
    return [Clip(name, *zip(*(frames[time] for time in part), strict=True)) for part in parts]


Interval = tuple[FrameIndex, ...]


def _interval(indices: Sequence[int], seed: int | None = None) -> Interval:
    return tuple(FrameIndex(index, indices[0], seed) for index in indices)


def intervals_to_measure(clip: Clip, interval: int, *, every_position: bool = True) -> list[Interval]:
    """The intervals in which the labelled frames of a clip are visited.

    With ``every_position`` the clip is split into intervals of T frames in each of the T possible ways, so that a
    labelled frame is visited at every position t <= T that the clip has room for. Intervals, and ends of intervals,
    without a labelled frame are left out.

    Example:
        >>> clip = Clip("a", tuple(range(30)), tuple(frame == 19 for frame in range(30)))
        >>> intervals_to_measure(clip, 3)
        [(18, 19), (19,), (17, 18, 19)]
    """
    found = []
    for offset in range(min(interval, len(clip.indices)) if every_position else 1):
        for start in range(offset, len(clip.indices), interval):
            labelled = clip.labelled[start : start + interval]
            if any(labelled):
                length = max(position for position, has_label in enumerate(labelled) if has_label) + 1
                found.append(_interval(clip.indices[start : start + length]))
    return found


def cut(clip: Clip, length: int, step: int | None = None, seed: int | None = None) -> list[Interval]:
    """All windows of ``length`` frames of a clip, a new one every ``step`` frames; a shorter clip is one window."""
    last = max(len(clip.indices) - length, 0)
    return [_interval(clip.indices[start : start + length], seed) for start in range(0, last + 1, step or length)]

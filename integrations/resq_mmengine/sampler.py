"""Samplers that keep clips together, in one process or over the ranks of ``torch.distributed``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from resq_mmengine.clips import Clip, FrameIndex, Interval, clips_of, cut, intervals_to_measure
from resq_mmengine.registry import DATA_SAMPLERS
from resq_plugin.errors import ConfigError

__all__ = ["ClipBatchSampler", "ClipSampler", "IntervalBatchSampler"]


@DATA_SAMPLERS.register_module()
class ClipSampler(Sampler[FrameIndex]):
    """Frames of a video dataset in the order in which streams need them.

    For evaluation: the intervals of `intervals_to_measure`, one after another. For training (``shuffle=True``):
    windows of T frames, at least one of them labelled, in random order. `ResQHook` sets the interval from the
    configuration; without it (``resq=None``) T is 1, which visits the labelled frames only.

    Over several ranks whole intervals are dealt out (whole clips where intervals have no fixed length), so that no
    rank needs the state of another.

    Args:
        dataset: a video dataset, see `clips_of`.
        shuffle: training, see above.
        length: frames of a training window; T by default.
        step: frames from one training window to the next; ``length`` by default.
        seed: of the shuffling and of random transforms; the same on all ranks by default.

    Raises:
        ConfigError: the dataset does not tell clips, or wraps one that does.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        shuffle: bool = False,
        length: int | None = None,
        step: int | None = None,
        seed: int | None = None,
    ) -> None:
        if hasattr(dataset, "datasets") or hasattr(dataset, "dataset"):
            msg = (
                f"{type(dataset).__name__} hands its frames on as plain indices, so crops and random transforms would "
                "not know their interval; write the video dataset itself into dataset=dict(...)."
            )
            raise ConfigError(msg)
        self.dataset, self.shuffle, self.length, self.step = dataset, shuffle, length, step
        self.seed = sync_random_seed() if seed is None else seed
        self.rank, self.world_size = get_dist_info()
        self.clips: list[Clip] = clips_of(dataset)
        self.epoch, self.interval, self.every_position, self.fixed_intervals = 0, 1, True, True
        if not any(any(clip.labelled) for clip in self.clips):
            msg = (
                f"{type(dataset).__name__} has {len(self.clips)} clips and no labelled frame; nothing can be measured."
            )
            raise ConfigError(msg)

    def configure(self, interval: int, *, every_position: bool = True, fixed_intervals: bool = True) -> None:
        """Set T, whether labelled frames are visited at every position, and whether intervals have a fixed length."""
        self.interval, self.every_position, self.fixed_intervals = interval, every_position, fixed_intervals

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another way."""
        self.epoch = epoch

    def intervals(self) -> list[Interval]:
        """The intervals of this rank."""
        if self.shuffle:
            return self._windows()
        if not self.fixed_intervals:
            whole = [
                intervals_to_measure(clip, len(clip.indices), every_position=False)
                for clip in self.clips[self.rank :: self.world_size]
            ]
            return [interval for intervals in whole for interval in intervals]
        found = [
            part
            for clip in self.clips
            for part in intervals_to_measure(clip, self.interval, every_position=self.every_position)
        ]
        return found[self.rank :: self.world_size]

    def _windows(self) -> list[Interval]:
        """Shuffled windows of equal length, equally many on every rank."""
        generator = random.Random(self.seed + self.epoch)
        length = self.length or self.interval
        found = [
            window
            for clip in self.clips
            for window in cut(clip, length, self.step, seed=generator.randrange(2**31))
            if len(window) == length and any(self.pattern(window))
        ]
        if not found:
            longest = max(len(clip.indices) for clip in self.clips)
            msg = (
                f"no window of {length} frames with a label in {type(self.dataset).__name__}, whose longest clip has "
                f"{longest} frames; write a smaller interval: resq = dict(interval={longest})."
            )
            raise ConfigError(msg)
        generator.shuffle(found)
        missing = -len(found) % self.world_size
        found += (found * (missing // len(found) + 1))[:missing]
        return found[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[FrameIndex]:
        return (index for interval in self.intervals() for index in interval)

    def __len__(self) -> int:
        return sum(len(interval) for interval in self.intervals())

    def pattern(self, interval: Interval) -> tuple[bool, ...]:
        """Which frames of an interval are labelled."""
        return tuple(bool(self.dataset.get_data_info(int(index)).get("labelled", True)) for index in interval)


class _OfClips(Sampler[list[FrameIndex]]):
    """A batch sampler over a `ClipSampler`."""

    def __init__(self, sampler: Any, batch_size: int) -> None:
        if not isinstance(sampler, ClipSampler):
            msg = (
                f"{type(self).__name__} works on a ClipSampler, not on {type(sampler).__name__}; write "
                "sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler') in the same dataloader."
            )
            raise ConfigError(msg)
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return sum(1 for _ in self)


@DATA_SAMPLERS.register_module()
class ClipBatchSampler(_OfClips):
    """Evaluation on batches of clips in step: a batch holds the same position of up to ``batch_size`` intervals.

    Intervals of one length go together, so the last batch of each length may be smaller.

    Args:
        sampler: a `ClipSampler`.
        batch_size: N, the number of clips in step.
    """

    def __iter__(self) -> Iterator[list[FrameIndex]]:
        by_length: dict[int, list[Interval]] = {}
        for interval in self.sampler.intervals():
            by_length.setdefault(len(interval), []).append(interval)
        for intervals in by_length.values():
            for start in range(0, len(intervals), self.batch_size):
                yield from (list(frames) for frames in zip(*intervals[start : start + self.batch_size], strict=True))


@DATA_SAMPLERS.register_module()
class IntervalBatchSampler(_OfClips):
    """Training through time: a batch holds ``batch_size`` whole windows, all their first frames first.

    Windows whose labels are at the same positions go together; what does not fill a batch is left out, as with
    ``drop_last``.

    Args:
        sampler: a `ClipSampler` with ``shuffle=True``.
        batch_size: number of windows.
    """

    def __iter__(self) -> Iterator[list[FrameIndex]]:
        waiting: dict[tuple[bool, ...], list[Interval]] = {}
        for interval in self.sampler.intervals():
            group = waiting.setdefault(self.sampler.pattern(interval), [])
            group.append(interval)
            if len(group) == self.batch_size:
                yield [index for frames in zip(*group, strict=True) for index in frames]
                group.clear()

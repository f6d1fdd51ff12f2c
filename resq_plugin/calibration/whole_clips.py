"""Clips for networks that keep state between frames: each is run from its first frame on, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from resq_plugin.calibration.clips import NO_CLIP, Clip, checked_frames, longest_interval, split_clip
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError

__all__ = ["whole_clips"]


def whole_clips(
    clips: Iterable[Clip],
    config: ResQConfig,
    missing: Callable[[], int],
    start: Callable[[], Any],
    *,
    progress: bool = False,
) -> Iterator[tuple[int, list[Any]]]:
    """Yield clips as intervals of T frames in order, as long as frames are wanted.

    Where the number of clips is known each gives its share of the samples, else the first ones all.

    Args:
        clips: consecutive frames each, from the first frame of a video on.
        config: for T.
        missing: how many frames are still wanted.
        start: called before each clip.
        progress: show a progress bar.

    Yields:
        Number of the clip, and consecutive frames.

    Raises:
        CalibrationError: a clip is unusable, or there is none.
    """
    count, total = 0, len(clips) if isinstance(clips, Sequence) else 0
    for index, clip in tqdm(enumerate(clips), "running calibration clips", disable=not progress):
        count += 1
        share = -(-missing() // (total - index)) if total else missing()
        intervals = split_clip(checked_frames(clip, index), longest_interval(config))
        start()
        for frames in intervals:
            if share <= 0:
                break
            yield index, frames
            share -= len(frames)
        if not missing():
            break
    if count == 0:
        raise CalibrationError(NO_CLIP)

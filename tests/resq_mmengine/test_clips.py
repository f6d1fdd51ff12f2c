"""Clips of a dataset and the order of the paper's evaluation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmengine")

from resq_mmengine.clips import Clip, FrameIndex, clips_of, cut, intervals_to_measure

from resq_plugin.errors import ConfigError


class Infos:
    """Data infos (clip, frame, labelled) as a dataset has them."""

    def __init__(self, *infos: tuple[Any, ...]) -> None:
        keys = ("clip_id", "frame_index", "labelled")
        self.infos = [dict(zip(keys, info, strict=False)) for info in infos]

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return self.infos[index]


def clip(labelled: list[bool]) -> Clip:
    return Clip("a", tuple(range(len(labelled))), tuple(labelled))


def test_frames_are_grouped_by_clip_in_order_of_time() -> None:
    dataset = Infos(("b", 1), ("a", 7), ("b", 0), ("a", 8, False), ("b", 2))
    assert clips_of(dataset) == [Clip("b", (2, 0, 4), (True,) * 3), Clip("a", (1, 3), (True, False))]


def test_a_missing_frame_ends_a_clip() -> None:
    dataset = Infos(("a", 0), ("a", 1), ("a", 3))
    assert clips_of(dataset) == [Clip("a", (0, 1), (True, True)), Clip("a", (2,), (True,))]


def test_a_dataset_of_images_is_refused_with_what_to_write() -> None:
    dataset = Infos((), ())
    with pytest.raises(ConfigError, match=r"data info 0 has no clip_id and no frame_index.*resq_mmseg.FrameFolder"):
        clips_of(dataset)


def test_a_frame_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="frame 3 of clip a twice"):
        clips_of(Infos(("a", 3), ("a", 3)))


def test_one_labelled_frame_is_visited_at_every_position() -> None:
    """Cityscapes: frame 19 of 30 is labelled; T = 3."""
    snippet = clip([time == 19 for time in range(30)])
    assert intervals_to_measure(snippet, 3) == [(18, 19), (19,), (17, 18, 19)]
    assert intervals_to_measure(snippet, 1) == [(19,)]
    assert intervals_to_measure(snippet, 3, every_position=False) == [(18, 19)]


def test_a_labelled_video_is_split_in_every_way() -> None:
    found = intervals_to_measure(clip([True] * 5), 2)
    assert found == [(0, 1), (2, 3), (4,), (1, 2), (3, 4)]
    assert [frame.keyframe for interval in found for frame in interval] == [0, 0, 2, 2, 4, 1, 1, 3, 3]


@given(st.lists(st.booleans(), min_size=1, max_size=25), st.integers(1, 8))
def test_every_labelled_frame_is_visited_once_at_every_position_it_has_room_for(labelled: list[bool], T: int) -> None:
    intervals = intervals_to_measure(clip(labelled), T)
    visits = [
        (frame, position) for interval in intervals for position, frame in enumerate(interval) if labelled[frame]
    ]
    expected = {(f, t) for f, known in enumerate(labelled) if known for t in range(T) if f - t >= 0}
    assert len(visits) == len(set(visits))
    assert {(int(frame), position) for frame, position in visits} == expected
    assert all(list(interval) == list(range(interval[0], interval[-1] + 1)) for interval in intervals)
    assert all(labelled[interval[-1]] and len(interval) <= T for interval in intervals)


def test_windows() -> None:
    assert cut(clip([True] * 7), 3) == [(0, 1, 2), (3, 4, 5)]
    assert cut(clip([True] * 7), 3, 2) == [(0, 1, 2), (2, 3, 4), (4, 5, 6)]
    assert cut(clip([True] * 2), 3) == [(0, 1)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_a_frame_index_reaches_workers_whole(copied: Any) -> None:
    found = copied(FrameIndex(5, 3, 42))
    assert (found, found.keyframe, found.seed) == (5, 3, 42)
    assert FrameIndex(5).keyframe == 5

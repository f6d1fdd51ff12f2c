"""Samplers: clips stay together, batches are in step, ranks share nothing."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mmengine")

from resq_mmengine.sampler import ClipBatchSampler, ClipSampler, IntervalBatchSampler
from torch.utils.data import ConcatDataset, SequentialSampler

from resq_plugin.errors import ConfigError


class Videos:
    """Clips of given lengths; by default all frames are labelled."""

    def __init__(self, *lengths: int, unlabelled: tuple[int, ...] = ()) -> None:
        self.infos = [
            {"clip_id": f"clip{clip}", "frame_index": time}
            for clip, frames in enumerate(lengths)
            for time in range(frames)
        ]
        for index, info in enumerate(self.infos):
            info["labelled"] = index not in unlabelled

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return self.infos[index]


def sampler(*lengths: int, interval: int = 3, **options: Any) -> ClipSampler:
    found = ClipSampler(Videos(*lengths), seed=0, **options)
    found.configure(interval)
    return found


def test_without_an_interval_the_labelled_frames_come_in_order() -> None:
    found = ClipSampler(Videos(3, 2, unlabelled=(1,)), seed=0)
    assert list(found) == [0, 2, 3, 4]
    assert len(found) == 4


def test_evaluation_visits_every_position() -> None:
    assert list(sampler(4, interval=2)) == [0, 1, 2, 3, 1, 2, 3]


def test_without_fixed_intervals_clips_run_once_from_end_to_end() -> None:
    found = sampler(4, 3)
    found.configure(2, fixed_intervals=False)
    assert found.intervals() == [(0, 1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("options", [{}, {"shuffle": True}])
def test_no_interval_is_torn_apart_over_ranks(options: dict[str, Any]) -> None:
    whole = sampler(9, 6, 7, **options)
    parts = []
    for rank in range(2):
        part = sampler(9, 6, 7, **options)
        part.rank, part.world_size = rank, 2
        parts.append(part.intervals())
    dealt = sorted(parts[0] + parts[1])
    if options:  # training: equally many on every rank, so that none waits for the other
        assert len(parts[0]) == len(parts[1])
        assert set(dealt) == set(whole.intervals())
    else:
        assert dealt == sorted(whole.intervals())


def test_clips_are_not_torn_apart_over_ranks_without_fixed_intervals() -> None:
    parts = []
    for rank in range(2):
        part = sampler(4, 3, 2)
        part.configure(2, fixed_intervals=False)
        part.rank, part.world_size = rank, 2
        parts.append(part.intervals())
    assert parts == [[(0, 1, 2, 3), (7, 8)], [(4, 5, 6)]]


def test_training_windows_are_shuffled_differently_in_every_epoch_and_alike_on_every_rank() -> None:
    one, two = sampler(12, 9, shuffle=True), sampler(12, 9, shuffle=True)
    first = one.intervals()
    assert first == two.intervals()
    one.set_epoch(1)
    assert sorted(one.intervals()) == sorted(first)
    assert one.intervals() != first
    assert {len({frame.seed for frame in window}) for window in first} == {1}
    assert {len(window) for window in first} == {3}


def test_training_windows_have_a_label() -> None:
    found = ClipSampler(Videos(6, unlabelled=(0, 1, 2, 4)), shuffle=True, seed=0)
    found.configure(3)
    assert found.intervals() == [(3, 4, 5)]


def test_a_clip_batch_holds_the_same_position_of_clips_of_one_length() -> None:
    found = sampler(3, 3, 2, interval=3)
    found.configure(3, every_position=False)
    assert list(ClipBatchSampler(found, 2)) == [[0, 3], [1, 4], [2, 5], [6], [7]]
    assert len(ClipBatchSampler(found, 2)) == 5


def test_an_interval_batch_has_all_first_frames_first() -> None:
    found = sampler(3, 3, 3, shuffle=True)
    batches = list(IntervalBatchSampler(found, 2))
    assert len(batches) == 1
    first, second, third = (batches[0][start : start + 2] for start in (0, 2, 4))
    assert [index + 1 for index in first] == second
    assert [index + 1 for index in second] == third


def test_intervals_with_labels_at_other_positions_are_not_mixed() -> None:
    dataset = Videos(3, 3, 3, 3, unlabelled=(0, 3, 7, 10))
    found = ClipSampler(dataset, shuffle=True, seed=0)
    found.configure(3)
    for batch in IntervalBatchSampler(found, 2):
        for start in range(0, len(batch), 2):
            labels = {dataset.infos[index]["labelled"] for index in batch[start : start + 2]}
            assert len(labels) == 1
    assert len(IntervalBatchSampler(found, 2)) == 2


@pytest.mark.parametrize("kind", [ClipBatchSampler, IntervalBatchSampler])
def test_a_batch_sampler_needs_a_clip_sampler(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"not on SequentialSampler; write sampler=dict\(_delete_=True"):
        kind(SequentialSampler([1, 2]), 2)


def test_a_wrapped_dataset_is_refused() -> None:
    wrapped = ConcatDataset([Videos(2), Videos(3)])
    with pytest.raises(ConfigError, match="ConcatDataset hands its frames on as plain indices"):
        ClipSampler(wrapped, seed=0)


def test_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="2 clips and no labelled frame"):
        ClipSampler(Videos(1, 1, unlabelled=(0, 1)), seed=0)


def test_clips_shorter_than_the_interval_cannot_train() -> None:
    with pytest.raises(
        ConfigError, match=r"longest clip has 2 frames; write a smaller interval: resq = dict\(interval=2\)"
    ):
        list(sampler(2, shuffle=True))

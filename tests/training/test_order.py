"""Which clips make which step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_plugin.training.order import interval_of, step_indices
from resq_plugin.training.settings import TrainConfig


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 3), st.integers(1, 4))
def test_every_pass_takes_every_clip_at_most_once(length: int, size: int, seed: int, passes: int) -> None:
    steps = passes * max(length // size, 1) if length >= size else passes * 5
    taken = [pair for step in range(steps) for pair in step_indices(length, size, seed, step)[1]]
    assert len(taken) == steps * size
    assert max(Counter(taken).values()) == 1
    assert {index for _, index in taken} <= set(range(length))
    if length % size == 0:
        assert all(count == passes for count in Counter(index for _, index in taken).values())


def test_the_order_is_of_seed_and_step_alone() -> None:
    first = [step_indices(10, 3, 1, step) for step in range(9)]
    assert first == [step_indices(10, 3, 1, step) for step in range(9)]
    assert first != [step_indices(10, 3, 2, step) for step in range(9)]
    assert [index for _, index in first[0][1]] != [index for _, index in first[3][1]]  # passes differ


def test_lengths_are_drawn_evenly() -> None:
    config = TrainConfig(steps=300, intervals=(2, 3, 5))
    drawn = Counter(interval_of(config, step) for step in range(300))
    assert set(drawn) == {2, 3, 5}
    assert min(drawn.values()) == pytest.approx(100, abs=30)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from resq_vos.davis import find_sequences
from resq_vos.evaluation import follow, score, summarize_scores
from resq_vos.propagation import Propagation
from resq_vos.schemes import schemes_of
from vos_helpers import tiny_stm, write_davis

from resq_plugin.errors import ConfigError


def labels(*rows: str) -> np.ndarray:
    return np.array([[int(letter) for letter in row] for row in rows], dtype=np.uint8)


def test_the_first_and_the_last_frame_do_not_count() -> None:
    right, wrong = labels("110", "110"), labels("000", "000")
    found = score("cat", (1,), [wrong, right, right, wrong], [right] * 4)
    assert found.j.tolist() == [[1.0, 1.0]]
    assert summarize_scores([found])["J"] == 100


def test_objects_are_averaged_over_all_sequences() -> None:
    # Two objects in one, one in the other: the mean is over three objects, not over two sequences.
    both = labels("1122")
    one = score("cat", (1, 2), [both, labels("1100"), both], [both] * 3)
    other = score("dog", (1,), [labels("1111"), labels("1000"), labels("1111")], [labels("1111")] * 3)
    found = summarize_scores([one, other])
    assert found["J"] == pytest.approx(100 * (1 + 0 + 0.25) / 3)
    assert found["sequences"]["cat"]["objects"] == {1: {"J": 100, "F": 100}, 2: {"J": 0, "F": 0}}
    assert found["sequences"]["dog"]["J"] == 25
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)


def test_by_distance() -> None:
    right, half = labels("1111"), labels("1100")
    found = score("cat", (1,), [right, right, half, right, half, right], [right] * 6, [-1, 0, 1, 0, 1, 0])
    assert summarize_scores([found])["by_distance"]["J"] == [100, 50]


def test_missing_objects_are_empty_and_extra_ones_an_error() -> None:
    both = labels("1122")
    assert score("cat", (1, 2), [both, labels("0000"), both], [both] * 3).j.tolist() == [[0.0], [0.0]]
    with pytest.raises(ConfigError, match="sequence cat: object 3 is predicted"):
        score("cat", (1, 2), [both, labels("1123"), both], [both] * 3)
    with pytest.raises(ConfigError, match="2 predictions for 3"):
        score("cat", (1, 2), [both] * 2, [both] * 3)
    with pytest.raises(ConfigError, match="no sequence"):
        summarize_scores([])


@torch.no_grad()
def test_following_a_sequence_at_half_resolution(tmp_path: Path) -> None:
    sequence = find_sequences(write_davis(tmp_path, single=False), ["cat"], year=2017)[0]
    found = list(follow(tiny_stm(), sequence, frames=4))
    assert [labels.shape for labels, _ in found] == [(64, 88)] * 4
    assert [position for _, position in found] == [-1] * 4
    tracker = Propagation(tiny_stm())
    from resq_vos.davis import read_frame

    for index, path in enumerate(sequence.frames[:4]):
        tracker(read_frame(path), torch.from_numpy(sequence.labels(0)).long() if index == 0 else None)
        assert (tracker.labels((64, 88))[0].numpy() == found[index][0]).all()


def test_schemes_name_each_setting_once() -> None:
    found = schemes_of(["W8A8->W4A8", "W8A8->W8A{0,4,8}", "W4A8"], 3)
    assert [(scheme.name, scheme.precision, scheme.interval) for scheme in found] == [
        ("float", "float", 1),
        ("frame", "W8A8", 1),
        ("resq", "W8A8->W4A8", 3),
        ("dynamic", "W8A8->W8A{0,4,8}", 3),
        ("frame", "W4A8", 1),
    ]
    assert all(scheme.config is None or not scheme.config.selects("memory_key") for scheme in found)

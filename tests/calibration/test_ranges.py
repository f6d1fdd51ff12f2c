"""Activation ranges: the search space of §4.1, the objective of Eq. 8 and its minimum, against hand-made numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import eq1, eq6, eq7
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resq_plugin.calibration.ranges import candidate_ranges, output_loss, search_range

Apply = Callable[[Tensor, Tensor], Tensor]


def times(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


# --- the search space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "candidates", "expected"),
    [
        pytest.param(-2.0, 1.0, 4, [2.0, 1.0], id="both signs: 1 is in S twice"),
        pytest.param(-2.0, 2.0, 5, [2.0, 1.0], id="symmetric: 0 is in S but no range"),
        pytest.param(0.0, 4.0, 5, [4.0, 3.0, 2.0, 1.0], id="after a ReLU"),
        pytest.param(1.0, 3.0, 3, [3.0, 2.0, 1.0], id="positive"),
        pytest.param(-3.0, -1.0, 3, [3.0, 2.0, 1.0], id="negative"),
        pytest.param(-1.0, 7.0, 2, [7.0, 1.0], id="only the ends"),
        pytest.param(5.0, 5.0, 20, [5.0], id="constant"),
        pytest.param(0.0, 0.0, 20, [0.0], id="always zero"),
    ],
)
def test_candidates_by_hand(low: float, high: float, candidates: int, expected: list[float]) -> None:
    assert candidate_ranges(low, high, candidates) == expected


def test_twenty_candidates_of_a_positive_input_are_the_points_of_linspace() -> None:
    found = candidate_ranges(0.0, 19.0, 20)
    assert found == [float(value) for value in range(19, 0, -1)]


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(2, 20))
def test_candidates_are_the_magnitudes_of_all_pairs(a: float, b: float, candidates: int) -> None:
    """Eq. 8 searches pairs of S x S; Eq. 6 reads nothing of a pair but max(r_max, -r_min)."""
    space = torch.linspace(min(a, b), max(a, b), candidates, dtype=torch.float64).float().tolist()
    magnitudes = {max(r_max, -r_min) for r_min, r_max in itertools.product(space, space)}
    found = candidate_ranges(min(a, b), max(a, b), candidates)
    assert found == (sorted((value for value in magnitudes if value > 0), reverse=True) or [0.0])


# --- the objective --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signed", "expected"),
    [
        # s = 2 * 1.5 / 3 = 1, q = (1, 1), out = (1.5, 1.5), target = (2, 5.2)
        pytest.param(True, 0.5**2 + 3.7**2, id="symmetric"),
        # s = 1.5 / 3 = 0.5, q = (1, 1.5), out = (1.5, 2.25)
        pytest.param(False, 0.5**2 + 2.95**2, id="unsigned"),
    ],
)
def test_objective_by_hand(signed: bool, expected: float) -> None:
    x, target, w_hat = torch.tensor([1.0, 2.6]), torch.tensor([2.0, 5.2]), torch.tensor(1.5)
    assert output_loss(x, target, w_hat, 1.5, 2, signed, times) == pytest.approx(expected, rel=1e-6)


def test_objective_of_zero_bits_is_the_energy_of_the_target() -> None:
    x = torch.tensor([3.0, -4.0])
    assert output_loss(x, 2 * x, torch.tensor(2.0), 4.0, 0, True, times) == 100.0


def test_objective_of_a_dead_input_is_zero() -> None:
    x = torch.zeros(3)
    assert output_loss(x, x, torch.tensor(2.0), 0.0, 8, True, times) == 0.0


def test_objective_adds_up_in_double_precision() -> None:
    """10^8 + 10001 is no float32."""
    x = torch.tensor([1e4] + [1.0] * 10_001)
    assert output_loss(x, x, torch.tensor(1.0), 1.0, 0, True, times) == 1e8 + 10_001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_objective_in_half_precision_keeps_its_scale(dtype: torch.dtype) -> None:
    """2^-14 / 3 is subnormal in float16: rounded to the type of x the grid would be another one."""
    x = torch.tensor([2.0**-15, 2.0**-14], dtype=dtype)
    loss = output_loss(x, torch.zeros_like(x), torch.tensor(1.0, dtype=dtype), 2.0**-14, 2, False, times)
    s = 2.0**-14 / 3
    assert loss == pytest.approx((2 * s) ** 2 + (3 * s) ** 2, rel=0.02)


# --- the minimum ----------------------------------------------------------------------------------------------------


def naive_search(x: Tensor, w: Tensor, apply: Apply, bits: int, r: int) -> float:
    """Eq. 8 as it is written: every pair of S x S, the norm over everything; the half range of the best pair."""
    space = torch.linspace(float(x.min()), float(x.max()), r, dtype=torch.float64)
    best, found = float("inf"), 0.0
    for r_min, r_max in itertools.product(space, space):
        if torch.maximum(r_max, -r_min) <= 0:
            continue
        s = eq6(r_min, r_max, bits).float()
        norm = float(torch.linalg.vector_norm((apply(x, w) - apply(eq1(x, s, bits), eq7(w, bits))).double()))
        if norm < best:
            best, found = norm, float(torch.maximum(r_max, -r_min))
    return found


def test_an_outlier_is_clipped() -> None:
    """X = eight 1 and one 4, w = 1, 2 bits: the scales are 8/3, 2, 4/3, 2/3 and the losses 9.8, 12, 8, 12."""
    x = torch.tensor([1.0] * 8 + [4.0])
    candidates = candidate_ranges(1.0, 4.0, 4)
    losses = {half: output_loss(x, x, torch.tensor(1.0), half, 2, True, times) for half in candidates}
    assert losses == pytest.approx({4.0: 8 + (4 / 3) ** 2, 3.0: 12.0, 2.0: 8 / 9 + 64 / 9, 1.0: 8 / 9 + 100 / 9})
    assert list(search_range(candidates, losses.__getitem__))[:2] == [2.0, 4.0]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("rectified", [False, True], ids=["signed", "rectified"])
def test_search_finds_the_minimum_of_equation_8(bits: int, rectified: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3, 4, 9, 7, generator=generator) * torch.randn(3, 4, 9, 7, generator=generator).exp()
    x = x.relu() if rectified else x
    w = torch.randn(5, 4, 3, 3, generator=generator)
    target, w_hat = F.conv2d(x, w), eq7(w, bits)

    def loss(half: float) -> float:
        return output_loss(x, target, w_hat, half, bits, True, F.conv2d)

    found = search_range(candidate_ranges(float(x.min()), float(x.max()), 12), loss)
    best = next(iter(found))
    assert best == pytest.approx(naive_search(x, w, F.conv2d, bits, 12), rel=1e-7)  # one rounding to float32
    assert bits == 8 or best < float(x.abs().max())  # with few bits clipping pays


def test_search_sorts_by_loss_and_prefers_the_wider_of_equal_ranges() -> None:
    losses = {4.0: 2.0, 3.0: 1.0, 2.0: 1.0, 1.0: 5.0}
    found = search_range([1.0, 2.0, 3.0, 4.0], losses.__getitem__)
    assert list(found.items()) == [(3.0, 1.0), (2.0, 1.0), (4.0, 2.0), (1.0, 5.0)]


@given(st.data())
def test_the_search_finds_the_three_best_of_a_loss_with_one_minimum(data: st.DataObject) -> None:
    """GIVEN losses that fall and then rise, THEN the best three are those of all candidates."""
    falling = sorted(data.draw(st.sets(st.integers(1, 10**6), max_size=30)), reverse=True)
    rising = sorted(data.draw(st.sets(st.integers(1, 10**6), min_size=1, max_size=30)) - set(falling))
    losses = dict(enumerate(map(float, [*falling, 0, *rising]), start=1))
    best_first = sorted(losses, key=losses.__getitem__)
    assert list(search_range(map(float, losses), lambda half: losses[int(half)]))[:3] == best_first[:3]


def test_the_search_looks_at_about_half_of_the_candidates() -> None:
    """GIVEN 20 to 1, the best at 6, THEN every third from 20 on, the neighbours of 8 and 5, and those of 7 and 6."""
    seen: list[float] = []

    def loss(half: float) -> float:
        seen.append(half)
        return abs(half - 6.2)

    found = search_range(map(float, range(1, 21)), loss)
    assert seen == [20, 17, 14, 11, 8, 5, 2, 9, 7, 6, 4]
    assert list(found)[:3] == [6, 7, 5]


def test_nothing_to_search_among() -> None:
    assert search_range([], float) == {}

"""Grids as files hold them: integers by hand, containers, round trips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import eq1
from hypothesis import given
from hypothesis import strategies as st

from resq_plugin.export.grid import Grid


def test_integers_by_hand() -> None:
    values = np.array([-9.0, -0.6, 0.5, 1.5, 9.0], dtype=np.float32)

    assert Grid((1.0,), 4).quantize(values).tolist() == [-8, -1, 0, 2, 7]
    assert Grid((1.0,), 3).quantize(values).tolist() == [-4, -1, 0, 2, 3]
    assert Grid((0.5,), 4, signed=False).quantize(values).tolist() == [0, 0, 1, 3, 15]
    assert Grid((0.5,), 8, signed=False, zero_point=3).quantize(values).tolist() == [0, 2, 4, 6, 21]


def test_channels_have_their_own_scale() -> None:
    grid = Grid((1.0, 0.25), 4, axis=1, weight=True)

    integers = grid.quantize(np.ones((3, 2, 1), dtype=np.float32))

    assert integers[:, 0].tolist() == [[1]] * 3
    assert integers[:, 1].tolist() == [[4]] * 3
    assert np.array_equal(grid.dequantize(integers), np.ones((3, 2, 1)))


@pytest.mark.parametrize(
    ("bits", "activation", "weight"),
    [
        (2, "int8", "int4"),
        (3, "int8", "int4"),
        (4, "int8", "int4"),
        (5, "int8", "int8"),
        (8, "int8", "int8"),
        (9, "int16", "int16"),
        (16, "int16", "int16"),
    ],
)
def test_container_is_the_next_integer_type(bits: int, activation: str, weight: str) -> None:
    assert Grid((1.0,), bits).container == activation
    assert Grid((1.0,), bits, weight=True).container == weight
    assert Grid((1.0,), bits, signed=False).container == f"u{activation}"
    assert Grid((1.0,), bits).is_carried == (f"int{bits}" != activation)


@given(
    st.integers(2, 8),
    st.floats(2**-10, 10, width=32),
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
)
def test_the_round_trip_is_equation_1(bits: int, scale: float, values: list[float]) -> None:
    grid, array = Grid((scale,), bits), np.array(values, dtype=np.float32)

    found = grid.dequantize(grid.quantize(array))

    expected = eq1(torch.from_numpy(array), torch.tensor(scale), bits)
    assert np.array_equal(found, expected.numpy())

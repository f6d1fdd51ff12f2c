from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from resq_vos.davis import read_labels
from resq_vos.metrics import boundary_accuracy, contour, dilate, jaccard
from vos_helpers import shared

from resq_plugin.errors import ConfigError

masks = arrays(bool, st.tuples(st.integers(2, 12), st.integers(2, 12)))


def moved_right(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.pad(mask, ((0, 0), (pixels, 0)))[:, : mask.shape[1]]


def test_jaccard_by_hand() -> None:
    first = np.array([[1, 1, 0], [1, 0, 0]])
    second = np.array([[1, 0, 0], [1, 1, 0]])
    assert jaccard(first, second) == 2 / 4
    assert jaccard(first, 0 * first) == 0
    assert jaccard(0 * first, 0 * first) == 1


@given(masks)
def test_contour_is_where_right_lower_or_lower_right_differ(mask: np.ndarray) -> None:
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (1, 1))]
            inside = [mask[p] for p in near if p[0] < height and p[1] < width]
            assert contour(mask)[y, x] == any(value != mask[y, x] for value in inside)


@settings(max_examples=40)
@given(masks, st.integers(1, 4))
def test_dilation_by_a_disk(mask: np.ndarray, radius: int) -> None:
    ys, xs = np.nonzero(mask)
    grid_y, grid_x = np.indices(mask.shape)
    expected = np.zeros_like(mask)
    for y, x in zip(ys, xs, strict=True):
        expected |= (grid_y - y) ** 2 + (grid_x - x) ** 2 <= radius**2
    assert (dilate(mask, radius) == expected).all()


def test_boundary_accuracy_by_hand() -> None:
    # 30 × 40 has the diagonal 50, so r = ceil(0.4) = 1.
    mask = np.zeros((30, 40), dtype=bool)
    mask[10:20, 10:20] = True
    assert boundary_accuracy(mask, mask) == 1
    assert boundary_accuracy(mask, moved_right(mask, 1)) == 1
    assert boundary_accuracy(mask, 0 * mask) == 0
    assert boundary_accuracy(0 * mask, mask) == 0
    assert boundary_accuracy(0 * mask, 0 * mask) == 1
    # Above 11 pixels, left of it 10, and inside the lower side of 10 and the right side of 9.
    ring, other = contour(mask), contour(moved_right(mask, 3))
    assert np.count_nonzero(ring) == 11 + 10 + 10 + 9

    def near(some: np.ndarray, others: np.ndarray) -> int:
        cross = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
        return sum(any(others[y + dy, x + dx] for dy, dx in cross) for y, x in zip(*np.nonzero(some), strict=True))

    precision, recall = near(ring, other) / 40, near(other, ring) / 40
    assert 0 < precision < 1
    assert boundary_accuracy(mask, moved_right(mask, 3)) == 2 * precision * recall / (precision + recall)


@given(masks)
def test_a_mask_is_like_itself(mask: np.ndarray) -> None:
    assert jaccard(mask, mask) == boundary_accuracy(mask, mask) == 1


def test_the_tolerance_at_480p_is_8_pixels() -> None:
    assert math.ceil(0.008 * math.hypot(480, 854)) == 8


@pytest.mark.parametrize(
    ("sequence", "pixels", "j", "f"),
    [
        ("blackswan", 0, 1, 1),
        ("blackswan", 4, 0.9176, 1),
        ("blackswan", 8, 0.8436, 1),
        ("blackswan", 9, 0.8264, 0.7563),
        ("blackswan", 16, 0.7186, 0.5646),
        ("dog", 9, 0.8263, 0.7067),
    ],
)
def test_vectors_of_the_davis_sdk(sequence: str, pixels: int, j: float, f: float) -> None:
    """Means over all frames of a sequence, as the SDK computed them for the note."""
    files = sorted(shared(f"davis2016/Annotations/480p/{sequence}").glob("*.png"))
    masks = [read_labels(file) > 0 for file in files]
    assert np.mean([jaccard(moved_right(mask, pixels), mask) for mask in masks]) == pytest.approx(j, abs=5e-5)
    assert np.mean([boundary_accuracy(moved_right(mask, pixels), mask) for mask in masks]) == pytest.approx(
        f, abs=5e-5
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_equal_to_vos_benchmark(seed: int) -> None:
    evaluator = pytest.importorskip("vos_benchmark.evaluator", reason="vos-benchmark is not installed")
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(40, 160)), int(generator.integers(40, 160)))
    y, x = np.indices(shape)

    def blob() -> np.ndarray:
        mask = np.zeros(shape, dtype=bool)
        for _ in range(generator.integers(0, 4)):
            cy, cx, ry, rx = generator.uniform(0, 1, 4) * (*shape, shape[0] / 2, shape[1] / 2)
            mask |= ((y - cy) / (ry + 1)) ** 2 + ((x - cx) / (rx + 1)) ** 2 <= 1
        return mask

    first, second = blob(), blob()
    peer = evaluator.Evaluator()
    peer.feed_frame(first.astype(np.uint8), second.astype(np.uint8))
    if first.any() or second.any():  # it knows no object in an empty pair
        assert jaccard(first, second) == peer.object_iou[1][0]
        assert boundary_accuracy(first, second) == peer.boundary_f[1][0]


def test_masks_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"got \(2, 3\) and \(3, 2\)"):
        jaccard(np.zeros((2, 3)), np.zeros((3, 2)))

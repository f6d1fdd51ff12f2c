"""Region similarity J and contour accuracy F of DAVIS (Perazzi et al., CVPR 2016), equal to the DAVIS SDK."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_plugin.errors import ConfigError

__all__ = ["boundary_accuracy", "contour", "dilate", "jaccard"]

Mask = NDArray[np.bool_]
BOUNDARY_SHARE = 0.008
"""Tolerance of F as a share of the image diagonal."""


def _pair(prediction: NDArray[Any], target: NDArray[Any]) -> tuple[Mask, Mask]:
    first, second = np.asarray(prediction).astype(bool), np.asarray(target).astype(bool)
    if first.shape != second.shape or first.ndim != 2:
        msg = f"J and F compare two masks (H, W) of one size; got {first.shape} and {second.shape}."
        raise ConfigError(msg)
    return first, second


def jaccard(prediction: NDArray[Any], target: NDArray[Any]) -> float:
    """J, intersection over union of two masks (H, W); 1 when both are empty.

    >>> jaccard(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]))
    0.3333333333333333
    """
    first, second = _pair(prediction, target)
    union = int(np.count_nonzero(first | second))
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def contour(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower-right neighbour.

    In the last column only the lower, in the last row only the right neighbour counts; the corner is never one.

    >>> contour(np.array([[0, 1], [0, 0]], dtype=bool)).astype(int).tolist()
    [[1, 1], [0, 0]]
    """
    edges = np.zeros_like(mask)
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edges


def dilate(mask: Mask, radius: int) -> Mask:
    """All pixels at most ``radius`` from a pixel of the mask (a disk), in whole squared distances."""
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    result = np.zeros_like(mask)
    if not rows.size:
        return result
    window = (
        slice(max(rows[0] - radius, 0), rows[-1] + radius + 1),
        slice(max(columns[0] - radius, 0), columns[-1] + radius + 1),
    )
    # √(integer) <= radius in double precision is the same as integer <= radius².
    result[window] = distance_transform_edt(~mask[window]) <= radius
    return result


def boundary_accuracy(prediction: NDArray[Any], target: NDArray[Any]) -> float:
    """F, the harmonic mean of the shares of contour pixels that lie near the other mask's contour.

    Near is within ``ceil(0.008 · diagonal)`` pixels, 8 at 480 × 854. 1 when both contours are empty, 0 when one is.

    Args:
        prediction: (H, W).
        target: (H, W).
    """
    first, second = _pair(prediction, target)
    radius = math.ceil(BOUNDARY_SHARE * math.hypot(*first.shape))
    found, truth = contour(first), contour(second)
    n_found, n_truth = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if not n_found or not n_truth:
        return float(n_found == n_truth)
    precision = np.count_nonzero(found & dilate(truth, radius)) / n_found
    recall = np.count_nonzero(truth & dilate(found, radius)) / n_truth
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0

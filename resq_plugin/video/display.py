"""Pictures as a player shows them: the display matrix of a container, applied."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pixels", "display_matrix", "is_right_angled", "upright"]

Pixels = NDArray[np.uint8]
"""A picture (H, W, 3), RGB, uint8."""

Matrix = tuple[int, int, int, int]


def display_matrix(frame: Any) -> Matrix:
    """Return a, b, c, d of a decoded frame: its pixel (x, y) is shown at (a x + c y, b x + d y), y downwards.

    A frame that tells nothing is shown as it is.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(stored))
    return a, b, c, d


def is_right_angled(matrix: Matrix) -> bool:
    """Whether the matrix turns by 0, 90, 180 or 270 degrees, mirrored or not."""
    a, b, c, d = (bool(value) for value in matrix)
    return (a, b, c, d) in ((True, False, False, True), (False, True, True, False))


def upright(picture: Pixels, matrix: Matrix) -> Pixels:
    """Turn and mirror a picture (H, W, 3); its scale stays, and 90 and 270 degrees exchange height and width.

    >>> picture = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    >>> upright(picture, (0, 1, -1, 0))[..., 0].tolist()  # clockwise: right becomes down, down becomes left
    [[3, 1], [4, 2]]
    """
    a, b, c, d = matrix
    if a or d:
        across, down = a, d
    else:
        picture, across, down = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])

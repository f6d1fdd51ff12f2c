"""Checkpoints of training runs that PyTorch loads again.

MMEngine stores the history of the losses with references to functions, which ``torch.load`` refuses since PyTorch 2.6.
Here a history is stored as the numbers it is made of, and numbers of NumPy are allowed.
"""

from __future__ import annotations

import copyreg
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = ["store_histories_as_numbers"]


def store_histories_as_numbers() -> None:
    """Pickle loss histories so that ``torch.load(..., weights_only=True)``, its default, takes them."""
    copyreg.pickle(HistoryBuffer, _reduce)
    numbers = [np.float32(0), np.float64(0), np.int64(0)]
    of_numpy = [np.dtype, *(type(number.dtype) for number in numbers), numbers[0].__reduce__()[0]]
    torch.serialization.add_safe_globals([HistoryBuffer, *of_numpy])


def _reduce(history: HistoryBuffer) -> tuple[type[HistoryBuffer], tuple[Any, ...]]:
    values, counts = history.data
    return HistoryBuffer, (values.tolist(), counts.tolist(), history.max_length)

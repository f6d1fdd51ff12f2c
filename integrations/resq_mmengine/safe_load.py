"""Checkpoints of training runs that PyTorch loads again.

MMEngine stores the history of the losses with references to functions, which ``torch.load`` refuses since PyTorch 2.6.
Here a history is stored as the numbers it is made of, and numbers of NumPy are allowed.
"""

from __future__ import annotations

import copyreg
import pickle
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from resq_plugin.conversion import numpy_globals

__all__ = ["store_histories_as_numbers"]

STATISTICS = ("min", "max", "current", "mean")


def store_histories_as_numbers() -> None:
    """Pickle loss histories so that ``torch.load(..., weights_only=True)``, its default, takes them.

    Histories that MMEngine stored without us are taken, too.
    """
    copyreg.pickle(HistoryBuffer, _reduce)
    torch.serialization.add_safe_globals([HistoryBuffer, *numpy_globals(), (_statistic, "builtins.getattr")])


def _reduce(history: HistoryBuffer) -> tuple[type[HistoryBuffer], tuple[Any, ...]]:
    values, counts = history.data
    return HistoryBuffer, (values.tolist(), counts.tolist(), history.max_length)


def _statistic(owner: Any, name: str) -> Any:
    """Takes the place of ``getattr``, by which MMEngine stores the statistics of a history, and of nothing else."""
    if owner is not HistoryBuffer or name not in STATISTICS:
        msg = f"getattr of {owner!r}, {name!r}"
        raise pickle.UnpicklingError(msg)
    return getattr(HistoryBuffer, name)

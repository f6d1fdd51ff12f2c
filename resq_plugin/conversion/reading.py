"""Reading PyTorch files without running what is in them."""

from __future__ import annotations

import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from resq_plugin.errors import CheckpointError

__all__ = ["numpy_globals", "read_checkpoint"]

_LOCK = threading.Lock()
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"


class _History:
    """Takes the place of MMEngine's loss histories, whose content nobody needs here."""

    def __new__(cls, *_: Any) -> _History:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _method_of_history(owner: Any, name: str) -> None:
    """Takes the place of ``getattr``, by which a history stores its statistics, and of nothing else."""
    if owner is not _History:
        msg = f"getattr of {owner!r}, {name!r}"
        raise pickle.UnpicklingError(msg)


def numpy_globals() -> list[Any]:
    """What numbers and arrays of NumPy are made of: training loops store them, and ``weights_only`` refuses them."""
    codes = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?US"
    dtypes = {type(np.dtype(code)) for code in codes}
    scalar, array = np.float32(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    moved = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]  # NumPy 1
    return [np.ndarray, np.dtype, scalar, array, *moved, *dtypes]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU with ``weights_only=True``, also one of MMEngine's training with its histories.

    Raises:
        CheckpointError: the file is missing, damaged, or holds objects that would have to be trusted; the message has
            the line that keeps its weights alone.
    """
    try:
        with _allowing():
            values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        msg = f"{path} does not exist."
        raise CheckpointError(msg) from error
    except Exception as error:  # bytes that are no PyTorch file raise whatever the unpickler stumbles over
        unknown = _unknown_objects(path)
        if unknown:
            msg = (
                f"{path} holds {', '.join(unknown)} beside its weights, which only a trusted file may build; the "
                'model is unchanged. If you trust it, keep its weights alone: python -c "import torch; '
                f"values = torch.load('{os.fspath(path)}', map_location='cpu', weights_only=False); "
                "torch.save({'state_dict': values['state_dict']}, 'weights.pth')\""
            )
            raise CheckpointError(msg) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = (
            f"{path} is truncated or no PyTorch file that loads with weights_only=True ({reason}). "
            "The model is unchanged."
        )
        raise CheckpointError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path} holds a {type(values).__name__}, not a state dict. The model is unchanged."
        raise CheckpointError(msg)
    return values


@contextmanager
def _allowing() -> Iterator[None]:
    """Allow NumPy, and ours in place of MMEngine's; then put back what was allowed, unlike PyTorch's own context."""
    ours: dict[str, Any] = {_HISTORY: _History, "builtins.getattr": _method_of_history}
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        kept = [item for item in before if _name(item) not in ours]
        try:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([*kept, *numpy_globals()])
            torch.serialization.add_safe_globals([(item, name) for name, item in ours.items()])
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _name(item: Any) -> str:
    return str(item[1]) if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}"


def _unknown_objects(path: str | os.PathLike[str]) -> list[str]:
    """Names of the classes and functions in a file with tensors that are not allowed."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not any("/data/" in name for name in archive.namelist()):
                return []
        with _allowing():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path)))
    except Exception:  # as above
        return []

"""What a training run keeps on disk: everything that its next step depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resq_plugin.errors import CheckpointError
from resq_plugin.files import written

__all__ = ["CHECKPOINT", "read_progress", "write_progress"]

CHECKPOINT = "training.pt"


def write_progress(folder: Path, values: dict[str, Any]) -> Path:
    """Write a checkpoint whole or not at all; the one before it stays until then."""
    path = folder / CHECKPOINT
    with written(path, CheckpointError) as part:
        torch.save(values, part)
    return path


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Read the checkpoint of a folder; None if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{path} cannot be read ({error}); delete it to train from the start, or write resume=False."
        raise CheckpointError(msg) from error
    return values

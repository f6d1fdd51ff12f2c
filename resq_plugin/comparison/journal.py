"""Rows of a sweep on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.errors import ReportError
from resq_plugin.files import write_text

__all__ = ["Journal", "fingerprint"]

ROWS = "rows.json"


def fingerprint(model: nn.Module, frame: Tensor, **facts: object) -> str:
    """Tell sweeps apart: weights of the model, first measured frame, and whatever else rows depend on."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in [*model.state_dict().items(), ("frame", frame)]:
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Journal:
    """The rows that are there already, by setting; each new one is on disk before the next begins.

    Args:
        folder: where ``rows.json`` lies; None keeps rows in memory only.
        mark: `fingerprint` of the sweep.

    Raises:
        ReportError: the file is of another sweep, or no such file.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.path = None if folder is None else folder / ROWS
        self.mark = mark
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            self.rows = self._read(self.path)

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            mark, rows = values["sweep"], {row["setting"]: row for row in values["rows"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{path} holds no rows of a comparison ({error!r}); name another folder, or remove the file."
            raise ReportError(msg) from error
        if mark != self.mark:
            msg = (
                f"{path} is of another comparison: model, frames or calibration were others. Name another folder, or "
                "remove the file to measure anew."
            )
            raise ReportError(msg)
        return rows

    def add(self, setting: str, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        self.rows[setting] = {**row, "setting": setting}
        self.write()

    def write(self, **more: Any) -> None:
        """Write all rows, and what else there is to say of them."""
        if self.path is None:
            return
        values = {"sweep": self.mark, "rows": list(self.rows.values()), **more}
        text = json.dumps(values, indent=1) + "\n"
        write_text(self.path, text, ReportError)

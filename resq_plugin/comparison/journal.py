"""Rows of a sweep on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.files import write_json

__all__ = ["Journal"]

ROWS = "rows.json"
NUMBERS = ("accuracy", "agreement", "gbops_per_frame", "relative_bops", "gbops_peak")


class Journal:
    """The rows that are there already, by setting; each new one is on disk before the next begins.

    Args:
        folder: where ``rows.json`` lies; None keeps rows in memory only.
        mark: `resq_plugin.calibration.fingerprint` of the sweep: of all that rows depend on beside their settings.

    Raises:
        ReportError: the file is of another sweep, or no such file.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.path = None if folder is None else folder / ROWS
        self.mark = mark
        self.rows: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        """Settings as they are listed, whichever is measured first."""
        if self.path is not None and self.path.exists():
            self.rows = self._read(self.path)

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            mark, rows = values["sweep"], {row["setting"]: _with_nan(row) for row in values["rows"]}
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
        names = [
            *(name for name in self.order if name in self.rows),
            *(name for name in self.rows if name not in self.order),
        ]
        values = {"sweep": self.mark, "rows": [self.rows[name] for name in names], **more}
        write_json(self.path, values, ReportError)


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file, in which a number that nobody knows is null."""
    return {key: math.nan if key in NUMBERS and value is None else value for key, value in row.items()}

"""Rows of a sweep on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.files import set_aside, write_json

__all__ = ["Journal"]

ROWS = "rows.json"
RESULTS = ("checkpoints/*.pth", "report.html", "compare.mp4", "figures/*")
NUMBERS = ("accuracy", "agreement", "gbops_per_frame", "relative_bops", "gbops_peak")


class Journal:
    """The rows that are there already, by setting; each new one is on disk before the next begins.

    Args:
        folder: where ``rows.json`` lies; None keeps rows in memory only.
        mark: `resq_plugin.calibration.fingerprint` of the sweep: of all that rows depend on beside their settings.

    Results of another sweep are set aside, see `resq_plugin.files.set_aside`.

    Raises:
        ReportError: the file holds no rows, or cannot be read or moved.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.path = None if folder is None else folder / ROWS
        self.mark = mark
        self.rows: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        """Settings as they are listed, whichever is measured first."""
        if self.path is not None:
            set_aside(self.path, RESULTS, mark, lambda path: _read(path)[0], ReportError)
            if self.path.exists():
                self.rows = _read(self.path)[1]

    def add(self, setting: str, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        self.rows[setting] = {**row, "setting": setting}
        self.write()

    def write(self, **more: Any) -> None:
        """Write all rows, and what else there is to say of them."""
        if self.path is None:
            return
        if self.path.exists() and _read(self.path)[0] != self.mark:
            msg = f"{self.path} is of another comparison that began meanwhile; give each a folder of its own."
            raise ReportError(msg)
        names = [
            *(name for name in self.order if name in self.rows),
            *(name for name in self.rows if name not in self.order),
        ]
        values = {"sweep": self.mark, "rows": [self.rows[name] for name in names], **more}
        write_json(self.path, values, ReportError)


def _read(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The mark of a sweep, and its rows by setting."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return str(values["sweep"]), {row["setting"]: _with_nan(row) for row in values["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} holds no rows of a comparison ({error!r}); name another folder, or remove the file."
        raise ReportError(msg) from error


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file, in which a number that nobody knows is null."""
    return {key: math.nan if key in NUMBERS and value is None else value for key, value in row.items()}

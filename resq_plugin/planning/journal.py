"""What a search has measured so far, a line each on disk, so that a killed one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.files import write_text

__all__ = ["SearchJournal"]

FILE = "search.jsonl"


class SearchJournal:
    """Records by key; each is on disk before the next is measured.

    Args:
        folder: where ``search.jsonl`` lies; None keeps records in memory only.
        mark: a text that differs for every other model, data or setting that records depend on.

    Raises:
        ReportError: the file is of another search, or cannot be read.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.path = None if folder is None else folder / FILE
        self.records: dict[str, Any] = {}
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path, mark)
        else:
            self._append({"search": mark})

    def _read(self, path: Path, mark: str) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            whole, _, cut = text.rpartition("\n")
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [{"search": mark}]
            found = first["search"]
            records = {line["key"]: line["value"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{path} holds no records of a search ({error!r}); name another folder, or remove the file."
            raise ReportError(msg) from error
        if found != mark:
            msg = (
                f"{path} is of another search: model, clips or target were others. Name another folder, or remove the "
                "file to search anew."
            )
            raise ReportError(msg)
        self.records = records
        if cut or not whole:  # the line that was being written
            write_text(path, f"{whole}\n" if whole else json.dumps({"search": mark}) + "\n", ReportError)

    def add(self, key: str, value: Any) -> Any:
        """Keep a record, and return it as it will be read back."""
        self.records[key] = json.loads(json.dumps(value))
        self._append({"key": key, "value": value})
        return self.records[key]

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            msg = f"{self.path} cannot be written: {error.strerror or error}."
            raise ReportError(msg) from error

"""What a search has measured so far, a line each on disk, so that a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.files import set_aside, write_text

__all__ = ["SearchJournal"]

FILE = "search.jsonl"
RESULTS = ("front.json", "front.png", "plan.json", "plan.py", "plan.png", "plan.pth", "report.html")


class SearchJournal:
    """Records by key; each is on disk before the next is measured.

    Args:
        folder: where ``search.jsonl`` lies; None keeps records in memory only.
        mark: a text that differs for every other model, data or setting that records depend on.

    Results of another search are set aside, see `resq_plugin.files.set_aside`.

    Raises:
        ReportError: the file is no journal, or cannot be read or moved.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.path, self.mark = None if folder is None else folder / FILE, mark
        self.records: dict[str, Any] = {}
        if self.path is None:
            return
        set_aside(self.path, RESULTS, mark, _mark_of, ReportError)
        if self.path.exists():
            self._read(self.path)
        else:
            self._append({"search": mark})

    def _read(self, path: Path) -> None:
        self.records, is_whole = _records_of(path)
        if not is_whole:  # the line that was being written
            lines = [{"search": self.mark}, *({"key": key, "value": value} for key, value in self.records.items())]
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines), ReportError)

    def add(self, key: str, value: Any) -> Any:
        """Keep a record, and return it as it will be read back."""
        self.records[key] = json.loads(json.dumps(value))
        self._append({"key": key, "value": value})
        return self.records[key]

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        if line.keys() != {"search"} and (not self.path.exists() or _mark_of(self.path) != self.mark):
            msg = f"{self.path} was moved by another search that began meanwhile; give each a folder of its own."
            raise ReportError(msg)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            msg = f"{self.path} cannot be written: {error.strerror or error}."
            raise ReportError(msg) from error


def _mark_of(path: Path) -> str | None:
    """The mark of a search; None where its line was not written to its end, and nothing was measured."""
    with _reading(path), path.open(encoding="utf-8") as file:
        first = file.readline()
        return str(json.loads(first)["search"]) if first.endswith("\n") else None


def _records_of(path: Path) -> tuple[dict[str, Any], bool]:
    """What is recorded, and whether the last line was written to its end."""
    with _reading(path):
        whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()[1:]]
        return {line["key"]: line["value"] for line in lines}, bool(whole) and not cut


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} holds no records of a search ({error!r}); name another folder, or remove the file."
        raise ReportError(msg) from error
